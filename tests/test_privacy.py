"""Training with differential privacy: the gradient is what it says, and the budget holds."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from federation_helpers import open_micro, tiny_model, write_micro

from clues.config import PrivacySettings, Recipe, SiloSettings, TrainSettings
from clues.errors import CluesError, DataError
from clues.model.loss import make_batch, row_losses
from clues.model.training import Schedule
from clues.pipeline import run_until
from clues.progress import Silent
from clues.rundir import read_record, write_record
from clues.silo.budget import Budget, Phase
from clues.silo.curves import Piece
from clues.silo.workspace import Workspace

pytest.importorskip("opacus", reason="Opacus is not installed: clues[dp]")
from clues.model.noise import epsilon_of, noise_for, train_privately

pytestmark = [
    # Opacus and torch about themselves: hooks on inputs without gradient, secure random numbers.
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore::UserWarning:opacus.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:opacus.*"),
]


def private(model, rows, tmp_path, **changes):
    how = {"noise": 0.0, "max_grad_norm": 0.05, "n_steps": 1, "seed": 3, **changes}
    return train_privately(
        model,
        rows,
        start=model.initial,
        settings=TrainSettings(batch_size=len(rows)),
        schedule=Schedule(0.01, 0.0, 4),
        checkpoint_at=(1,),
        **how,
    )


def test_a_step_without_noise_is_the_mean_of_gradients_clipped_row_by_row(
    make_lora, encoded_rows, tmp_path
):
    model = make_lora(target_modules=("q_proj", "v_proj"))
    model.initial = model.state()
    found = private(model, encoded_rows, tmp_path).checkpoints[0].first_moment
    model.set_state(model.initial)
    parameters = model.parameters()
    wanted = {n: torch.zeros_like(p) for n, p in parameters.items()}
    norms = []
    for row in encoded_rows:
        loss = row_losses(model.peft, make_batch([row])).sum()
        slopes = torch.autograd.grad(loss, list(parameters.values()))
        norm = torch.stack([g.square().sum() for g in slopes]).sum().sqrt()
        norms.append(float(norm))
        for name, slope in zip(parameters, slopes, strict=True):
            wanted[name] += slope * min(1.0, 0.05 / float(norm)) / len(encoded_rows)
    assert max(norms) > 0.05, "nothing is clipped here"
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-8), name


def test_noise_has_the_size_it_claims_and_comes_from_the_seed(make_lora, encoded_rows, tmp_path):
    model = make_lora(target_modules=("q_proj",))
    model.initial = model.state()
    plain, one, two, three = (
        private(model, encoded_rows, tmp_path, **how).checkpoints[0].first_moment
        for how in (
            {"noise": 0.0},
            {"noise": 8.0},
            {"noise": 8.0},
            {"noise": 8.0, "seed": 4},
        )
    )
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert any(not torch.equal(one[n], three[n]) for n in one)
    noise = torch.cat([(one[n] - plain[n]).flatten() for n in one])
    assert float(noise.std()) == pytest.approx(8.0 * 0.05 / len(encoded_rows), rel=0.15)


def test_every_bit_of_the_seed_counts(make_lora, encoded_rows, tmp_path):
    """A generator of torch takes the lower 32: whoever tries them all could take the noise off."""
    model = make_lora(target_modules=("q_proj",))
    model.initial = model.state()
    rows = encoded_rows[:2]
    found = [
        torch.cat(
            [
                t.flatten()
                for t in private(model, rows, tmp_path, noise=1.0, seed=s).adapter.values()
            ]
        )
        for s in (5, 5, 5 + 2**32, 5 + 2**200)
    ]
    assert torch.equal(found[0], found[1])
    assert not any(torch.equal(found[0], other) for other in found[2:])
    assert not torch.equal(found[2], found[3])


def test_a_row_that_overflows_counts_as_zero_and_stops_nothing(
    make_lora, encoded_rows, tmp_path, monkeypatch
):
    """A failure, or an adapter that is not finite, would tell of one row without any noise."""
    model = make_lora(target_modules=("q_proj", "v_proj"))
    model.initial = model.state()
    others = private(model, encoded_rows[1:], tmp_path).checkpoints[0].first_moment

    def overflowing(wrapped, batch, **_):
        losses = row_losses(wrapped, batch)
        return losses * torch.tensor([float("inf")] + [1.0] * (len(losses) - 1))

    monkeypatch.setattr("clues.model.noise.row_losses", overflowing)
    found = private(model, encoded_rows, tmp_path).checkpoints[0].first_moment
    n = len(encoded_rows)
    for name, gradient in others.items():
        assert torch.allclose(found[name], gradient * (n - 1) / n, rtol=1e-3, atol=1e-8), name


@pytest.mark.slow
def test_half_and_half_of_epsilon_is_no_more_than_the_whole():
    history = [
        (noise_for(2.0, 1e-5, sample_rate=rate, n_steps=n), rate, n)
        for rate, n in ((0.1, 200), (0.3, 40))
    ]
    assert epsilon_of(history[:1], delta=1e-5) == pytest.approx(2.0, abs=0.02)
    assert 2.0 < epsilon_of(history, delta=1e-5) <= 4.0
    assert epsilon_of([], delta=1e-5) == 0


@pytest.mark.walk
def test_a_private_run_reports_epsilon_and_a_second_arm_is_refused(tmp_path):
    changes = {"privacy": {"epsilon": 8.0, "delta": 1e-3}, "share_diagnostics": False}
    model = tiny_model(tmp_path / "model")
    config = write_micro(
        tmp_path / "input",
        model,
        changes={"evaluate": {"arms": ["clues"]}},
        silo_changes=changes,
    )
    run = open_micro(config, tmp_path / "run")
    outcome = run_until(run)
    results = outcome.results
    assert results is not None
    for name, silo in results.silos.items():
        booked = read_record(tmp_path / f"run/silos/{name}/private/privacy.json", advice="")
        assert len(booked["trainings"]) == 4, "two rounds of warm-up, two of the fit"
        assert sorted(c["what"] for c in booked["counts"]) == ["all", "kept"]
        assert 0.4 < silo.epsilon <= 8.0
        assert silo.delta == 1e-3
        assert not silo.labelled
    # As if other arms had been fitted before.
    path = tmp_path / "run/silos/north/private/privacy.json"
    booked = read_record(path, advice="")
    phase = {"kind": "fit", "arm": "other"}
    other = {"phase": phase, "request": "x", "noise": 0.7, "rate": 0.5, "steps": 4}
    write_record(path, booked | {"trainings": [*booked["trainings"], other]})
    before = path.read_bytes()
    with pytest.raises(DataError, match="north: mixed, round 1 would bring epsilon to"):
        run.coordinator.fit("mixed", outcome.selected)
    assert path.read_bytes() == before, "a refused training was paid for"


@pytest.fixture
def space(tmp_path):
    settings = SiloSettings(
        name="north",
        data="rows.jsonl",
        domain="medicine",
        privacy=PrivacySettings(epsilon=4.0, delta=1e-5, count_epsilon=0.5),
    )
    return Workspace(settings, tmp_path, load_model=lambda _: None, progress=Silent())  # pyright: ignore


@pytest.mark.walk
def test_a_count_has_the_noise_it_claims_and_the_same_again_is_free(space):
    space.private.mkdir()
    # One key for all tests: with 4,000 numbers of any key, one test in thirty would fail.
    (space.private / "data.key").write_bytes(bytes(range(32)))
    budget = Budget(space)
    told = budget.count(100, what="kept", of="a")
    assert Budget(space).count(100, what="kept", of="a") == told
    assert Budget(space).report()["epsilon"] == 0.5
    # Off the books, because the budget would refuse so many.
    noise = [dlaplace_of(space, f"{k}") for k in range(4000)]
    assert np.mean(noise) == pytest.approx(0, abs=0.15)
    # Two numbers that differ by one: no outcome is more than e^0.5 times likelier under one.
    values, counts = np.unique(noise, return_counts=True)
    share = dict(zip(values.tolist(), counts / len(noise), strict=True))
    for k in range(-2, 3):
        assert abs(np.log(share[k] / share[k + 1])) == pytest.approx(0.5, abs=0.2)


def dlaplace_of(space, of):
    unlimited = PrivacySettings(epsilon=1e6, delta=1e-5, count_epsilon=0.5)
    space.settings = space.settings.model_copy(update={"privacy": unlimited})
    # The number of entries stands in the second.
    for name in ("privacy.json", "asked.json"):
        (space.private / name).unlink(missing_ok=True)
    return Budget(space).count(0, what="kept", of=of)


@pytest.mark.walk
def test_what_changes_an_answer_changes_its_noise_and_is_paid_for(space, monkeypatch):
    seeds: list[int] = []
    monkeypatch.setattr(
        "clues.silo.budget.train_privately", lambda *_, seed, **__: seeds.append(seed)
    )
    space.private.mkdir()
    public = {"medicine": {"validation": "v.jsonl", "anchor": "a.jsonl"}}
    recipe = Recipe.model_validate({"public": public})
    space.memory |= {"recipe": recipe, "model": None, "data_token": "a", "encoder": None}
    wide = PrivacySettings(epsilon=40.0, delta=1e-5)

    def train(rows=range(30), token="a", privacy=wide, n_told=30):
        space.memory["data_token"] = token
        space.settings = space.settings.model_copy(update={"privacy": privacy})
        Budget(space).train(
            [SimpleNamespace(row=row) for row in rows],  # pyright: ignore[reportArgumentType]
            Piece("a test"),
            phase=Phase(kind="fit", arm="clues"),
            request="the same",
            n_told=n_told,
            schedule=Schedule(0.01, 0.0, 4),
            n_steps=2,
            start={},
            first_step=0,
        )
        return len(read_record(space.private / "privacy.json", advice="")["trainings"])

    assert train() == train() == 1, "the same again is free"
    assert len(set(seeds)) == 1
    # A row that was edited, one that a person dropped, and noise that was set anew.
    assert train(token="b") == 2
    assert train(rows=range(29)) == 3
    assert train(privacy=wide.model_copy(update={"epsilon": 39.0})) == 4
    assert train(privacy=wide.model_copy(update={"max_grad_norm": 0.5})) == 5
    assert train(n_told=40) == 6
    assert len(set(seeds)) == 6, "the same noise on two sums takes it off their difference"


def test_privacy_does_not_begin_where_rows_have_been_trained_on(space):
    space.private.mkdir()
    asked = {"question": {"kind": "fit"}, "requests": ["x"]}
    write_record(
        space.private / "asked.json", {"version": 1, "rows": {"t": {"r": {"asked": [asked]}}}}
    )
    with pytest.raises(DataError, match=r"privacy\.json does not say what that spent"):
        Budget(space)
    asked["question"]["kind"] = "hello"
    write_record(
        space.private / "asked.json", {"version": 1, "rows": {"t": {"r": {"asked": [asked]}}}}
    )
    assert Budget(space).report()["epsilon"] == 0.0


def test_counts_without_end_are_refused_before_they_are_told(space):
    space.private.mkdir()
    for k in range(8):
        Budget(space).count(100, what="kept", of=f"{k}")
    assert Budget(space).report()["epsilon"] == pytest.approx(4.0)
    before = (space.private / "privacy.json").read_bytes()
    with pytest.raises(DataError, match=r"number of kept rows would bring epsilon to 4\.5"):
        Budget(space).count(100, what="kept", of="9")
    assert (space.private / "privacy.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "[]", '{"trainings": 3}', "[" * 5000])
def test_a_budget_that_cannot_be_read_is_not_begun_anew(space, content):
    space.private.mkdir()
    (space.private / "privacy.json").write_text(content)
    with pytest.raises(CluesError, match=r"privacy\.json"):
        Budget(space)


def test_counts_must_leave_something_for_the_trainings():
    with pytest.raises(ValueError, match="lower count_epsilon"):
        PrivacySettings(epsilon=0.4, delta=1e-5)
    assert PrivacySettings(epsilon=1.0, delta=1e-5).training_epsilon == pytest.approx(0.6)


def test_the_rate_follows_from_the_number_that_was_told(make_lora, encoded_rows, tmp_path):
    model = make_lora(target_modules=("q_proj",))
    model.initial = model.state()
    # Told half as many rows as there are: every row is drawn, and the mean is over those told.
    plain = private(model, encoded_rows, tmp_path).checkpoints[0].first_moment
    told = private(model, encoded_rows, tmp_path, n_told=len(encoded_rows) // 2)
    found = told.checkpoints[0].first_moment
    factor = len(encoded_rows) / (len(encoded_rows) // 2)
    for name, mean in plain.items():
        assert torch.allclose(found[name], factor * mean, rtol=1e-3, atol=1e-8), name


@pytest.mark.parametrize("rule", ["ratio", "mixture"])
def test_a_threshold_made_of_private_scores_is_refused_with_privacy(tmp_path, rule):
    config = write_micro(
        tmp_path / "input",
        tiny_model(tmp_path / "model"),
        changes={"recipe": {"threshold": {"rule": rule}}},
        silo_changes={"privacy": {"epsilon": 8.0, "delta": 1e-3}, "share_diagnostics": False},
    )
    with pytest.raises(CluesError, match=f"rule {rule} .* one row changes"):
        run_until(open_micro(config, tmp_path / "run"), "hello")
