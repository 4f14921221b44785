"""From anchor scores to one threshold, and from the threshold to a decision per row.

No torch here. A *group* is a set of rows and anchors that were scored on the same checkpoints:
a domain on the global trajectory, a silo on its own, a fold of a silo when cross-fitted.
Scores of different groups compare only in units of each group's anchors.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median_low
from typing import Any, NamedTuple

import numpy as np
from scipy.special import betainc

from clues.config import ANCHOR_RULES, Aim, ThresholdSettings, short
from clues.errors import (
    ConfigError,
    DataError,
    DegenerateSelectionError,
    NumericsError,
    RecipeMismatchError,
)
from clues.results.run import AimResult, ThresholdResult
from clues.selection.aims import Parting, cut_for_model, kept_shares
from clues.selection.turns import Turns, TurnScore
from clues.selection.units import MIN_ANCHORS, Array, Units, anchor_units
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
    values = [_rule_value(groups, proposals, settings) for groups in pools]
    numbers = [value for value in values if value is not None]
    return median_low(numbers) if numbers else None


def _rule_value(
    groups: Sequence[Array], proposals: Sequence[float], settings: ThresholdSettings
) -> float | None:
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


@dataclass(frozen=True)
class Ruling:
    """What a person decided about a row, whatever it scores."""

    keep: bool
    reason: str = field(repr=False)


# Why a row is kept or not, in a word; a finding about its text is one more.
SCORE, PERSON, UNSCORED, UNUSABLE = "score", "person", "not scored", "not usable"
TURN = "turn"
# Below the threshold by loss and alignment alone, with a cascade.
EARLY = "early"


class Apart(NamedTuple):
    """A row that no score decides about: its content id, why in a word, and the reason."""

    id: str
    why: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one row, and why; `by_hand` if a person has decided it.

    Attributes:
        row: zero-based position in the file.
        id: content id.
        score: in the threshold's units; None where there is none.
        kept: whether it is kept.
        reason: a sentence.
        by_hand: whether a person has decided it.
        why: in a word: `score`, `early` (with a cascade: by its loss and alignment alone), `turn`,
            `person`, `not scored`, `not usable`, or the kind of a finding.
        turns: scores of the turns of a row that has several, with `score.turns`.
        untrained: positions of turns that are below the threshold, in a kept row of which they are
            read and not trained.
    """

    row: int
    id: str
    score: float | None
    kept: bool
    reason: str = field(repr=False)
    by_hand: bool = False
    why: str = SCORE
    turns: tuple[TurnScore, ...] = ()
    untrained: tuple[int, ...] = ()

    @property
    def worst(self) -> TurnScore | None:
        """The turn with the lowest score, where turns have scores."""
        return min(self.turns, default=None)

    @property
    def file(self) -> str:
        """Where the row goes: `kept`, `dropped`, or `unscored` where nothing speaks against it."""
        return "kept" if self.kept else "unscored" if self.why == UNSCORED else "dropped"


@dataclass(frozen=True)
class Selection:
    """A decision for every row of a silo, in the order of the file."""

    recipe_hash: str
    decisions: tuple[Decision, ...]

    @property
    def kept(self) -> tuple[int, ...]:
        """Positions of the kept rows."""
        return tuple(d.row for d in self.decisions if d.kept)

    @property
    def dropped(self) -> tuple[int, ...]:
        """Positions of the dropped rows."""
        return self.of("dropped")

    @property
    def unscored(self) -> tuple[int, ...]:
        """Positions of the rows that are neither: they have no score."""
        return self.of("unscored")

    def of(self, file: str) -> tuple[int, ...]:
        """Positions of the rows that go to one file."""
        return tuple(d.row for d in self.decisions if d.file == file)

    @property
    def untrained(self) -> dict[int, tuple[int, ...]]:
        """By position of a kept row, the turns of it that are not trained."""
        return {d.row: d.untrained for d in self.decisions if d.untrained}


