"""What a measurement needs: a model whose adapter has trained a little, and rows to score."""

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from clues.config import (
    BUILT_IN,
    LoraSettings,
    ModelSettings,
    Recipe,
    TokenSettings,
    TrainSettings,
    load_config,
)
from clues.data.formats import read_rows
from clues.data.tokens import EncodedRow, RowEncoder, encode_rows
from clues.model.adapters import AdapterState, Checkpoint, LoraModel, load_tokenizer
from clues.model.training import Schedule, train
from clues.prepare.demo import EVERY_ROW, write_demo
from clues.scoring.direction import validation_direction

SEED = 0
N_STEPS = 4  # enough that B is not zero and the optimiser has a state
MAX_LENGTH = 512  # no generated question is longer, even in bytes
SHORT = 3  # tokens of prompt and of response in a short row


@dataclass(frozen=True)
class Scene:
    """A model at a checkpoint.

    Attributes:
        model: base model with LoRA; its adapter is the checkpoint's.
        rows: private rows of all demo silos, damaged ones included, silo after silo in turn.
        validation: public rows of all domains.
        checkpoint: after a few steps on `rows`.
    """

    model: LoraModel
    rows: tuple[EncodedRow, ...]
    validation: tuple[EncodedRow, ...]
    checkpoint: Checkpoint

    def repeated(self, n_rows: int, *, short: bool = False) -> list[EncodedRow]:
        """The first rows, from the beginning again where there are too few.

        Args:
            n_rows: how many.
            short: a few tokens of each, where many rows matter and long ones do not.
        """
        rows = [shortened(row) for row in self.rows] if short else self.rows
        return list(itertools.islice(itertools.cycle(rows), n_rows))

    def directions(self, n: int) -> list[AdapterState]:
        """Plain validation gradients of n disjoint parts of the validation rows."""
        return [
            validation_direction(
                self.model,
                self.validation[k::n],
                self.checkpoint,
                form="sgd",
                weights=list(self.model.parameters()),
            )
            for k in range(n)
        ]


@dataclass(frozen=True)
class Owner:
    """One silo of the demo, encoded, and the demo's recipe with in-run scores.

    Attributes:
        name: of the silo.
        recipe: of the demo, `score.trajectory: inrun` and nothing else changed.
        rows: private rows.
        anchors: public anchors of its domain.
        validation: public validation rows of its domain, by set.
    """

    name: str
    recipe: Recipe
    rows: tuple[EncodedRow, ...]
    anchors: tuple[EncodedRow, ...]
    validation: Mapping[str, tuple[EncodedRow, ...]]


@dataclass(frozen=True)
class Shape:
    """Size of a Llama; its weights are random."""

    name: str
    hidden: int
    intermediate: int
    n_blocks: int
    n_heads: int
    n_kv_heads: int
    vocabulary: int


def large_shapes() -> tuple[Shape, Shape]:
    """Llama 3.2 1 B and Llama 2 7 B."""
    return (
        Shape("1 B", 2048, 8192, 16, 32, 8, 128256),
        Shape("7 B", 4096, 11008, 32, 32, 32, 32000),
    )


