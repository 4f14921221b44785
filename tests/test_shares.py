"""Several processes that share every step train as one process does."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llama import make_base

from clues.config import LoraSettings, TrainSettings
from clues.model.adapters import LoraModel
from clues.model.recording import Schedule
from clues.model.shares import Part, Share, shares
from clues.model.training import step_batches, train

SETTINGS = TrainSettings(batch_size=3)
N_STEPS = 6


def how(folder: Path, **more):
    return {
        "settings": SETTINGS,
        "schedule": Schedule(0.01, 0.2, N_STEPS),
        "n_steps": N_STEPS,
        "seed": 5,
        "scratch": str(folder),
        **more,
    }


def test_every_row_of_a_step_is_dealt_to_one_process(encoded_rows):
    steps = [[0, 1, 2], [3], [6, 5, 4]]
    dealt = [shares(encoded_rows, Part(rank, 2, steps)) for rank in range(2)]
    for number, step in enumerate(steps):
        own = [share[number] for share in dealt]
        rows = [row.row for share in own if share.counts for row in share.rows]
        assert sorted(rows) == sorted(step)
        assert {share.n_all for share in own} == {len(step)}
    # A process without a row takes part with one that does not count.
    assert dealt[1][1] == Share((encoded_rows[3],), 1, counts=False)


@pytest.mark.parametrize("order", [None, [6, 5, 4, 3, 2, 1, 0, 1, 2, 3]])
def test_the_steps_are_those_of_one_process(make_lora, encoded_rows, tmp_path, order, monkeypatch):
    """Seven rows in threes: a pass ends with a step of one row; dropout draws random numbers too."""
    from clues.model import steps

    model, seen = make_lora(dropout=0.2), []
    # A step in parts draws no other rows.
    monkeypatch.setattr(
        steps, "token_budget_batches", lambda lengths, budget: [range(len(lengths))]
    )
    real = steps.make_batch
    monkeypatch.setattr(
        steps,
        "make_batch",
        lambda rows, **k: seen.append([r.row for r in rows]) or real(rows, **k),
    )
    train(model, encoded_rows, start=model.state(), order=order, **how(tmp_path))
    asked = how(tmp_path)
    del asked["schedule"]
    assert step_batches(model, len(encoded_rows), order=order, **asked) == seen
    assert len(seen) == N_STEPS


def _model() -> LoraModel:
    model = LoraModel(
        make_base(), LoraSettings(rank=4, alpha=8.0, dropout=0.0), seed=0, device="cpu"
    )
    draw = torch.Generator().manual_seed(1)
    model.set_state(
        {n: 0.1 * torch.randn(t.shape, generator=draw) for n, t in model.state().items()}
    )
    return model


def _one_of_two(rank, rows, steps, folder) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    store = f"file://{folder / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    model = _model()
    more = {"checkpoint_at": (3,), "proximal": 0.1, "part": Part(rank, 2, steps)}
    found = train(model, rows, start=model.state(), **how(folder, **more))
    tensors = {f"w.{n}": t for n, t in found.adapter.items()}
    tensors |= {f"v.{n}": t for n, t in found.checkpoints[0].second_moment.items()}
    tensors |= {"losses": torch.tensor(found.losses, dtype=torch.float64)}
    save_file(tensors, folder / f"{rank}.safetensors")


@pytest.mark.walk
def test_two_processes_over_gloo_have_the_loss_curve_of_one(encoded_rows, tmp_path):
    model, asked = _model(), how(tmp_path)
    del asked["schedule"]
    steps = step_batches(model, len(encoded_rows), **asked)
    assert {len(step) for step in steps} == {1, 3}, "parts of one step are of different lengths"
    more = {"checkpoint_at": (3,), "proximal": 0.1}
    alone = train(model, encoded_rows, start=model.state(), **how(tmp_path, **more))
    # New processes: a copy of one that has trained alone would go on doing so.
    new = multiprocessing.get_context("spawn")
    both = [
        new.Process(target=_one_of_two, args=(rank, encoded_rows, steps, tmp_path))
        for rank in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first), "they drift apart"
    np.testing.assert_allclose(first["losses"], alone.losses, rtol=1e-5)
    for name, weight in alone.adapter.items():
        torch.testing.assert_close(first[f"w.{name}"], weight, rtol=1e-4, atol=1e-5)
    for name, moment in alone.checkpoints[0].second_moment.items():
        torch.testing.assert_close(first[f"v.{name}"], moment, rtol=1e-3, atol=1e-7)
