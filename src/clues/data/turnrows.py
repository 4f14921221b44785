"""A row of several trained turns, turn by turn: as rows that train one of them, or without some.

What a model says at a token depends on the tokens before it and on none behind it. So the row of a
turn ends where the turn ends, and has the same loss and the same gradient as the whole row in which
that turn alone is trained, for less.
"""

from collections.abc import Collection
from dataclasses import replace

from clues.data.tokens import EncodedRow


def by_turn(row: EncodedRow) -> dict[int, EncodedRow]:
    """Rows of one trained turn each, by the turn's position; empty where there is one at most.

    Every turn has the same context as in the row. With m_s trained tokens of turn s, and m of the
    row, loss(row) = sum_s m_s / m * loss(s), and so are the gradients.
    """
    found: dict[int, EncodedRow] = {}
    for turn in dict.fromkeys(run.turn for run in row.turns):
        own = [run for run in row.turns if run.turn == turn]
        end = own[-1].end
        mask = [False] * end
        for run in own:
            mask[run.start : run.end] = [True] * (run.end - run.start)
        found[turn] = replace(row, ids=row.ids[:end], mask=tuple(mask), turns=())
    return found


def without_turns(row: EncodedRow, turns: Collection[int]) -> EncodedRow:
    """The row with some of its turns read and not trained; at least one turn is left to train."""
    if not turns:
        return row
    mask = list(row.mask)
    for run in row.turns:
        if run.turn in turns:
            mask[run.start : run.end] = [False] * (run.end - run.start)
    assert any(mask), "a row without a trained turn is no row to train on"
    left = tuple(run for run in row.turns if run.turn not in turns)
    several = len({run.turn for run in left}) > 1
    return replace(row, mask=tuple(mask), turns=left if several else ())
