"""What `clues check` says a run costs, against what a run does."""

import sys

import numpy as np
import pytest
import torch
from federation_helpers import open_micro, tiny_model, write_micro

from clues.config import BASELINE_NAMES, load_config
from clues.model import loss
from clues.pipeline import run_until
from clues.prepare.check import check_run
from clues.prepare.checklist import Role, Source
from clues.prepare.cost import Stage, per_private_token, work_of
from clues.prepare.pace import Pace, measured_pace
from clues.scoring.cost import BASELINES, GRADIENT, Size, Work


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


class Counter:
    """Tokens that go through any model, with gradients and without."""

    def __init__(self, monkeypatch) -> None:
        self.tokens = {True: 0, False: 0}
        plain = loss.make_batch

        def counted(rows, **how):
            self.tokens[torch.is_grad_enabled()] += sum(len(row.ids) for row in rows)
            return plain(rows, **how)

        for module in list(sys.modules.values()):
            if getattr(module, "make_batch", None) is plain:
                monkeypatch.setattr(module, "make_batch", counted)

    def taken(self) -> Work:
        found = Work(self.tokens[False], self.tokens[True])
        self.tokens = {True: 0, False: 0}
        return found


RECIPES = {
    "default": {},
    "compared": {"score": {"compare": ["sgd", "cosine", "base_perplexity", "repsim", "datainf"]}},
    "linear": {"score": {"form": "adam", "loss_weight": 0, "alignment_weight": 0}},
    "perplexity": {"score": {"method": "perplexity"}},
    "local": {"score": {"trajectory": "local"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_tokens_are_counted_as_a_run_looks_at_them(model, tmp_path, monkeypatch, name):
    changes = {"recipe": RECIPES[name], "evaluate": {"arms": []}}
    config = write_micro(tmp_path / "input", model, changes=changes)
    run = open_micro(config, tmp_path / "run")
    counter = Counter(monkeypatch)
    # What is tried out on a few rows is small beside a run, and not small beside this one.
    monkeypatch.setattr(type(run.coordinator.desk), "try_out", lambda *_, **__: None)
    run_until(run, "train")
    trained = counter.taken()
    run_until(run, "score")
    scored = counter.taken()
    sizes = sizes_of(run)
    expected = work_of(load_config(config), sizes)
    assert trained.gradient == pytest.approx(expected[Stage.TRAIN].gradient, rel=0.1)
    # Passes that form every row's gradient count for more than they look at.
    wanted = expected[Stage.SCORE]
    formed = 1.0 if name in ("linear", "perplexity") else 1.15
    assert scored.gradient * formed == pytest.approx(wanted.gradient, rel=0.15)
    assert scored.forward == pytest.approx(wanted.forward, rel=0.2)


def sizes_of(run):
    sizes = {
        Source(Role.SILO, name): Size.of(silo.space.encoded().rows)
        for name, silo in run.silos.items()
    }
    desk = run.coordinator.desk
    for domain in desk.domains:
        sizes[Source(Role.ANCHORS, domain)] = Size.of(desk.anchors(domain))
        for name, rows in desk.validation(domain).items():
            sizes[Source(Role.VALIDATION, domain, name)] = Size.of(rows)
    return sizes


@pytest.mark.slow
def test_check_tells_time_by_stage_and_the_passes_of_a_selection(model, tmp_path):
    config = load_config(write_micro(tmp_path, model))
    check = check_run(config, n_shown=0)
    assert set(check.minutes) == {str(stage) for stage in Stage}
    assert all(minutes > 0 for minutes in check.minutes.values())
    assert 5 < check.passes < 20
    assert 0.1 < check.memory_gb < 20


def test_a_selection_of_many_rows_costs_little_more_than_six_passes(tmp_path, model):
    """By default, 1,000 rows of 200 tokens in each of two silos, 150 checked rows in one domain."""
    changes = {"recipe": {"train": {"steps": None, "rounds": 2, "checkpoints": 1}}}
    silos = {"silo_changes": {"domain": "geography"}}
    config = load_config(write_micro(tmp_path, model, changes=changes, **silos))
    sizes = {Source(Role.SILO, name): Size(200_000, 130_000, 1000) for name in ("north", "south")}
    sizes[Source(Role.ANCHORS, "geography")] = Size(20_000, 13_000, 100)
    sizes[Source(Role.VALIDATION, "geography", "validation")] = Size(10_000, 6_500, 50)
    assert per_private_token(work_of(config, sizes), sizes) < 6


@pytest.mark.slow
def test_results_say_how_many_passes_a_row_cost(model, tmp_path):
    config = write_micro(tmp_path / "input", model, changes={"evaluate": {"arms": []}})
    run = open_micro(config, tmp_path / "run")
    results = run_until(run).results
    assert results is not None
    n_rows = sum(len(silo.space.encoded().rows) for silo in run.silos.values())
    as_rows = {source: Size(s.rows, s.rows, s.rows) for source, s in sizes_of(run).items()}
    work = work_of(load_config(config), as_rows)
    assert results.passes is not None
    assert results.passes.train == pytest.approx(work[Stage.TRAIN].equivalents / n_rows, abs=0.01)
    assert results.passes.score == pytest.approx(work[Stage.SCORE].equivalents / n_rows, abs=0.01)
    assert results.passes.score > 2


def test_every_baseline_has_a_cost():
    assert set(BASELINES) == set(BASELINE_NAMES)


def test_a_machine_of_a_known_pace_takes_as_long_as_that(model):
    pace = Pace(forward=0.6, gradient=1.2, memory_gb=1.0)
    assert pace.minutes(Work(forward=100, gradient=50)) == pytest.approx(2)
    assert Work(100, 50).equivalents == 100 + GRADIENT * 50


@pytest.mark.slow
def test_the_pace_is_measured_with_the_longest_row_and_others(model, tmp_path):
    run = open_micro(write_micro(tmp_path / "input", model), tmp_path / "run")
    run_until(run, "train")
    rows = run.silos["north"].space.encoded().rows
    pace = measured_pace(run.coordinator.desk.model, rows)
    assert 0 < pace.forward < pace.gradient * 5
    assert np.isfinite([pace.forward, pace.gradient, pace.memory_gb]).all()
    assert measured_pace(run.coordinator.desk.model, list(rows)[:1]).forward > 0
