"""A silo's answer to a score request: its rows, on the checkpoints or as training saw them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clues.config import LOSS, Recipe, derived_seed
from clues.data.tokens import EncodedRow
from clues.errors import DataError
from clues.model.adapters import Checkpoint, check_state
from clues.rundir import write_json
from clues.scoring.baselines import BASELINES
from clues.scoring.compared import (
    Compared,
    Standpoint,
    compare,
    one_number,
    score_by_baselines,
)
from clues.scoring.direction import scored_weights
from clues.scoring.forms import form_directions
from clues.scoring.perplexity import losses_before, mean_losses
from clues.scoring.rounds import read_scores
from clues.scoring.table import ScoreTable
from clues.scoring.trajectory import (
    TrajectoryScores,
    anchors_at_coordinator,
    check_probe,
    fold_of,
    group_names,
    probe_loss,
    score_rows,
    set_weights,
)
from clues.selection.threshold import mixture_cut
from clues.selection.units import anchor_units, combine
from clues.selection.weighing import replaced
from clues.silo.workspace import Workspace
from clues.wall.messages import ScoreReply, ScoreRequest


@dataclass(frozen=True)
class _Scene:
    """What a group of rows is scored with."""

    place: Standpoint
    directions: list[dict[str, Any]]


def score(space: Workspace, request: ScoreRequest) -> ScoreReply:
    """Score every private row, write the table, and send what the threshold needs: no score.

    Raises:
        DataError: a fold without rows, or a request whose parts do not fit together.
        NonFiniteScoreError: a row scores NaN or infinity, and rows are not skipped for it.
    """
    recipe, encoded = space.recipe(), space.encoded()
    groups = group_names(recipe, space.name, space.settings.domain)
    model, rows = space.model(), list(encoded.rows)
    frozen = recipe.score.shared and recipe.train.aggregation == "ffa"
    weights = scored_weights(model, recipe.score, frozen_a=frozen)
    raw: dict[str, np.ndarray] = {}
    parts: dict[str, np.ndarray] = {
        "base/loss": losses_before(model, rows, skip_nonfinite=space.skip_nonfinite)
    }
    fold = np.array([fold_of(r, recipe) if len(groups) > 1 else 0 for r in rows])
    anchors: dict[str, dict[str, list[float]]] = {}
    compared: dict[str, dict[str, list[float]]] = {}
    for number, group in enumerate(groups):
        members = np.flatnonzero(fold == number)
        if not len(members):
            raise DataError(f"silo {space.name}: too few rows to cross-fit.")
        scene = _scene(space, request, number, weights)
        chosen = [rows[i] for i in members]
        before = parts["base/loss"][members]
        scored, anchor_scores = _score_group(space, chosen, before, scene, request)
        finite = _finite([*scored.raw.values(), parts["base/loss"][members]])
        chosen = [row for row, good in zip(chosen, finite, strict=True) if good]
        if not anchors_at_coordinator(recipe):
            anchors[group] = {k: [float(x) for x in v] for k, v in anchor_scores.items()}
        found = compare(
            scene.place,
            chosen,
            space.anchors() if recipe.score.compare else [],
            known=_known(recipe, space.settings.domain, scored.raw, anchor_scores, finite),
            sent=request.compared_anchors if anchors_at_coordinator(recipe) else None,
        )
        if "inrun" in recipe.score.compare:
            found["inrun"] = _compared_in_run(space, rows, finite)
        for name, other in found.items():
            compared.setdefault(name, {})[group] = [float(x) for x in other.anchors]
        beside = {f"compare/{n}": _spread(c.rows, finite) for n, c in found.items()}
        for target, source in ((raw, scored.raw), (parts, scored.parts | beside)):
            for name, values in source.items():
                target.setdefault(name, np.zeros(len(rows)))[members] = values
        space.memory.setdefault("anchor_scores", {})[group] = anchor_scores
    write_json(space.private / "compared.json", compared)
    groups_of = {
        group: {part: [float(x) for x in values] for part, values in sets.items()}
        for group, sets in space.memory["anchor_scores"].items()
    }
    write_json(space.private / "anchors.json", groups_of)
    finite = _finite([*raw.values(), parts["base/loss"]])
    lost = [row for row, good in zip(rows, finite, strict=True) if not good]
    write_json(space.private / "nonfinite.json", {str(row.row): row.id for row in lost})
    rows = [row for row, good in zip(rows, finite, strict=True) if good]
    raw = {name: values[finite] for name, values in raw.items()}
    fold = fold[finite]
    ScoreTable(
        recipe_hash=recipe.scoring_hash,
        row=np.array([r.row for r in rows]),
        id=tuple(r.id for r in rows),
        fold=fold,
        n_tokens=np.array([len(r.ids) for r in rows]),
        n_response_tokens=np.array([r.n_response_tokens for r in rows]),
        raw=raw,
        parts={name: values[finite] for name, values in parts.items()},
    ).write(space.private / "scores.parquet")
    proposal = _proposal(space, request, groups, raw, fold)
    return ScoreReply(recipe_hash=recipe.hash, anchor_scores=anchors, proposal=proposal)


def _scene(space: Workspace, request: ScoreRequest, number: int, weights: list[str]) -> _Scene:
    """Checkpoints and directions of one group, sent by the coordinator or made here."""
    recipe, domain = space.recipe(), space.settings.domain
    validation = space.validation()
    if recipe.score.shared:
        n = {len(request.learning_rates), len(request.optimizer_steps)}
        if n != {len(request.probe_losses)}:
            raise DataError("the score request's checkpoints do not fit together.")
        checkpoints, directions = _sent_trajectory(request)
        wanted = set(validation) if recipe.score.sends_directions else set[str]()
        _check_sent(space, checkpoints, directions, wanted=wanted, weights=weights)
        for checkpoint, expected in zip(checkpoints, request.probe_losses, strict=True):
            check_probe(
                probe_loss(space.model(), validation, checkpoint),
                expected,
                recipe=recipe,
                where=f"silo {space.name}",
            )
    else:
        checkpoints = space.own_checkpoints(recipe, number)
        # Other scores than influence need no direction.
        sets = validation if recipe.score.method == "influence" else {}
        directions = [
            form_directions(space.model(), sets, c, form=recipe.score.form, weights=weights)
            for c in checkpoints
        ]
    place = Standpoint(space.model(), validation, checkpoints, recipe, domain, weights)
    return _Scene(place, directions)


def _score_group(
    space: Workspace,
    rows: list[EncodedRow],
    before: np.ndarray,
    scene: _Scene,
    request: ScoreRequest,
) -> tuple[TrajectoryScores, dict[str, np.ndarray]]:
    """Scores of a group's rows, and of the anchors on the same checkpoints.

    `before` are the rows' losses before the training.
    """
    recipe, model = space.recipe(), space.model()
    method, anchors = recipe.score.method, space.anchors()
    checkpoints = scene.place.checkpoints
    if recipe.score.trajectory == "inrun":
        ours, theirs = _in_run_scores(space, rows)
        wanted = set_weights(recipe.score, recipe.public[space.settings.domain].validation)
        parts = {f"inrun/{name}": values for name, values in ours.items() if name != LOSS}
        parts["inrun/loss"] = -ours[LOSS]
        if LOSS in wanted and recipe.score.loss_under == "base":
            ours, theirs = ours | {LOSS: -before}, theirs | {LOSS: -losses_before(model, anchors)}
        chosen = {name: ours[name] for name in wanted}
        return TrajectoryScores(chosen, parts), {name: theirs[name] for name in wanted}
    if method in BASELINES:
        found = score_by_baselines(scene.place, [method], rows, anchors)[method]
        last = mean_losses(model, rows, adapter=checkpoints[-1].adapter)
        return TrajectoryScores({method: found.rows}, {"0/loss": last}), {method: found.anchors}
    how: dict[str, Any] = {"settings": recipe.score}
    if anchors_at_coordinator(recipe):
        anchor_scores = {k: np.array(v) for k, v in request.anchor_scores.items()}
    else:
        anchor_scores = score_rows(model, anchors, checkpoints, scene.directions, **how).raw
    with space.progress.task(f"{space.name}: score", len(rows) * len(checkpoints)) as advance:
        scored = score_rows(
            model,
            rows,
            checkpoints,
            scene.directions,
            on_rows=advance,
            shards=space.private / "shards",
            team=space.team,
            skip_nonfinite=space.skip_nonfinite,
            before=before,
            **how,
        )
    return scored, anchor_scores


def _known(
    recipe: Recipe,
    domain: str,
    rows: Mapping[str, np.ndarray],
    anchors: Mapping[str, np.ndarray],
    finite: np.ndarray,
) -> dict[str, Compared]:
    """The deciding influence alone, if it is to be compared too: it need not be computed twice."""
    settings = recipe.score
    if settings.method != "influence" or settings.trajectory == "inrun":
        return {}
    weights = {name: file.weight for name, file in recipe.public[domain].validation.items()}
    own = {name: rows[name][finite] for name in weights}
    return (
        {settings.form: one_number(own, anchors, weights)}
        if settings.form in settings.compare
        else {}
    )


def _in_run_scores(
    space: Workspace, rows: list[EncodedRow]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    n_anchors = len(space.anchors())
    n_rounds = space.recipe().train.rounds
    folder = space.inrun_folder()
    return read_scores(folder, n_rounds, n_rows=len(rows), n_anchors=n_anchors)


def _compared_in_run(space: Workspace, rows: list[EncodedRow], finite: np.ndarray) -> Compared:
    """In-run influence beside the score that decides, without the loss."""
    public = space.recipe().public[space.settings.domain]
    weights = {name: file.weight for name, file in public.validation.items()}
    ours, theirs = _in_run_scores(space, rows)
    # One unit for all sets already: what a mean validation row scores.
    ones = dict.fromkeys(weights, 1.0)
    return Compared(combine(ours, weights, ones)[finite], combine(theirs, weights, ones))


def _proposal(
    space: Workspace,
    request: ScoreRequest,
    groups: list[str],
    raw: dict[str, np.ndarray],
    fold: np.ndarray,
) -> float | None:
    recipe = space.recipe()
    if recipe.threshold.rule != "mixture":
        return None
    public = recipe.public[space.settings.domain]
    weights = replaced(set_weights(recipe.score, public.validation), request.weights)
    scores = np.zeros(len(fold))
    for number, group in enumerate(groups):
        anchors = space.memory["anchor_scores"][group]
        rule = recipe.threshold
        units = anchor_units(anchors, weights, kind=rule.units, combine=rule.combine)
        members = fold == number
        scores[members] = units.apply({k: v[members] for k, v in raw.items()})
    return mixture_cut(scores, seed=derived_seed(recipe.seed, "mixture", space.name))


def _sent_trajectory(
    request: ScoreRequest,
) -> tuple[list[Checkpoint], list[dict[str, Any]]]:
    """Take the checkpoints and directions of the global trajectory out of their message."""
    checkpoints: list[Checkpoint] = []
    directions: list[dict[str, Any]] = []
    for index, rate in enumerate(request.learning_rates):
        adapter = _under(request.checkpoints, f"{index}|")
        checkpoints.append(
            Checkpoint(
                step=index,
                learning_rate=rate,
                adapter=adapter,
                second_moment=_under(request.moments, f"{index}/second|"),
                first_moment=_under(request.moments, f"{index}/first|"),
                optimizer_steps=request.optimizer_steps[index],
            )
        )
        sets: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in request.directions.items():
            where, _, weight = name.partition("|")
            number, _, set_name = where.partition("/")
            if number == str(index):
                sets.setdefault(set_name, {})[weight] = tensor
        directions.append(sets)
    return checkpoints, directions


def _check_sent(
    space: Workspace,
    checkpoints: list[Checkpoint],
    directions: list[dict[str, Any]],
    *,
    wanted: set[str],
    weights: list[str],
) -> None:
    """Compare what was sent with what the recipe says.

    Raises:
        DataError: another number of checkpoints, or a direction is missing, odd or of other shapes.
    """
    n, initial = space.recipe().train.checkpoints, space.model().initial
    if len(checkpoints) != n:
        raise DataError(
            f"silo {space.name}: {len(checkpoints)} checkpoints came, the recipe has {n}."
        )
    for checkpoint, sets in zip(checkpoints, directions, strict=True):
        check_state(checkpoint.adapter, like=initial)
        if set(sets) != wanted:
            raise DataError(
                f"silo {space.name}: the directions are not those of the recipe's sets."
            )
        for direction in sets.values():
            check_state(direction, like={name: initial[name] for name in weights})


def _finite(values: list[np.ndarray]) -> np.ndarray:
    """Rows whose numbers are all finite."""
    return np.array([np.isfinite(numbers).all() for numbers in zip(*values, strict=True)], bool)


def _spread(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Values of the rows that have one; NaN for the others."""
    spread = np.full(len(where), np.nan)
    spread[where] = values
    return spread


def _under(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
