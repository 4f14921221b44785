"""One rule for all silos: what the anchors decide, and what they decide about each row."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

from clues.config import ThresholdSettings
from clues.errors import (
    ConfigError,
    DataError,
    DegenerateSelectionError,
    NumericsError,
    RecipeMismatchError,
)
from clues.selection.decisions import UNSCORED, UNUSABLE, Apart, Ruling, select
from clues.selection.rules import fewest_anchors, mixture_cut, tolerance_rank
from clues.selection.threshold import Threshold, fit_threshold
from clues.selection.units import Part, Units, anchor_units

HASH = "0123456789ab"
JOINS = ("shortfall", "sum")
# Eleven anchors whose median, mean and quantiles can be read off.
LADDER = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 21.0])


def settings(rule, **options):
    return ThresholdSettings(rule=rule, **{"units": "raw", "bootstrap": 50, **options})


def fit(rule, anchors=LADDER, *, proposals=None, seed=0, **options):
    groups = anchors if isinstance(anchors, dict) else {"all": {"v": anchors}}
    return fit_threshold(
        groups,
        {g: dict.fromkeys(raw, 1.0) for g, raw in groups.items()},
        settings(rule, **options),
        recipe_hash=HASH,
        seed=seed,
        proposals=proposals,
    )


def decide(scores, threshold, **options):
    scores = np.asarray(scores, float)
    rows = [(n, f"id{n}") for n in range(len(scores))]
    return select(
        rows,
        scores,
        threshold,
        **{"recipe_hash": HASH, "dropped": {}, "where": "hospital-b", **options},
    )


def draw(n, *, seed, mean=0.0, spread=1.0):
    return np.random.default_rng(seed).normal(mean, spread, n)


# Rules


def test_anchor_mean_is_the_mean_of_the_anchors():
    assert fit("anchor_mean").value == pytest.approx(6.0)


@pytest.mark.parametrize(("quantile", "value"), [(0.05, 0.0), (0.1, 1.0), (0.19, 1.0), (0.5, 5.0)])
def test_anchor_quantile_takes_an_anchor_and_never_rounds_up(quantile, value):
    threshold = fit("anchor_quantile", quantile=quantile)
    assert threshold.value == value
    assert (threshold.value > LADDER).mean() <= quantile, "more anchors fall than the rule says"


def test_the_tolerance_rank_is_the_highest_whose_probability_suffices():
    # By hand: P(Binomial(96, 0.05) >= 2) = 0.956 and >= 3 is 0.864; 0.95^59 = 0.0485.
    rule = settings("anchor_tolerance", quantile=0.05, confidence=0.95)
    assert tolerance_rank(96, rule) == (2, pytest.approx(0.956, abs=1e-3))
    assert tolerance_rank(59, rule) == (1, pytest.approx(0.9515, abs=1e-4))
    assert [fewest_anchors(rank, rule) for rank in (1, 2, 5)] == [59, 93, 181]
    for rank in (1, 2, 5):
        n = fewest_anchors(rank, rule)
        assert tolerance_rank(n, rule)[0] == rank
        assert tolerance_rank(n - 1, rule)[0] == max(1, rank - 1)
    assert tolerance_rank(10, rule) == (1, pytest.approx(1 - 0.95**10)), "says too much"


@pytest.mark.parametrize("n_anchors", [5, 30, 59, 96, 200])
def test_the_tolerance_keeps_its_promise_whatever_the_scores_look_like(n_anchors):
    rng = np.random.default_rng(0)
    kept_enough, n_runs = 0, 400
    for _ in range(n_runs):
        anchors = rng.exponential(size=n_anchors) ** 2
        threshold = fit("anchor_tolerance", -anchors, units="anchor", bootstrap=1, confidence=0.95)
        cut = threshold.units["all"].location + threshold.units["all"].spread * threshold.value
        # Of a squared exponential, the share below c is 1 - exp(-sqrt(c)): no sampling of rows.
        scale = threshold.units["all"].scales["v"]
        kept_enough += 1 - np.exp(-np.sqrt(-cut * scale)) >= 0.95
    standard_error = np.sqrt(threshold.assurance * (1 - threshold.assurance) / n_runs)
    assert kept_enough / n_runs == pytest.approx(threshold.assurance, abs=4 * standard_error)


def test_the_tolerance_gives_groups_of_any_shape_one_cut():
    groups = {"a": {"v": draw(96, seed=1)}, "b": {"v": -np.exp(draw(96, seed=2)) * 1e4}}
    threshold = fit("anchor_tolerance", groups, units="anchor")
    assert threshold.value == pytest.approx(-1)
    assert threshold.interval[0] < -1 < threshold.interval[1]
    for group, raw in groups.items():
        scores = threshold.units[group].apply(raw)
        assert np.median(scores) == pytest.approx(0, abs=1e-9)
        assert (scores < threshold.value - 1e-9).sum() == 1, "the cut is the second anchor of 96"


def test_the_tolerance_of_raw_scores_is_one_anchor_of_all():
    threshold = fit("anchor_tolerance", {"a": {"v": draw(96, seed=1)}, "b": {"v": LADDER}})
    pooled = np.sort(np.concatenate([draw(96, seed=1), LADDER]))
    assert threshold.value == pooled[1]
    assert threshold.assurance == tolerance_rank(107, settings("anchor_tolerance"))[1]


def test_the_tolerance_survives_anchors_that_mostly_score_the_same():
    anchors = np.array([1.0] * 9 + [2.0])
    threshold = fit("anchor_tolerance", anchors, units="anchor")
    scores = threshold.units["all"].apply({"v": np.array([0.5, 1.0, 2.0])})
    assert (scores >= threshold.value).tolist() == [False, True, True]


def test_preset_is_the_number_given():
    threshold = fit("preset", preset=-0.25)
    assert (threshold.value, threshold.interval) == (-0.25, None)


def test_ratio_has_no_global_number():
    threshold = fit("ratio", ratio=0.3)
    assert (threshold.value, threshold.ratio, threshold.interval) == (None, 0.3, None)


def test_mixture_is_the_median_of_the_proposals():
    proposals = {"a": 1.0, "b": 2.0, "c": 10.0}
    assert fit("mixture", proposals=proposals).value == 2.0
    assert fit("mixture", proposals=dict(reversed(proposals.items()))).value == 2.0


@pytest.mark.parametrize("proposals", [None, {}])
def test_mixture_without_a_proposal_is_refused(proposals):
    with pytest.raises(DataError, match="rule mixture: no silo's scores fall into two groups"):
        fit("mixture", proposals=proposals)


def test_the_threshold_says_what_it_rests_on():
    threshold = fit("anchor_quantile", {"a": {"v": LADDER}, "b": {"v": LADDER[:6]}})
    assert threshold.n_anchors == 17
    assert (threshold.recipe_hash, threshold.rule, threshold.units_kind) == (
        HASH,
        "anchor_quantile",
        "raw",
    )
    points = dict(threshold.anchor_quantiles)
    pooled = np.concatenate([LADDER, LADDER[:6]])
    assert points[0.0] == 0.0
    assert points[1.0] == 21.0
    assert points[0.25] == pytest.approx(np.quantile(pooled, 0.25))


# Bootstrap


@pytest.mark.parametrize("rule", ["anchor_tolerance", "anchor_mean", "anchor_quantile"])
def test_the_interval_contains_the_value_and_depends_on_the_seed_alone(rule):
    anchors = draw(60, seed=1)
    first = fit(rule, anchors, bootstrap=400)
    assert first.interval[0] <= first.value <= first.interval[1]
    assert first.interval[0] < first.interval[1]
    assert fit(rule, anchors, bootstrap=400) == first, "the bootstrap is not repeatable"
    assert fit(rule, anchors, bootstrap=400, seed=1).value == first.value
    assert fit("anchor_mean", anchors, seed=1).interval != fit("anchor_mean", anchors).interval


def test_the_interval_of_the_mean_is_as_wide_as_statistics_says():
    anchors = draw(100, seed=1)
    low, high = fit("anchor_mean", anchors, bootstrap=1000, confidence=0.9).interval
    assert high - low == pytest.approx(2 * 1.645 * anchors.std() / 10, rel=0.15)


def test_more_confidence_and_fewer_anchors_widen_the_interval():
    def width(n, confidence):
        threshold = fit("anchor_mean", draw(n, seed=1), bootstrap=400, confidence=confidence)
        return threshold.interval[1] - threshold.interval[0]

    assert width(50, 0.99) > width(50, 0.8)
    assert width(10, 0.9) > width(200, 0.9)


def test_the_interval_of_a_mixture_covers_the_proposals_it_rests_on():
    threshold = fit("mixture", proposals={"a": 1.0, "b": 2.0, "c": 3.0}, bootstrap=400)
    assert 1.0 <= threshold.interval[0] <= 2.0 <= threshold.interval[1] <= 3.0


# Units


def test_units_give_anchors_the_median_zero_and_the_spread_one():
    raw = {"v": draw(5000, seed=1, mean=300, spread=40)}
    scores = anchor_units(raw, {"v": 1.0}, kind="anchor").apply(raw)
    assert np.median(scores) == pytest.approx(0, abs=1e-9)
    assert scores.std() == pytest.approx(1, rel=0.05), "the spread is not normal-consistent"


def test_one_wild_anchor_does_not_move_the_units_much():
    calm = draw(50, seed=1)
    wild = np.append(calm, calm.max() + 30)

    def where_five_lies(raw):
        units = anchor_units({"v": raw}, {"v": 1.0}, kind="anchor")
        return units.apply({"v": np.array([1.0])})[0]

    assert where_five_lies(wild) == pytest.approx(where_five_lies(calm), rel=0.2)


@pytest.mark.parametrize("rule", ["anchor_tolerance", "anchor_mean", "anchor_quantile", "ratio"])
@pytest.mark.parametrize("factor", [1e-9, 0.5, 1e6])
@pytest.mark.parametrize("shift", [0.0, 27.0, -1e3])
def test_another_scale_or_a_constant_does_not_change_decisions(rule, factor, shift):
    anchors, rows = draw(40, seed=1), draw(200, seed=2, mean=-0.5)

    def kept(change):
        threshold = fit(rule, change(anchors), units="anchor")
        scores = threshold.units["all"].apply({"v": change(rows)})
        return decide(scores, threshold).kept

    usual = kept(lambda raw: raw)
    assert 0 < len(usual) < 200
    assert kept(lambda raw: factor * (raw + shift)) == usual, "decisions depend on the unit"


def test_each_validation_set_counts_by_its_weight_whatever_its_scale():
    anchors = {"en": draw(40, seed=1), "fr": draw(40, seed=2)}
    rows = {"en": draw(30, seed=3), "fr": draw(30, seed=4)}
    weights = {"en": 1.0, "fr": 0.5}
    usual = anchor_units(anchors, weights, kind="anchor").apply(rows)
    louder = {"en": 1e4, "fr": 1.0}
    found = anchor_units(
        {n: louder[n] * v for n, v in anchors.items()}, weights, kind="anchor"
    ).apply({n: louder[n] * v for n, v in rows.items()})
    assert found == pytest.approx(usual, rel=1e-9), "the louder set drowns the other"
    alone = anchor_units(anchors, {"en": 1.0}, kind="anchor").apply(rows)
    assert np.abs(alone - usual).max() > 0.1, "the second set has no say"


def test_raw_units_are_the_plain_weighted_sum():
    anchors = {"en": LADDER, "fr": LADDER**2}
    units = anchor_units(anchors, {"en": 1.0, "fr": 0.5}, kind="raw")
    assert units.apply(anchors) == pytest.approx(LADDER + 0.5 * LADDER**2)


def test_groups_of_different_scale_are_pooled_in_their_own_units():
    small, large = draw(50, seed=1), draw(50, seed=2)
    threshold = fit(
        "anchor_quantile", {"a": {"v": small}, "b": {"v": 1e5 * large + 3e5}}, units="anchor"
    )
    pooled = np.concatenate(
        [
            threshold.units["a"].apply({"v": small}),
            threshold.units["b"].apply({"v": 1e5 * large + 3e5}),
        ]
    )
    assert threshold.value == np.quantile(pooled, 0.05, method="lower")
    assert threshold.n_anchors == 100
    for group, raw in (("a", small), ("b", 1e5 * large + 3e5)):
        share = (threshold.units[group].apply({"v": raw}) >= threshold.value).mean()
        assert share > 0.85, f"group {group} is judged in another group's units"


def test_the_order_of_the_groups_changes_nothing():
    groups = {"a": {"v": draw(20, seed=1)}, "b": {"v": draw(30, seed=2)}}
    turned = dict(reversed(groups.items()))
    for rule in ("anchor_mean", "anchor_quantile"):
        assert fit(rule, groups, units="anchor") == fit(rule, turned, units="anchor")


PARTS = {"v": 1.0, "w": 1.0, "loss": 1.0, "alignment": 0.5}


def parted(seed=0, n=40):
    return {name: draw(n, seed=seed + k, spread=k + 1.0) for k, name in enumerate(PARTS)}


def test_a_shortfall_is_the_distance_below_the_anchors_and_nothing_above_them():
    part = Part(centre=2.0, width=0.5, weight=3.0)
    found = part.shortfall(np.array([-8.0, 2.0, 12.0]))
    assert found[0] == pytest.approx(3 * -20), "far below it is the distance in widths"
    assert found[1] == pytest.approx(-3 * np.log(2) / 2)
    assert -1e-9 < found[2] <= 0, "a row gains by being better than the anchors"


def test_being_good_in_one_part_does_not_make_up_for_another():
    anchors = parted()
    clipped, summed = (anchor_units(anchors, PARTS, kind="anchor", combine=c) for c in JOINS)
    row = {name: np.array([np.median(values)]) for name, values in anchors.items()}
    bad = row | {"loss": row["loss"] - 20}
    mixed = bad | {"v": row["v"] + 100}
    assert summed.apply(mixed) > summed.apply(row)
    assert clipped.apply(mixed) < clipped.apply(row) - 2
    assert clipped.apply(mixed) == pytest.approx(clipped.apply(bad), abs=0.5)


def test_the_score_is_the_sum_of_the_shortfalls_by_hand():
    anchors, rows = parted(), parted(seed=50, n=7)
    units = anchor_units(anchors, PARTS, kind="anchor", combine="shortfall")

    def combined(raw):
        scaled = {name: raw[name] / np.std(anchors[name]) for name in PARTS}
        return {"i": scaled["v"] + scaled["w"], "l": scaled["loss"], "a": scaled["alignment"]}

    total, of_anchors = np.zeros(7), np.zeros(40)
    for part, weight in (("i", 1.0), ("l", 1.0), ("a", 0.5)):
        theirs, ours = combined(anchors)[part], combined(rows)[part]
        width = np.subtract(*np.quantile(theirs, [0.75, 0.25])) / 1.349
        for values, target in ((ours, total), (theirs, of_anchors)):
            z = (values - np.median(theirs)) / width
            target -= weight * np.log(1 + np.exp(-2 * z)) / 2
    spread = np.subtract(*np.quantile(of_anchors, [0.75, 0.25])) / 1.349
    expected = (total - np.median(of_anchors)) / spread
    assert units.apply(rows) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("combine", JOINS)
def test_the_unit_of_a_part_does_not_count(combine):
    anchors, rows = parted(), parted(seed=50, n=7)
    usual = anchor_units(anchors, PARTS, kind="anchor", combine=combine).apply(rows)
    other = {
        side: {k: v * 1000 + 7 if k == "loss" else v for k, v in raw.items()}
        for side, raw in (("anchors", anchors), ("rows", rows))
    }
    found = anchor_units(other["anchors"], PARTS, kind="anchor", combine=combine)
    assert found.apply(other["rows"]) == pytest.approx(usual, rel=1e-9)


def test_one_part_alone_is_never_clipped():
    anchors, weights = {"v": draw(40, seed=1), "w": draw(40, seed=2)}, {"v": 1.0, "w": 1.0}
    clipped, summed = (anchor_units(anchors, weights, kind="anchor", combine=c) for c in JOINS)
    assert clipped == summed
    assert not clipped.parts


def test_a_threshold_with_parts_survives_its_file():
    groups = {"a": parted(), "b": parted(seed=9)}
    threshold = fit_threshold(
        groups,
        dict.fromkeys(groups, PARTS),
        settings("anchor_tolerance", units="anchor"),
        recipe_hash=HASH,
        seed=0,
    )
    content = json.loads(json.dumps(threshold.to_json()))
    assert Threshold.from_json(content) == threshold
    assert set(threshold.units["a"].parts) == {"influence", "loss", "alignment"}
    for group, raw in groups.items():
        scores = threshold.units[group].apply(raw)
        assert (scores < threshold.value - 1e-9).sum() == 0, "the cut is the first anchor of 40"
        assert np.median(scores) == pytest.approx(0, abs=1e-9)
    for units in content["units"].values():
        del units["parts"]
    with pytest.raises(DataError, match="cannot be read"):
        Threshold.from_json(content)


@pytest.mark.parametrize("bad", [{"width": 0.0}, {"centre": float("nan")}, {"slope": 1.0}])
def test_a_threshold_whose_parts_are_no_good_is_refused(bad):
    threshold = fit_threshold(
        {"a": parted()},
        {"a": PARTS},
        settings("anchor_tolerance", units="anchor"),
        recipe_hash=HASH,
        seed=0,
    )
    content = threshold.to_json()
    content["units"]["a"]["parts"]["loss"] |= bad
    with pytest.raises(DataError, match="cannot be read"):
        Threshold.from_json(content)


def test_a_missing_validation_set_is_named():
    units = anchor_units({"en": LADDER, "fr": LADDER}, {"en": 1.0, "fr": 1.0}, kind="anchor")
    with pytest.raises(DataError, match="no scores for fr"):
        units.apply({"en": LADDER})


@pytest.mark.parametrize("kind", ["anchor", "raw"])
@pytest.mark.parametrize("n", [0, 1, 4])
def test_fewer_than_five_anchors_are_refused(kind, n):
    with pytest.raises(DataError, match=f"{n} anchor rows, at least 5"):
        anchor_units({"v": LADDER[:n]}, {"v": 1.0}, kind=kind)
    anchor_units({"v": LADDER[:5]}, {"v": 1.0}, kind=kind)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["anchor", "raw"])
def test_an_anchor_score_that_is_not_finite_is_refused(bad, kind):
    with pytest.raises(NumericsError, match="an anchor score is not finite"):
        anchor_units({"v": np.append(LADDER, bad)}, {"v": 1.0}, kind=kind)


@pytest.mark.parametrize("n", range(5, 15))
def test_anchors_that_all_score_the_same_are_refused(n):
    # The standard deviation of 0.1 six times is 1e-17, not 0.
    with pytest.raises(NumericsError, match="all anchors have the same score"):
        anchor_units({"v": np.full(n, 0.1)}, {"v": 1.0}, kind="anchor")


def test_anchors_that_mostly_score_the_same_still_have_a_unit():
    raw = {"v": np.array([1.0] * 9 + [2.0])}
    assert np.isfinite(anchor_units(raw, {"v": 1.0}, kind="anchor").apply(raw)).all()


# Decisions


def test_a_row_at_the_threshold_is_kept():
    found = decide([0.9, 1.0, 1.1, np.nextafter(1.0, 0)], fit("preset", preset=1.0))
    assert found.kept == (1, 2)
    assert found.dropped == (0, 3)


def test_every_row_has_a_decision_with_a_score_and_a_reason_in_file_order():
    found = select(
        [(4, "d"), (0, "a"), (2, "c")],
        np.array([0.5, 2.0, -1.25]),
        fit("preset", preset=0.5),
        recipe_hash=HASH,
        dropped={3: Apart("x", UNSCORED, "too long"), 1: Apart("b", UNUSABLE, "output is null")},
        where="hospital-b",
    )
    assert [d.row for d in found.decisions] == [0, 1, 2, 3, 4]
    assert [d.id for d in found.decisions] == ["a", "b", "c", "x", "d"]
    assert [d.score for d in found.decisions] == [2.0, None, -1.25, None, 0.5]
    assert (found.kept, found.dropped, found.unscored) == ((0, 4), (1, 2), (3,))
    assert [d.reason for d in found.decisions] == [
        "score 2 is not below 0.5",
        "output is null",
        "score -1.25 is below 0.5",
        "too long",
        "score 0.5 is not below 0.5",
    ]


def test_a_ratio_keeps_the_best_share_of_each_silo():
    threshold = fit("ratio", ratio=0.25)
    scores = draw(40, seed=3)
    assert set(decide(scores, threshold).kept) == set(np.argsort(scores)[-10:])
    assert decide(1e6 * scores - 5, threshold).kept == decide(scores, threshold).kept


def test_decisions_do_not_depend_on_the_order_of_the_rows():
    scores, threshold = draw(40, seed=3), fit("preset", preset=0.0)
    order = np.random.default_rng(0).permutation(40)
    rows = [(int(i), f"id{i}") for i in order]
    options = {"recipe_hash": HASH, "dropped": {}, "where": "b"}
    assert select(rows, scores[order], threshold, **options) == decide(scores, threshold)


def test_scores_of_another_recipe_are_refused_with_both_hashes():
    with pytest.raises(RecipeMismatchError) as raised:
        decide([0.0, 1.0], fit("preset", preset=0.5), recipe_hash="ffff00001111")
    assert raised.value.exit_code == 4
    for part in ("hospital-b", "ffff00001111", HASH, "score again"):
        assert part in str(raised.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused(bad):
    with pytest.raises(NumericsError, match="hospital-b: 1 of 3 scores are not finite"):
        decide([0.0, bad, 1.0], fit("preset", preset=0.5))


@pytest.mark.parametrize(("preset", "what"), [(-10.0, "keeps every row"), (10.0, "keeps no row")])
def test_keeping_everything_or_nothing_is_refused_unless_allowed(preset, what):
    scores, threshold = draw(20, seed=1), fit("preset", preset=preset)
    with pytest.raises(DegenerateSelectionError, match=what) as raised:
        decide(scores, threshold)
    assert raised.value.exit_code == 3
    found = decide(scores, threshold, allow_degenerate=True)
    assert len(found.kept) == (20 if preset < 0 else 0)


def test_rows_that_could_not_be_scored_do_not_make_a_selection_less_degenerate():
    with pytest.raises(DegenerateSelectionError, match="keeps every row of 3"):
        decide([1.0, 2.0, 3.0], fit("preset", preset=0.0), dropped={9: Apart("x", UNSCORED, "-")})


def test_a_finding_sets_a_row_aside_whatever_it_scores_and_a_person_keeps_it():
    how = {"dropped": {9: Apart("x", UNSCORED, "too long"), 8: Apart("y", UNUSABLE, "null")}}
    how["aside"] = dict.fromkeys((0, 1, 8, 9), ("refusal", "the answer refuses"))
    found = decide(
        [5.0, 1.0, 3.0],
        fit("preset", preset=2.0),
        rulings={"id1": Ruling(keep=True, reason="a quotation")},
        **how,
    )
    assert [d.kept for d in found.decisions] == [False, True, True, False, False]
    assert [d.why for d in found.decisions] == [
        *("refusal", "person", "score", "not usable", "refusal")
    ]
    assert found.decisions[0].reason == "the answer refuses; score 5 is not below 2"
    assert (found.dropped, found.unscored) == ((0, 8, 9), ())


@pytest.mark.parametrize(
    ("first", "kept"), [("score", [0, 2]), ("refusal", [0, 2]), ("duplicate", [0, 1, 2])]
)
def test_to_keep_a_text_is_to_keep_it_once(first, kept):
    """Rows 0 and 1 are the same text; the ruling is about the text, and row 1 repeats row 0."""
    threshold = fit("preset", preset=2.0)
    aside = {1: ("duplicate", "the same text stands in an earlier row")}

    def ruled(scores, *, keep, others=MappingProxyType({})):
        ids = list(enumerate(["same", "same", "other"][: len(scores)]))
        how = {"recipe_hash": threshold.recipe_hash, "dropped": {}, "where": "hospital-b"}
        how |= {"allow_degenerate": True, "rulings": {"same": Ruling(keep=keep, reason="judged")}}
        return select(ids, np.array(scores), threshold, aside={**aside, **others}, **how)

    of_first = {} if first == "score" else {0: (first, "-")}
    found = ruled([1.0, 5.0, 5.0], keep=True, others=of_first)
    assert list(found.kept) == kept
    dropped = ruled([5.0, 5.0], keep=False)
    assert [d.why for d in dropped.decisions] == ["person", "person"]


def test_too_few_kept_rows_are_refused_even_if_degenerate_is_allowed():
    scores, threshold = np.arange(10.0), fit("preset", preset=7.0)
    assert len(decide(scores, threshold, min_kept=3).kept) == 3
    for allow in (False, True):
        with pytest.raises(DegenerateSelectionError, match="only 3 rows would be kept"):
            decide(scores, threshold, min_kept=4, allow_degenerate=allow)


def test_a_threshold_without_a_number_is_refused():
    threshold = replace(fit("ratio"), ratio=None)
    with pytest.raises(ConfigError, match="neither a value nor a ratio"):
        decide([0.0, 1.0], threshold)


def test_each_score_needs_its_row():
    with pytest.raises(ValueError, match="zip"):
        select(
            [(0, "a")],
            np.array([0.0, 1.0]),
            fit("preset", preset=0.5),
            recipe_hash=HASH,
            dropped={},
            where="b",
        )


@pytest.mark.parametrize(("n_anchors", "quantile"), [(20, 0.05), (40, 0.05), (40, 0.1), (100, 0.2)])
@pytest.mark.parametrize("groups", [1, 3])
def test_clean_rows_that_score_like_anchors_are_kept_as_often_as_promised(
    n_anchors, quantile, groups
):
    # Conformal: P(clean row >= k-th smallest of n anchors) = 1 - k / (n + 1), for any law of scores.
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(300):
        scale, place = rng.uniform(0.1, 100, groups), rng.uniform(-50, 50, groups)
        drawn = {
            f"g{g}": {"v": place[g] + scale[g] * rng.normal(size=n_anchors)} for g in range(groups)
        }
        threshold = fit("anchor_quantile", drawn, quantile=quantile, units="anchor", bootstrap=1)
        for g in range(groups):
            clean = place[g] + scale[g] * rng.normal(size=50)
            scores = threshold.units[f"g{g}"].apply({"v": clean})
            kept.append((scores >= threshold.value).mean())
    recall = float(np.mean(kept))
    assert recall >= 1 - quantile - 0.02, f"{recall}: more clean rows are lost than promised"
    assert recall <= 1 - quantile + 0.06, f"{recall}: the threshold is far below its quantile"


# Mixture


def test_a_mixture_finds_the_cut_between_two_far_groups():
    scores = np.concatenate([draw(80, seed=1, mean=-5), draw(120, seed=2, mean=5)])
    cut = mixture_cut(scores, seed=0)
    assert -2.5 < cut < 2.5
    assert mixture_cut(scores, seed=0) == cut
    assert mixture_cut(scores[::-1].copy(), seed=0) == pytest.approx(cut, abs=0.05)
    moved = mixture_cut(3 * scores + 100, seed=0)
    assert moved == pytest.approx(3 * cut + 100, abs=0.3)


@pytest.mark.parametrize("seed", range(3))
def test_a_mixture_finds_no_cut_in_one_group(seed):
    assert mixture_cut(draw(200, seed=seed), seed=0) is None


def test_a_mixture_of_too_few_rows_proposes_nothing():
    assert mixture_cut(np.array([0.0] * 4 + [9.0] * 5), seed=0) is None


# JSON


@pytest.mark.parametrize(
    "rule", ["anchor_tolerance", "anchor_mean", "anchor_quantile", "ratio", "preset", "mixture"]
)
def test_a_threshold_survives_json(rule):
    threshold = fit(rule, units="anchor", preset=0.1, proposals={"a": 0.2})
    text = json.dumps(threshold.to_json(), allow_nan=False)
    assert Threshold.from_json(json.loads(text)) == threshold


def hostile():
    """(what was done, content) of JSON that must not become a threshold."""
    good = fit("anchor_quantile", units="anchor").to_json()
    for key in good:
        yield f"without {key}", {k: v for k, v in good.items() if k != key}
    yield "unknown key", {**good, "command": "rm"}
    for key, bad in (
        ("n_anchors", -1),
        ("n_anchors", "<script>"),
        ("n_anchors", 1e300),
        ("n_anchors", True),
        ("confidence", 7.0),
        ("confidence", "high"),
        ("interval", [0.0, 1.0, "more"]),
        ("interval", "ab"),
        ("value", True),
        ("ratio", "0.5"),
        ("assurance", [0.5]),
    ):
        yield f"{key} {bad!r}", {**good, key: bad}
    for bad in (float("nan"), float("inf"), "high", [1.0], {}):
        yield f"value {bad!r}", {**good, "value": bad if bad != {} else {"a": 1}}
        for key in ("location", "spread"):
            content = copy.deepcopy(good)
            content["units"]["all"][key] = bad
            yield f"{key} {bad!r}", content
        for key in ("weights", "scales"):
            content = copy.deepcopy(good)
            content["units"]["all"][key]["v"] = bad
            yield f"{key} {bad!r}", content
    for key in ("spread", "scale"):
        for bad in (0.0, -1.0):
            content = copy.deepcopy(good)
            units = content["units"]["all"]
            if key == "spread":
                units["spread"] = bad
            else:
                units["scales"]["v"] = bad
            yield f"{key} {bad}", content
    yield "units without spread", {**good, "units": {"all": {"weights": {}, "scales": {}}}}
    yield "units a list", {**good, "units": [1]}
    yield "interval NaN", {**good, "interval": [float("nan"), 1.0]}
    yield "interval short", {**good, "interval": [1.0]}
    yield "interval a number", {**good, "interval": 1.0}
    yield "quantiles NaN", {**good, "anchor_quantiles": [[0.0, float("nan")]]}
    yield "quantiles words", {**good, "anchor_quantiles": [["a", "b"]]}
    yield "a list", [good]
    yield "null", None
    yield "a word", "threshold"
    yield "nothing", {}


@pytest.mark.parametrize(
    ("what", "content"), list(hostile()), ids=lambda v: v if type(v) is str else ""
)
def test_hostile_json_is_refused_as_data(what, content):
    with pytest.raises(DataError, match="the threshold cannot be read"):
        Threshold.from_json(content)


def test_units_of_a_group_are_plain_numbers_after_json():
    threshold = fit("anchor_quantile", units="anchor")
    found = Threshold.from_json(json.loads(json.dumps(threshold.to_json()))).units["all"]
    assert isinstance(found, Units)
    assert found.apply({"v": LADDER}) == pytest.approx(threshold.units["all"].apply({"v": LADDER}))


# Promise


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "clues.selection.decisions",
        "clues.config",
        "clues.errors",
        "clues.rundir",
        "clues.report",
        "clues.report.shared",
        "clues.report.terminal",
        "clues.wall.ledger",
        "clues.data.formats",
    ],
)
def test_looking_at_a_run_does_not_import_torch(module):
    code = f"import sys, {module}; print(*(set(sys.modules) & {{'torch', 'transformers', 'peft'}}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "", f"{module} imports a heavy package"
