"""A silo's answer to a score request: its rows, on the checkpoints or as training saw them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from clues.config import LOSS, REJECT, Recipe, derived_seed
from clues.data.tokens import EncodedRow
from clues.data.views import View
from clues.errors import DataError
from clues.model.adapters import AdapterState
from clues.printable import rows_in_words
from clues.scoring.batches import SHOWN_IDS, refuse_nonfinite
from clues.scoring.cascade import score_in_stages
from clues.scoring.compared import (
    Compared,
    Standpoint,
    compare,
    one_number,
    parts_as_baselines,
    score_by_baselines,
)
from clues.scoring.direction import scored_weights
from clues.scoring.forms import form_directions
from clues.scoring.installed import is_baseline
from clues.scoring.parts import BEFORE, InRunLoss, InRunTerm, Loss, Parts
from clues.scoring.parts import Compared as ComparedScore
from clues.scoring.perplexity import losses_before
from clues.scoring.rounds import read_scores
from clues.scoring.shards import Sharing
from clues.scoring.table import ScoreTable
from clues.scoring.trajectory import (
    TrajectoryScores,
    anchors_at_coordinator,
    check_probe,
    fold_of,
    group_names,
    n_passes,
    probe_loss,
    score_rows,
    set_weights,
)
from clues.selection.rules import mixture_cut
from clues.selection.units import anchor_units, combine
from clues.selection.weighing import GRID, replaced
from clues.silo.cascade import gate_of
from clues.silo.sent import check_sent, sent_anchors, sent_scores, sent_trajectory
from clues.silo.turns import ScoredTurns, score_turns, write_turns
from clues.silo.whole import SCORES, TURNS, note
from clues.silo.workspace import Workspace, as_lists
from clues.wall.messages import ScoreReply, ScoreRequest


@dataclass(frozen=True)
class _Scene:
    """What a group of rows is scored with."""

    place: Standpoint
    directions: Sequence[Mapping[str, AdapterState]]


@dataclass(frozen=True)
class _Scored:
    """Scores of a group's rows, of the anchors on the same checkpoints, and of both beside them."""

    scores: TrajectoryScores
    anchors: dict[str, np.ndarray]
    compared: dict[str, Compared]
    turns: ScoredTurns | None


def score(space: Workspace, request: ScoreRequest) -> ScoreReply:
    """Score every private row, write the table, and send what the threshold needs: no score.

    Raises:
        DataError: a fold without rows, or a request whose parts do not fit together.
        NumericsError: an anchor scores NaN or infinity on the silo's own checkpoints.
    """
    _check_weights(space, request)
    with space.sharing() as sharing:
        return _score_all(space, request, sharing)


