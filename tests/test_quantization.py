"""A base model packed into few bits: every number is that of the packed model, whoever asks."""

import json
import shutil

import numpy as np
import pytest
import torch
from federation_helpers import run_micro, write_micro
from peft import PeftModel
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from clues.config import LoraSettings, ModelSettings, Recipe, TrainSettings
from clues.errors import DataError, ExtraError
from clues.model.adapters import LoraModel
from clues.model.base import load_base
from clues.model.training import Schedule, train
from clues.scoring.gradients import transformed_products
from clues.scoring.influence import influence_scores
from clues.scoring.perplexity import mean_losses

pytest.importorskip("bitsandbytes", reason="the extra quant is not installed")
FORMS = ("nf4", "int8")


@pytest.fixture(scope="module", params=FORMS)
def packed(request, tiny_model_folder) -> LoraModel:
    settings = ModelSettings(name=str(tiny_model_folder), quantization=request.param)
    lora = LoraSettings(rank=4, dropout=0.0, target_modules="all-linear")
    return LoraModel.load(settings, lora, seed=1, device="cpu")


@pytest.fixture
def any_cpu(monkeypatch) -> None:
    """The library takes this CPU for one with AVX-512 for bfloat16."""
    for module in ("bitsandbytes.nn.modules", "bitsandbytes.functional"):
        monkeypatch.setattr(f"{module}.has_avx512bf16", lambda: True)


def test_weights_stay_as_they_were_packed_on_every_cpu(
    any_cpu, tiny_model_folder, encoded_rows
) -> None:
    """Turned into a form for answers, they would pass no gradient on."""
    settings = ModelSettings(name=str(tiny_model_folder), quantization="nf4")
    model = LoraModel.load(settings, LoraSettings(rank=4, dropout=0.0), seed=1, device="cpu")
    losses = mean_losses(model, encoded_rows, adapter=model.initial)
    states = [getattr(p, "quant_state", None) for p in model.peft.parameters()]
    packed = [state for state in states if state is not None]
    assert packed
    assert not any(getattr(state, "packing_format_for_cpu", False) for state in packed)
    assert np.isfinite(losses).all()


def test_a_model_that_was_turned_into_one_for_answers_is_refused(tiny_model_folder) -> None:
    settings = ModelSettings(name=str(tiny_model_folder), quantization="nf4")
    base = load_base(tiny_model_folder, settings)
    base.model.layers[0].self_attn.q_proj.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(DataError, match="Load the model anew"):
        LoraModel(base, LoraSettings(rank=4), seed=1)


def moved(model: LoraModel, *, seed: int, by: float = 0.1) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {n: t + by * torch.randn(t.shape, generator=draw) for n, t in model.initial.items()}


def test_the_matrices_are_packed_and_the_adapter_is_not(packed) -> None:
    base = packed.peft.get_base_model()
    kinds = {p.dtype for n, p in base.named_parameters() if n.endswith("base_layer.weight")}
    assert kinds in ({torch.uint8}, {torch.int8})
    assert {p.dtype for p in packed.parameters().values()} == {torch.float32}


def test_a_row_scores_alike_alone_among_others_and_by_its_gradient(packed, encoded_rows) -> None:
    adapter, direction = moved(packed, seed=2), moved(packed, seed=3, by=1.0)
    how = {"adapter": adapter, "directions": [direction]}
    together = influence_scores(packed, encoded_rows, **how)
    oracle = transformed_products(packed, encoded_rows, **how, transforms={"plain": None})
    scale = np.abs(together.products).max()
    np.testing.assert_allclose(
        together.products, oracle["plain"].products, rtol=1e-3, atol=1e-4 * scale
    )
    for n, row in enumerate(encoded_rows):
        alone = influence_scores(packed, [row], **how)
        np.testing.assert_allclose(alone.losses[0], together.losses[n], rtol=1e-5)
        np.testing.assert_allclose(
            alone.products[0], together.products[n], rtol=1e-3, atol=1e-4 * scale
        )


def test_an_adapter_trained_on_it_opens_on_the_whole_model(
    packed, encoded_rows, tiny_model_folder, tmp_path
) -> None:
    trained = train(
        packed,
        encoded_rows,
        start=packed.initial,
        settings=TrainSettings(batch_size=4),
        schedule=Schedule(1e-2, 0.0, 8),
        n_steps=8,
        seed=0,
        scratch=str(tmp_path / "scratch"),
    )
    before = mean_losses(packed, encoded_rows, adapter=packed.initial).mean()
    assert mean_losses(packed, encoded_rows, adapter=trained.adapter).mean() < before
    packed.save(trained.adapter, tmp_path / "adapter")
    whole = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    opened = PeftModel.from_pretrained(whole, tmp_path / "adapter")
    weights = {n.replace(".default", ""): p for n, p in opened.named_parameters() if "lora_" in n}
    assert weights.keys() == trained.adapter.keys()
    assert all(torch.equal(weights[n], t) for n, t in trained.adapter.items())


def test_it_is_another_recipe(tiny_model_folder) -> None:
    hashes = set()
    for form in (None, *FORMS):
        model = ModelSettings(name=str(tiny_model_folder), quantization=form)
        public = {"a": {"validation": "v.jsonl", "anchor": "a.jsonl"}}
        hashes.add(Recipe.model_validate({"model": model.model_dump(), "public": public}).hash)
    assert len(hashes) == 3


def test_what_is_packed_already_is_not_packed_again(tiny_model_folder, tmp_path) -> None:
    folder = shutil.copytree(tiny_model_folder, tmp_path / "packed")
    path = folder / "config.json"
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": settings}))
    with pytest.raises(
        DataError, match=r"are packed already\. Leave recipe\.model\.quantization out"
    ):
        LoraModel.load(ModelSettings(name=str(folder), quantization="nf4"), LoraSettings(), seed=0)


def test_the_library_that_packs_is_asked_for_before_anything_is_read(
    tiny_model_folder, monkeypatch
) -> None:
    monkeypatch.setattr("clues.extras.find_spec", lambda name: None)
    settings = ModelSettings(name=str(tiny_model_folder), quantization="int8")
    with pytest.raises(ExtraError, match=r"quantization: int8: .*bitsandbytes.*\[quant\]"):
        LoraModel.load(settings, LoraSettings(), seed=0)


def test_double_precision_is_not_packed() -> None:
    with pytest.raises(ValidationError, match="does not go with dtype: float64"):
        ModelSettings(quantization="nf4", dtype="float64")


@pytest.mark.walk
def test_a_whole_run_on_a_packed_base_keeps_what_the_whole_base_keeps(
    micro_model, tmp_path
) -> None:
    found = {}
    for form in (None, "int8"):
        changes = {"recipe": {"model": {"name": str(micro_model), "quantization": form}}}
        config = write_micro(tmp_path / f"in-{form}", micro_model, changes=changes)
        found[form] = run_micro(config, tmp_path / f"run-{form}")
    kept = [found[form]["arms"]["clues"]["kept"] for form in found]
    assert abs(kept[0] - kept[1]) <= 4
