"""From anchor scores to one threshold.

A *group* is a set of rows and anchors that were scored on the same checkpoints: a domain on the
global trajectory, a silo on its own, a fold of a silo when cross-fitted. Scores of different groups
compare only in units of each group's anchors. No torch here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median_low
from typing import Any

import numpy as np

from clues.config import ANCHOR_RULES, Aim, ThresholdSettings
from clues.errors import (
    DataError,
)
from clues.results.run import AimResult, ThresholdResult
from clues.selection.aims import Parting, cut_for_model, kept_shares
from clues.selection.rules import rule_value, tolerance_rank
from clues.selection.units import Array, Units, anchor_units
from clues.selection.weighing import Controls


@dataclass(frozen=True)
class Threshold:
    """One global rule.

    Attributes:
        recipe_hash: scores of any other recipe are refused.
        rule: name of the rule.
        value: rows below it are dropped; None for rule `ratio`, which has no global number.
        ratio: share of its rows that a silo keeps, for rule `ratio` alone.
        units: by group, how raw scores compare with `value`.
        units_kind: `anchor` or `raw`.
        assurance: probability that a group keeps at least 1 - quantile of its clean rows, if they
            score like its anchors; the lowest over groups, for rule `anchor_tolerance` alone.
        interval: bootstrap interval of `value` over anchors.
        confidence: probability content of the interval.
        n_anchors: anchor scores that the value rests on.
        anchor_quantiles: (probability, score) pairs of the pooled anchors.
    """

    recipe_hash: str
    rule: str
    value: float | None
    ratio: float | None
    units: dict[str, Units]
    units_kind: str
    assurance: float | None
    interval: tuple[float, float] | None
    confidence: float
    n_anchors: int
    anchor_quantiles: tuple[tuple[float, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def as_result(
        self,
        settings: ThresholdSettings,
        aims: Mapping[Aim, AimResult] | None = None,
    ) -> ThresholdResult:
        """The threshold as results show it.

        Args:
            settings: that it was fitted with.
            aims: what `by_aim` gave.
        """
        return ThresholdResult(
            value=self.value,
            rule=self.rule,
            units=self.units_kind,
            interval=self.interval,
            confidence=self.confidence,
            assurance=self.assurance,
            quantile=settings.quantile,
            n_anchors=self.n_anchors,
            anchor_quantiles=self.anchor_quantiles,
            aim=settings.aim,
            aims=aims or {},
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Threshold":
        """Read what `to_json` wrote.

        Raises:
            DataError: a key is missing, or a number is not finite or out of range.
        """
        try:
            units = {group: Units.from_json(u) for group, u in content["units"].items()}
            interval = content["interval"]
            threshold = cls(
                **{
                    **content,
                    "units": units,
                    "interval": (interval[0], interval[1]) if interval else None,
                    "anchor_quantiles": tuple(
                        (float(p), float(q)) for p, q in content["anchor_quantiles"]
                    ),
                }
            )
            numbers = [threshold.value or 0.0, threshold.ratio or 0.0, threshold.assurance or 0.0]
            numbers += [*(threshold.interval or ()), *np.ravel(threshold.anchor_quantiles)]
            numbers += [number for u in units.values() for number in u.numbers]
            positive = all(u.positive for u in units.values())
            share = threshold.ratio is None or 0 <= threshold.ratio <= 1
            pairs = threshold.interval is None or len(interval) == 2
            plain = type(threshold.n_anchors) is int and threshold.n_anchors >= 0
            plain = plain and 0.0 <= threshold.confidence <= 1.0 and pairs
            plain = plain and all(
                type(number) in (int, float)
                for number in (threshold.value, threshold.ratio, threshold.assurance)
                if number is not None
            )
            finite = bool(np.isfinite(numbers).all()) and positive and share and plain
        except (KeyError, TypeError, AttributeError, IndexError, ValueError):
            finite = False
        if not finite:
            raise DataError(
                "the threshold cannot be read, or a number in it is not finite or out of range."
            )
        return threshold  # pyright: ignore[reportPossiblyUnboundVariable]


def fit_threshold(
    anchors: Mapping[str, Mapping[str, Array]],
    weights: Mapping[str, Mapping[str, float]],
    settings: ThresholdSettings,
    *,
    recipe_hash: str,
    seed: int,
    proposals: Mapping[str, float] | None = None,
    owners: Mapping[str, str] | None = None,
    copies: Mapping[str, Controls] | None = None,
) -> Threshold:
    """One threshold from the anchors of all groups.

    Where silos have scored the anchors themselves, the rule is applied to each silo's anchors, and
    the lower median over silos counts: fewer than half of them cannot move it out of the range of
    the others' values. Of two silos nobody can say which one is wrong; their anchors are pooled.

    Args:
        anchors: by group, raw anchor scores by validation set.
        weights: by group, weight of each validation set.
        settings: the rule.
        recipe_hash: recipe under which the anchors were scored.
        seed: of the bootstrap.
        proposals: by silo, the cut it proposes; for rule `mixture` alone.
        owners: by group, the silo that has scored its anchors; None for the coordinator.
        copies: by group, damaged copies of the anchors; for aim `model` alone.

    Raises:
        DataError: fewer than 5 anchors in a group, no proposal for rule `mixture`, or no copies
            for aim `model`.
        NumericsError: anchor scores are not finite, or all the same.
    """
    units, assurance = group_units(anchors, weights, settings, owners=owners)
    scores = {g: units[g].apply(raw) for g, raw in anchors.items()}
    pooled = np.concatenate([scores[g] for g in sorted(scores)])
    pools = _pools(scores, owners)
    offered = sorted((proposals or {}).values())
    if settings.rule == "mixture" and not offered:
        raise DataError(
            "rule mixture: no silo's scores fall into two groups, so none proposed a cut. Use "
            "rule anchor_quantile."
        )
    partings = _partings(scores, units, copies or {}) if settings.aim == "model" else []
    value = _voted([[scores[g] for g in members] for members in pools], offered, settings)
    if partings and value is not None:
        least, value = value, cut_for_model(partings, least=value)
        # What the rule promises is the promise of its own cut.
        assurance = assurance if value == least else None
    rng = np.random.default_rng(seed)
    draws: list[float] = []
    if settings.rule not in ("ratio", "preset"):
        for _ in range(settings.bootstrap):
            # Anchors are drawn within their group: every domain stays represented.
            sample = {g: rng.choice(scores[g], len(scores[g])) for g in sorted(scores)}
            drawn = [[sample[g] for g in members] for members in pools]
            again = list(rng.choice(offered, len(offered))) if offered else []
            cut = _voted(drawn, again, settings) or 0.0
            if partings:
                cut = cut_for_model(
                    [
                        p.drawn(rng, sample[g])
                        for p, g in zip(partings, sorted(sample), strict=True)
                    ],
                    least=cut,
                )
            draws.append(cut)
    tail = (1 - settings.confidence) / 2
    interval = np.quantile(draws, [tail, 1 - tail]) if draws else None
    points = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
    return Threshold(
        recipe_hash=recipe_hash,
        rule=settings.rule,
        value=value,
        ratio=settings.ratio if settings.rule == "ratio" else None,
        units=units,
        units_kind=settings.units,
        assurance=assurance,
        interval=(float(interval[0]), float(interval[1])) if interval is not None else None,
        confidence=settings.confidence,
        n_anchors=len(pooled),
        anchor_quantiles=tuple((p, float(np.quantile(pooled, p))) for p in points),
    )


def by_aim(
    threshold: Threshold,
    anchors: Mapping[str, Mapping[str, Array]],
    copies: Mapping[str, Controls],
    settings: ThresholdSettings,
) -> dict[Aim, AimResult]:
    """The threshold that each aim takes, and what it keeps of anchors and of their damaged copies.

    Args:
        threshold: in whose units scores compare.
        anchors: by group, raw scores of public anchors.
        copies: by group, their damaged copies; empty gives nothing.
        settings: the rule.
    """
    if not copies or settings.rule not in ANCHOR_RULES:
        return {}
    scores = {g: threshold.units[g].apply(raw) for g, raw in anchors.items()}
    partings = _partings(scores, threshold.units, copies)
    least = _voted([[scores[g] for g in sorted(scores)]], [], settings)
    assert least is not None
    cuts: dict[Aim, float] = {"keep": least, "model": cut_for_model(partings, least=least)}
    shares = kept_shares(partings, np.array(list(cuts.values()))).T.tolist()
    return {
        aim: AimResult(value=cut, anchors_kept=anchors, copies_kept=copies)
        for (aim, cut), (anchors, copies) in zip(cuts.items(), shares, strict=True)
    }


def _partings(
    anchors: Mapping[str, Array], units: Mapping[str, Units], copies: Mapping[str, Controls]
) -> list[Parting]:
    """Anchors and copies of every group, in units that compare."""
    if missing := sorted(set(anchors) - set(copies)):
        raise DataError(
            f"threshold.aim model needs damaged copies of the anchors, and {missing[0]} has none. "
            "Score again."
        )
    return [
        Parting.of(anchors[g], units[g].apply(copies[g].raw), copies[g]) for g in sorted(anchors)
    ]


def group_units(
    anchors: Mapping[str, Mapping[str, Array]],
    weights: Mapping[str, Mapping[str, float]],
    settings: ThresholdSettings,
    *,
    owners: Mapping[str, str] | None = None,
) -> tuple[dict[str, Units], float | None]:
    """The units of every group, and the assurance of rule `anchor_tolerance`.

    Both sides make them of the same numbers, so a silo can tell whether those that come with a
    threshold are the recipe's.

    Args:
        anchors: by group, raw anchor scores by validation set.
        weights: by group, weight of each validation set.
        settings: the rule.
        owners: as `fit_threshold`.

    Raises:
        DataError: fewer than 5 anchors in a group.
        NumericsError: anchor scores are not finite, or all the same.
    """
    how: dict[str, Any] = {"kind": settings.units, "combine": settings.combine}
    units = {g: anchor_units(raw, weights[g], **how) for g, raw in anchors.items()}
    if settings.rule != "anchor_tolerance":
        return units, None
    sizes = {g: len(u.apply(anchors[g])) for g, u in units.items()}
    if settings.units != "anchor":
        pools = [sum(sizes[g] for g in members) for members in _pools(sizes, owners)]
        return units, min(tolerance_rank(n, settings)[1] for n in pools)
    ranks = {g: tolerance_rank(n, settings) for g, n in sizes.items()}
    units = {g: _tail_units(u, anchors[g], rank=ranks[g][0]) for g, u in units.items()}
    return units, min(probability for _, probability in ranks.values())


def _tail_units(units: Units, raw: Mapping[str, Array], *, rank: int) -> Units:
    """Units in which the group's cut is -1 and its anchors' median 0, so groups share one cut."""
    combined = units.combined(raw)
    cut, median = float(np.sort(combined)[rank - 1]), float(np.median(combined))
    # Anchors that mostly score the same, or a quantile above a half: the median is not above the
    # cut, and the spread stays what it was. A negative one would turn the order of rows round.
    spread = median - cut if median > cut else units.spread
    return replace(units, location=cut + spread, spread=spread)


def _pools(groups: Iterable[str], owners: Mapping[str, str] | None) -> list[list[str]]:
    """Groups whose anchors one rule is applied to: all, or those of each of three silos or more."""
    by_owner: dict[str, list[str]] = {}
    for group in sorted(groups):
        by_owner.setdefault(owners[group] if owners else "", []).append(group)
    return list(by_owner.values()) if len(by_owner) >= 3 else [sorted(groups)]


def _voted(
    pools: Sequence[Sequence[Array]], proposals: Sequence[float], settings: ThresholdSettings
) -> float | None:
    """The lower median over pools of the rule's value."""
    values = [rule_value(groups, proposals, settings) for groups in pools]
    numbers = [value for value in values if value is not None]
    return median_low(numbers) if numbers else None
