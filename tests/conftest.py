"""A tiny Llama and its tokenizer, built from a configuration, and rows to feed them.

Nothing is downloaded. What a test may change (a model, an adapter) comes from a factory and is
new for every call; what nobody changes (tokenizers, rows, a saved folder) lives for the session.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clues.data.samples import Message, Sample

# The process that hands the tests to the workers reads this file too, and needs none of these.
if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from clues.data.tokens import EncodedRow
    from clues.model.adapters import LoraModel

# Tiny matrices lose more to threads than they win, here and in processes that tests start. torch
# reads it when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"
# Nothing is asked of the hub; its client would try for half a minute where there is no network.
os.environ["HF_HUB_OFFLINE"] = "1"

SENTENCES = (
    "The heart pumps blood through the body.",
    "Which organ makes insulin, and where does it lie?",
    "Insulin is made in the pancreas, behind the stomach.",
    "A fever is a body temperature above 38 degrees.",
    "What does a thermometer measure?",
)
# (instruction, answer): prompts and answers of clearly different lengths.
TURNS = (
    ("Which organ pumps blood?", "The heart."),
    ("Where is insulin made?", "Insulin is made in the pancreas, behind the stomach."),
    ("What does a thermometer measure in a patient with a fever?", "Temperature."),
    ("Name two organs.", "The heart and the pancreas, which lies behind the stomach."),
    ("What is a fever?", "A body temperature above 38 degrees."),
    ("Define blood.", "It is what the heart pumps through the body, and it is red."),
    ("Does the stomach make insulin?", "No."),
)
ALL_PROJECTIONS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk():
    """A killed process loses nothing that it wrote; only a power cut would, and no test makes one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def no_pictures(request):
    """Runs draw nothing, which is a third of a tiny one, unless a module says `DRAWS = True`."""
    # A module that makes runs has imported them; the others need no Matplotlib.
    if getattr(request.module, "DRAWS", False) or "clues.pipeline" not in sys.modules:
        yield
        return
    from undrawn import UNDRAWN

    with pytest.MonkeyPatch.context() as patch:
        for module, name, stand_in in UNDRAWN:
            patch.setattr(module, name, stand_in)
        yield


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Factory of a byte-level BPE tokenizer of about 300 tokens.

    `adds_bos` puts <s> in front of every text, as Llama's does; `chat_template` is Jinja.
    <s>, </s> and <pad> are ids 0, 1, 2; every byte has a token, so decoding gives the text back.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    def make(*, adds_bos: bool = False, bos: bool = True, chat_template: str | None = None):
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<s>", "</s>", "<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator(SENTENCES, trainer)
        if adds_bos:
            bpe.post_processor = processors.TemplateProcessing(
                single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
            )
        return PreTrainedTokenizerFast(
            tokenizer_object=bpe,
            bos_token="<s>" if bos else None,
            eos_token="</s>",
            pad_token="<pad>",
            chat_template=chat_template,
        )

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer) -> PreTrainedTokenizerFast:
    """Tokenizer without a chat template: rows are rendered as alpaca."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def samples() -> tuple[Sample, ...]:
    """Seven question-and-answer samples, rows 0 to 6."""
    return tuple(
        Sample(row, (Message("user", question), Message("assistant", answer)))
        for row, (question, answer) in enumerate(TURNS)
    )


@pytest.fixture(scope="session")
def encoded_rows(tokenizer, samples) -> tuple[EncodedRow, ...]:
    """The samples encoded: seven rows of different lengths, prompts of many tokens."""
    from clues.config import TokenSettings
    from clues.data.tokens import RowEncoder

    encoder = RowEncoder(tokenizer, TokenSettings(template="alpaca", max_length=256))
    rows = tuple(encoder.encode(sample) for sample in samples)
    assert len({len(row.ids) for row in rows}) > 4
    return rows


@pytest.fixture(scope="session")
def make_base() -> Callable[..., LlamaForCausalLM]:
    """Factory of a random Llama: see `tiny_llama.make_base`."""
    from tiny_llama import make_base

    return make_base


@pytest.fixture(scope="session")
def tiny_model_folder(make_base, tokenizer, tmp_path_factory) -> Path:
    """The random Llama (float32, seed 0) and its tokenizer, saved as `from_pretrained` wants."""
    folder = tmp_path_factory.mktemp("tiny_model")
    make_base().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def micro_model(tmp_path_factory) -> Path:
    """The even smaller Llama of whole runs: see `federation_helpers.tiny_model`."""
    from federation_helpers import tiny_model

    return tiny_model(tmp_path_factory.mktemp("micro_model"))


@pytest.fixture
def small_built_in(micro_model, monkeypatch) -> Path:
    """Settings that name no base model get the smallest one instead of the built-in one."""
    for module in ("clues.config.hashes", "clues.config.loading"):
        monkeypatch.setattr(f"{module}.built_in_folder", lambda: micro_model)
    return micro_model


@pytest.fixture(scope="session")
def make_lora(make_base) -> Callable[..., LoraModel]:
    """Factory of a `LoraModel` on the CPU whose B is random, not zero.

    Call it with the settings that matter to the test: dtype, n_blocks, rank, alpha, dropout,
    target_modules, seed (of the adapter; the base model is always the same).
    """
    import torch

    from clues.config import LoraSettings
    from clues.model.adapters import LoraModel

    def make(
        *,
        dtype: torch.dtype = torch.float32,
        n_blocks: int = 2,
        rank: int = 4,
        alpha: float = 8.0,
        dropout: float = 0.0,
        target_modules: tuple[str, ...] | str = ALL_PROJECTIONS,
        seed: int = 0,
    ) -> LoraModel:
        settings = LoraSettings(
            rank=rank, alpha=alpha, dropout=dropout, target_modules=target_modules
        )
        base = make_base(dtype=dtype, n_blocks=n_blocks)
        model = LoraModel(base, settings, seed=seed, device="cpu")
        model.set_state(random_state(model.state(), seed=seed))
        return model

    return make


@pytest.fixture(scope="session")
def make_states(make_lora) -> Callable[..., list[dict[str, torch.Tensor]]]:
    """Factory of several random adapters for the same model: A and B differ between them."""

    def make(n: int, *, like: LoraModel, same_a: bool = False) -> list[dict[str, torch.Tensor]]:
        states = [random_state(like.state(), seed=100 + k) for k in range(n)]
        if same_a:
            shared = {m: t for m, t in states[0].items() if ".lora_A." in m}
            states = [{**state, **{m: t.clone() for m, t in shared.items()}} for state in states]
        return states

    return make


def random_state(like: dict[str, torch.Tensor], *, seed: int) -> dict[str, torch.Tensor]:
    """An adapter of the same names, shapes and dtypes, with normal weights of spread 0.1."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.1 * torch.randn(t.shape, generator=generator, dtype=t.dtype)
        for name, t in like.items()
    }
