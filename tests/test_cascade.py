"""Two stages of scoring: what loss and alignment alone decide, and that nothing else is decided."""

import csv
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import clues
from clues.config import ALIGNMENT, LOSS, Recipe, ScoreSettings
from clues.data.tokens import EncodedRow
from clues.errors import DataError, RecipeMismatchError, UsageError
from clues.model.adapters import Checkpoint
from clues.pipeline import run_until
from clues.scoring import trajectory
from clues.scoring.cascade import Gate, score_in_stages
from clues.scoring.perplexity import losses_before
from clues.scoring.table import ScoreTable
from clues.scoring.trajectory import score_rows
from clues.selection.units import anchor_units
from tests.conftest import random_state
from tests.federation_helpers import (
    LastAsked,
    Recorder,
    edit_config,
    open_micro,
    plain,
    write_micro,
)

PUBLIC = {"medicine": {"validation": "v.jsonl", "anchor": "a.jsonl"}}


# --- the bound


@pytest.mark.parametrize("names", [(LOSS,), (ALIGNMENT,), (LOSS, ALIGNMENT)])
def test_no_score_is_above_its_ceiling_by_the_last_digit_either(names):
    rng = np.random.default_rng(len(names))
    weights = {"v": 1.0, LOSS: 0.25, ALIGNMENT: 0.5}
    weights = {n: w for n, w in weights.items() if n == "v" or n in names}
    anchors = {n: rng.normal(size=60) for n in weights}
    units = anchor_units(anchors, weights, kind="anchor", combine="shortfall")
    raw = {n: rng.normal(size=20_000) * 10 ** rng.uniform(-3, 3, size=20_000) for n in weights}
    # Where the influence is as high as can be, nothing of the bound is given away.
    raw["v"][::2] = 1e6
    ceiling = units.ceiling({n: raw[n] for n in names})
    scores = units.apply(raw)
    assert (scores <= ceiling).all(), "a row would be dropped that its influence saves"
    assert (scores[::2] == ceiling[::2]).all(), "the bound is looser than it has to be"


def test_what_is_not_known_takes_nothing_away():
    rng = np.random.default_rng(0)
    weights = {"v": 1.0, LOSS: 1.0, ALIGNMENT: 1.0}
    units = anchor_units(
        {n: rng.normal(size=30) for n in weights}, weights, kind="anchor", combine="shortfall"
    )
    known = units.ceiling({LOSS: np.array([-5.0])})
    for odd in (np.nan, np.inf, -np.inf):
        both = {LOSS: np.array([-5.0]), ALIGNMENT: np.array([odd])}
        assert units.ceiling(both) == pytest.approx(known, abs=0)
    alone = anchor_units({"v": rng.normal(size=30)}, {"v": 1.0}, kind="anchor", combine="shortfall")
    assert np.isinf(alone.ceiling({LOSS: np.zeros(2)})).all()


# --- two stages against one


