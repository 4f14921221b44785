"""The aim of a threshold: to spare clean rows, or what public rows say is best for the model."""

import json

import numpy as np
import pytest

from clues.config import Recipe, ThresholdSettings
from clues.errors import DataError
from clues.evaluation.compare import select_alone
from clues.report.pairs import rule_in_words
from clues.selection.aims import FEWEST_ANCHORS, Parting, cut_for_model, kept_shares
from clues.selection.threshold import Threshold, by_aim, fit_threshold
from clues.selection.weighing import Controls

PUBLIC = {"medicine": {"validation": "v.jsonl", "anchor": "a.jsonl"}}


def drawn(rng, *, gap=2.0, n=60):
    """Anchors around 0, and copies of two kinds, one of which nothing tells apart."""
    return Parting(
        rng.normal(size=n).round(1),
        {"cut": rng.normal(size=n).round(1) - gap, "swap": rng.normal(size=n).round(1)},
    )


def by_hand(groups, least):
    """The best cut by trying every number, one group and one kind after the other."""
    pooled = np.sort(np.concatenate([group.anchors for group in groups]))
    found = {}
    for cut in [least, *pooled]:
        if cut < least or (cut > least and (pooled >= cut).mean() < FEWEST_ANCHORS):
            continue
        gains = []
        for group in groups:
            copies = [np.mean([x >= cut for x in scores]) for scores in group.copies.values()]
            gains.append(np.mean([x >= cut for x in group.anchors]) - np.mean(copies))
        found[float(cut)] = round(float(np.mean(gains)), 9)
    best = max(found.values())
    return max(cut for cut, gain in found.items() if gain == best)


@pytest.mark.parametrize("seed", range(20))
def test_the_cut_is_the_one_that_trying_every_number_finds(seed):
    rng = np.random.default_rng(seed)
    groups = [drawn(rng, gap=gap) for gap in (3.0, 1.0)[: 1 + seed % 2]]
    least = float(rng.normal() - 1.5)
    assert cut_for_model(groups, least=least) == pytest.approx(by_hand(groups, least), abs=1e-12)


def test_copies_that_nothing_tells_apart_leave_at_least_half_of_the_anchors():
    rng = np.random.default_rng(0)
    same = Parting(rng.normal(size=500), {"swap": rng.normal(size=500) + 1})
    cut = cut_for_model([same], least=-9.0)
    assert (same.anchors >= cut).mean() >= FEWEST_ANCHORS


def test_the_cut_is_never_below_the_one_that_spares_clean_rows():
    parted = Parting(np.arange(10.0), {"cut": np.full(5, -20.0)})
    # Of all cuts up to 0 each keeps all anchors and no copy: the highest of them.
    assert cut_for_model([parted], least=-15.0) == 0.0
    assert cut_for_model([parted], least=4.5) == 4.5
    assert cut_for_model([parted], least=42.0) == 42.0


def test_every_kind_and_every_group_has_one_vote():
    many = {"cut": np.zeros(100), "swap": np.array([9.0])}
    one, other = Parting(np.ones(4), many), Parting(np.array([5.0]), {"cut": np.zeros(1)})
    shares = kept_shares([one, other], np.array([0.5, 2.0]))
    assert shares.tolist() == [[1.0, 0.5], [0.25, 0.25]]


def fitted(settings, *, with_copies=True, gap=1.5):
    rng = np.random.default_rng(3)
    anchors = {"domain a": {"v": rng.normal(size=80)}, "domain b": {"v": 5 + rng.normal(size=90)}}
    copies = {
        group: Controls({"v": np.tile(raw["v"], 2) - gap}, ["cut", "mix"] * len(raw["v"]))
        for group, raw in anchors.items()
    }
    weights = {group: {"v": 1.0} for group in anchors}
    threshold = fit_threshold(
        anchors,
        weights,
        settings,
        recipe_hash="0" * 64,
        seed=0,
        copies=copies if with_copies else None,
    )
    return threshold, anchors, copies


