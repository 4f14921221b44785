"""Models and rows of the comparison: a tiny, a published and a wide one, rows alike and mixed."""

import itertools
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.scene import SEED, Scene, built_scene, demo_rows
from clues.config import BUILT_IN, LoraSettings, ModelSettings, TrainSettings
from clues.data.tokens import EncodedRow
from clues.model.adapters import LoraModel
from clues.model.training import Schedule, train

EVEN, SHORTEST, LONGEST = 82, 24, 384
# Of mixed rows: most have a few dozen tokens, some four times as many, as answers people wrote do.
MEDIAN, SPREAD = 72, 0.7
N_VALIDATION, N_TRAINED = 4, 4
LORA = LoraSettings(rank=16, alpha=16.0, dropout=0.0, target_modules=("q_proj", "v_proj"))
WIDE = LlamaConfig(
    vocab_size=32000,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=4,
    num_attention_heads=16,
    num_key_value_heads=8,
    max_position_embeddings=512,
)


@dataclass(frozen=True)
class Setting:
    """One part of the comparison.

    Attributes:
        name: as the table says it.
        base: folder of a base model, `built-in`, or None for the random wide one.
        dtype: of the base model.
        mixed: whether lengths differ as those of written answers do.
        n_rows: how many are scored.
    """

    name: str
    base: str | None
    dtype: str
    mixed: bool
    n_rows: int


def settings(published: Path, *, n_rows: int) -> list[Setting]:
    """Every part, the cheapest first."""
    small = Setting(
        "built-in, all layers, float32, questions of the demo", BUILT_IN, "float32", True, 200
    )
    wide = Setting("random Llama of width 1,024, float32, even", None, "float32", False, n_rows)
    name = published.name
    return [
        small,
        *(
            Setting(f"{name}, {dtype}, {word}", str(published), dtype, mixed, n_rows)
            for dtype in ("bfloat16", "float32")
            for word, mixed in (("even", False), ("mixed", True))
        ),
        wide,
    ]


def scene_of(setting: Setting) -> Scene:
    """Model at a checkpoint of two steps, validation rows and rows to score."""
    if setting.base == BUILT_IN:
        found = built_scene(BUILT_IN, device="cpu")
        return replace(found, rows=tuple(found.repeated(setting.n_rows)))
    model = _wide(setting.dtype) if setting.base is None else _published(setting)
    wanted = setting.n_rows
    questions = demo_rows(ModelSettings(name=setting.base or BUILT_IN))
    rows = joined_rows(questions, wanted + N_VALIDATION, mixed=setting.mixed)
    with tempfile.TemporaryDirectory() as scratch:
        trained = train(
            model,
            sorted(rows, key=lambda row: len(row.ids))[:N_TRAINED],
            start=model.initial,
            settings=TrainSettings(batch_size=2),
            schedule=Schedule(1e-3, 0.0, 4),
            n_steps=2,
            seed=SEED,
            scratch=scratch,
            checkpoint_at=(2,),
        )
    return Scene(model, tuple(rows[:wanted]), tuple(rows[wanted:]), trained.checkpoints[-1])


def joined_rows(questions: Sequence[EncodedRow], n: int, *, mixed: bool) -> list[EncodedRow]:
    """Questions of the demo, one after the other until a row is as long as it should be.

    Args:
        questions: encoded for the model.
        n: how many rows.
        mixed: lengths are log-normal with median 72 and at most 384, else all 82.
    """
    random = Random(SEED)
    source = itertools.cycle(questions)
    return [_joined(i, _length(random) if mixed else EVEN, source) for i in range(n)]


def tokens_of(rows: Sequence[EncodedRow]) -> int:
    """Tokens of all rows together."""
    return sum(len(row.ids) for row in rows)


def _length(random: Random) -> int:
    return min(LONGEST, max(SHORTEST, round(random.lognormvariate(math.log(MEDIAN), SPREAD))))


def _joined(i: int, length: int, source: Iterator[EncodedRow]) -> EncodedRow:
    first = next(source)
    # What follows the first prompt counts, as a long answer would.
    n_prompt = min(first.mask.index(True), length // 2)
    ids = list(first.ids)
    while len(ids) < length:
        ids += next(source).ids
    mask = (False,) * n_prompt + (True,) * (length - n_prompt)
    return EncodedRow(i, f"{i:016x}", tuple(ids[:length]), mask, False)


def _published(setting: Setting) -> LoraModel:
    named = ModelSettings.model_validate({"name": setting.base, "dtype": setting.dtype})
    return LoraModel.load(named, LORA, seed=SEED, device="cpu")


def _wide(dtype: str) -> LoraModel:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        base = LlamaForCausalLM(WIDE).to(getattr(torch, dtype))
    return LoraModel(base, LORA, seed=SEED, device="cpu")
