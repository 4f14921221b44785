"""Scores of the turns of rows that have several, in units of the anchors' turns."""

from collections.abc import Mapping, Sequence

import numpy as np

from clues.config import ThresholdSettings, derived_seed
from clues.data.tokens import EncodedRow
from clues.data.turnrows import by_turn
from clues.scoring.parts import Turn
from clues.scoring.table import ScoreTable
from clues.selection.threshold import group_units
from clues.selection.turns import TurnScore


def one_turn(row: EncodedRow, *, seed: int) -> EncodedRow:
    """One of a row's trained turns, by chance; the row itself where it has one.

    Args:
        row: of the anchors.
        seed: of the recipe. Equal text always gives the same turn.
    """
    turns = list(by_turn(row).values())
    return turns[derived_seed(seed, "turn", row.id) % len(turns)] if turns else row


def turns_in_units(
    table: ScoreTable,
    anchors: Mapping[str, Mapping[str, np.ndarray]],
    weights: Mapping[str, float],
    settings: ThresholdSettings,
    groups: Sequence[str],
) -> dict[int, tuple[TurnScore, ...]]:
    """Turns of every row, with scores that compare with the rows' own threshold.

    The units are made of the anchors' turns as the rule makes the rows' units of the anchors. So a
    turn below the threshold lies as low among turns as a row below it lies among rows.

    Args:
        table: raw scores of turns, with the part `Turn`.
        anchors: raw scores of one turn of every anchor, by group.
        weights: of the parts of a score.
        settings: of the threshold.
        groups: that the rows fall into, by fold.

    Raises:
        DataError: fewer than 5 anchors in a group.
        NumericsError: the anchors' turns all score the same.
    """
    units, _ = group_units(anchors, dict.fromkeys(anchors, weights), settings)
    scores = np.zeros(len(table.row))
    for number, group in enumerate(groups):
        members = np.flatnonzero(table.fold == number)
        if len(members):
            raw = {name: values[members] for name, values in table.raw.items()}
            scores[members] = units[group].apply(raw)
    found: dict[int, list[TurnScore]] = {}
    numbers = table.parts[Turn()].tolist()
    for row, turn, score in zip(table.row.tolist(), numbers, scores.tolist(), strict=True):
        found.setdefault(row, []).append(TurnScore(score, turn))
    return {row: tuple(sorted(own, key=lambda t: t.turn)) for row, own in found.items()}
