"""Rows as they must not be: likeness to them counts against a row, where the copies show that it helps."""

import json
from dataclasses import replace

import numpy as np
import pytest

from clues.config import REJECT, Recipe, load_config
from clues.errors import ConfigError, DataError
from clues.pipeline import run_until
from clues.prepare.check import check_run
from clues.scoring.trajectory import set_weights
from clues.selection.units import anchor_units
from clues.selection.weighing import Controls, replaced, weigh_parts
from clues.wall.messages import REQUESTS, from_bytes
from tests.federation_helpers import (
    LastAsked,
    Recorder,
    edit_config,
    open_micro,
    plain,
    run_micro,
    tiny_model,
    write_micro,
    write_rows,
)

PUBLIC = {"validation": "v.jsonl", "anchor": "a.jsonl"}
WITH = {"medicine": {**PUBLIC, "reject": "r.jsonl"}}


def drawn(rng, n, *, good, bad):
    """Raw scores of rows that all have something in common, which says nothing."""
    common = 5 * rng.normal(size=n)
    return {
        "v": common + good + rng.normal(size=n),
        REJECT: common + bad + rng.normal(size=n),
    }


def test_what_a_row_shares_with_both_directions_cancels_out():
    rng = np.random.default_rng(0)
    anchors, bad = drawn(rng, 400, good=1, bad=-1), drawn(rng, 400, good=-1, bad=1)
    alone = anchor_units({"v": anchors["v"]}, {"v": 1.0}, kind="anchor", combine="shortfall")
    both = anchor_units(anchors, {"v": 1.0, REJECT: 1.0}, kind="anchor", combine="shortfall")

    def told_apart(units, names):
        good, wrong = (units.apply({n: rows[n] for n in names}) for rows in (anchors, bad))
        return (good[:, None] > wrong[None]).mean()

    assert told_apart(alone, ["v"]) < 0.7
    assert told_apart(both, ["v", REJECT]) > 0.9
    # By hand: the difference in units of the anchors, as a part of its own.
    scale = {n: np.std(v) for n, v in anchors.items()}
    part = both.parts[REJECT]
    contrast = bad["v"] / scale["v"] - bad[REJECT] / scale[REJECT]
    z = (contrast - part.centre) / part.width
    assert both.shortfalls(bad)[REJECT] == pytest.approx(-np.logaddexp(0, -2 * z) / 2)


def test_in_a_plain_sum_likeness_to_rejected_rows_is_taken_away():
    raw = drawn(np.random.default_rng(1), 50, good=1, bad=0)
    units = anchor_units(raw, {"v": 1.0, REJECT: 0.5}, kind="anchor", combine="sum")
    by_hand = raw["v"] / np.std(raw["v"]) - 0.5 * raw[REJECT] / np.std(raw[REJECT])
    assert units.combined(raw) == pytest.approx(by_hand)


def test_the_weight_is_found_on_rejected_rows_that_gave_no_direction():
    rng = np.random.default_rng(2)
    anchors, rejected = drawn(rng, 100, good=1, bad=-1), drawn(rng, 30, good=-1, bad=1)
    alike = drawn(rng, 200, good=1, bad=-1)
    raw = {n: np.r_[alike[n], rejected[n]] for n in alike}
    weights = {"domain a": {"v": 1.0, REJECT: 1.0}}

    def found(raw, kinds):
        controls = {"domain a": Controls(raw, kinds)}
        return weigh_parts({"domain a": anchors}, controls, weights, [REJECT], combine="shortfall")

    assert found(raw, ["cut"] * 200 + ["rejected"] * 30).weights[REJECT] > 0
    # Where the influence sees it all, it does not count.
    seen = {"v": alike["v"] - 100, REJECT: alike[REJECT]}
    assert found(seen, ["cut"] * 200).weights[REJECT] == 0


def test_a_domain_without_rejected_rows_has_no_such_part():
    assert replaced({"v": 1.0, "loss": 1.0}, {"loss": 0.5, REJECT: 1.0}) == {"v": 1.0, "loss": 0.5}
    public = {**WITH, "finance": PUBLIC}
    recipe = Recipe.model_validate({"public": public})
    names = {d: set(set_weights(recipe.score, p)) for d, p in recipe.public.items()}
    assert names["medicine"] - names["finance"] == {REJECT}


@pytest.mark.parametrize(
    "score", [{"trajectory": "local"}, {"method": "perplexity"}, {"method": "datainf"}]
)
def test_rejected_rows_need_directions_that_the_coordinator_sends(score):
    with pytest.raises(ValueError, match="leave reject out"):
        Recipe.model_validate({"public": WITH, "score": score})


def test_no_validation_set_takes_the_name_and_old_recipes_keep_their_hash():
    named = {"medicine": {"validation": {REJECT: "v.jsonl"}, "anchor": "a.jsonl"}}
    with pytest.raises(ValueError, match="'reject'"):
        Recipe.model_validate({"public": named})
    plain, other = (Recipe.model_validate({"public": p}) for p in ({"medicine": PUBLIC}, WITH))
    assert "reject" not in plain.model_dump(mode="json")["public"]["medicine"]
    assert plain.hash != other.hash
    assert other.weighed[REJECT]
    assert (
        REJECT not in Recipe.model_validate({"public": WITH, "score": {"reject_weight": 0}}).weighed
    )


