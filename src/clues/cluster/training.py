"""A training whose steps several workers of a silo's cluster share, by Ray Train.

The project's own trainer runs in every worker, each on a part of every step's rows; gradients are
averaged by torch (DDP). Rows go as token ids, weights as safetensors.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from socket import gethostname
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import torch

from clues.cluster.connection import AUTH_MODE, WHAT, connect, error_of
from clues.cluster.worker import versions
from clues.config import (
    ComputeSettings,
    LoraSettings,
    ModelSettings,
    Recipe,
    TrainSettings,
    validate,
)
from clues.data.tokenfile import pack_rows, unpack_rows
from clues.data.tokens import EncodedRow
from clues.errors import CluesError, ClusterError
from clues.extras import needs
from clues.model.adapters import AdapterState, Checkpoint, LoraModel
from clues.model.place import first_line
from clues.model.recording import Schedule
from clues.model.shares import Part
from clues.model.tensorfile import pack, sealed_parts, unpack
from clues.model.training import Trained, step_batches, train
from clues.scoring.job import unsealed

POLL_S = 0.3

log = logging.getLogger("clues")


class Steps:
    """Where the first worker reports to, so that somebody can look: steps taken, and what is wrong."""

    def __init__(self) -> None:
        """None yet."""
        self.n, self.refused = 0, ("", "")

    def took(self) -> None:
        """One more step."""
        self.n += 1

    def refuse(self, kind: str, text: str) -> None:
        """Our own code says no; the first one counts."""
        self.refused = self.refused if self.refused[0] else (kind, text)

    def look(self) -> tuple[int, tuple[str, str]]:
        """Steps so far, and kind and text of what is wrong."""
        return self.n, self.refused


def train_on_cluster(
    settings: ComputeSettings,
    recipe: Recipe,
    model: LoraModel,
    rows: Sequence[EncodedRow],
    *,
    start: AdapterState,
    schedule: Schedule,
    n_steps: int,
    seed: int,
    scratch: str,
    first_step: int = 0,
    checkpoint_at: Sequence[int] = (),
    on_step: Callable[[], None] | None = None,
    order: Sequence[int] | None = None,
    proximal: float = 0.0,
) -> Trained:
    """As `training.train`, on several workers; the same but for the order in which numbers are added.

    Args:
        settings: of the cluster.
        recipe: with the base model where the silo's settings say.
        model: says which weights train and what lies beneath them; is left with the trained adapter.
        rows: as there, and so on.
        start: adapter to begin from.
        schedule: learning rate, counted from `first_step`.
        n_steps: optimiser steps to take now.
        seed: of dropout and, without `order`, of the order of rows.
        scratch: folder for what Ray Train writes; nothing is kept there.
        first_step: steps that earlier calls have taken.
        checkpoint_at: one-based steps after which to save.
        on_step: called after every step.
        order: positions of the rows, step after step.
        proximal: mu of FedProx.

    Raises:
        NumericsError: the loss of a step, or the adapter, is not finite.
        ClusterError: the workers cannot do it.
    """
    # First of all: it sets what the workers are compared with.
    ray = connect(settings)
    steps = step_batches(
        model,
        len(rows),
        settings=recipe.train,
        n_steps=n_steps,
        seed=seed,
        scratch=scratch,
        order=order,
    )
    # The rows that train, and no others, leave this process.
    used = sorted({position for step in steps for position in step})
    place = {position: number for number, position in enumerate(used)}
    packed = pack_rows([rows[i] for i in used])
    head = {
        "rows": hashlib.sha256(packed).hexdigest(),
        "model": recipe.model.model_dump(mode="json"),
        "lora": recipe.lora.model_dump(mode="json"),
        "train": recipe.train.model_dump(mode="json"),
        "model_seed": recipe.seed,
        "schedule": [schedule.peak, schedule.warmup, schedule.total_steps],
        "steps": [[place[position] for position in step] for step in steps],
        "n_steps": n_steps,
        "seed": seed,
        "first_step": first_step,
        "checkpoint_at": list(checkpoint_at),
        "proximal": proximal,
        "frozen_a": any(not p.requires_grad for p in model.parameters().values()),
        "versions": {**versions(), AUTH_MODE: os.environ.get(AUTH_MODE, "unset")},
        "cpus": settings.cpus,
        "gradient_checkpointing": settings.gradient_checkpointing,
    }
    work = _sealed({"start": start, "beneath": model.beneath or {}}, head)
    data = _fit(ray, settings, work, packed, Path(scratch), on_step)
    tree, said = _unsealed(data)
    points = tuple(
        Checkpoint(step, rate, point["adapter"], point["second"], point["first"], n_seen)
        for point, (step, rate, n_seen) in zip(tree["points"], said["points"], strict=True)
    )
    model.set_state(tree["adapter"])
    return Trained(tree["adapter"], points, said["mean_loss"], tuple(said["losses"]))


def _fit(
    ray: Any,
    settings: ComputeSettings,
    work: bytes,
    rows: bytes,
    scratch: Path,
    on_step: Callable[[], None] | None,
) -> bytes:
    """Run the work on the workers; what the first one returns."""
    with needs("ray", what=WHAT):
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    steps = ray.remote(Steps).options(num_cpus=0).remote()
    resources = {"CPU": settings.cpus} | ({"GPU": settings.gpus} if settings.gpus else {})
    trainer = TorchTrainer(
        work_together,
        train_loop_config={"work": ray.put(work), "rows": ray.put(rows), "steps": steps},
        scaling_config=ScalingConfig(
            num_workers=settings.train_workers,
            use_gpu=settings.gpus > 0,
            resources_per_worker=resources,
        ),
        torch_config=TorchConfig(backend="nccl" if settings.gpus else "gloo"),
        # A worker that is lost: the training begins anew, and takes the same steps.
        run_config=RunConfig(
            storage_path=str(scratch.resolve()),
            name="ray-train",
            failure_config=FailureConfig(max_failures=1),
        ),
    )
    outcome: list[Any] = []
    thread = Thread(target=_caught, args=(trainer, outcome), daemon=True)
    thread.start()
    seen, begun = 0, time.monotonic()
    while thread.is_alive():
        thread.join(POLL_S)
        n, refused = ray.get(steps.look.remote())
        for _ in range(n - seen if on_step else 0):
            on_step()  # pyright: ignore[reportOptionalCall]
        seen = max(seen, n)
        if not n and not refused[0] and time.monotonic() - begun > settings.wait_s:
            raise ClusterError(
                f"{settings.address or 'this machine'}: {settings.train_workers} workers with "
                f"{settings.cpus} CPUs and {settings.gpus:g} GPUs did not begin to train within "
                f"{settings.wait_s:.0f} s. Ask for fewer, or raise compute.wait_s."
            )
    _, (kind, text) = ray.get(steps.look.remote())
    ray.kill(steps)
    (found,) = outcome
    if kind:
        raise error_of(kind, text)
    if isinstance(found, Exception):
        raise ClusterError(f"the workers did not finish the training ({first_line(found)}).")
    return found


def _caught(trainer: Any, outcome: list[Any]) -> None:
    from ray.train import TrainingFailedError

    try:
        outcome.append(trainer.fit().return_value)
    except TrainingFailedError as error:
        outcome.append(error)


def work_together(config: Mapping[str, Any]) -> bytes | None:
    """What every worker runs; the first one returns what came out."""
    with needs("ray", what="a worker of a silo's cluster"):
        import ray
        from ray.train import get_context
    context, steps = get_context(), config["steps"]
    part = Part(context.get_world_rank(), context.get_world_size(), ())
    work: Any = ray.get(config["work"])
    rows: Any = ray.get(config["rows"])
    first = part.rank == 0
    try:
        return _work(work, rows, part, steps.took.remote if first else None)
    except CluesError as error:
        # The others wait for this one: it must fail for them to be ended.
        ray.get(steps.refuse.remote(type(error).__name__, str(error)))
        raise


def _work(work: bytes, data: bytes, part: Part, on_step: Callable[[], None] | None) -> bytes | None:
    tree, head = _unsealed(work)
    ours = {**versions(), AUTH_MODE: os.environ.get(AUTH_MODE, "unset")}
    if head["versions"] != ours:
        raise ClusterError(
            f"a worker on {gethostname()} has {_named(ours)}, and this silo "
            f"{_named(head['versions'])}. Install and set the same on every machine of the cluster."
        )
    if hashlib.sha256(data).hexdigest() != head["rows"]:
        raise ClusterError("rows of a training did not arrive as they were sent.")
    torch.set_num_threads(head["cpus"])
    how = {
        "settings": validate(TrainSettings, head["train"], where="the recipe"),
        "schedule": Schedule(*head["schedule"]),
        "part": replace(part, steps=head["steps"]),
        **{n: head[n] for n in ("n_steps", "seed", "first_step", "checkpoint_at", "proximal")},
        "gradient_checkpointing": head["gradient_checkpointing"],
    }
    model = LoraModel.load(
        validate(ModelSettings, head["model"], where="the recipe"),
        validate(LoraSettings, head["lora"], where="the recipe"),
        seed=head["model_seed"],
    )
    model.freeze_a(frozen=head["frozen_a"])
    beneath = tree["beneath"]
    with (
        TemporaryDirectory(prefix="clues-") as scratch,
        model.on_top_of(beneath) if beneath else nullcontext(),
    ):
        found = train(
            model, unpack_rows(data), start=tree["start"], scratch=scratch, on_step=on_step, **how
        )
    if part.rank:
        return None
    points = [
        {"adapter": c.adapter, "second": c.second_moment, "first": c.first_moment}
        for c in found.checkpoints
    ]
    said = {
        "points": [[c.step, c.learning_rate, c.optimizer_steps] for c in found.checkpoints],
        "mean_loss": found.mean_loss,
        "losses": found.losses,
    }
    return _sealed({"adapter": found.adapter, "points": points}, said)


def _named(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(found.items()))


def _sealed(tree: Any, head: Any) -> bytes:
    plan, tensors = pack(tree)
    return b"".join(sealed_parts(tensors, {"clues": json.dumps({"plan": plan, "head": head})}))


def _unsealed(data: bytes) -> tuple[Any, Any]:
    tensors, said = unsealed(data)
    return unpack(said["plan"], tensors.pop), said["head"]