def test_aim_model_raises_the_cut_and_promises_nothing_then():
    keep, anchors, copies = fitted(ThresholdSettings(bootstrap=40))
    model, *_ = fitted(ThresholdSettings(aim="model", bootstrap=40))
    assert keep.value == pytest.approx(-1)
    assert model.value > keep.value
    assert model.units == keep.units
    # The promise is that of the rule's own cut.
    assert keep.assurance is not None
    assert model.assurance is None
    low, high = model.interval
    assert low <= model.value <= high
    assert high > low
    shown = by_aim(model, anchors, copies, ThresholdSettings(aim="model"))
    assert [shown[aim].value for aim in ("keep", "model")] == [keep.value, model.value]
    # What each keeps, counted by hand.
    for aim in ("keep", "model"):
        cut = shown[aim]
        of = {g: keep.units[g].apply(raw) >= cut.value for g, raw in anchors.items()}
        assert cut.anchors_kept == pytest.approx(np.mean([k.mean() for k in of.values()]))
        of = {g: keep.units[g].apply(c.raw) >= cut.value for g, c in copies.items()}
        assert cut.copies_kept == pytest.approx(np.mean([k.mean() for k in of.values()]))
    assert shown["model"].copies_kept < shown["keep"].copies_kept
    assert Threshold.from_json(json.loads(json.dumps(model.to_json()))) == model


def test_without_copies_there_is_no_aim_model_and_nothing_to_show():
    with pytest.raises(DataError, match=r"damaged copies of the anchors, and domain a has none"):
        fitted(ThresholdSettings(aim="model", bootstrap=5), with_copies=False)
    threshold, anchors, copies = fitted(ThresholdSettings(bootstrap=5))
    assert by_aim(threshold, anchors, {}, ThresholdSettings()) == {}
    assert by_aim(threshold, anchors, copies, ThresholdSettings(rule="ratio")) == {}


@pytest.mark.parametrize("rule", ["ratio", "preset", "mixture"])
def test_a_rule_that_reads_no_anchors_has_no_aim(rule):
    with pytest.raises(ValueError, match="set rule: anchor_tolerance"):
        ThresholdSettings(rule=rule, preset=0.0, aim="model")


@pytest.mark.parametrize("score", [{"trajectory": "local"}, {"method": "datainf"}])
def test_aim_model_needs_anchors_that_the_coordinator_scores(score):
    with pytest.raises(ValueError, match=r"threshold\.aim: keep"):
        Recipe.model_validate({"public": PUBLIC, "score": score, "threshold": {"aim": "model"}})


def test_the_aim_is_a_setting_of_the_threshold_and_old_recipes_keep_their_hash():
    plain = Recipe.model_validate({"public": PUBLIC})
    spared = Recipe.model_validate({"public": PUBLIC, "threshold": {"aim": "keep"}})
    model = Recipe.model_validate({"public": PUBLIC, "threshold": {"aim": "model"}})
    assert plain.hash == spared.hash != model.hash
    assert plain.scoring_hash == model.scoring_hash
    weighed = {"loss_weight": 0.5, "alignment_weight": 0}
    fixed = Recipe.model_validate({"public": PUBLIC, "score": weighed})
    assert plain.needs_copies
    assert not fixed.needs_copies
    assert Recipe.model_validate(
        {"public": PUBLIC, "score": weighed, "threshold": {"aim": "model"}}
    ).needs_copies


def test_other_scores_keep_the_rules_own_cut():
    rng = np.random.default_rng(0)
    scores, anchors = rng.normal(size=40), {"domain a": rng.normal(size=80)}
    kept = {
        aim: select_alone(
            "length",
            scores,
            np.zeros(40, int),
            anchors,
            recipe=Recipe.model_validate({"public": PUBLIC, "threshold": {"aim": aim}}),
        ).kept
        for aim in ("keep", "model")
    }
    assert kept["model"] is not None
    assert np.array_equal(kept["keep"], kept["model"])


def test_the_aim_changes_no_score_where_rejected_rows_are_not_weighed():
    public = {"medicine": {**PUBLIC["medicine"], "reject": "r.jsonl"}}
    fixed = {"loss_weight": 0, "alignment_weight": 0, "reject_weight": 1}
    for aim in ("keep", "model"):
        recipe = {"public": public, "score": fixed, "threshold": {"aim": aim}}
        assert not Recipe.model_validate(recipe).weighs


def test_people_read_the_aim_beside_the_rule():
    assert rule_in_words("anchor_tolerance", "keep") == "anchor_tolerance"
    assert rule_in_words("anchor_tolerance", "model") == "anchor_tolerance, aim model"
