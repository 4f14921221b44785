"""The coordinator's score and threshold stages: directions, the anchors' scores, one threshold."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from clues.config import derived_seed
from clues.coordinator.bounds import Reach, reach_of, too_far
from clues.coordinator.desk import Desk
from clues.coordinator.guards import check_anchor_scores
from clues.coordinator.outcomes import Scored, Trained
from clues.coordinator.prepared import Kept
from clues.coordinator.train import forget_warm_up
from clues.data.tokens import EncodedRow
from clues.errors import DataError, NumericsError
from clues.model.adapters import AdapterState, Checkpoint, load_checkpoint
from clues.scoring.compared import AnchorScores, Standpoint, compare_anchors
from clues.scoring.forms import form_directions
from clues.scoring.trajectory import (
    TrajectoryScores,
    anchors_at_coordinator,
    group_names,
    moments_at_rows,
    n_passes,
    probe_loss,
    score_rows,
    set_weights,
)
from clues.selection.threshold import Threshold, fit_threshold
from clues.selection.weighing import Controls, Weighing, replaced, weigh_parts
from clues.wall.messages import ScoreReply, ScoreRequest

# How results name rejected rows among the kinds of damage.
REJECTED = "rejected"


def ask_for_scores(desk: Desk, trained: Trained, *, key: str) -> dict[str, Any]:
    """Have every silo score its rows, and collect the anchors' scores by group.

    Args:
        desk: recipe, model, silos.
        trained: what the train stage returned.
        key: hash of all that scores of public rows depend on.

    Returns:
        Anchor scores by group and part, weights of parts, what they tell apart on damaged copies of
        anchors, the copies' scores, and each silo's proposal for a cut.
    """
    here = anchors_at_coordinator(desk.recipe)
    anchors: dict[str, dict[str, list[float]]] = {}
    requests: dict[str, ScoreRequest] = {}
    weighing, copies = Weighing({}, {}), dict[str, Controls]()
    kept = Kept(desk.folder / "prepared", key)
    if desk.recipe.score.shared:
        base = desk.folder / "trajectory" / trained.folder
        checkpoints = [load_checkpoint(base / name) for name in trained.checkpoints]
        try:
            found = {
                domain: kept.of(
                    domain,
                    recipe_hash=desk.recipe.hash,
                    compute=partial(_domain_request, desk, domain, checkpoints),
                )
                for domain in desk.domains
            }
        except NumericsError as error:
            # With these settings nothing can be scored on it; kept, it would stop every next call.
            forget_warm_up(desk.folder, base)
            raise NumericsError(f"{error} The warm-up is removed; the next call trains.") from None
        if here:
            anchors = {f"domain {d}": request.anchor_scores for d, (request, _) in found.items()}
            copies = {f"domain {d}": c for d, (_, c) in found.items() if c is not None}
            weighing = _weigh(desk, anchors, copies)
        cut = None
        if desk.recipe.score.cascade:
            # From the same numbers as `one_threshold` makes it of, so it is the same.
            raw = {g: {k: np.array(v) for k, v in sets.items()} for g, sets in anchors.items()}
            names = {f"domain {domain}": domain for domain in desk.domains}
            cut = _fitted(desk, raw, weighing.weights, names, copies).value
        for domain, (request, _) in found.items():
            request = replace(request, weights=weighing.weights, cut=cut)
            requests |= dict.fromkeys(desk.members(domain), request)
    else:
        requests = dict.fromkeys(desk.silos, _request(desk, [], [], [], {}, AnchorScores({}, {})))
    sizes = {} if here else {domain: len(desk.anchors(domain)) for domain in desk.recipe.public}

    reaches: dict[str, Reach] = {}

    def take(name: str, reply: ScoreReply) -> ScoreReply:
        domain = desk.silos[name]["domain"]
        weights = set_weights(desk.recipe.score, desk.recipe.public[domain])
        if not here:
            groups = set(group_names(desk.recipe, name, domain))
            n = sizes[domain]
            check_anchor_scores(name, reply, groups=groups, parts=list(weights), n_anchors=n)
        elif reply.anchor_scores:
            raise DataError(f"silo {name}: it sends anchor scores, and nobody has asked for them.")
        reaches[name] = reach_of(name, reply, weights, desk.recipe.threshold)
        return reply

    def judge(found: Mapping[str, ScoreReply]) -> Mapping[str, str]:
        return too_far({name: reaches[name] for name in found})

    replies = desk.exchange.ask("score", requests, take, judge=judge)
    kept.forget()
    for reply in replies.values() if not here else ():
        anchors |= reply.anchor_scores
    return {
        "anchors": anchors,
        "weights": weighing.weights,
        "controls": weighing.auc,
        "copies": {group: controls.to_json() for group, controls in copies.items()},
        "proposals": {n: r.proposal for n, r in replies.items()},
    }


def one_threshold(desk: Desk, scored: Scored) -> Threshold:
    """The threshold of all silos, from what the score stage returned."""
    asked = desk.attendance.begin("score")
    domains = {
        group: silo["domain"]
        for name, silo in asked.items()
        for group in group_names(desk.recipe, name, silo["domain"])
    }
    # Who scored the anchors of a group; at the coordinator nobody else can bend them.
    owners = {g: n for n, s in asked.items() for g in group_names(desk.recipe, n, s["domain"])}
    return _fitted(
        desk,
        scored.raw,
        scored.weights,
        domains,
        scored.damaged,
        proposals={k: v for k, v in scored.proposals.items() if v is not None},
        owners=None if anchors_at_coordinator(desk.recipe) else owners,
    )


def _fitted(
    desk: Desk,
    anchors: Mapping[str, Mapping[str, np.ndarray]],
    weights: Mapping[str, float],
    domains: Mapping[str, str],
    copies: Mapping[str, Controls],
    **more: Any,
) -> Threshold:
    """The recipe's threshold from the anchors' scores; `domains` by group, `more` as `fit_threshold`."""
    settings = desk.recipe.score
    return fit_threshold(
        anchors,
        {
            g: replaced(set_weights(settings, desk.recipe.public[domains[g]]), weights)
            for g in anchors
        },
        desk.recipe.threshold,
        recipe_hash=desk.recipe.hash,
        seed=derived_seed(desk.recipe.seed, "bootstrap"),
        copies=copies,
        **more,
    )


def _weigh(
    desk: Desk,
    anchors: Mapping[str, Mapping[str, Sequence[float]]],
    copies: Mapping[str, Controls],
) -> Weighing:
    """Weights of the parts that the recipe leaves open, from all domains' damaged anchors."""
    if not copies:
        return Weighing({}, {})
    settings = desk.recipe.score
    return weigh_parts(
        {g: {k: np.array(v) for k, v in sets.items()} for g, sets in anchors.items()},
        copies,
        {
            f"domain {domain}": set_weights(settings, public)
            for domain, public in desk.recipe.public.items()
        },
        [name for name, is_weighed in desk.recipe.weighed.items() if is_weighed],
        combine=desk.recipe.threshold.combine,
    )


