"""Weights of the parts: what tells public anchors from damaged copies of them, and nothing else."""

import json
from typing import get_args

import numpy as np
import pytest

from clues.config import Damage, Recipe
from clues.data.damage import ALL_KINDS, DAMAGE_KINDS, N_COPIES, damaged_copies
from clues.data.samples import Message, Sample
from clues.errors import DataError
from clues.selection.units import Units
from clues.selection.weighing import GRID, Controls, auc, replaced, weigh_parts

WEIGHTS = {"validation": 1.0, "loss": 1.0, "alignment": 1.0}
PARTS = ("loss", "alignment")


def drawn(drops, *, n=64, seed=0):
    """Anchors, and copies of which each name is lower by its drop."""
    rng = np.random.default_rng(seed)
    anchors = {name: rng.normal(size=n) for name in WEIGHTS}
    copies = {name: rng.normal(size=2 * n) - drops[name] for name in WEIGHTS}
    return anchors, Controls(copies, ["cut", "mix"] * n)


def weighed(anchors, controls, parts=PARTS, combine="shortfall"):
    return weigh_parts(
        {"domain a": anchors},
        {"domain a": controls},
        {"domain a": WEIGHTS},
        parts,
        combine=combine,
    )


@pytest.mark.parametrize("combine", ["shortfall", "sum"])
def test_a_part_that_sees_damage_counts_and_one_that_prefers_it_does_not(combine):
    found = weighed(*drawn({"validation": 1.0, "loss": 3.0, "alignment": -2.0}), combine=combine)
    assert found.weights["loss"] >= 0.5
    assert found.weights["alignment"] == 0
    assert min(found.auc["domain a"].values()) > 0.95
    assert set(found.auc["domain a"]) == {"cut", "mix"}


def test_a_part_can_count_for_more_than_an_influence_that_sees_little():
    found = weighed(*drawn({"validation": 0.1, "loss": 0.2, "alignment": 1.5}, n=400))
    assert found.weights["alignment"] == 2.0


def test_a_part_that_adds_nothing_stays_out():
    found = weighed(*drawn({"validation": 9.0, "loss": 9.0, "alignment": 9.0}))
    assert found.weights == {"loss": 0.0, "alignment": 0.0}
    assert found.auc["domain a"] == {"cut": 1.0, "mix": 1.0}


def test_one_set_of_weights_is_chosen_for_all_groups_and_groups_have_one_vote_each():
    first = drawn({"validation": 1.0, "loss": 2.0, "alignment": 0.0})
    second = drawn({"validation": 1.0, "loss": -0.3, "alignment": 0.0}, n=640, seed=1)
    groups = {"domain a": first, "domain b": second}
    found = weigh_parts(
        {g: a for g, (a, _) in groups.items()},
        {g: c for g, (_, c) in groups.items()},
        dict.fromkeys(groups, WEIGHTS),
        PARTS,
        combine="shortfall",
    )
    assert found.weights["loss"] > 0
    assert set(found.auc) == set(groups)


def test_given_weights_are_measured_and_not_changed():
    anchors, controls = drawn({"validation": 1.0, "loss": 1.0, "alignment": 1.0})
    found = weighed(anchors, controls, parts=())
    assert found.weights == {}
    assert 0.5 < found.auc["domain a"]["cut"] < 1


def test_weights_come_from_the_grid_and_zero_means_out():
    found = weighed(*drawn({"validation": 0.5, "loss": 0.5, "alignment": 0.5}))
    assert set(found.weights.values()) <= set(GRID)
    assert replaced(WEIGHTS, {"loss": 0.0, "alignment": 0.25}) == {
        "validation": 1.0,
        "alignment": 0.25,
    }


def sample(n, answer="an answer of several words"):
    turns = (Message("user", f"question {n}"), Message("assistant", f"{answer} {n}"))
    return Sample(row=n, messages=turns)


