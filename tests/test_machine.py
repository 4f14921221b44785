"""How a machine computes: less memory, another device, another attention; what may change stays said."""

import ast
import json
import logging
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from federation_helpers import run_micro, write_micro

import clues.scoring
from benchmarks.architectures import ARCHITECTURES, tiny_model
from benchmarks.matrix import rows_of_tokens
from clues.config import LoraSettings, ModelSettings, Recipe, SiloSettings, TrainSettings
from clues.errors import ConfigError, DataError, UsageError
from clues.model import steps
from clues.model.adapters import LoraModel
from clues.model.base import load_base
from clues.model.borrowed import BorrowedModel
from clues.model.devices import device_of, wide
from clues.model.loss import make_batch, row_losses
from clues.model.recomputing import recomputing
from clues.model.training import Schedule, train
from clues.scoring.inrun import InRun, Reference, visit_order

RATE, N_STEPS, BATCH = 1e-2, 4, 3
# Mixtral picks tokens for its experts, GPT-2 has transposed layers, Gemma 2 a soft cap.
KINDS = ("Llama", "Mixtral", "GPT-2", "Gemma 2")


def lora(name: str, **more) -> LoraModel:
    settings = LoraSettings(rank=2, alpha=4.0, target_modules="all-linear", **more)
    return LoraModel(tiny_model(ARCHITECTURES[name]), settings, seed=0, device="cpu")


def trained(model: LoraModel, rows, scratch: Path, **how):
    order = visit_order(len(rows), N_STEPS, BATCH, seed=5).ravel().tolist()
    settings = TrainSettings(batch_size=BATCH)
    schedule = Schedule(RATE, 0.0, N_STEPS)
    fixed = {"settings": settings, "schedule": schedule, "n_steps": N_STEPS, "seed": 3}
    where = {"start": model.initial, "scratch": str(scratch), "order": order}
    return train(model, rows, **fixed, **where, **how)


def assert_same(found, expected, *, rel: float) -> None:
    for name, tensor in expected.items():
        gap = float((found[name] - tensor).norm() / tensor.norm().clamp_min(1e-30))
        assert gap <= rel, f"{name} is off by {gap:.1e}"


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_the_same_where_blocks_compute_again(name) -> None:
    model = lora(name, dropout=0.2)
    base, rows = model.peft.get_base_model(), rows_of_tokens()
    calls: list[int] = []
    adapted = next(
        module for name, module in base.named_modules() if name.endswith("lora_A.default")
    )
    adapted.register_forward_pre_hook(lambda *_: calls.append(1))
    weights, found = list(model.parameters().values()), []
    for again in (False, True):
        calls.clear()
        torch.manual_seed(0)
        model.peft.train()
        with recomputing(base, on=again):
            loss = row_losses(model.peft, make_batch(rows), head=model.head).mean()
            found.append(torch.autograd.grad(loss, weights))
        assert len(calls) == 1 + again, "the block did not compute again"
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-9)
    assert not base.is_gradient_checkpointing, "it is left switched on"


@pytest.mark.parametrize("name", KINDS)
def test_the_observer_sees_the_same_where_blocks_compute_again(name, tmp_path) -> None:
    rows = rows_of_tokens()
    found = []
    for again in (False, True):
        model = lora(name, dropout=0.1)
        draw = torch.Generator().manual_seed(2)
        drawn = {n: torch.randn(p.shape, generator=draw) for n, p in model.parameters().items()}
        order = visit_order(len(rows), N_STEPS, BATCH, seed=5)
        how = {"n_rows": len(rows), "first_step": 0, "every_visit": True, "seed": 7}
        seen = InRun(model, order, Reference({"one": drawn}, {"one": 1.0}, 3.0), rows[:2], **how)
        end = trained(model, rows, tmp_path, observer=seen, gradient_checkpointing=again)
        found.append((end.adapter, *(visits.scores["one"] for visits in seen.visits())))
    (plain, rows_seen, anchors_seen), (other, rows_again, anchors_again) = found
    assert_same(other, plain, rel=1e-6)
    for one, two in ((rows_seen, rows_again), (anchors_seen, anchors_again)):
        assert np.abs(two - one).max() <= 1e-6 * np.abs(one).max(), "the branch is not in the block"