def _domain_request(
    desk: Desk, domain: str, checkpoints: Sequence[Checkpoint]
) -> tuple[ScoreRequest, Controls | None]:
    """Directions, anchor scores and damaged anchors' scores of a domain on the joint trajectory."""
    settings, validation = desk.recipe.score, desk.validation(domain)
    directions: list[dict[str, AdapterState]] = []
    weights = desk.scored_weights()
    sets = desk.direction_rows(domain)
    n_rows = sum(map(len, sets.values())) * len(checkpoints)
    with desk.progress.task(f"coordinator: directions, {domain}", n_rows) as advance:
        how: dict[str, Any] = {"form": settings.form, "weights": weights, "on_rows": advance}
        directions += [form_directions(desk.model, sets, c, **how) for c in checkpoints]
    anchor_scores: dict[str, list[float]] = {}
    compared = AnchorScores({}, {})
    controls = None
    if anchors_at_coordinator(desk.recipe):
        where = (checkpoints, directions)
        passes = n_passes(settings, len(checkpoints), knows_before=False)

        def public_scores(what: str, rows: Sequence[EncodedRow]) -> TrajectoryScores:
            bar = f"coordinator: {what}, {domain}"
            with desk.progress.task(bar, len(rows) * passes) as advance:
                return score_rows(desk.model, rows, *where, settings=settings, on_rows=advance)

        scored = public_scores("anchors", desk.anchors(domain))
        anchor_scores = {k: [float(x) for x in v] for k, v in scored.raw.items()}
        place = Standpoint(desk.model, validation, checkpoints, desk.recipe, domain, weights)
        bar = partial(desk.progress.task, f"coordinator: compared scores, {domain}")
        compared = compare_anchors(place, desk.anchors(domain), task=bar)
        if desk.recipe.needs_copies:
            rows, kinds = desk.damaged_anchors(domain)
            _, rejected = desk.rejected(domain)
            rows, kinds = [*rows, *rejected], [*kinds, *[REJECTED] * len(rejected)]
            damaged = public_scores("damaged copies", rows)
            controls = Controls(damaged.raw, kinds)
    probes = [probe_loss(desk.model, validation, c) for c in checkpoints]
    return _request(desk, checkpoints, directions, probes, anchor_scores, compared), controls


def _request(
    desk: Desk,
    checkpoints: Sequence[Checkpoint],
    directions: Sequence[Mapping[str, AdapterState]],
    probe_losses: list[float],
    anchor_scores: dict[str, list[float]],
    compared: AnchorScores,
) -> ScoreRequest:
    needs_first, needs_second = moments_at_rows(desk.recipe)
    return ScoreRequest(
        recipe_hash=desk.recipe.hash,
        learning_rates=[c.learning_rate for c in checkpoints],
        optimizer_steps=[c.optimizer_steps for c in checkpoints],
        probe_losses=probe_losses,
        anchor_scores=anchor_scores,
        compared_forms={
            form: {name: list(v) for name, v in sets.items()}
            for form, sets in compared.forms.items()
        },
        compared_baselines={name: list(v) for name, v in compared.baselines.items()},
        weights={},
        cut=None,
        checkpoints=[c.adapter for c in checkpoints],
        directions=[dict(sets) for sets in directions],
        first_moments=[c.first_moment if needs_first else {} for c in checkpoints],
        second_moments=[c.second_moment if needs_second else {} for c in checkpoints],
    )
