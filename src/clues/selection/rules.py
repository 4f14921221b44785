"""The rules that a cut can follow, each applied to one pool of anchors. No torch here."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from scipy.special import betainc

from clues.config import ThresholdSettings
from clues.selection.units import MIN_ANCHORS, Array


def tolerance_rank(n_anchors: int, settings: ThresholdSettings) -> tuple[int, float]:
    """Which anchor, from below, is the cut that keeps at least 1 - quantile of the clean rows.

    Of n anchors drawn like the clean rows, at least r fall below the clean rows' q-quantile with
    probability P(Binomial(n, q) >= r); then the r-th lowest anchor does not lie above it.

    Returns:
        (rank, probability): the highest rank whose probability is at least `confidence`, counted
        from 1; rank 1 with its lower probability, 1 - (1 - q)^n, where the anchors are too few.

    Source: Wilks 1941, one-sided distribution-free tolerance limits.
    """
    ranks = np.arange(1, n_anchors + 1)
    probability = betainc(ranks, n_anchors - ranks + 1, settings.quantile)
    rank = max(1, int((probability >= settings.confidence).sum()))
    return rank, float(probability[rank - 1])


def fewest_anchors(rank: int, settings: ThresholdSettings) -> int:
    """How many anchors it takes until the cut is the rank-th lowest of them, or a higher one."""

    def suffices(n_anchors: int) -> bool:
        probability = betainc(rank, n_anchors - rank + 1, settings.quantile)
        return bool(probability >= settings.confidence)

    enough = rank
    while not suffices(enough):
        enough *= 2
    return bisect_left(range(enough), True, lo=rank, key=suffices)


def rule_value(
    groups: Sequence[Array], proposals: Sequence[float], settings: ThresholdSettings
) -> float | None:
    """The cut that a rule takes from one pool of anchors; None for rule `ratio`.

    Args:
        groups: anchor scores of every group, in units that compare.
        proposals: the silos' own cuts, for rule `mixture` alone.
        settings: the rule.
    """
    pooled = np.concatenate(groups)
    if settings.rule == "anchor_tolerance":
        # Raw scores have no units of their own group: one cut for all anchors together.
        sets = groups if settings.units == "anchor" else [pooled]
        cuts = [np.sort(s)[tolerance_rank(len(s), settings)[0] - 1] for s in sets]
        return float(np.mean(cuts))
    if settings.rule == "anchor_mean":
        return float(pooled.mean())
    if settings.rule == "anchor_quantile":
        # "lower" never interpolates upwards: at most this share of the anchors falls below.
        return float(np.quantile(pooled, settings.quantile, method="lower"))
    if settings.rule == "preset":
        return settings.preset
    if settings.rule == "mixture":
        return float(np.median(proposals))
    return None


def mixture_cut(scores: Array, *, seed: int) -> float | None:
    """Where a silo's own scores part into a low and a high group.

    Two normal distributions are fitted to the scores; the cut is where a row is as likely from
    the lower as from the upper one. None if one distribution describes the scores as well (by
    the Bayesian information criterion).
    """
    from sklearn.mixture import GaussianMixture  # 1 s to import, for one rule

    if len(scores) < 2 * MIN_ANCHORS:
        return None
    column = scores.reshape(-1, 1)
    fits = [GaussianMixture(n, random_state=seed, n_init=5).fit(column) for n in (1, 2)]
    if fits[0].bic(column) <= fits[1].bic(column):
        return None
    means = np.asarray(fits[1].means_, float).ravel()
    upper = int(np.argmax(means))
    grid = np.linspace(means.min(), means.max(), 2001)
    above = fits[1].predict_proba(grid.reshape(-1, 1))[:, upper] >= 0.5
    return float(grid[np.argmax(above)]) if above.any() else None
