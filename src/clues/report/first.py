"""Which rows a person reads first: the worst, those where a decision is close, one of each reason."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

N_FIRST = 20
N_REASONS = 6  # one row of each of the commonest reasons; the others have their own button


def first_to_read(
    scores: NDArray[np.float64], cut: float, why: Sequence[str], *, n: int = N_FIRST
) -> list[int]:
    """Rows to read first, in this order: the lowest scores, the nearest to the threshold, reasons.

    Of the places that reasons leave, half are for the lowest scores and half for the rows nearest to
    the threshold, on either side. Where rows have no score, reasons take all places in turn.

    Args:
        scores: one for each row, NaN where there is none.
        cut: the threshold, which may be infinite.
        why: for each row why it is not kept, in words; empty for a kept row.
        n: how many rows.

    Returns:
        Positions of `n` rows, none twice; fewer where no more have a score or are not kept.
    """
    scored = np.flatnonzero(np.isfinite(scores))
    by_score = scored[np.argsort(scores[scored], kind="stable")]
    named = _one_of_each(why)
    n_named = min(len(named), N_REASONS)
    n_lowest = (n - n_named + 1) // 2
    lowest = [int(row) for row in by_score if why[row]][:n_lowest]
    near = by_score[np.argsort(np.abs(scores[by_score] - cut), kind="stable")]
    near = near if np.isfinite(cut) else near[:0]
    chosen = list(dict.fromkeys(lowest))
    for row in near.tolist():
        if len(chosen) >= n - n_named:
            break
        if row not in chosen:
            chosen.append(row)
    new = [row for row in named if row not in chosen]
    rest = [row for row, reason in enumerate(why) if reason and row not in {*chosen, *new}]
    others = [row for row in near.tolist() if row not in {*chosen, *new, *rest}]
    return [*chosen, *new, *rest, *others][:n]


def _one_of_each(why: Sequence[str]) -> list[int]:
    """The first row of every reason, the commonest reason first."""
    first: dict[str, int] = {}
    for row, reason in enumerate(why):
        if reason:
            first.setdefault(reason, row)
    counts = Counter(reason for reason in why if reason)
    return [first[reason] for reason, _ in counts.most_common()]
