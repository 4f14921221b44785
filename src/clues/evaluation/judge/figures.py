"""Verdicts as figures: mean scores and win rates with intervals. Invalid ones are counted alone."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from clues.config import derived_seed
from clues.evaluation.intervals import bootstrap_mean, wilson
from clues.evaluation.judge.prompts import Inquiry, Verdict
from clues.results.tasks import Pairs, Reference

Judged = Sequence[tuple[Inquiry, Verdict]]


def reference_figures(judged: Judged, *, seed: int) -> dict[str, Reference]:
    """By arm: mean score with its 95 % interval, and how many verdicts are invalid."""
    found: dict[str, Reference] = {}
    for arm in dict.fromkeys(inquiry.arm for inquiry, _ in judged):
        own = [v for i, v in judged if i.arm == arm]
        values = [v.value for v in own if v.value is not None]
        draw = derived_seed(seed, "judge", arm)
        found[arm] = Reference(
            n=len(values),
            mean=float(np.mean(values)) if values else None,
            interval=bootstrap_mean(values, seed=draw) if len(values) > 1 else None,
            **_counts(own),
        )
    return found


def pairwise_figures(judged: Judged, identical: dict[str, int]) -> dict[str, Pairs]:
    """By arm: how often its answer wins.

    A prompt is won if the arm gets more than half over both orders, and lost if it gets less. A prompt
    with an invalid order is not counted. Ties are half a win.

    Args:
        judged: both orders of each prompt.
        identical: by arm, prompts where both answers are the same: ties, and nobody is asked.
    """
    found: dict[str, Pairs] = {}
    for arm in identical:
        own = [(i, v) for i, v in judged if i.arm == arm]
        rows: dict[int, list[float | None]] = {}
        for inquiry, verdict in own:
            rows.setdefault(inquiry.row, []).append(verdict.value)
        pairs = [(a, b) for a, b in rows.values() if a is not None and b is not None]
        totals = [a + b for a, b in pairs]
        wins, losses = sum(t > 1 for t in totals), sum(t < 1 for t in totals)
        n = len(pairs) + identical[arm]
        rate = (wins + (n - wins - losses) / 2) / n if n else None
        found[arm] = Pairs(
            n=n,
            win_rate=rate,
            interval=wilson(rate, n) if rate is not None else None,
            wins=wins,
            ties=n - wins - losses,
            losses=losses,
            identical=identical[arm],
            first_place=_first_place(own),
            # The same place was called better in both orders: the place decided.
            contradictory=sum({a, b} == {0.0, 1.0} for a, b in pairs),
            **_counts([v for _, v in own]),
        )
    return found


def _first_place(own: Judged) -> float | None:
    """How often the answer that stands first wins, of replies that are no tie; 0.5 is fair."""
    decided = [
        (v.value == 1.0) == (i.place == "first") for i, v in own if v.value not in (None, 0.5)
    ]
    return float(np.mean(decided)) if decided else None


def _counts(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    problems = Counter(v.problem for v in verdicts if v.problem)
    return {
        "invalid": sum(problems.values()),
        "repaired": sum(v.repaired for v in verdicts),
        "problems": dict(problems),
    }
