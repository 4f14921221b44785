"""Training with differential privacy: the gradient is what it says, and the budget holds."""

import json

import pytest
import torch
from federation_helpers import open_micro, tiny_model, write_micro

from clues.config import TrainSettings
from clues.errors import DataError
from clues.model.loss import make_batch, row_losses
from clues.model.training import Schedule
from clues.pipeline import run_until

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


def test_half_and_half_of_epsilon_is_no_more_than_the_whole():
    history = [
        (noise_for(2.0, 1e-5, sample_rate=rate, n_steps=n), rate, n)
        for rate, n in ((0.1, 200), (0.3, 40))
    ]
    assert epsilon_of(history[:1], delta=1e-5) == pytest.approx(2.0, abs=0.02)
    assert 2.0 < epsilon_of(history, delta=1e-5) <= 4.0
    assert epsilon_of([], delta=1e-5) == 0


@pytest.mark.slow
def test_a_private_run_reports_epsilon_and_a_second_arm_is_refused(tmp_path):
    changes = {"privacy": {"epsilon": 8.0, "delta": 1e-3}, "share_diagnostics": False}
    model = tiny_model(tmp_path / "model")
    config = write_micro(
        tmp_path / "input",
        model,
        changes={"evaluate": {"arms": ["clues"]}, "recipe": {"threshold": {"rule": "ratio"}}},
        silo_changes=changes,
    )
    run = open_micro(config, tmp_path / "run")
    outcome = run_until(run)
    results = outcome.results
    assert results is not None
    for name, silo in results.silos.items():
        booked = json.loads((tmp_path / f"run/silos/{name}/private/privacy.json").read_text())
        assert len(booked) == 4, "two rounds of warm-up, two of the fit"
        assert 0 < silo.epsilon <= 8.0
        assert silo.delta == 1e-3
        assert not silo.labelled
    # As if other arms had been fitted before.
    path = tmp_path / "run/silos/north/private/privacy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fit-other 0 x": [0.7, 0.5, 4]}))
    before = path.read_bytes()
    with pytest.raises(DataError, match="north: mixed, round 1 would bring epsilon to"):
        run.coordinator.fit("mixed", outcome.selected)
    assert path.read_bytes() == before, "a refused training was paid for"
