"""The coordinator's train stage: rounds of the joint trajectory whose checkpoints are scored."""

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clues.atomic import make_folder
from clues.config import NEEDS_FIRST_MOMENT, NEEDS_SECOND_MOMENT
from clues.coordinator.bounds import capped, longest_gradient, mean_lengths, shortened
from clues.coordinator.desk import Desk
from clues.coordinator.guards import check_apart, check_train, too_long, update_norm
from clues.coordinator.inbox import Inbox, Update
from clues.coordinator.tracing import join_finite
from clues.errors import DataError
from clues.model.adapters import (
    AdapterState,
    Checkpoint,
    load_checkpoint,
    read_tensors,
    save_checkpoint,
    write_tensors,
)
from clues.model.merging import aggregate
from clues.model.tensorfile import pack, unpack
from clues.rundir import Stages, read_record, write_record
from clues.scoring.inrun import Reference
from clues.scoring.rounds import is_refreshed, make_reference
from clues.scoring.trajectory import n_train_steps
from clues.wall.messages import TrainReply, TrainRequest

log = logging.getLogger("clues")


def train_apart(desk: Desk) -> dict[str, Any]:
    """Have every silo train its own trajectory; nothing of it leaves the silo."""
    request = _request(desk, 0, desk.initial)
    desk.exchange.ask("train", dict.fromkeys(desk.silos, request), check_apart)
    return {}


def train_together(desk: Desk, folder: Path) -> dict[str, Any]:
    """Do the rounds of the joint trajectory that are not on disk yet.

    Args:
        desk: recipe, model, silos.
        folder: for these inputs; a killed warm-up goes on from what is there.

    Returns:
        Name of the folder, names of the checkpoints to score, what joining lost, public rows'
        loss along the rounds, and the seconds that all rounds took, those found on disk with them.
    """
    settings = desk.recipe.train
    steps = [n_train_steps(settings, n) for n in desk.n_rows]
    n_steps = max(1, round(float(np.mean(steps)) / settings.rounds))
    inbox = Inbox(folder / "inbox")
    # No optimiser has run before the first round.
    before, lost, seconds = Checkpoint(0, 0.0, desk.initial, {}), 0.0, 0.0
    curve = desk.watch.look([], 0, settings.rounds, desk.initial)
    kept = [
        f"round-{round(settings.rounds * (i + 1) / settings.checkpoints) - 1}"
        for i in range(settings.checkpoints)
    ]
    for number in range(settings.rounds):
        place = folder / f"round-{number}"
        stored = _stored_round(place)
        if stored is not None:
            before, record = stored
            lost, curve = max(lost, record["energy_lost"]), record.get("curve", curve)
            seconds += record.get("seconds", 0.0)
            continue
        started = time.perf_counter()
        requests = _requests(desk, number, before, folder, per_round=n_steps)
        found = _ask_round(desk, requests, before.adapter, inbox)
        before, energy_lost = _join_finite(
            desk, number, found, n_steps=n_steps, scores=f"round-{number}" in kept
        )
        lost = max(lost, energy_lost)
        inbox.clear()
        curve = desk.watch.look(curve, number + 1, settings.rounds, before.adapter)
        # Rounded as it is stored, so that a resumed warm-up adds up the same numbers.
        took = round(time.perf_counter() - started, 3)
        seconds += took
        record = {"energy_lost": energy_lost, "curve": curve, "seconds": took}
        write_record(place / "record.json", record)
        save_checkpoint(before, place)
    figures = {"energy_lost": lost, "curve": curve, "seconds": round(seconds, 3)}
    return {"folder": folder.name, "checkpoints": kept, **figures}


def _stored_round(place: Path) -> tuple[Checkpoint, dict[str, Any]] | None:
    """A round that is on disk and whole; a damaged one is done again, and gives the same."""
    if not (place / "state.json").exists():
        return None
    try:
        record = read_record(place / "record.json", advice="The round is done again.")
        return load_checkpoint(place), record
    except DataError as error:
        log.warning("%s", error)
        return None


def forget_warm_up(folder: Path, trajectory: Path) -> None:
    """Remove a joint trajectory that nothing can be scored on, so that the next call trains again.

    Args:
        folder: the coordinator's.
        trajectory: the folder of its rounds.
    """
    Stages(folder / "stages").forget("train")
    shutil.rmtree(trajectory, ignore_errors=True)


