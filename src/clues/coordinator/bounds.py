"""How much of what silos send counts, so that one that lies moves no more than a stated part.

The guards refuse what cannot be true. What is left is bounded here: how many rows a silo counts
for, how long its optimiser's means are, how far its anchors reach. Most bounds look at all silos
and hold while fewer than half of them lie; of two nobody can say which one is wrong.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low

import numpy as np

from clues.config import ThresholdSettings
from clues.errors import DataError, NumericsError
from clues.selection.units import anchor_units
from clues.wall.messages import ScoreReply, TrainReply

# The Trainer cuts every gradient to this length, so no mean of them is longer.
CLIPPED = 1.0
# Differential privacy adds noise to gradients: per weight about (noise multiplier * clip) / rows of
# a batch, and so sqrt(weights) times that in length. A multiplier of 20 leaves nothing to learn.
NOISIEST = 20.0
# How many times farther than their median a silo's anchor scores may reach. The demo's five domains
# reach 1.6 to 4.4 units, and 3.7 to 6.9 in raw scores; a thousand is for any score. What lies below
# it is for the median over silos.
FARTHEST = 1000.0


def longest_gradient(n_weights: int, batch_size: int) -> float:
    """How long the means of an honest silo can be, with the most noise for differential privacy."""
    return CLIPPED + NOISIEST * math.sqrt(n_weights) / batch_size


def mean_lengths(reply: TrainReply) -> tuple[float, float]:
    """Length of the mean gradient, and the root of the mean squared length; 0 without a mean.

    |m| and sqrt(sum v), of Adam's corrected running means m and v over all weights: both are
    lengths of gradients, whatever the scale of the loss.
    """
    first = sum(float(t.double().square().sum()) for t in reply.first_moment.values())
    second = sum(float(t.double().sum()) for t in reply.second_moment.values())
    return math.sqrt(first), math.sqrt(second)


def capped(rows: Sequence[int], max_share: float) -> list[float]:
    """How many rows each silo counts for: as it says, unless its share would exceed `max_share`.

    Every count above a limit c becomes c, with c = max_share * (sum of all that is left). Nobody can
    check what a silo says of its rows. Of two silos both are believed.

    Args:
        rows: that silos say they have.
        max_share: of one silo; below 1 / silos all are equal.
    """
    n = len(rows)
    if n < 3 or max(rows) <= max_share * sum(rows):
        return list(rows)
    falling = sorted(rows, reverse=True)
    for m in range(1, n):
        if max_share * m < 1:
            limit = max_share * sum(falling[m:]) / (1 - max_share * m)
            if limit >= falling[m]:
                return [min(count, limit) for count in rows]
    return [1.0] * n


def shortened(lengths: Sequence[float]) -> list[float]:
    """By what to multiply each silo's mean, so that none has more say than an honest one can have.

    Without noise no mean is longer than `CLIPPED`, and all factors are 1. With differential privacy
    the noise makes means longer: then none counts with more than the lower median of the lengths.
    """
    limit = max(CLIPPED, median_low(lengths))
    return [limit / n if n > limit * (1 + 1e-6) else 1.0 for n in lengths]


@dataclass(frozen=True)
class Reach:
    """How far a silo's numbers for the threshold reach.

    Attributes:
        raw: largest absolute raw score of an anchor.
        units: the same in units of the silo's own anchors.
        proposal: absolute value of the cut that it proposes.
    """

    raw: float = 0.0
    units: float = 0.0
    proposal: float = 0.0


def reach_of(
    name: str, reply: ScoreReply, weights: Mapping[str, float], settings: ThresholdSettings
) -> Reach:
    """How far a silo's anchor scores and its proposal reach.

    Raises:
        DataError: its anchor scores give no unit, such as scores that are all the same; or it
            proposes a cut that the rule does not ask for.
    """
    if reply.proposal is not None and settings.rule != "mixture":
        raise DataError(
            f"silo {name}: it proposes a threshold, and rule {settings.rule} asks none."
        )
    raw, in_units = 0.0, 0.0
    for sets in reply.anchor_scores.values():
        values = {part: np.array(scores) for part, scores in sets.items()}
        try:
            # Of numbers near float64's end even the spread overflows.
            with np.errstate(all="ignore"):
                units = anchor_units(values, weights, kind=settings.units, combine=settings.combine)
                scores = units.apply(values)
        except NumericsError as error:
            raise DataError(f"silo {name}: its anchor scores give no unit: {error}") from None
        if not np.isfinite([*scores, *units.numbers]).all():
            raise DataError(f"silo {name}: its anchor scores are too large to compute with.")
        raw = max(raw, *(float(np.abs(v).max()) for v in values.values()))
        in_units = max(in_units, float(np.abs(scores).max()))
    return Reach(raw, in_units, abs(reply.proposal or 0.0))


def too_far(reaches: Mapping[str, Reach]) -> dict[str, str]:
    """Silos whose numbers reach more than `FARTHEST` times as far as the silos' lower median.

    As `too_long`, it needs three silos of which more than half are honest.
    """
    found: dict[str, str] = {}
    # Without anchor scores from the silos a unit is an anchor's spread.
    least = {"raw": 0.0, "units": 0.0, "proposal": 1.0}
    for kind, what in (
        ("raw", "its anchors score up to"),
        ("units", "in units of its own anchors one of them scores"),
        ("proposal", "it proposes a threshold of size"),
    ):
        sizes = {name: getattr(reach, kind) for name, reach in reaches.items()}
        middle = max(median_low(sizes.values()), least[kind]) if len(sizes) >= 3 else 0.0
        found |= {
            name: f"silo {name}: {what} {size:.3g}, the silos' median is {middle:.3g}; at most "
            f"{FARTHEST:,.0f} times that is accepted."
            for name, size in sizes.items()
            if middle and size > FARTHEST * middle
        }
    return found
