"""How sure a share or a mean is, and the difference of two arms on the same questions."""

import math
from collections.abc import Sequence

import numpy as np

from clues.results.arms import Gap

LEVEL = 0.95
AGAINST = ("mixed", "random")  # arms that the others are compared with
_RESAMPLES = 1000
# Resamples that are in memory together: thousands of questions times all of them is too much.
_BATCH = 10


def standard_error(values: Sequence[float] | np.ndarray) -> float | None:
    """Of a mean: s / sqrt(n), with n - 1 in s as in lm-eval; None for fewer than two values."""
    if len(values) < 2:
        return None
    return float(np.std(np.asarray(values, float), ddof=1) / math.sqrt(len(values)))


def interval_over_seeds(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of a mean, by SciPy; None for fewer than two values."""
    from scipy.stats import ttest_1samp  # slow to import

    if len(values) < 2:
        return None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = ttest_1samp(values, 0.0).confidence_interval(LEVEL)
    return float(found.low), float(found.high)


def bootstrap_mean(values: Sequence[float] | np.ndarray, *, seed: int) -> tuple[float, float]:
    """The percentile interval of a mean, resampling its values; one value is its own interval."""
    from scipy.stats import bootstrap  # slow to import

    values_N = np.asarray(values, float)
    if len(values_N) < 2:
        return float(values_N[0]), float(values_N[0])
    found = bootstrap(
        (values_N,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        vectorized=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def paired_difference(
    ones: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray, *, seed: int
) -> Gap:
    """Compare two arms question by question; each value is 1 where the answer is right, else 0."""
    from scipy.stats import binomtest  # slow to import

    gaps_N = np.asarray(ones, float) - np.asarray(others, float)
    n_better, n_worse = int((gaps_N > 0).sum()), int((gaps_N < 0).sum())
    decided = n_better + n_worse
    p = float(binomtest(n_better, decided, 0.5).pvalue) if decided else 1.0
    interval = bootstrap_mean(gaps_N, seed=seed)
    return Gap(value=float(gaps_N.mean()), interval=interval, p_value=p)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a share out of `n`.

    It stays inside 0 to 1 and is never empty, also where all or none were won. With ties counted
    as halves it is too wide rather than too narrow: halves vary less than wins and losses.
    """
    # Not scipy's, which takes whole numbers of wins alone; for those the two agree (a test).
    z = 1.959964
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)