def test_a_model_without_it_is_refused_before_it_trains(make_lora, encoded_rows, tmp_path) -> None:
    model = make_lora()
    model.peft.get_base_model().supports_gradient_checkpointing = False
    with pytest.raises(
        ConfigError, match="gradient_checkpointing: transformers has none for Llama"
    ):
        trained(model, encoded_rows, tmp_path, gradient_checkpointing=True)


@pytest.mark.slow
def test_it_is_of_the_machine_and_no_recipe_has_it(micro_model, tmp_path) -> None:
    found = []
    for again in (False, True):
        changes = {"compute": {"gradient_checkpointing": again}, "evaluate": {"arms": ["clues"]}}
        path = write_micro(tmp_path / str(again), micro_model, changes=changes)
        found.append(run_micro(path, tmp_path / f"run-{again}"))
    plain, again = found
    assert plain["recipe_hash"] == again["recipe_hash"]
    assert again["silos"] == plain["silos"]
    losses = [found_of["arms"]["clues"]["heldout_loss"] for found_of in found]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_names_of_other_trainers_lead_to_the_setting() -> None:
    for key, said in (
        ("gradient_checkpointing", "set compute.gradient_checkpointing"),
        ("gradient_accumulation_steps", "batch_size is the rows of an optimiser step"),
    ):
        with pytest.raises(ValueError, match=said):
            TrainSettings.model_validate({key: 2})


def test_noise_and_computing_again_do_not_go_together() -> None:
    content = {"name": "a", "data": "a.jsonl", "domain": "law"}
    privacy = {"epsilon": 8.0, "delta": 1e-5}
    compute = {"gradient_checkpointing": True}
    with pytest.raises(ValueError, match=r"compute\.gradient_checkpointing would make twice"):
        SiloSettings.model_validate({**content, "privacy": privacy, "compute": compute})


def out_of_memory_beyond(n_tokens: int, monkeypatch) -> list[int]:
    """Let training run out of memory at batches of more padded tokens; the sizes that fitted."""
    fitted: list[int] = []

    def tight(model, batch, **how):
        if batch.ids_NT.numel() > n_tokens:
            raise torch.OutOfMemoryError("out of memory")
        fitted.append(batch.ids_NT.numel())
        return row_losses(model, batch, **how)

    monkeypatch.setattr(steps, "row_losses", tight)
    return fitted


def test_a_step_that_does_not_fit_begins_anew_in_smaller_parts(
    make_lora, encoded_rows, tmp_path, monkeypatch, caplog
) -> None:
    expected = trained(make_lora(), encoded_rows, tmp_path)
    longest = max(len(row.ids) for row in encoded_rows)
    fitted = out_of_memory_beyond(2 * longest - 1, monkeypatch)
    with caplog.at_level(logging.WARNING, "clues"):
        found = trained(make_lora(), encoded_rows, tmp_path)
    assert max(fitted) < 2 * longest
    assert found.losses == pytest.approx(expected.losses, rel=1e-5), "a part counts twice"
    assert_same(found.adapter, expected.adapter, rel=1e-4)
    said = [r.getMessage() for r in caplog.records if "out of memory in a training" in r.message]
    assert len(said) == 1, "what was learnt is forgotten at the next step"
    assert "The step's rows are the same" in said[0]


def test_what_cannot_be_made_smaller_is_refused_with_the_way_out(
    make_lora, encoded_rows, tmp_path, monkeypatch
) -> None:
    out_of_memory_beyond(3, monkeypatch)
    with pytest.raises(
        DataError, match=r"1 rows of up to \d+ tokens .*gradient_checkpointing: true"
    ):
        trained(make_lora(), encoded_rows, tmp_path)
    watcher = SimpleNamespace(watching=lambda step, last: nullcontext(), saw=list)
    with pytest.raises(DataError, match=rf"{BATCH} rows of up to \d+ tokens do not fit"):
        trained(make_lora(), encoded_rows, tmp_path, observer=watcher)


def test_a_device_that_is_not_there_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device_of() == device_of("auto") == device_of("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(
            ConfigError, match=f"compute.device: {name}: torch finds no such device"
        ):
            device_of(name)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_of("mps").type == "mps"
    assert device_of("auto").type == "cpu", "nobody has measured what Apple's GPU gives"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of("auto").type == "cuda"