def test_damaged_copies_keep_the_question_and_change_the_answer():
    samples = [sample(n) for n in range(12)]
    copies, kinds = damaged_copies(samples, seed=1, foreign=["palabras de otra lengua"])
    assert len(copies) == len(kinds) == N_COPIES * 12
    assert set(kinds) == set(DAMAGE_KINDS)
    assert [copy.row for copy in copies] == list(range(24))
    for copy, original in zip(copies, samples * N_COPIES, strict=True):
        assert copy.prompt == original.prompt
        assert copy.response != original.response
    assert damaged_copies(samples, seed=1, foreign=["palabras de otra lengua"])[0] == copies


def test_answers_that_cannot_be_damaged_are_named_with_what_to_do():
    same = [Sample(0, (Message("user", "q"), Message("assistant", "A")))]
    with pytest.raises(DataError, match=r"cannot be damaged.*every weight of a part"):
        damaged_copies(same, seed=1, foreign=["A"])


def test_a_threshold_keeps_the_copies_that_are_not_below_it():
    units = Units({"validation": 1.0}, {"validation": 1.0}, location=0.0, spread=2.0)
    raw = {"validation": np.array([-4.0, -2.0, 2.0, 4.0]), "loss": np.zeros(4)}
    controls = Controls(raw, ["cut", "cut", "mix", "cut"])
    assert controls.kept_by_kind(units, -1.0) == {"cut": 2 / 3, "mix": 1.0}
    again = Controls.from_json(json.loads(json.dumps(controls.to_json())))
    assert again.kept_by_kind(units, 1.5) == {"cut": 1 / 3, "mix": 0.0}


@pytest.mark.parametrize("n_values", [3, 10_000])
def test_the_area_under_the_curve_is_scikit_learns_with_ties_and_infinities(n_values):
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(n_values)
    good, bad = (rng.integers(n_values, size=n).astype(float) for n in (57, 31))
    truth = np.r_[np.ones(57), np.zeros(31)]
    wanted = roc_auc_score(truth, np.r_[good, bad])
    assert auc(good, bad) == pytest.approx(wanted, abs=1e-12)
    by_hand = np.mean((good[:, None] > bad) + 0.5 * (good[:, None] == bad))
    assert auc(good, bad) == pytest.approx(by_hand, abs=1e-12)
    assert auc(np.r_[good, np.inf], np.r_[bad, -np.inf]) > auc(good, bad)


def test_copies_get_the_kinds_that_the_recipe_names():
    assert set(get_args(Damage)) == set(ALL_KINDS)
    samples = [
        Sample(n, (Message("user", f"Question {n}?"), Message("assistant", f"Answer {n}, of 5.")))
        for n in range(12)
    ]
    swapped, kinds = damaged_copies(samples, seed=0, foreign=[], kinds=["swap"])
    assert kinds == ["swap"] * (N_COPIES * 12)
    own = [sample.response for sample in samples] * N_COPIES
    assert all(c.response != r and c.response in own for c, r in zip(swapped, own, strict=True))
    several, kinds = damaged_copies(
        samples, seed=0, foreign=[], kinds=["changed_number", "prompt_repeated"]
    )
    assert {kinds.count(kind) for kind in set(kinds)} == {12}
    repeated = [c for c, kind in zip(several, kinds, strict=True) if kind == "prompt_repeated"]
    assert all(copy.prompt[-1].content in copy.response for copy in repeated)


def test_an_answer_that_the_named_kinds_cannot_change_says_where_they_are_named():
    plain = [Sample(0, (Message("user", "Why?"), Message("assistant", "No number here.")))]
    with pytest.raises(DataError, match=r"row 0: no damage of kind changed_number.*score\.copies"):
        damaged_copies(plain, seed=0, foreign=[], kinds=["changed_number"])


def test_recipes_that_never_heard_of_copies_keep_their_hash():
    public = {"medicine": {"validation": "v.jsonl", "anchor": "a.jsonl"}}
    plain, same, other = (
        Recipe.model_validate({"public": public, "score": score})
        for score in ({}, {"copies": list(DAMAGE_KINDS)}, {"copies": ["swap"]})
    )
    assert plain.hash == same.hash
    assert plain.scoring_hash != other.scoring_hash
    with pytest.raises(ValueError, match=r"score\.copies\.0"):
        Recipe.model_validate({"public": public, "score": {"copies": ["smudge"]}})