def _ask_round(
    desk: Desk, requests: Mapping[str, TrainRequest], sent: AdapterState, inbox: Inbox
) -> dict[str, Update]:
    """Ask for one round, and put the replies on disk."""
    settings, forms = desk.recipe.train, desk.recipe.score.forms
    means = (bool(forms & set(NEEDS_FIRST_MOMENT)), bool(forms & set(NEEDS_SECOND_MOMENT)))
    n_weights = sum(tensor.numel() for tensor in sent.values())

    def take(name: str, reply: TrainReply) -> Update:
        n_rows, ffa = desk.silos[name]["n_rows"], settings.aggregation == "ffa"
        peak = settings.learning_rate
        check_train(
            name,
            reply,
            sent=sent,
            n_rows=n_rows,
            peak=peak,
            ffa=ffa,
            means=means,
            longest=longest_gradient(n_weights, settings.batch_size),
        )
        norm = update_norm(reply.adapter, sent)
        path, lengths = inbox.path(name), mean_lengths(reply)
        return Update(reply.weight, norm, reply.learning_rate, path, lengths)

    def judge(found: Mapping[str, Update]) -> Mapping[str, str]:
        norms = {name: update.norm for name, update in found.items()}
        return too_long(norms, bound=desk.federation.norm_bound)

    return desk.exchange.ask("train", requests, take, keep=inbox.put, judge=judge)


def _join_finite(
    desk: Desk, number: int, found: Mapping[str, Update], *, n_steps: int, scores: bool
) -> tuple[Checkpoint, float]:
    """As `_join`, without silos whose update makes public rows' losses or scores not finite."""
    _, joined = join_finite(
        found,
        join=lambda some: _join(desk, number, some, n_steps=n_steps),
        alone=lambda update: _join(desk, number, {"": update}, n_steps=n_steps),
        look=lambda joined: desk.try_out(joined[0], scores=scores),
        stage="train",
        attendance=desk.attendance,
    )
    return joined


def _join(
    desk: Desk, number: int, found: Mapping[str, Update], *, n_steps: int
) -> tuple[Checkpoint, float]:
    """The checkpoint that a round's updates make together, and the energy that joining lost."""
    joint = aggregate(
        [u.tensors() for u in found.values()],
        capped([u.weight for u in found.values()], desk.federation.max_share),
        method=desk.recipe.train.aggregation,
    )
    lengths = list(zip(*(u.means for u in found.values()), strict=True))
    first, second = (
        _mean_moment(
            [u.tensors(f"{which}_moment") for u in found.values()],
            [factor**power for factor in shortened(lengths[power - 1])],
        )
        for power, which in ((1, "first"), (2, "second"))
    )
    rate = float(np.mean([u.learning_rate for u in found.values()]))
    point = Checkpoint(number + 1, rate, joint.adapter, second, first, n_steps)
    return point, joint.energy_lost


def _requests(
    desk: Desk, number: int, before: Checkpoint, folder: Path, *, per_round: int
) -> dict[str, TrainRequest]:
    """One request a domain, with directions of the public rows where training scores."""
    if not desk.recipe.score.inrun:
        return dict.fromkeys(desk.silos, _request(desk, number, before.adapter))
    requests: dict[str, TrainRequest] = {}
    for domain in desk.domains:
        reference = _reference(
            desk, domain, number, before, folder / "directions", per_round=per_round
        )
        request = _request(desk, number, before.adapter, reference)
        requests |= dict.fromkeys(desk.members(domain), request)
    return requests


def _reference(
    desk: Desk, domain: str, number: int, before: Checkpoint, folder: Path, *, per_round: int
) -> Reference:
    """A domain's directions for a round, and their units; made anew where the round is due."""
    file, record = folder / f"{domain}.safetensors", folder / f"{domain}.json"
    advice = f"Remove {folder.parent.name} there and run again."
    stored: dict[str, Any] = {"round": -1}
    if record.exists():
        stored = read_record(record, advice=advice)
    if is_refreshed(number, per_round, desk.recipe, desk.n_rows) and stored["round"] != number:
        made = make_reference(
            desk.model,
            desk.validation(domain),
            before,
            form=desk.recipe.score.inrun_form,
            weights=desk.scored_weights(),
        )
        plan, tensors = pack(made.directions)
        stored = {"plan": plan, "products": made.products, "loss": made.loss, "round": number}
        make_folder(folder)
        write_tensors(file, tensors)
        write_record(record, stored)
    directions = unpack(stored["plan"], read_tensors(file).pop)
    return Reference(directions, stored["products"], stored["loss"])


def _request(
    desk: Desk, number: int, adapter: AdapterState, reference: Reference | None = None
) -> TrainRequest:
    return TrainRequest(
        recipe_hash=desk.recipe.hash,
        round=number,
        adapter=adapter,
        validation=dict(reference.products) if reference else {},
        validation_loss=reference.loss if reference else 0.0,
        directions=dict(reference.directions) if reference else {},
    )


def _mean_moment(
    moments: Sequence[Mapping[str, torch.Tensor]], factors: Sequence[float]
) -> AdapterState:
    """Mean over silos, each multiplied by its factor; those of factor 1 are taken as they are."""
    if not moments or not moments[0]:
        return {}
    return {
        name: torch.stack(
            [m[name] if f == 1 else f * m[name] for m, f in zip(moments, factors, strict=True)]
        ).mean(dim=0)
        for name in moments[0]
    }
