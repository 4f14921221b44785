"""Intervals for few seeds and many held-out rows. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clues.evaluation.intervals import interval_over_seeds
from experiments.stored import StoredRun

CONFIDENCE = 0.95
N_BOOTSTRAP = 2000
Losses = Sequence[Sequence[float]]  # by seed, by held-out row


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; `low` and `high` are None for a single value."""

    mean: float
    low: float | None
    high: float | None
    sd: float | None = None


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over seeds, standard deviation, and Student's interval."""
    mean, ends = float(np.mean(values)), interval_over_seeds(values)
    if ends is None:
        return Estimate(mean, None, None)
    return Estimate(mean, *ends, sd=float(np.std(values, ddof=1)))


def paired_bootstrap(ours: Losses, theirs: Losses, *, seed: int = 0) -> Estimate:
    """Mean paired difference (ours - theirs) with a bootstrap interval.

    Seeds are drawn with replacement, then held-out rows within each drawn seed: both the few
    runs and the few rows are samples. A row is drawn for both arms at once.

    Raises:
        ValueError: the two do not hold the same rows of the same seeds.
    """
    if [len(x) for x in ours] != [len(x) for x in theirs] or not ours:
        raise ValueError("paired figures need the same seeds and rows in both arms")
    differences = [np.subtract(a, b) for a, b in zip(ours, theirs, strict=True)]
    mean = float(np.mean([d.mean() for d in differences]))
    rng = np.random.default_rng(seed)
    n = len(differences)
    seeds = rng.integers(n, size=(N_BOOTSTRAP, n))
    means = np.empty(seeds.shape)
    for k, rows in enumerate(differences):
        here = seeds == k
        means[here] = rows[rng.integers(len(rows), size=(here.sum(), len(rows)))].mean(axis=1)
    draws = means.mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(mean, float(low), float(high))


def share_of_gain(runs: Sequence[Mapping[str, float]], arm: str) -> float | None:
    """How much of what the oracle gains over mixed an arm gains; ratio of means over seeds.

    The ratio of means and not the mean of ratios: in one seed the oracle's own gain may be next
    to nothing. None where the oracle gains nothing.

    Args:
        runs: by arm, the mean held-out loss of each run.
        arm: which one.
    """
    ours, best = (
        float(np.mean([losses["mixed"] - losses[name] for losses in runs]))
        for name in (arm, "oracle")
    )
    return ours / best if best > 0 else None


def losses_of(runs: Sequence[StoredRun]) -> list[dict[str, float]]:
    """By arm, the mean held-out loss of each run, where it was measured."""
    return [
        {name: a.heldout_loss for name, a in run.arms.items() if a.heldout_loss is not None}
        for run in runs
    ]


def silo_mean(run: StoredRun, score: str, kind: str | None = None) -> float | None:
    """A score's AUC in a run, mean over silos; for one kind of damage, or for all. None if unknown.

    Args:
        run: a stored one.
        score: its name among the silos' detection figures.
        kind: of damage.
    """
    silos = run.results.silos.values()
    found = [silo.detection[score] for silo in silos if score in silo.detection]
    values = [f.auc if kind is None else f.auc_by_kind.get(kind) for f in found]
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def silo_means(runs: Sequence[StoredRun], score: str, kind: str | None = None) -> list[float]:
    """`silo_mean` of every run in which it is known."""
    return [mean for run in runs if (mean := silo_mean(run, score, kind)) is not None]


def shown(estimate: Estimate, digits: int = 3) -> str:
    """Mean and half-width, or mean alone."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:.{digits}f}"
    return f"{estimate.mean:.{digits}f} ± {(estimate.high - estimate.low) / 2:.{digits}f}"


def shown_interval(estimate: Estimate, digits: int = 3) -> str:
    """Mean with both ends: bootstrap intervals are not symmetric."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:+.{digits}f}"
    return f"{estimate.mean:+.{digits}f} [{estimate.low:+.{digits}f}, {estimate.high:+.{digits}f}]"