class Scene:
    """A tiny model in float64, rows of words and of random tokens, two checkpoints, anchors."""

    def __init__(self, make_lora, rows) -> None:
        self.model = make_lora(dtype=torch.float64)
        rng = np.random.default_rng(0)
        dirt = [
            EncodedRow(
                row=0,
                id=f"{n:016x}",
                ids=tuple(rng.integers(3, 290, size=length).tolist()),
                # Every third row has no question: its first token is trained.
                mask=tuple(i >= (0 if n % 3 == 0 else length // 2) for i in range(length)),
                truncated=False,
            )
            for n, length in enumerate(rng.integers(4, 40, size=40).tolist())
        ]
        self.anchors, self.rows = list(rows), [*rows[:4], *dirt]
        like = self.model.state()
        self.checkpoints = [
            Checkpoint(
                n,
                0.1,
                random_state(like, seed=n),
                {k: t.abs() + 0.1 for k, t in random_state(like, seed=9).items()},
                random_state(like, seed=8),
                optimizer_steps=3,
            )
            for n in range(2)
        ]
        self.directions = [{"v": random_state(like, seed=20 + n)} for n in range(2)]
        self.before = losses_before(self.model, self.rows)

    def whole(self, rows, settings):
        return score_rows(self.model, rows, self.checkpoints, self.directions, settings=settings)

    def gate(self, settings, *, keeps):
        """Units of the anchors, and a threshold between two scores that keeps this share of the rows."""
        weights = {"v": 1.0, **dict.fromkeys(settings.weighed, 1.0)}
        anchors = self.whole(self.anchors, settings).raw
        units = anchor_units(anchors, weights, kind="anchor", combine="shortfall")
        scores = np.sort(units.apply(self.whole(self.rows, settings).raw))
        place = round((1 - keeps) * len(scores))
        return Gate(units, float(scores[place - 1 : place + 1].mean()))

    def staged(self, settings, gate, **how):
        return score_in_stages(
            self.model,
            self.rows,
            self.checkpoints,
            self.directions,
            settings=settings,
            gate=gate,
            **({"before": self.before} | how),
        )


@pytest.fixture(scope="module")
def scene(make_lora, encoded_rows) -> Scene:
    return Scene(make_lora, encoded_rows)


SETTINGS = {
    "default": {},
    "loss alone": {"alignment_weight": 0},
    "alignment alone": {"loss_weight": 0},
    "losses of checkpoints": {"loss_under": "checkpoints"},
    "side branch": {"form": "sgd"},
}


@pytest.mark.parametrize("keeps", [0.2, 0.6])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_rows_are_kept_and_rows_left_open_score_the_same(scene, name, keeps):
    settings = ScoreSettings.model_validate(SETTINGS[name])
    gate = scene.gate(settings, keeps=keeps)
    slow, fast = scene.whole(scene.rows, settings), scene.staged(settings, gate)
    early = fast.early
    assert early is not None
    assert 0 < early.sum() < len(early), "the case shows nothing"
    by_hand = gate.units.apply(slow.raw) >= gate.cut
    kept = np.zeros(len(early), bool)
    kept[~early] = gate.units.apply({n: v[~early] for n, v in fast.raw.items()}) >= gate.cut
    assert (kept == by_hand).all(), "another row is kept"
    for ours, theirs in ((fast.raw, slow.raw), (fast.parts, slow.parts)):
        assert set(ours) == set(theirs)
        for column, values in ours.items():
            assert values[~early] == pytest.approx(theirs[column][~early], rel=1e-9, abs=1e-12)
            known = np.isfinite(values)
            assert values[known] == pytest.approx(theirs[column][known], rel=1e-9, abs=1e-12)
    assert np.isnan(fast.raw["v"][early]).all(), "an influence was invented"


def test_a_pass_is_made_for_rows_alone_that_it_may_decide(scene, monkeypatch):
    settings = ScoreSettings()
    gate = scene.gate(settings, keeps=0.6)
    passes, gradients = [], []
    fast = scene.staged(settings, gate, on_rows=passes.append)
    real = trajectory.form_scores

    def counted(model, rows, *args, **how):
        gradients.append(len(rows))
        return real(model, rows, *args, **how)

    monkeypatch.setattr(trajectory, "form_scores", counted)
    fast = scene.staged(settings, gate)
    assert fast.early is not None
    n_early, n = int(fast.early.sum()), len(scene.rows)
    assert gradients == [n - n_early] * 2, "gradients were made of rows that need none"
    # Without a question, at most once; with it, at most for the rows that were decided and few more.
    assert sum(passes) < n + 2 * (n - n_early) + 2 * n_early


def test_an_anchor_goes_through_the_same_two_stages(scene):
    """What is decided early is decided alike without stages, so the rule's promise is what it was."""
    settings = ScoreSettings()
    weights = {"v": 1.0, LOSS: 1.0, ALIGNMENT: 1.0}
    raw = scene.whole(scene.rows, settings).raw
    units = anchor_units(raw, weights, kind="anchor", combine="shortfall")
    scores = np.sort(units.apply(raw))
    for cut in scores[[2, 10, 30]]:
        is_open = Gate(units, float(cut)).leaves_open({n: raw[n] for n in (LOSS, ALIGNMENT)})
        assert (~is_open).any() or cut == scores[2]
        assert is_open[units.apply(raw) >= cut].all()


def test_a_row_whose_loss_is_not_finite_is_left_for_the_gradients_to_name(scene):
    settings = ScoreSettings()
    gate = scene.gate(settings, keeps=0.2)
    lost = np.flatnonzero(scene.staged(settings, gate).early).tolist()[0]
    before = scene.before.copy()
    for odd in (np.nan, np.inf):
        before[lost] = odd
        again = scene.staged(settings, gate, before=before)
        assert again.early is not None
        assert not again.early[lost]


def test_with_influence_alone_every_row_is_left_open(scene):
    settings = ScoreSettings()
    gate = scene.gate(settings, keeps=0.6)
    anchors = {"v": scene.whole(scene.anchors, settings).raw["v"]}
    units = anchor_units(anchors, {"v": 1.0}, kind="anchor", combine="shortfall")
    assert not scene.staged(settings, replace(gate, units=units)).early.any()


def test_no_row_needs_gradients_under_a_threshold_above_all_of_them(scene):
    settings = ScoreSettings()
    gate = replace(scene.gate(settings, keeps=0.2), cut=1e9)
    found = scene.staged(settings, gate)
    assert found.early.all()
    assert set(found.raw) == {"v", LOSS, ALIGNMENT}


# --- settings


def recipe(**changes):
    return Recipe.model_validate({"public": PUBLIC, **changes})


@pytest.mark.parametrize(
    ("score", "threshold", "says"),
    [
        ({"loss_weight": 0, "alignment_weight": 0}, {}, "a loss or alignment weight that is not 0"),
        ({"trajectory": "local"}, {}, "trajectory global"),
        ({"method": "perplexity"}, {}, "method influence"),
        ({"compare": ["sgd"]}, {}, "compare sgd needs"),
        ({"compare": ["alignment"]}, {}, "compare alignment needs"),
        ({"turns": True}, {}, "turns needs"),
        ({"per_block": True}, {}, "per_block needs"),
        ({}, {"rule": "ratio"}, "known before any row is scored"),
        ({}, {"rule": "mixture"}, "known before any row is scored"),
        ({}, {"combine": "sum"}, "cannot make up for each other"),
    ],
)
def test_a_cascade_that_could_decide_otherwise_is_refused(score, threshold, says):
    with pytest.raises(ValueError, match=says):
        recipe(score={"cascade": "exact", **score}, threshold=threshold)


def test_old_recipes_keep_their_hash_and_with_a_cascade_the_threshold_is_part_of_the_scores():
    assert "cascade" not in recipe().model_dump(mode="json")["score"]
    plain_, other = recipe(), recipe(threshold={"quantile": 0.1})
    assert plain_.scoring_hash == other.scoring_hash
    ours, theirs = (
        recipe(score={"cascade": "exact"}, threshold={"quantile": q}) for q in (0.05, 0.1)
    )
    assert len({plain_.scoring_hash, ours.scoring_hash, theirs.scoring_hash}) == 3


# --- the table


def test_a_table_says_which_rows_are_early_and_has_nothing_where_nothing_was_computed(tmp_path):
    table = ScoreTable(
        recipe_hash="x",
        row=np.array([0, 2]),
        id=("a", "b"),
        fold=np.zeros(2, int),
        n_tokens=np.array([3, 4]),
        n_response_tokens=np.array([1, 2]),
        raw={"v": np.array([1.5, np.nan]), LOSS: np.array([-1.0, -9.0])},
        parts={},
        early=np.array([False, True]),
        cut=-1.0,
    )
    table.write(tmp_path / "s.parquet")
    assert pq.read_table(tmp_path / "s.parquet")["raw v"].null_count == 1
    again = ScoreTable.read(tmp_path / "s.parquet")
    assert (again.cut, again.is_early.tolist(), again.id) == (-1.0, [False, True], ("a", "b"))
    assert np.isnan(again.raw["v"][1])
    rest = again.of(~again.is_early)
    assert (rest.row.tolist(), rest.id, rest.raw["v"].tolist()) == ([0], ("a",), [1.5])


# --- whole runs

# Strict, so that some rows of so small a model fall below it by loss and alignment alone.
STRICT = {
    "score": {"loss_weight": 1, "alignment_weight": 1},
    "threshold": {"rule": "anchor_mean"},
}


def with_cascade(folder, model, *, cascade: str | None = "exact", **recipe):
    """A micro run, or the same one without a cascade."""
    config = write_micro(folder, model, silos=("north", "south"), changes={"recipe": STRICT})
    return edit_config(config, {"recipe": {"score": {"cascade": cascade}, **recipe}})


class Cascaded(LastAsked):
    """A run with a cascade, and beside it the same run without one."""

    def __init__(self, folder, model) -> None:
        self.run = open_micro(with_cascade(folder / "in", model), folder / "run")
        self.recorder = Recorder(self.run)
        self.results = plain(run_until(self.run).results)
        other = with_cascade(folder / "one", model, cascade=None)
        self.other = open_micro(other, folder / "other")
        self.whole = plain(run_until(self.other).results)


@pytest.fixture(scope="module")
def world(micro_model, tmp_path_factory) -> Cascaded:
    return Cascaded(tmp_path_factory.mktemp("cascade"), micro_model)


def decisions(silo):
    with (silo.private / "decisions.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_selects_the_same_rows_and_names_those_that_were_decided_early(world):
    n_early = 0
    for name, silo in world.run.silos.items():
        ours, theirs = decisions(silo), decisions(world.other.silos[name])
        assert [d["kept"] for d in ours] == [d["kept"] for d in theirs]
        early = [d for d in ours if d["why"] == "early"]
        n_early += len(early)
        assert all(d["score"] == "" and d["file"] == "dropped" for d in early)
        assert all("by its loss and alignment alone, below" in d["reason"] for d in early)
        whole = [(d, t) for d, t in zip(ours, theirs, strict=True) if d["why"] == "score"]
        for d, t in whole:
            # Other batches, other last digits; the anchors of so small a model lie close together.
            assert float(d["score"]) == pytest.approx(float(t["score"]), abs=2e-3)
        page = (silo.private / "report.html").read_text()
        assert ("low by loss and alignment alone" in page) == bool(early)
        assert silo.space.scores().is_early.sum() == len(early)
    assert n_early >= 5, "the run shows nothing"
    ours, theirs = (r["threshold"]["value"] for r in (world.results, world.whole))
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_figures_of_detection_rest_on_all_rows_or_are_not_there(world):
    ours, theirs = (r["silos"]["north"] for r in (world.results, world.whole))
    for name in ("precision", "recall", "clean", "kept"):
        assert ours.get(name) == theirs.get(name)
    assert "influence" not in ours["detection"]
    assert "influence" in theirs["detection"]
    assert 0 <= ours["auc"] <= 1


def test_nothing_more_leaves_a_silo_and_one_number_more_reaches_it(world):
    from clues.wall.messages import REPLIES, from_bytes

    value = world.results["threshold"]["value"]
    assert world.request("score").cut == value
    replies = [
        from_bytes(reply, allowed=REPLIES, sender=name) for name, _, reply in world.recorder.crossed
    ]
    scores = [r for r in replies if r.kind == "score-reply"]
    assert scores
    assert all(r.anchor_scores == {} and r.proposal is None for r in scores)


def test_a_silo_refuses_a_cascade_that_the_recipe_does_not_have_and_one_without_a_threshold(world):
    north = world.run.silos["north"]
    with pytest.raises(DataError, match="has cascade, and no threshold came"):
        north.answer(replace(world.request("score"), cut=None).to_bytes())
    other = world.other.silos["north"]
    request = replace(world.request("score"), recipe_hash=world.other.config.recipe.hash)
    with pytest.raises(DataError, match="has no cascade, and a threshold came"):
        other.answer(request.to_bytes())


def test_another_threshold_than_the_one_that_rows_were_scored_for_decides_nothing(world):
    from clues.selection.threshold import Threshold

    north = world.run.silos["north"]
    sent = Threshold.from_json(world.request("select").threshold)
    assert sent.value is not None
    with pytest.raises(RecipeMismatchError, match="scored for another threshold"):
        north.select(replace(sent, value=sent.value - 1))


def test_a_person_may_keep_a_row_that_was_decided_early(world):
    from clues.selection.threshold import Threshold
    from clues.silo.overrides import Override, Overrides

    north = world.run.silos["north"]
    early = next(d for d in decisions(north) if d["why"] == "early")
    given = Overrides(
        silo="north",
        recipe_hash=world.run.config.recipe.hash,
        overrides=(Override(id=early["id"], keep=True, reason="right, though terse"),),
    )
    sent = Threshold.from_json(world.request("select").threshold)
    found = north.select(sent, given)
    assert int(early["row"]) in found.kept


def test_another_threshold_scores_again(world, micro_model, tmp_path):
    config = with_cascade(tmp_path / "in", micro_model)
    run_until(open_micro(config, tmp_path / "run"), "select")
    again = edit_config(config, {"recipe": {"threshold": {"rule": "anchor_quantile"}}})
    run = open_micro(again, tmp_path / "run")
    outcome = run_until(run, "select")
    assert outcome.threshold is not None
    assert run.silos["north"].space.scores().cut == outcome.threshold.value


@pytest.mark.slow
def test_in_memory_a_threshold_can_be_raised_and_not_lowered(small_built_in):
    def rows(n, seed):
        rng = np.random.default_rng(seed)
        return [
            {
                "instruction": f"What is {a} plus {b}?",
                "output": f"It is {a + b}." if seed < 3 or i % 2 else " ".join("zqxjv" * 5),
            }
            for i, (a, b) in enumerate(rng.integers(1, 90, size=(n, 2)).tolist())
        ]

    how = {"validation": rows(8, 0), "anchors": rows(20, 1), "progress": False}
    found = clues.score(
        rows(30, 3), recipe={**STRICT, "score": {**STRICT["score"], "cascade": "exact"}}, **how
    )
    early = [d for d in found.decisions if d.why == "early"]
    assert early
    assert np.isnan(found.scores[early[0].row])
    cut = found.threshold.value
    assert cut is not None
    higher = clues.select(found, threshold=cut + 0.5)
    assert set(higher.positions) <= set(found.positions)
    for lower in (
        {"threshold": cut - 0.1},
        {"ratio": 0.5},
    ):
        with pytest.raises(UsageError, match="score without cascade"):
            clues.select(found, **lower)
