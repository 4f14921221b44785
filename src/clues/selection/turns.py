"""Turns of a row below the threshold, and what that costs the row.

No torch here. A turn's score is in units of the anchors' turns, of which one is drawn from each
anchor row: the turns of one row are alike, and the promise of rule `anchor_tolerance` counts draws
that have nothing to do with one another. It then says of one turn what it says of one row. A row of
many clean turns has a turn below the threshold more often than a row of one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clues.config import LowTurn


@dataclass(frozen=True, order=True)
class TurnScore:
    """One turn of a row that has several.

    Attributes:
        score: in units of the anchors' turns; higher is better.
        turn: position among the row's turns, from 0 on.
    """

    score: float
    turn: int


@dataclass(frozen=True)
class Turns:
    """Turns of a silo's rows and what becomes of rows with a low one.

    Attributes:
        by_row: by position, the scores of a row's turns, in the row's order.
        low_turn: the setting.
        markable: positions of rows that can say of a turn that it is not trained.
    """

    by_row: Mapping[int, tuple[TurnScore, ...]]
    low_turn: LowTurn
    markable: frozenset[int] = frozenset()

    def verdict(self, row: int, *, cut: float, kept: bool) -> "Verdict | None":
        """What the turns say of a row; None where it has fewer than two.

        Args:
            row: its position.
            cut: the threshold.
            kept: whether the row's own score keeps it.
        """
        turns = self.by_row.get(row, ())
        if not turns:
            return None
        low = tuple(turn for turn in turns if turn.score < cut)
        says = f"{_named(low)}, below {cut:.4g}" if low else ""
        if self.low_turn == "keep":
            return Verdict(turns, low, kept, (), says)
        if self.low_turn == "drop" or (row not in self.markable and len(low) < len(turns) and low):
            if low and self.low_turn == "mask":
                says += ", and the row has no place to say that a turn is not trained"
            return Verdict(turns, low, kept and not low, (), says)
        if len(low) == len(turns):
            return Verdict(turns, low, False, (), says)
        if low:
            says += ", not trained"
        elif not kept:
            says = f"no turn is below {cut:.4g}"
        return Verdict(turns, low, True, tuple(turn.turn for turn in low), says)

    def deciding(self, row: int, score: float) -> float:
        """The number that is compared with the threshold: the row is kept if it is not below.

        Args:
            row: its position.
            score: the row's own.
        """
        turns = [turn.score for turn in self.by_row.get(row, ())]
        if not turns or self.low_turn == "keep":
            return score
        if self.low_turn == "drop":
            return min(score, *turns)
        return max(turns) if row in self.markable else min(turns)


@dataclass(frozen=True)
class Verdict:
    """What a row's turns say of it.

    Attributes:
        turns: their scores.
        low: those below the threshold.
        kept: whether the row is kept.
        untrained: positions of turns that are read and not trained.
        says: why, in words; empty where no turn is low.
    """

    turns: tuple[TurnScore, ...]
    low: tuple[TurnScore, ...]
    kept: bool
    untrained: tuple[int, ...]
    says: str


def _named(turns: Sequence[TurnScore]) -> str:
    """Turns by number and score, the lowest first."""
    shown = [f"turn {t.turn + 1} scores {t.score:.4g}" for t in sorted(turns)[:3]]
    return ", ".join(shown) + (f" and {len(turns) - 3} more" if len(turns) > 3 else "")


def positions(by_row: Mapping[int, Sequence[TurnScore]]) -> dict[int, list[int]]:
    """Positions of the turns that have scores, by row."""
    return {row: [turn.turn for turn in own] for row, own in by_row.items()}