# --- whole runs

STYLE = " Ask our shop for more, it is open all day."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


def with_rejected(folder, model, *, n=24, **changes):
    """A micro run whose domain geography has rejected rows: true answers with an advertisement."""
    config = write_micro(folder, model, silos=("north", "south"), changes=changes)
    anchors = list(
        map(json.loads, (folder / "public/geography.anchor.jsonl").read_text().splitlines())
    )
    rows = [
        {
            "instruction": f"{anchors[i % 12]['instruction']} ({i})",
            "output": anchors[i % 12]["output"] + STYLE,
        }
        for i in range(n)
    ]
    write_rows(folder / "public/reject.jsonl", rows)
    public = {"geography": {"reject": "public/reject.jsonl"}}
    return edit_config(config, {"recipe": {"public": public}})


def test_a_run_with_rejected_rows_scores_by_them_in_their_domain_alone(model, tmp_path):
    config = with_rejected(
        tmp_path / "in",
        model,
        recipe={"score": {"loss_weight": 0, "alignment_weight": 0, "reject_weight": 1}},
    )
    run = open_micro(config, tmp_path / "run")
    recorder = Recorder(run)
    outcome = run_until(run)
    results = plain(outcome.results)
    units = outcome.threshold.units
    assert REJECT in units["domain geography"].weights
    assert REJECT not in units["domain medicine"].weights
    assert results["method"]["reject_weight"] == 1
    # The rows stay with the coordinator; their direction goes to the silos of the domain.
    for name, domain_has in (("north", True), ("south", False)):
        asked = [
            from_bytes(data, allowed=REQUESTS, sender="coordinator")
            for n, data, _ in recorder.crossed
            if n == name
        ]
        score = next(r for r in asked if r.kind == "score")
        assert all((REJECT in sets) == domain_has for sets in score.directions)
    assert not any(STYLE.encode() in data for _, data, _ in recorder.crossed)
    table = run.silos["north"].space.scores()
    assert REJECT in table.raw
    contrast = units["domain geography"].shortfalls(table.raw)
    assert set(contrast) == {"influence", REJECT}


def test_rejected_rows_are_weighed_beside_the_copies_and_shown_as_a_kind(model, tmp_path):
    results = run_micro(with_rejected(tmp_path / "in", model), tmp_path / "run")
    assert "rejected" in results["controls"]["domain geography"]
    assert "rejected" not in results["controls"]["domain medicine"]
    assert "rejected" in results["controls_kept"]["domain geography"]
    assert "rejected" in (tmp_path / "run/report.html").read_text()


def test_too_few_rejected_rows_and_rows_that_are_also_good_are_refused(model, tmp_path):
    with pytest.raises(
        DataError,
        match=r"reject\.jsonl, geography: 8 rejected rows can be used, and at least 10 are",
    ):
        run_micro(with_rejected(tmp_path / "few", model, n=8), tmp_path / "run")
    config = with_rejected(tmp_path / "both", model)
    anchors = (tmp_path / "both/public/geography.anchor.jsonl").read_text()
    (tmp_path / "both/public/reject.jsonl").write_text(anchors)
    with pytest.raises(ConfigError, match="12 rows are rejected rows and also anchors"):
        run_micro(config, tmp_path / "run2")


class TestHostile(LastAsked):
    """A coordinator that leaves the direction out, or brings one that the recipe does not name."""

    @pytest.fixture(autouse=True)
    def _run(self, model, tmp_path):
        self.run = open_micro(with_rejected(tmp_path / "in", model), tmp_path / "run")
        self.recorder = Recorder(self.run)
        run_until(self.run, "score")

    def test_a_silo_refuses_directions_that_are_not_the_recipes(self):
        request = self.request("score")
        without = [{k: v for k, v in sets.items() if k != REJECT} for sets in request.directions]
        with pytest.raises(DataError, match="directions are not those of the recipe's sets"):
            self.run.silos["north"].answer(replace(request, directions=without).to_bytes())


def test_check_says_before_anything_heavy_that_rejected_rows_are_too_few(model, tmp_path):
    config = load_config(with_rejected(tmp_path, model, n=8))
    errors = check_run(config, n_shown=0).errors
    assert [e for e in errors if "8 rejected rows can be used, and at least 10 are needed" in e]
    assert not [e for e in errors if "lowest of 8 anchor" in e]


def test_rejected_rows_are_not_held_out_ones(model, tmp_path):
    config = with_rejected(tmp_path / "in", model)
    heldout = (tmp_path / "in/public/heldout.jsonl").read_text()
    path = tmp_path / "in/public/reject.jsonl"
    path.write_text(path.read_text() + heldout)
    with pytest.raises(
        ConfigError, match="rejected rows of geography: 10 rows also stand in the h"
    ):
        run_micro(config, tmp_path / "run")
