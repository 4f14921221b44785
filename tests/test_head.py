"""Losses made some positions at a time equal those of all logits at once, and hold fewer numbers."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    BertConfig,
    BertLMHeadModel,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from clues.config import LoraSettings
from clues.data.tokens import EncodedRow
from clues.model import head as head_module
from clues.model.adapters import LoraModel
from clues.model.head import find_head
from clues.model.loss import make_batch, row_losses

SMALL = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "use_cache": False}
LLAMA = {**SMALL, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# What each does with its logits: scale and cap.
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**LLAMA), 1.0, None),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config(**LLAMA, head_dim=8, final_logit_softcapping=0.7),
        1.0,
        0.7,
    ),
    "cohere": (CohereForCausalLM, CohereConfig(**LLAMA, **IDS, logit_scale=0.0625), 0.0625, None),
    "granite": (GraniteForCausalLM, GraniteConfig(**LLAMA, logits_scaling=13.0), 1 / 13, None),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=4), 1.0, None),
    "mamba": (MambaForCausalLM, MambaConfig(**SMALL, state_size=4), 1.0, None),
}


def rows_of(*lengths: int) -> list[EncodedRow]:
    """Rows of random ids, of which the last two thirds carry loss."""
    drawn = torch.Generator().manual_seed(0)
    rows = []
    for n, length in enumerate(lengths):
        ids = tuple(torch.randint(3, 90, (length,), generator=drawn).tolist())
        mask = tuple(i >= max(1, length // 3) for i in range(length))
        rows.append(EncodedRow(row=n, id=f"{n:016x}", ids=ids, mask=mask))
    return rows


def made(name: str, dtype: torch.dtype = torch.float64):
    cls, config, *_ = MODELS[name]
    torch.manual_seed(0)
    model = cls(config).to(dtype).eval()
    with torch.no_grad():  # logits of one and more, so that a cap bends them
        model.get_output_embeddings().weight.mul_(20)
    return model.requires_grad_(False)


@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_does_with_its_logits_is_found(name):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        found = find_head(made(name, dtype))
        assert found is not None
        assert found.scale == pytest.approx(MODELS[name][2], rel=1e-6)
        assert found.cap == (MODELS[name][3] and pytest.approx(MODELS[name][3], rel=1e-6))
        assert not found.needs_mask


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_equal_those_of_all_logits(name, monkeypatch):
    model = made(name)
    batch = make_batch(rows_of(23, 5, 11, 2))
    embeddings = model.get_input_embeddings()
    hidden: list[torch.Tensor] = []

    def leaf(_, inputs, output):
        hidden.append(output.detach().requires_grad_())
        return hidden[-1]

    embeddings.register_forward_hook(leaf)
    weights = torch.arange(1.0, 5.0, dtype=torch.float64)
    plain = row_losses(model, batch)
    (wanted,) = torch.autograd.grad((plain * weights).sum(), hidden.pop())
    # Seven positions at a time: chunks that do not fit the rows.
    monkeypatch.setattr(head_module, "CPU_LOGITS", 7 * 90)
    found = row_losses(model, batch, head=find_head(model))
    (gradient,) = torch.autograd.grad((found * weights).sum(), hidden.pop())
    # Mamba makes its own logits in float32.
    exact = plain.dtype == torch.float64
    torch.testing.assert_close(found, plain.double(), rtol=1e-12 if exact else 1e-6, atol=0)
    torch.testing.assert_close(gradient, wanted, rtol=1e-10 if exact else 1e-4, atol=1e-13)


def test_half_precision_is_kept_where_the_model_keeps_it():
    model, batch = made("llama", torch.bfloat16), make_batch(rows_of(23, 5, 11))
    found = row_losses(model, batch, head=find_head(model))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, row_losses(model, batch), rtol=1e-5, atol=0)


class Largest(TorchDispatchMode):
    """The most numbers that one tensor made inside has."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(made) if isinstance(x, torch.Tensor)]
        self.numel = max(self.numel, *sizes, 0)
        return made


@pytest.mark.parametrize("n_words", [5_000, 20_000])
def test_no_tensor_grows_with_vocabulary_times_tokens(n_words, monkeypatch):
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**{**LLAMA, "vocab_size": n_words}))
    lora = LoraSettings(rank=2, target_modules=("q_proj",))
    model = LoraModel(base, lora, seed=0, device="cpu")
    batch = make_batch(rows_of(300, 300))
    monkeypatch.setattr(head_module, "CPU_LOGITS", 100_000)

    def largest(head) -> int:
        with Largest() as seen:
            row_losses(model.peft, batch, head=head).sum().backward()
        return seen.numel

    assert largest(None) >= 600 * n_words, "the plain way makes all logits"
    # The last layer itself is handed on as its own transpose; all else is smaller.
    assert largest(model.head) <= max(100_000, n_words * 32)


def test_a_model_that_ends_in_another_way_keeps_its_own():
    class Odd(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits - out.logits.mean(dim=-1, keepdim=True)
            return out

    class Twice(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            super().forward(*args, **kwargs)
            return super().forward(*args, **kwargs)

    class Needs(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits[:, -1].max()
            return out

    for cls in (Odd, Twice, Needs):
        assert find_head(cls(LlamaConfig(**LLAMA)).requires_grad_(False)) is None
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**LLAMA))
    trained = LoraModel(
        base, LoraSettings(rank=2, target_modules=("q_proj", "lm_head")), seed=0, device="cpu"
    )
    assert trained.head is None, "an adapter on the last layer would not count"


def test_a_model_that_looks_ahead_gets_its_mask():
    torch.manual_seed(0)
    config = BertConfig(**LLAMA | {"hidden_size": 32}, is_decoder=False)
    model = BertLMHeadModel(config).requires_grad_(False).eval()
    head = find_head(model)
    assert head is None or head.needs_mask