def _score_all(space: Workspace, request: ScoreRequest, sharing: Sharing) -> ScoreReply:
    recipe, rows = space.recipe(), space.encoded().rows
    groups = group_names(recipe, space.name, space.settings.domain)
    model = space.model()
    with space.progress.task(f"{space.name}: loss before training", len(rows)) as advance:
        # Whether a score is finite must not show in the answer, so such rows are noted inside.
        before = sharing.losses(model, rows, model.initial, skip_nonfinite=True, on_rows=advance)
    several = len(groups) > 1
    fold = np.array([fold_of(r, recipe) for r in rows]) if several else np.zeros(len(rows), int)
    raw: dict[str, np.ndarray] = {}
    parts: Parts = {BEFORE: before}
    early = np.zeros(len(rows), bool)
    found: dict[str, _Scored] = {}
    for number, group in enumerate(groups):
        members = np.flatnonzero(fold == number)
        if not len(members):
            raise DataError(f"silo {space.name}: too few rows to cross-fit.")
        own = View(rows, members.tolist()) if several else rows
        scored = _score_group(space, request, number, own, before[members], sharing)
        for name, values in scored.scores.raw.items():
            raw.setdefault(name, np.zeros(len(rows)))[members] = values
        for part, values in scored.scores.parts.items():
            parts.setdefault(part, np.zeros(len(rows)))[members] = values
        if scored.scores.early is not None:
            early[members] = scored.scores.early
        found[group] = scored
    # Every number of a row must be one, the last loss and the compared scores too. A row that was
    # decided early lacks some by intent.
    finite = _finite([*raw.values(), *parts.values()])
    beside = [values for part, values in parts.items() if isinstance(part, ComparedScore)]
    finite |= early & _finite([before, *beside])
    names = next(iter(found.values())).compared
    space.write_side_files(
        anchors={group: scored.anchors for group, scored in found.items()},
        compared={n: {g: scored.compared[n].anchors for g, scored in found.items()} for n in names},
        lost=[rows[int(i)] for i in np.flatnonzero(~finite)],
        weights=request.weights,
    )
    table = _table(recipe, rows, fold, raw, parts, finite)
    if request.cut is not None:
        table = replace(table, early=early[finite], cut=request.cut)
    table.write(space.private / "scores.parquet")
    turns = [scored.turns for scored in found.values() if scored.turns]
    if turns:
        write_turns(space, dict(zip(found, turns, strict=True)), set(table.row.tolist()))
    note(space, "score", (*SCORES, *TURNS) if turns else SCORES)
    anchors = {group: scored.anchors for group, scored in found.items()}
    return ScoreReply(
        recipe_hash=recipe.hash,
        anchor_scores={} if anchors_at_coordinator(recipe) else as_lists(anchors),
        proposal=_proposal(space, request, groups, table, anchors),
    )


def nonfinite_text(ids: Sequence[str]) -> str:
    """What to say, inside the silo, of rows whose score is not finite."""
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    return (
        f"the score of {rows_in_words(len(ids))} is not finite: {', '.join(ids[:SHOWN_IDS])}{more} (content "
        "ids, as in decisions.csv). Score in float32, lower recipe.train.learning_rate, or drop "
        "these rows with --skip-nonfinite."
    )


def _check_weights(space: Workspace, request: ScoreRequest) -> None:
    """Refuse weights for parts that the recipe does not leave open, and such as nobody finds."""
    open_parts = {name for name, is_weighed in space.recipe().weighed.items() if is_weighed}
    if set(request.weights) - open_parts or set(request.weights.values()) - set(GRID):
        raise DataError(
            f"silo {space.name}: the score request brings weights that the recipe does not leave "
            "open, or that no weighing finds."
        )


def _table(
    recipe: Recipe,
    rows: Sequence[EncodedRow],
    fold: np.ndarray,
    raw: Mapping[str, np.ndarray],
    parts: Parts,
    finite: np.ndarray,
) -> ScoreTable:
    """The score table of the rows whose numbers are finite."""
    kept = [
        (row.row, row.id, len(row.ids), row.n_response_tokens)
        for row, good in zip(rows, finite, strict=True)
        if good
    ]
    row, id_, n_tokens, n_response = zip(*kept, strict=True) if kept else ((), (), (), ())
    return ScoreTable(
        recipe_hash=recipe.scoring_hash,
        row=np.array(row),
        id=tuple(id_),
        fold=fold[finite],
        n_tokens=np.array(n_tokens),
        n_response_tokens=np.array(n_response),
        raw={name: values[finite] for name, values in raw.items()},
        parts={part: values[finite] for part, values in parts.items()},
    )