def select(
    rows: Sequence[tuple[int, str]],
    scores: Array,
    threshold: Threshold,
    *,
    recipe_hash: str,
    dropped: Mapping[int, Apart],
    where: str,
    min_kept: int = 1,
    allow_degenerate: bool = False,
    rulings: Mapping[str, Ruling] | None = None,
    aside: Mapping[int, tuple[str, str]] | None = None,
    turns: Turns | None = None,
) -> Selection:
    """Decide about every row; a row at the threshold is kept.

    Args:
        rows: (position, content id) of the scored rows.
        scores: their scores in the threshold's units, in the same order.
        threshold: the global rule.
        recipe_hash: recipe under which the rows were scored.
        dropped: by position, the rows that no score decides about.
        where: name of the silo, for errors.
        min_kept: fewer kept rows than this would single people out.
        allow_degenerate: accept a selection that keeps nothing or everything.
        rulings: by content id, what a person decided; it wins over the score, and the limits
            above hold for what comes out.
        aside: by position, kind and reason of the rows that a finding sets aside whatever they
            score.
        turns: scores of the turns of rows that have several, in units of the anchors' turns.

    Raises:
        RecipeMismatchError: scores and threshold come from different recipes.
        NumericsError: a score is not finite.
        DataError: a person keeps a row that has no score.
        DegenerateSelectionError: nothing, everything, or fewer than `min_kept` rows are kept.
    """
    if recipe_hash != threshold.recipe_hash:
        raise RecipeMismatchError(
            f"{where} scored under recipe {short(recipe_hash)}; the threshold is for "
            f"{short(threshold.recipe_hash)}. Send {where} the current recipe and score again."
        )
    if not np.isfinite(scores).all():
        n_bad = int((~np.isfinite(scores)).sum())
        raise NumericsError(f"{where}: {n_bad} of {len(scores)} scores are not finite.")
    cut = cut_of(threshold, scores, where=where)
    decisions = [
        Decision(row, id_, float(score), bool(score >= cut), _reason(float(score), cut))
        for (row, id_), score in zip(rows, scores, strict=True)
    ]
    decisions = [_by_turns(d, turns, cut) for d in decisions] if turns else decisions
    decisions += [
        Decision(row, apart.id, None, False, apart.reason, why=apart.why)
        for row, apart in dropped.items()
    ]
    decisions = [_set_aside(d, (aside or {}).get(d.row)) for d in decisions]
    decisions = [_ruled(d, rulings or {}, where) for d in decisions]
    selection = Selection(recipe_hash, tuple(sorted(decisions, key=lambda d: d.row)))
    n_kept = len(selection.kept)
    n_rows = len(rows) + sum(apart.why == EARLY for apart in dropped.values())
    # Where turns are left out, keeping every row is a choice.
    if not allow_degenerate and n_kept in (0, n_rows) and not selection.untrained:
        what = "every row" if n_kept else "no row"
        span = f" (scores run from {scores.min():.4g} to {scores.max():.4g})" if len(scores) else ""
        raise DegenerateSelectionError(
            f"{where}: the threshold {cut:.4g} keeps {what} of {n_rows}{span}. Check that the anchors are of this "
            "silo's domain, or choose another rule; --allow-degenerate accepts it."
        )
    if 0 < n_kept < min_kept:
        raise DegenerateSelectionError(
            f"{where}: only {n_kept} rows would be kept and the silo asks for at least {min_kept}. "
            "A model trained on so few can give them away."
        )
    return selection


def cut_of(threshold: Threshold, scores: Array, *, where: str) -> float:
    """The number that these scores are compared with; under rule `ratio` it is the silo's own.

    Raises:
        ConfigError: the threshold has neither a value nor a ratio.
    """
    if threshold.ratio is not None:
        n_kept = round(threshold.ratio * len(scores))
        return float(np.sort(scores)[::-1][n_kept - 1]) if n_kept else float("inf")
    if threshold.value is None:
        raise ConfigError(f"{where}: the threshold has neither a value nor a ratio.")
    return threshold.value


def _by_turns(decision: Decision, turns: Turns, cut: float) -> Decision:
    found = turns.verdict(decision.row, cut=cut, kept=decision.kept)
    if found is None:
        return decision
    return replace(
        decision,
        kept=found.kept,
        reason=f"{found.says}; {decision.reason}" if found.says else decision.reason,
        # Whatever the turns say, a row that is dropped by its own score is dropped for it.
        why=TURN if decision.kept and not found.kept else decision.why,
        turns=found.turns,
        untrained=found.untrained,
    )


def _set_aside(decision: Decision, found: tuple[str, str] | None) -> Decision:
    if found is None or decision.why == UNUSABLE:
        return decision
    kind, reason = found
    reason = f"{reason}; {decision.reason}"
    return replace(decision, kept=False, reason=reason, why=kind, untrained=())


def _ruled(decision: Decision, rulings: Mapping[str, Ruling], where: str) -> Decision:
    """The decision with a person's ruling over it, if there is one for this text."""
    ruling = rulings.get(decision.id)
    if ruling is None:
        return decision
    if ruling.keep and decision.score is None and decision.why != EARLY:
        raise DataError(
            f"{where}: row {decision.row + 1} (id {decision.id}) cannot be kept by hand, because "
            f"nothing can be trained on it: {decision.reason}. Mend the row, or take it out of "
            "the overrides."
        )
    what = "kept" if ruling.keep else "dropped"
    reason = f"{what} by a person: {ruling.reason}; {decision.reason}"
    # A person has read the whole row.
    by_hand = {"kept": ruling.keep, "by_hand": True, "why": PERSON, "untrained": ()}
    return replace(decision, reason=reason, **by_hand)


def _reason(score: float, cut: float) -> str:
    if score >= cut:
        return f"score {score:.4g} is not below {cut:.4g}"
    return f"score {score:.4g} is below {cut:.4g}"
