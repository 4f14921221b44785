"""A tiny Llama and its tokenizer, built from a configuration, and rows to feed them.

Nothing is downloaded. What a test may change (a model, an adapter) comes from a factory and is
new for every call; what nobody changes (tokenizers, rows, a saved folder) lives for the session.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from clues.config import LoraSettings, TokenSettings
from clues.data.samples import Message, Sample
from clues.data.tokens import EncodedRow, RowEncoder
from clues.model.adapters import LoraModel

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
def one_torch_thread():
    """Tiny matrices lose more to threads than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Factory of a byte-level BPE tokenizer of about 300 tokens.

    `adds_bos` puts <s> in front of every text, as Llama's does; `chat_template` is Jinja.
    <s>, </s> and <pad> are ids 0, 1, 2; every byte has a token, so decoding gives the text back.
    """

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
    encoder = RowEncoder(tokenizer, TokenSettings(template="alpaca", max_length=256))
    rows = tuple(encoder.encode(sample) for sample in samples)
    assert len({len(row.ids) for row in rows}) > 4
    return rows


class _FullPrecisionNorm(nn.Module):
    """Llama's RMSNorm without its detour through float32, which would limit oracles to 1e-7."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.epsilon = norm.weight, norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)


@pytest.fixture(scope="session")
def make_base() -> Callable[..., LlamaForCausalLM]:
    """Factory of a random Llama: hidden size 32, 300 tokens, two blocks unless told otherwise.

    In float64 its norms are float64 too, so that nothing but rounding separates two ways to
    compute the same number.
    """

    def make(*, dtype: torch.dtype = torch.float32, n_blocks: int = 2, seed: int = 0):
        config = LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=n_blocks,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
            # Larger than usual: losses then differ between tokens and gradients are not tiny.
            initializer_range=0.15,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LlamaForCausalLM(config).to(dtype)
        if dtype == torch.float64:
            norms = [(n, m) for n, m in model.named_modules() if type(m).__name__.endswith("Norm")]
            for name, norm in norms:
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, _FullPrecisionNorm(norm))
        return model.eval()

    return make


@pytest.fixture(scope="session")
def tiny_model_folder(make_base, tokenizer, tmp_path_factory) -> Path:
    """The random Llama (float32, seed 0) and its tokenizer, saved as `from_pretrained` wants."""
    folder = tmp_path_factory.mktemp("tiny_model")
    make_base().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_lora(make_base) -> Callable[..., LoraModel]:
    """Factory of a `LoraModel` on the CPU whose B is random, not zero.

    Call it with the settings that matter to the test: dtype, n_blocks, rank, alpha, dropout,
    target_modules, seed (of the adapter; the base model is always the same).
    """

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
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.1 * torch.randn(t.shape, generator=generator, dtype=t.dtype)
        for name, t in like.items()
    }