def _score_group(
    space: Workspace,
    request: ScoreRequest,
    number: int,
    rows: Sequence[EncodedRow],
    before: np.ndarray,
    sharing: Sharing,
) -> _Scored:
    """Score one group's rows by the deciding score and by those beside it.

    `before` are the rows' losses before the training.
    """
    recipe = space.recipe()
    scene = _scene(space, request, number)
    scored, anchors = _deciding_scores(space, rows, before, scene, request, sharing)
    finite = _finite([*scored.raw.values(), before])
    finite |= scored.early if scored.early is not None else False
    compared = compare(
        scene.place,
        View(rows, np.flatnonzero(finite).tolist()),
        space.anchors() if recipe.score.compare else [],
        known=_known(recipe, space.settings.domain, scored.raw, anchors, finite),
        sent=sent_scores(request) if anchors_at_coordinator(recipe) else None,
        task=partial(space.progress.task, f"{space.name}: compared scores"),
        skip_nonfinite=True,
    )
    if "inrun" in recipe.score.compare:
        compared["inrun"] = _compared_in_run(space, rows, finite)
    beside = {ComparedScore(name): _spread(c.rows, finite) for name, c in compared.items()}
    turns = None
    if recipe.score.turns:
        turns = score_turns(space, scene.place, scene.directions, rows, sharing)
    scores = TrajectoryScores(scored.raw, {**scored.parts, **beside}, scored.early)
    return _Scored(scores, anchors, compared, turns)


def _rejects(space: Workspace) -> bool:
    """Whether the rejected rows of the silo's domain count against its rows."""
    recipe = space.recipe()
    return bool(recipe.public[space.settings.domain].reject) and recipe.score.reject_weight != 0


def _scene(space: Workspace, request: ScoreRequest, number: int) -> _Scene:
    """Checkpoints and directions of one group, sent by the coordinator or made here."""
    recipe, model, validation = space.recipe(), space.model(), space.validation()
    frozen = recipe.score.shared and recipe.train.aggregation == "ffa"
    weights = scored_weights(model, recipe.score, frozen_a=frozen)
    if recipe.score.shared:
        checkpoints, directions = sent_trajectory(request, where=f"silo {space.name}")
        wanted = set(validation) if recipe.score.sends_directions else set[str]()
        if _rejects(space):
            wanted.add(REJECT)
        check_sent(space, checkpoints, directions, wanted=wanted, weights=weights)
        for checkpoint, expected in zip(checkpoints, request.probe_losses, strict=True):
            check_probe(
                probe_loss(model, validation, checkpoint),
                expected,
                recipe=recipe,
                where=f"silo {space.name}",
            )
    else:
        checkpoints = space.own_checkpoints(recipe, number)
        # Other scores than influence need no direction.
        sets = validation if recipe.score.method == "influence" else {}
        directions = [
            form_directions(model, sets, c, form=recipe.score.form, weights=weights)
            for c in checkpoints
        ]
    domain = space.settings.domain
    place = Standpoint(model, validation, checkpoints, recipe, domain, weights)
    return _Scene(place, directions)


def _deciding_scores(
    space: Workspace,
    rows: Sequence[EncodedRow],
    before: np.ndarray,
    scene: _Scene,
    request: ScoreRequest,
    sharing: Sharing,
) -> tuple[TrajectoryScores, dict[str, np.ndarray]]:
    """Scores of a group's rows, and of the anchors on the same checkpoints.

    `before` are the rows' losses before the training.
    """
    recipe, model = space.recipe(), space.model()
    method, anchors = recipe.score.method, space.anchors()
    checkpoints = scene.place.checkpoints
    if recipe.score.trajectory == "inrun":
        ours, theirs = _in_run_scores(space, rows)
        wanted = set_weights(recipe.score, recipe.public[space.settings.domain])
        parts: Parts = {InRunTerm(n): values for n, values in ours.items() if n != LOSS}
        parts[InRunLoss()] = -ours[LOSS]
        if LOSS in wanted and recipe.score.loss_under == "base":
            ours, theirs = ours | {LOSS: -before}, theirs | {LOSS: -losses_before(model, anchors)}
        chosen = {name: ours[name] for name in wanted}
        return TrajectoryScores(chosen, parts), {name: theirs[name] for name in wanted}
    if is_baseline(method):
        found = score_by_baselines(scene.place, [method], rows, anchors, skip_nonfinite=True)[
            method
        ]
        # Anchors are public: what they score tells of no row.
        refuse_nonfinite(anchors, found.anchors)
        last = sharing.losses(model, rows, checkpoints[-1].adapter, skip_nonfinite=True)
        return TrajectoryScores({method: found.rows}, {Loss(0): last}), {method: found.anchors}
    how: dict[str, Any] = {"settings": recipe.score}
    if anchors_at_coordinator(recipe):
        names = set_weights(recipe.score, recipe.public[space.settings.domain])
        anchor_scores = sent_anchors(space, request, names=names)
    else:
        anchor_scores = score_rows(model, anchors, checkpoints, scene.directions, **how).raw
    passes = n_passes(recipe.score, len(checkpoints), knows_before=True)
    gate = gate_of(space, request, anchor_scores)
    with space.progress.task(f"{space.name}: score", len(rows) * passes) as advance:
        how |= {"on_rows": advance, "shards": sharing, "skip_nonfinite": True, "before": before}
        place = (model, rows, checkpoints, scene.directions)
        scored = score_in_stages(*place, gate=gate, **how) if gate else score_rows(*place, **how)
    return scored, anchor_scores