def test_a_run_takes_the_device_that_it_is_told(micro_model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    path = write_micro(tmp_path, micro_model, changes={"compute": {"device": "mps"}})
    with pytest.raises(ConfigError, match=r"compute\.device: mps"):
        run_micro(path, tmp_path / "run")


def test_numbers_are_widened_on_a_device_that_can_hold_them() -> None:
    steps_taken: list[str] = []
    apple = SimpleNamespace(device=torch.device("mps"))
    apple.cpu = lambda: steps_taken.append("cpu") or apple
    apple.double = lambda: steps_taken.append("double") or apple
    wide(apple)  # pyright: ignore[reportArgumentType]
    assert steps_taken == ["cpu", "double"]
    assert wide(torch.ones(2)).dtype == torch.float64


def test_no_score_widens_numbers_where_they_lie() -> None:
    """Apple's GPU has no float64, so every score goes through `wide`."""
    for path in Path(clues.scoring.__file__).parent.glob("*.py"):
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)]
        assert not [n.lineno for n in calls if n.attr == "double"], f"{path.name}: use wide()"


@pytest.fixture
def folder(tmp_path, tokenizer):
    def save(name: str) -> Path:
        tiny_model(ARCHITECTURES[name]).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def loaded(folder: Path, **settings):
    return load_base(folder, ModelSettings(name=str(folder), **settings))


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "Mixtral", "Falcon"])
def test_attention_is_the_one_that_was_asked_for(folder, name) -> None:
    place, rows = folder(name), make_batch(rows_of_tokens())
    found = {}
    for kind in ("eager", "sdpa"):
        base = loaded(place, attn_implementation=kind)
        assert base.config._attn_implementation == kind
        with torch.no_grad():
            found[kind] = row_losses(base.eval(), rows)
    torch.testing.assert_close(found["eager"], found["sdpa"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("Gemma 2", "sdpa", "Gemma2ForCausalLM has only eager, flash_attention_2"),
        ("Bloom", "flash_attention_2", "BloomForCausalLM has only eager"),
        ("gpt-oss", "flash_attention_2", "GptOssForCausalLM has only eager"),
        ("Llama", "flash_attention_2", "needs an NVIDIA GPU, and torch finds none. Take sdpa"),
    ],
)
def test_attention_that_is_not_there_is_refused_by_name(
    folder, name, kind, said, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = {"attn_implementation": kind, "dtype": "bfloat16"}
    with pytest.raises(ConfigError, match=said):
        loaded(folder(name), **settings)


def test_flash_attention_is_never_fetched_from_a_hub(folder, monkeypatch) -> None:
    place = folder("Llama")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("clues.model.base.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="the library flash_attn is not installed"):
        loaded(place, attn_implementation="flash_attention_2", dtype="bfloat16")


def test_flash_attention_wants_half_precision() -> None:
    with pytest.raises(ValueError, match="flash_attention_2 does not go with dtype: float32"):
        ModelSettings(attn_implementation="flash_attention_2")


def recipe(**model) -> Recipe:
    public = {"law": {"validation": "a.jsonl", "anchor": "b.jsonl"}}
    return Recipe.model_validate({"public": public, "model": model})


def test_what_moves_a_score_moves_the_hash_and_nothing_else_does() -> None:
    files = {"model.safetensors": "0" * 64}
    plain = recipe(files=files)
    assert "attn_implementation" not in json.dumps(plain.model_dump(mode="json")), (
        "old hashes break"
    )
    assert plain.hash == recipe(files=files, name="elsewhere", revision="main").hash
    changed = [{"attn_implementation": "eager"}, {"attn_implementation": "sdpa"}]
    changed += [{"quantization": "nf4"}, {"quantization": "int8"}, {"dtype": "bfloat16"}]
    hashes = {recipe(files=files, **change).hash for change in changed} | {plain.hash}
    assert len(hashes) == 1 + len(changed)


def test_a_loaded_model_keeps_the_attention_that_it_has(tokenizer) -> None:
    borrowed = BorrowedModel(tiny_model(ARCHITECTURES["Llama"]), tokenizer)
    found = borrowed.model.config._attn_implementation
    other = "eager" if found == "sdpa" else "sdpa"
    with pytest.raises(UsageError, match=f"attn_implementation: {other}, and the model was loaded"):
        borrowed.load(recipe(attn_implementation=other))
