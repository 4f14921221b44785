"""How the parts of a score become one number that compares across groups.

No torch here. A score has up to four *parts*: the influence (over all validation sets), the row's
own loss, its alignment with its question, and how much more it is like the validation rows than like
rejected ones. Each is measured in units of the group's anchors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clues.config import ALIGNMENT, LOSS, REJECT
from clues.errors import DataError, NumericsError

Array = NDArray[np.float64]
MIN_ANCHORS = 5
NORMAL_IQR = 1.349  # interquartile range of a standard normal distribution
INFLUENCE = "influence"


@dataclass(frozen=True)
class Part:
    """Where the anchors lie in one part of the score: their median, and a robust spread."""

    centre: float
    width: float
    weight: float

    def shortfall(self, values: Array) -> Array:
        """How far values fall short of the anchors, in nats; near 0 where they do not.

        z = (value - centre) / width
        shortfall = - weight * log(1 + exp(-2 z)) / 2

        Far below the anchors it is weight * z, far above them it is 0: being better than the
        anchors in one part does not make up for being worse in another.
        """
        z = (values - self.centre) / self.width
        # What was not computed (NaN) has no shortfall either, and that is no accident.
        with np.errstate(invalid="ignore"):
            return -self.weight * np.logaddexp(0.0, -2.0 * z) / 2.0


@dataclass(frozen=True)
class Units:
    """How a group's raw scores become comparable.

    combined = sum over names of weight * raw / scale, with a minus for the rejected rows
    score = (combined - location) / spread

    With `parts` the names of one part are summed first, and combined is the sum of the parts'
    shortfalls.
    """

    weights: dict[str, float]
    scales: dict[str, float]
    location: float
    spread: float
    parts: dict[str, Part] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Units":
        """Read what `dataclasses.asdict` made."""
        parts = {name: Part(**part) for name, part in content["parts"].items()}
        return cls(**{**content, "parts": parts})

    @property
    def numbers(self) -> list[float]:
        """Every number in here."""
        parts = [n for p in self.parts.values() for n in (p.centre, p.width, p.weight)]
        return [
            self.location,
            self.spread,
            *self.weights.values(),
            *self.scales.values(),
            *parts,
        ]

    @property
    def positive(self) -> bool:
        """Whether everything that divides is above zero."""
        widths = [part.width for part in self.parts.values()]
        return min(self.spread, *self.scales.values(), *widths) > 0

    @property
    def signed_weights(self) -> dict[str, float]:
        """Weights of a plain sum: likeness to rejected rows counts against a row."""
        return {n: -w if n == REJECT else w for n, w in self.weights.items()}

    def apply(self, raw: Mapping[str, Array]) -> Array:
        """Return scores in these units from raw scores by name.

        Raises:
            DataError: a name is missing.
        """
        missing = set(self.weights) - set(raw)
        if missing:
            raise DataError(f"no scores for {sorted(missing)[0]}. Score again.")
        return (self.combined(raw) - self.location) / self.spread

    def combined(self, raw: Mapping[str, Array]) -> Array:
        """One number per row, before location and spread."""
        if not self.parts:
            return combine(raw, self.signed_weights, self.scales)
        return np.sum(list(self.shortfalls(raw).values()), axis=0)

    def ceiling(self, raw: Mapping[str, Array]) -> Array:
        """The highest score that rows can have of which only these numbers are known.

        A shortfall is at most 0, so a part without a number takes nothing away. The order of the
        sum is that of `combined`, and rounding keeps order: a row's score is never above its ceiling,
        not by the last digit either. Without parts nothing bounds the influence.

        Args:
            raw: raw scores of the parts that need no gradient; NaN or infinite where not known.
        """
        n = len(next(iter(raw.values())))
        if not self.parts:
            return np.full(n, np.inf)
        known = {name: weight for name, weight in self.weights.items() if name in raw}
        assert all(part_of(name) in (LOSS, ALIGNMENT) for name in known), "it needs gradients"
        values = by_part(raw, known, self.scales)
        takes = [np.zeros(n)] * len(self.parts)
        for place, (name, part) in enumerate(self.parts.items()):
            if name in values:
                finite = np.isfinite(values[name])
                takes[place] = np.where(
                    finite, part.shortfall(np.where(finite, values[name], part.centre)), 0.0
                )
        return (np.sum(takes, axis=0) - self.location) / self.spread

    def shortfalls(self, raw: Mapping[str, Array]) -> dict[str, Array]:
        """What every part takes from a row; the sum is `combined`. Empty without parts."""
        values = by_part(raw, self.weights, self.scales)
        return {name: part.shortfall(values[name]) for name, part in self.parts.items()}


def part_of(name: str) -> str:
    """The part of a score that a name of raw scores belongs to."""
    return name if name in (LOSS, ALIGNMENT, REJECT) else INFLUENCE


def combine(
    raw: Mapping[str, Array], weights: Mapping[str, float], scales: Mapping[str, float]
) -> Array:
    """Weighted sum over names, each divided by its own scale."""
    terms = [weights[name] * np.asarray(raw[name], float) / scales[name] for name in weights]
    return np.sum(terms, axis=0)


def by_part(
    raw: Mapping[str, Array], weights: Mapping[str, float], scales: Mapping[str, float]
) -> dict[str, Array]:
    """The influence summed over its validation sets, and the other parts as they are.

    The part of the rejected rows is a difference, in units of the anchors: mean influence by the
    validation sets less influence by the rejected rows. What a row shares with both cancels out.
    """
    members: dict[str, list[str]] = {}
    for name in weights:
        members.setdefault(part_of(name), []).append(name)
    found = {
        # A part of one name takes its weight at its shortfall, not here.
        part: combine(raw, {n: weights[n] if part == INFLUENCE else 1.0 for n in names}, scales)
        for part, names in members.items()
    }
    if REJECT in found:
        total = sum(weights[name] for name in members[INFLUENCE])
        found[REJECT] = found[INFLUENCE] / total - found[REJECT]
    return found


def anchor_units(
    raw: Mapping[str, Array],
    weights: Mapping[str, float],
    *,
    kind: Literal["anchor", "raw"],
    combine: Literal["shortfall", "sum"] = "sum",
) -> Units:
    """Units of one group, from its anchors' raw scores.

    `anchor`: every name is divided by the standard deviation of its anchor scores; then the parts
    are combined, and the result has the anchors' median 0 and (robust, normal-consistent) spread
    1. One part alone is never clipped.
    `raw`: validation sets are summed as they are, as in the paper.

    Raises:
        DataError: fewer than 5 anchors.
        NumericsError: the anchors' scores are not finite, or all the same.
    """
    n_anchors = min((len(v) for v in raw.values()), default=0)
    if n_anchors < MIN_ANCHORS:
        raise DataError(
            f"{n_anchors} anchor rows, at least {MIN_ANCHORS} are needed; 30 or more give a "
            "steadier threshold. Add rows to the anchor file."
        )
    if not all(np.isfinite(v).all() for v in raw.values()):
        raise NumericsError("an anchor score is not finite. Score in float32.")
    if kind == "raw":
        return Units(dict(weights), dict.fromkeys(weights, 1.0), 0.0, 1.0)
    # The standard deviation of equal numbers can come out as 1e-17.
    if any(np.ptp(raw[name]) == 0 for name in weights):
        raise NumericsError(
            "all anchors have the same score, so there is no unit to compare with. Use different "
            "anchor rows, or train longer."
        )
    scales = {name: float(np.std(raw[name])) for name in weights}
    values = by_part(raw, weights, scales)
    units = Units(dict(weights), scales, 0.0, 1.0)
    if combine == "shortfall" and len(values) > 1:
        parts: dict[str, Part] = {}
        for name, of_anchors in values.items():
            centre, width = _centre_and_width(of_anchors)
            parts[name] = Part(centre, width, 1.0 if name == INFLUENCE else weights[name])
        units = replace(units, parts=parts)
    location, spread = _centre_and_width(units.combined(raw))
    return replace(units, location=location, spread=spread)


def _centre_and_width(values: Array) -> tuple[float, float]:
    """Median, and the interquartile range as a standard deviation."""
    low, high = np.quantile(values, [0.25, 0.75])
    width = float(high - low) / NORMAL_IQR or float(np.std(values))
    return float(np.median(values)), width