def _known(
    recipe: Recipe,
    domain: str,
    rows: Mapping[str, np.ndarray],
    anchors: Mapping[str, np.ndarray],
    finite: np.ndarray,
) -> dict[str, Compared]:
    """Scores to compare that the deciding one has anyway: its influence, and parts of it."""
    settings = recipe.score
    if settings.method != "influence" or settings.trajectory == "inrun":
        return {}
    weights = {name: file.weight for name, file in recipe.public[domain].validation.items()}
    own = {name: rows[name][finite] for name in weights}
    found = {settings.form: one_number(own, anchors, weights)}
    for name, part in parts_as_baselines(settings).items():
        found[name] = Compared(rows[part][finite], np.asarray(anchors[part], float))
    return {name: found[name] for name in settings.compare if name in found}


def _in_run_scores(
    space: Workspace, rows: Sequence[EncodedRow]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    n_anchors = len(space.anchors())
    n_rounds = space.recipe().train.rounds
    folder = space.inrun_folder()
    return read_scores(folder, n_rounds, n_rows=len(rows), n_anchors=n_anchors)


def _compared_in_run(space: Workspace, rows: Sequence[EncodedRow], finite: np.ndarray) -> Compared:
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
    groups: Sequence[str],
    table: ScoreTable,
    anchors: Mapping[str, Mapping[str, np.ndarray]],
) -> float | None:
    """The cut that the silo's own scores propose, for rule `mixture` alone."""
    recipe = space.recipe()
    if recipe.threshold.rule != "mixture":
        return None
    public = recipe.public[space.settings.domain]
    weights = replaced(set_weights(recipe.score, public), request.weights)
    scores = np.zeros(len(table.fold))
    for number, group in enumerate(groups):
        rule = recipe.threshold
        units = anchor_units(anchors[group], weights, kind=rule.units, combine=rule.combine)
        members = table.fold == number
        scores[members] = units.apply({k: v[members] for k, v in table.raw.items()})
    cut = mixture_cut(scores, seed=derived_seed(recipe.seed, "mixture", space.name))
    if cut is None:
        return None
    # A cut between few rows and all others would be the score of those few.
    n_above = int((scores >= cut).sum())
    return cut if min(n_above, len(scores) - n_above) >= space.fewest_kept() else None


def _finite(values: list[np.ndarray]) -> np.ndarray:
    """Rows whose numbers are all finite."""
    return np.array([np.isfinite(numbers).all() for numbers in zip(*values, strict=True)], bool)


def _spread(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Values of the rows that have one; NaN for the others."""
    spread = np.full(len(where), np.nan)
    spread[where] = values
    return spread