def built_scene(name: str, *, device: str) -> Scene:
    """A model from disk with the demo's LoRA: every projection, rank 16."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_demo(Path(folder), seed=SEED)
        lora = load_config(path).recipe.lora
        model_settings = ModelSettings(name=name)
        rows, validation = _demo_rows(Path(folder), model_settings)
    model = LoraModel.load(model_settings, lora, seed=SEED, device=device)
    return _trained(model, rows, validation)


def demo_owner(name: str) -> Owner:
    """The demo's middle silo, for the tokenizer of a model from disk."""
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(write_demo(Path(folder), seed=SEED))
        silo = config.silos[len(config.silos) // 2]
        public = config.recipe.public[silo.domain]
        encoder = _encoder(ModelSettings(name=name))
        score = config.recipe.score.model_copy(update={"trajectory": "inrun"})
        train = config.recipe.train.model_copy(update=EVERY_ROW)
        return Owner(
            silo.name,
            config.recipe.model_copy(update={"score": score, "train": train}),
            _encoded(Path(silo.data), encoder),
            _encoded(Path(public.anchor.path), encoder),
            {name: _encoded(Path(file.path), encoder) for name, file in public.validation.items()},
        )


def with_rows(owner: Owner, n_rows: int) -> Owner:
    """The same silo with so many rows, its own over and over, and one epoch of training."""
    train = owner.recipe.train
    train = train.model_copy(update={"steps": n_rows // train.batch_size})
    rows = tuple(itertools.islice(itertools.cycle(owner.rows), n_rows))
    return replace(owner, rows=rows, recipe=owner.recipe.model_copy(update={"train": train}))


def shortened(row: EncodedRow) -> EncodedRow:
    """The last tokens of the prompt and the first of the response."""
    first = row.mask.index(True)
    part = slice(max(0, first - SHORT), first + SHORT)
    return replace(row, ids=row.ids[part], mask=row.mask[part])


def random_scene(shape: Shape, *, device: str) -> Scene:
    """A random Llama in bf16 with LoRA on q_proj and v_proj, rank 16, and the demo's rows."""
    with tempfile.TemporaryDirectory() as folder:
        write_demo(Path(folder), seed=SEED)
        rows, validation = _demo_rows(Path(folder), ModelSettings(name=BUILT_IN))
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.n_blocks,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        max_position_embeddings=MAX_LENGTH,
        dtype=torch.bfloat16,
    )
    before = torch.get_default_dtype()
    # In bf16 from the start: 7 B random weights in float32 would take 28 GB first.
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(SEED)
            base = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model = LoraModel(base, LoraSettings(dropout=0.0), seed=SEED, device=device)
    return _trained(model, rows, validation)


def demo_rows(model: ModelSettings) -> tuple[EncodedRow, ...]:
    """Private rows of all silos of the demo, silo after silo in turn, for a model's tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        write_demo(Path(folder), seed=SEED)
        return _demo_rows(Path(folder), model)[0]


def _demo_rows(
    folder: Path, model: ModelSettings
) -> tuple[tuple[EncodedRow, ...], tuple[EncodedRow, ...]]:
    encoder = _encoder(model)
    silos = [_encoded(path, encoder) for path in sorted((folder / "silos").glob("*.jsonl"))]
    public = [
        _encoded(path, encoder) for path in sorted((folder / "public").glob("*.validation.jsonl"))
    ]
    return _in_turn(silos), _in_turn(public)


def _encoder(model: ModelSettings) -> RowEncoder:
    return RowEncoder(load_tokenizer(model), TokenSettings(max_length=MAX_LENGTH))


def _encoded(path: Path, encoder: RowEncoder) -> tuple[EncodedRow, ...]:
    return tuple(encode_rows(read_rows(path).samples, encoder, where=path.name).rows)


def _in_turn(parts: Sequence[Sequence[EncodedRow]]) -> tuple[EncodedRow, ...]:
    turns = itertools.zip_longest(*parts)
    return tuple(row for turn in turns for row in turn if row is not None)


def _trained(
    model: LoraModel, rows: tuple[EncodedRow, ...], validation: tuple[EncodedRow, ...]
) -> Scene:
    with tempfile.TemporaryDirectory() as scratch:
        trained = train(
            model,
            rows,
            start=model.initial,
            settings=TrainSettings(batch_size=8),
            schedule=Schedule(2e-3, 0.0, 2 * N_STEPS),
            n_steps=N_STEPS,
            seed=SEED,
            scratch=scratch,
            checkpoint_at=(N_STEPS,),
        )
    return Scene(model, rows, validation, trained.checkpoints[-1])


def describe(scene: Scene, n_rows: int) -> str:
    """Model, adapter and rows in one line."""
    n_weights = sum(p.numel() for p in scene.model.peft.get_base_model().parameters())
    n_lora = sum(p.numel() for p in scene.model.parameters().values())
    lengths = [len(row.ids) for row in scene.repeated(n_rows)]
    return (
        f"{n_weights - n_lora:,} weights, {n_lora:,} LoRA weights on all projections; "
        f"{n_rows} rows of {sum(lengths) / n_rows:.0f} tokens (longest {max(lengths)})"
    )
