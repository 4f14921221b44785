"""Scores of single turns, for rows of which several are trained; they never leave the silo.

A turn is scored as the row in which it alone is trained, on the checkpoints of its row. Its units
come from the public anchors' turns, which the silo scores itself: no message knows of turns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clues.data.tokens import EncodedRow
from clues.data.turnrows import by_turn
from clues.data.untrained import markable
from clues.model.adapters import AdapterState
from clues.rundir import write_json
from clues.scoring.compared import Standpoint
from clues.scoring.parts import Turn
from clues.scoring.shards import Sharing
from clues.scoring.table import ScoreTable
from clues.scoring.trajectory import score_rows, set_weights
from clues.scoring.turns import one_turn, turns_in_units
from clues.selection.turns import Turns, positions
from clues.selection.weighing import replaced
from clues.silo.workspace import Workspace, as_lists


@dataclass(frozen=True)
class ScoredTurns:
    """Scores of a group's turns, and of its anchors' turns on the same checkpoints.

    Attributes:
        rows: one for each turn, with the position of its row in the file.
        turns: positions of the turns in their rows.
        raw: as of rows, by part of the score.
        anchors: of one turn of every anchor row.
    """

    rows: Sequence[EncodedRow]
    turns: np.ndarray
    raw: Mapping[str, np.ndarray]
    anchors: Mapping[str, np.ndarray]


def score_turns(
    space: Workspace,
    place: Standpoint,
    directions: Sequence[Mapping[str, AdapterState]],
    rows: Sequence[EncodedRow],
    sharing: Sharing,
) -> ScoredTurns:
    """Score every trained turn of rows that have several.

    Args:
        space: of the silo.
        place: model and checkpoints of a group of rows.
        directions: of every checkpoint.
        rows: the group's.
        sharing: where finished scores wait for a rerun, and who computes them.

    Raises:
        NumericsError: an anchor's turn scores NaN or infinity.
    """
    found = [(turn, one) for row in rows for turn, one in by_turn(row).items()]
    alone = [one for _, one in found]
    seed, settings = space.recipe().seed, space.recipe().score
    drawn = [one_turn(row, seed=seed) for row in space.anchors()]
    where = (place.checkpoints, directions)
    anchors = score_rows(place.model, drawn, *where, settings=settings).raw
    raw = dict.fromkeys(anchors, np.zeros(0))
    n_steps = len(alone) * len(place.checkpoints)
    with space.progress.task(f"{space.name}: score turns", n_steps) as advance:
        if alone:
            raw = score_rows(
                place.model,
                alone,
                *where,
                settings=settings,
                on_rows=advance,
                shards=sharing,
                skip_nonfinite=True,
            ).raw
    return ScoredTurns(alone, np.array([turn for turn, _ in found], int), raw, anchors)


def write_turns(space: Workspace, groups: Mapping[str, ScoredTurns], scored: set[int]) -> None:
    """Keep the turns' scores, and those of the anchors' turns, beside the rows'.

    Args:
        space: of the silo.
        groups: by name, in the order of the folds.
        scored: positions of rows that have a score. A row one of whose turns has none that is
            finite is judged as a whole.
    """
    names = list(next(iter(groups.values())).raw)
    raw = {n: np.concatenate([g.raw[n] for g in groups.values()]) for n in names}
    rows = [row for group in groups.values() for row in group.rows]
    fold = np.repeat(np.arange(len(groups)), [len(g.rows) for g in groups.values()])
    turns = np.concatenate([group.turns for group in groups.values()])
    finite = np.isfinite(np.array([*raw.values()])).all(axis=0)
    spoilt = {rows[int(i)].row for i in np.flatnonzero(~finite)}
    kept = np.array([row.row in scored and row.row not in spoilt for row in rows], bool)
    chosen = [row for row, is_kept in zip(rows, kept, strict=True) if is_kept]
    ScoreTable(
        recipe_hash=space.recipe().scoring_hash,
        row=np.array([row.row for row in chosen], int),
        id=tuple(row.id for row in chosen),
        fold=fold[kept],
        n_tokens=np.array([len(row.ids) for row in chosen], int),
        n_response_tokens=np.array([row.n_response_tokens for row in chosen], int),
        raw={name: values[kept] for name, values in raw.items()},
        parts={Turn(): turns[kept]},
    ).write(space.private / "turns.parquet")
    anchors = {name: group.anchors for name, group in groups.items()}
    write_json(space.private / "turn_anchors.json", as_lists(anchors))
    space.memory.pop("turns", None)


def judged_turns(space: Workspace) -> Turns | None:
    """The turns' scores as they compare with the threshold; None where the recipe asks for none.

    Raises:
        DataError: they are missing or damaged.
    """
    recipe = space.recipe()
    if not recipe.score.turns:
        return None
    if "turns" not in space.memory:
        public = recipe.public[space.settings.domain]
        weights = replaced(set_weights(recipe.score, public), space.sent_weights())
        anchors = {
            group: {name: np.array(values) for name, values in raw.items()}
            for group, raw in space.turn_anchors().items()
        }
        rule = recipe.threshold
        found = turns_in_units(space.turn_table(), anchors, weights, rule, space.groups())
        marks = (
            markable(space.rows(), positions(found))
            if rule.low_turn == "mask"
            else frozenset[int]()
        )
        space.memory["turns"] = Turns(found, rule.low_turn, marks)
    return space.memory["turns"]
