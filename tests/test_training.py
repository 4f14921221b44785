"""Training can be repeated bit by bit, and what it records is what the optimiser did."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from transformers import TrainingArguments

from clues.config import TrainSettings
from clues.data.batching import token_budget_batches
from clues.errors import DataError, NumericsError
from clues.model import steps
from clues.model.adapters import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    write_tensors,
)
from clues.model.loss import make_batch, row_losses
from clues.model.tensorfile import PLACE
from clues.model.training import Schedule, train

PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt"}
RATE = 1e-2


@pytest.fixture
def run(tmp_path, encoded_rows):
    """`train` with defaults that keep a test to the point."""

    def call(model, *, rows=encoded_rows, start=None, n_steps=4, seed=3, **options):
        schedule = options.pop("schedule", Schedule(RATE, 0.25, 8))
        settings = options.pop("settings", TrainSettings(batch_size=2))
        return train(
            model,
            rows,
            start=model.initial if start is None else start,
            settings=settings,
            schedule=schedule,
            n_steps=n_steps,
            seed=seed,
            scratch=str(tmp_path / "scratch"),
            **options,
        )

    return call


@pytest.mark.slow
def test_the_same_seed_gives_the_same_adapter_bits(make_lora, run):
    results = [run(make_lora(dropout=0.1), seed=seed).adapter for seed in (3, 3, 4)]
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0]), "not repeatable"
    assert any(not torch.equal(results[0][n], results[2][n]) for n in results[0]), "seed ignored"


def test_a_second_training_of_one_model_equals_the_first(make_lora, run):
    model = make_lora(dropout=0.1)
    start = model.state()
    first, second = run(model, start=start), run(model, start=start)
    assert all(torch.equal(first.adapter[n], second.adapter[n]) for n in start), (
        "something of the first training is still there"
    )
    assert any(not torch.equal(first.adapter[n], start[n]) for n in start), "nothing was trained"


def test_the_model_is_left_with_the_trained_adapter(make_lora, run):
    model = make_lora()
    trained = run(model)
    assert all(torch.equal(t, trained.adapter[n]) for n, t in model.state().items())


def test_training_lowers_the_loss_of_its_rows(make_lora, run, encoded_rows):
    model = make_lora()
    batch = make_batch(encoded_rows)
    with model.evaluating() as peft, torch.no_grad():
        before = row_losses(peft, batch).mean()
    run(model, start=model.state(), n_steps=8)
    with model.evaluating() as peft, torch.no_grad():
        assert row_losses(peft, batch).mean() < before, "wrong sign, or adapter not trained"


def test_checkpoints_come_at_the_steps_asked_for(make_lora, run):
    model = make_lora()
    steps_seen = []
    trained = run(
        model,
        n_steps=5,
        first_step=2,
        checkpoint_at=[1, 3, 5],
        on_step=lambda: steps_seen.append(model.state()),
    )
    assert [c.step for c in trained.checkpoints] == [3, 5, 7], "steps count from first_step"
    assert len(steps_seen) == 5
    for checkpoint, at in zip(trained.checkpoints, (0, 2, 4), strict=True):
        for name, tensor in checkpoint.adapter.items():
            assert torch.equal(tensor, steps_seen[at][name]), "not the weights of that step"
    assert run(model).checkpoints == ()


def test_a_checkpoint_is_the_end_of_the_shorter_training(make_lora, run):
    model = make_lora()
    long = run(model, n_steps=4, checkpoint_at=[2])
    short = run(model, n_steps=2)
    for name, tensor in long.checkpoints[0].adapter.items():
        assert torch.equal(tensor, short.adapter[name])


class HandWrittenAdamW:
    """Decoupled weight decay Adam of the paper, with gradients clipped to norm 1."""

    def __init__(self, weights, *, decay=0.0):
        self.weights, self.decay, self.step = weights, decay, 0
        self.m = {n: torch.zeros_like(w) for n, w in weights.items()}
        self.v = {n: torch.zeros_like(w) for n, w in weights.items()}

    def update(self, gradients, rate):
        self.step += 1
        norm = torch.stack([g.norm() for g in gradients.values()]).norm()
        clip = min(1.0, 1.0 / (float(norm) + 1e-6))
        for name, gradient in gradients.items():
            g = clip * gradient
            self.m[name] = 0.9 * self.m[name] + 0.1 * g
            self.v[name] = 0.999 * self.v[name] + 0.001 * g**2
            m = self.m[name] / (1 - 0.9**self.step)
            shrunk = (1 - rate * self.decay) * self.weights[name]
            self.weights[name] = shrunk - rate * m / (self.second_moment(name).sqrt() + 1e-8)

    def second_moment(self, name):
        return self.v[name] / (1 - 0.999**self.step)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("frozen_a", [False, True])
def test_weights_and_second_moment_equal_a_hand_written_adamw(
    make_lora, run, encoded_rows, decay, frozen_a
):
    model = make_lora(dtype=torch.float64)
    model.freeze_a(frozen=frozen_a)
    start, schedule, rows = model.state(), Schedule(RATE, 0.5, 6), encoded_rows[:4]
    # One batch holds all rows, so their order does not matter to the comparison.
    settings = TrainSettings(batch_size=len(rows), weight_decay=decay)
    options = {"schedule": schedule, "settings": settings, "checkpoint_at": [1, 2, 3]}
    trained = run(model, rows=rows, start=start, n_steps=3, **options)

    names = [n for n in start if not (frozen_a and ".lora_A." in n)]
    adam = HandWrittenAdamW({n: start[n] for n in names}, decay=decay)
    for step, checkpoint in enumerate(trained.checkpoints):
        model.set_state({**start, **adam.weights})
        parameters = model.parameters()
        with model.evaluating() as peft:
            loss = row_losses(peft, make_batch(rows)).mean()
            gradients = torch.autograd.grad(loss, [parameters[n] for n in names])
        adam.update(dict(zip(names, gradients, strict=True)), RATE * schedule.factor(step))
        assert list(checkpoint.second_moment) == names, "only weights that train have a moment"
        for name in names:
            expected = adam.second_moment(name)
            error = ((checkpoint.second_moment[name] - expected).norm() / expected.norm()).item()
            assert error < 1e-9, f"{name}: {error}: no bias correction, or another weight's state"
            expected = adam.weights[name]
            error = ((checkpoint.adapter[name] - expected).norm() / expected.norm()).item()
            assert error < 1e-9, f"{name}: {error}: not AdamW at the scheduled rate"


def test_the_recorded_rate_is_the_one_the_optimiser_used(make_lora, run, monkeypatch):
    used = []
    original = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        used.append(self.param_groups[0]["lr"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    schedule = Schedule(RATE, 0.3, 6)
    trained = run(make_lora(), n_steps=6, schedule=schedule, checkpoint_at=range(1, 7))
    assert [c.learning_rate for c in trained.checkpoints] == pytest.approx(used, rel=1e-12)
    assert used == pytest.approx([RATE * f for f in (1 / 2, 1, 1, 3 / 4, 2 / 4, 1 / 4)])


def test_a_schedule_split_into_calls_gives_the_same_rates(make_lora, run):
    model, schedule = make_lora(), Schedule(RATE, 0.3, 6)
    options = {"schedule": schedule, "checkpoint_at": range(1, 7)}
    whole = run(model, n_steps=6, **options).checkpoints
    parts, done, start = [], 0, model.initial
    for n_steps in (1, 2, 3):
        trained = run(model, start=start, n_steps=n_steps, first_step=done, **options)
        parts += trained.checkpoints
        done, start = done + n_steps, trained.adapter
    assert [(c.step, c.learning_rate) for c in parts] == [(c.step, c.learning_rate) for c in whole]


@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_the_schedule_is_positive_rises_to_the_peak_and_falls(warmup, total):
    factors = [Schedule(1.0, warmup, total).factor(step) for step in range(total)]
    assert all(0 < f <= 1 for f in factors), "a step without a rate trains nothing"
    assert max(factors) == 1
    top = factors.index(1)
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert Schedule(1.0, warmup, total).factor(total) == 0


def test_freeze_a_leaves_every_a_as_it_is_and_trains_b(make_lora, run):
    model = make_lora()
    model.freeze_a(frozen=True)
    start = model.state()
    settings = TrainSettings(batch_size=2, weight_decay=0.1)
    trained = run(model, start=start, settings=settings, checkpoint_at=[4])
    for name, tensor in trained.adapter.items():
        assert torch.equal(tensor, start[name]) == (".lora_A." in name), name
    assert all(".lora_B." in name for name in trained.checkpoints[0].second_moment)
    model.freeze_a(frozen=False)
    assert all(p.requires_grad for p in model.parameters().values())


def test_only_the_adapter_trains(make_lora, run):
    model = make_lora()

    def base():
        return {n: p for n, p in model.peft.named_parameters() if ".lora_" not in n}

    before = {n: p.detach().clone() for n, p in base().items()}
    run(model)
    assert all(torch.equal(p, before[n]) for n, p in base().items())


def test_gpus_that_are_merely_in_sight_change_nothing(make_lora, run, monkeypatch):
    expected = run(make_lora()).adapter
    plain = TrainingArguments.__post_init__

    def two_gpus(self):
        plain(self)
        assert self.n_gpu == 0
        self._n_gpu = 2

    monkeypatch.setattr(TrainingArguments, "__post_init__", two_gpus)
    found = run(make_lora()).adapter
    assert all(torch.equal(found[n], expected[n]) for n in expected), "the batch has grown"


def test_every_row_is_used_before_any_is_used_again(make_lora, run, encoded_rows, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "clues.model.steps.make_batch",
        lambda rows, **kw: (seen.extend(r.row for r in rows), make_batch(rows, **kw))[1],
    )
    run(make_lora(), n_steps=4, settings=TrainSettings(batch_size=2))
    assert sorted(seen) == [row.row for row in encoded_rows], "seven rows are four batches of two"


def test_mean_loss_is_the_mean_over_the_batches_seen(make_lora, run, encoded_rows):
    model = make_lora()
    batch = make_batch(encoded_rows)
    with model.evaluating() as peft, torch.no_grad():
        before = row_losses(peft, batch).mean().item()
    settings = TrainSettings(batch_size=len(encoded_rows))
    trained = run(model, start=model.state(), n_steps=1, settings=settings)
    assert trained.mean_loss == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("proximal", [0.0, 5.0])
def test_a_step_in_parts_is_the_step_of_all_its_rows(make_lora, run, monkeypatch, proximal):
    """Rows of similar length go together: the same gradient to rounding, with less padding."""
    settings, padded = TrainSettings(batch_size=7), []

    def measured(model, batch, **how):
        padded.append(batch.ids_NT.numel())
        return row_losses(model, batch, **how)

    monkeypatch.setattr(steps, "row_losses", measured)
    found = []
    ways = (
        lambda lengths, budget: [range(len(lengths))],
        lambda lengths, budget: token_budget_batches(lengths, budget=240),
    )
    for parts_of in ways:
        monkeypatch.setattr(steps, "token_budget_batches", parts_of)
        padded.clear()
        trained = run(make_lora(), settings=settings, n_steps=3, proximal=proximal)
        found.append((trained, sum(padded), len(padded)))
    (whole, n_whole, calls), (parts, n_parts, more_calls) = found
    assert more_calls > calls == 3
    assert n_parts < 0.95 * n_whole
    assert parts.mean_loss == pytest.approx(whole.mean_loss, rel=1e-5)
    for name, tensor in whole.adapter.items():
        torch.testing.assert_close(parts.adapter[name], tensor, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_loss_that_is_not_finite_stops_training_and_names_the_step(make_lora, run, encoded_rows):
    model = make_lora()
    never = next(i for i in range(299, 0, -1) if all(i not in row.ids for row in encoded_rows))
    broken = encoded_rows[0]
    # Only the row with this token has a loss that is not finite.
    model.peft.get_base_model().model.embed_tokens.weight[never] = torch.nan
    ids = (broken.ids[0], never, *broken.ids[2:])
    row = type(broken)(0, broken.id, ids, broken.mask)
    with torch.enable_grad():
        run(model, n_steps=4)
        with pytest.raises(NumericsError, match=r"step \d: the loss of 1 of [12] rows") as raised:
            run(model, rows=[row, *encoded_rows[1:]], n_steps=4, first_step=2)
        assert int(str(raised.value)[5]) in range(3, 7), "steps count from first_step"
        with pytest.raises(NumericsError, match=r"step 1: the loss of 2 of 2 rows is not finite"):
            run(model, rows=[row, row], n_steps=4)


def test_a_start_that_does_not_fit_is_refused(make_lora, run):
    model = make_lora()
    state = model.state()
    name = next(iter(state))
    with pytest.raises(DataError, match="1 weights differ by name"):
        run(model, start={n: t for n, t in state.items() if n != name})
    with pytest.raises(DataError, match="has shape"):
        run(model, start={**state, name: state[name][:1]})
    with pytest.raises(NumericsError, match="is not finite"):
        run(model, start={**state, name: state[name] * torch.nan})


def test_a_checkpoint_comes_back_from_disk_as_it_was(make_lora, run, tmp_path):
    checkpoint = run(make_lora(), checkpoint_at=[2]).checkpoints[0]
    save_checkpoint(checkpoint, tmp_path / "step-2")
    found = load_checkpoint(tmp_path / "step-2")
    assert (found.step, found.learning_rate) == (checkpoint.step, checkpoint.learning_rate)
    assert found.optimizer_steps == checkpoint.optimizer_steps == 2
    for part in ("adapter", "second_moment", "first_moment"):
        expected, read = getattr(checkpoint, part), getattr(found, part)
        assert set(read) == set(expected)
        assert all(
            torch.equal(read[n], t) and read[n].dtype == t.dtype for n, t in expected.items()
        )
    save_checkpoint(replace(checkpoint, second_moment={}, first_moment={}), tmp_path / "bare")
    assert load_checkpoint(tmp_path / "bare").second_moment == {}


def test_a_checkpoint_that_is_incomplete_is_refused(make_lora, tmp_path):
    folder = tmp_path / "step-1"
    save_checkpoint(Checkpoint(1, 0.1, make_lora().state(), {}), folder)
    for name in (
        "state.json",
        "adapter.safetensors",
        "second_moment.safetensors",
        "first_moment.safetensors",
    ):
        content = (folder / name).read_bytes()
        for damaged in (None, b"", b"{}", content[: len(content) // 2]):
            (folder / name).unlink()
            if damaged is not None:
                (folder / name).write_bytes(damaged)
            with pytest.raises(
                DataError,
                match=r"unreadable checkpoint|not the file that|\.(json|safetensors): (cannot be read|damaged)",
            ):
                load_checkpoint(folder)
            (folder / name).write_bytes(content)
    assert load_checkpoint(folder).step == 1
    assert set(json.loads((folder / "state.json").read_text())) == {
        "step",
        "learning_rate",
        "optimizer_steps",
        "files",
        "sha256",
    }


def test_no_pickle_is_ever_written(make_lora, run, tmp_path):
    model = make_lora()
    trained = run(model, checkpoint_at=[2, 4])
    for checkpoint in trained.checkpoints:
        save_checkpoint(checkpoint, tmp_path / f"step-{checkpoint.step}")
    model.save(trained.adapter, tmp_path / "adapter")
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == 2 * 4 + 2, f"unexpected files: {files}"
    assert {p.suffix for p in files} <= {".safetensors", ".json"}
    assert not [p for p in files if p.suffix in PICKLES or pickled(p)]


def pickled(path: Path) -> bool:
    """Whether a file starts like a pickle or a zip, whatever it is called."""
    return path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK")


def test_a_checkpoint_with_other_weights_than_training_wrote_is_refused(make_lora, tmp_path):
    state = make_lora().state()
    save_checkpoint(Checkpoint(1, 0.1, state, {}), tmp_path / "one")
    save_checkpoint(Checkpoint(1, 0.1, {n: t + 1 for n, t in state.items()}, {}), tmp_path / "two")
    name = "adapter.safetensors"
    (tmp_path / "one" / name).write_bytes((tmp_path / "two" / name).read_bytes())
    with pytest.raises(
        DataError, match=r"adapter\.safetensors is not the file that training wrote"
    ):
        load_checkpoint(tmp_path / "one")


@pytest.mark.parametrize("metadata", [{}, {"clues": '\u00e4 "x"'}])
def test_a_file_of_tensors_is_what_safetensors_writes(tmp_path, metadata):
    tensors = {
        "b": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        "a": torch.arange(5),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "t": torch.ones(4, 2, dtype=torch.float64).T,
        "empty": torch.zeros(0),
        "one": torch.tensor(2.5),
        "flag": torch.tensor([True, False]),
    }
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_tensors(tmp_path / "ours.safetensors", tensors, **metadata)
    found = (tmp_path / "ours.safetensors").read_bytes()
    checksum = found[PLACE].decode()
    expected = safetensors_bytes(whole, metadata={"sha256": checksum, **metadata})
    # The library writes several entries of the metadata in an order that differs by process.
    heads = [int.from_bytes(data[:8], "little") for data in (found, expected)]
    ends = [8 + n for n in heads]
    headers = [json.loads(d[8:end]) for d, end in zip((found, expected), ends, strict=True)]
    assert headers[0] == headers[1]
    assert found[ends[0] :] == expected[ends[1] :]
