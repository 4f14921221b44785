"""The recipe: whatever can change a score or the threshold. Every silo shares it."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from clues.config.aliases import LORA, MODEL, TOKENS, TRAIN, renamed, with_quantization
from clues.config.base import (
    ALIGNMENT,
    BUILT_IN,
    LOSS,
    REJECT,
    Factor,
    FactorOrZero,
    Name,
    Rounds,
    Settings,
    Share,
    Steps,
)
from clues.config.hashes import content_hash
from clues.config.modelfiles import MAX_FILES, MAX_NAME
from clues.config.rowsfile import RowsFile
from clues.config.score import ANCHOR_RULES, ScoreSettings, ThresholdSettings

# Of one public file, and of all: they travel to every silo, which takes no more. Some hundred rows
# are meant, of a few kB each.
MAX_PUBLIC_BYTES, MAX_PUBLIC_TOTAL = 50_000_000, 200_000_000
HALF_TYPES = ("bfloat16", "float16")
# Names and hashes that a coordinator sends: compared with ours, and never opened.
FileName = Annotated[
    str, StringConstraints(max_length=MAX_NAME, pattern=r"^[^\p{C}\p{Zl}\p{Zp}]+$")
]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ModelSettings(Settings):
    """Base model: `built-in`, a local folder or a hub name.

    Attributes:
        name: `built-in`, a folder with a causal model and its tokenizer, or a hub name. It counts
            on this machine alone: every silo names its own place in its own file.
        files: hash of every file of the model that can change an answer, by name. It is filled in
            for you, and silos compare it with their own. If you give it, other files are refused.
        revision: commit or tag of a hub model, because weights on a hub may change under a name.
            It counts on this machine alone.
        dtype: number type of the base weights. The adapter and every sum are float32 or wider.
        quantization: packs the matrices of the base model while it is loaded: `nf4` into 4 bits as
            QLoRA does, `int8` into 8 bits. They are unpacked to `dtype` for every product. It takes
            less memory and changes every score a little. The adapter stays float32. Needs the extra
            `quant` (`pip install '.[quant]'` in the source folder).
        attn_implementation: how attention is computed, as transformers calls it: `eager`, `sdpa`, or
            `flash_attention_2`, which needs an NVIDIA GPU, the library `flash_attn` and half
            precision. It moves the last digits of every score. Left out, transformers chooses.
        trust_remote_code: let the model run code of its own, on this machine alone.
    """

    name: str = BUILT_IN
    files: dict[FileName, Sha256] | None = Field(default=None, min_length=1, max_length=MAX_FILES)
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    quantization: Literal["nf4", "int8"] | None = None
    # Left out, it is not written: recipes that never heard of it keep their hash.
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )
    trust_remote_code: bool = False

    @model_validator(mode="before")
    @classmethod
    def _names_of_others(cls, value: Any) -> Any:
        """Accept the names of PEFT and transformers."""
        return renamed(with_quantization(value), MODEL)

    @property
    def counted(self) -> dict[str, str]:
        """What changes a score beside the model's files; what is not set is left out."""
        names = ("dtype", "quantization", "attn_implementation")
        found = {name: getattr(self, name) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    @model_validator(mode="after")
    def _packed_as_others_do(self) -> "ModelSettings":
        if self.quantization and self.dtype == "float64":
            raise ValueError(
                f"quantization: {self.quantization} does not go with dtype: float64. Take float32"
            )
        return self

    @model_validator(mode="after")
    def _flash_attention_is_of_half_precision(self) -> "ModelSettings":
        if self.attn_implementation == "flash_attention_2" and self.dtype not in HALF_TYPES:
            raise ValueError(
                f"attn_implementation: flash_attention_2 does not go with dtype: {self.dtype}. Take "
                "bfloat16, float16, or sdpa"
            )
        return self


class LoraSettings(Settings):
    """Adapter shape, as in PEFT, whose names (`r`, `lora_alpha`, `lora_dropout`) are taken, too.

    Attributes:
        rank: length of the thin side of the two factors that adapt a matrix.
        alpha: the update is alpha / rank times the product of the factors.
        dropout: share of an adapter's inputs that is set to zero in training; scoring has none. At
            most one half: an update of which nearly all is dropped is one of single tokens.
        target_modules: the linear layers that get an adapter: their names, or `all-linear`.
    """

    rank: int = Field(default=16, ge=1, le=1024)
    alpha: Factor = 16.0
    dropout: float = Field(default=0.05, ge=0.0, le=0.5)
    target_modules: tuple[str, ...] | Literal["all-linear"] = ("q_proj", "v_proj")

    @model_validator(mode="before")
    @classmethod
    def _names_of_others(cls, value: Any) -> Any:
        """Accept the names of PEFT and transformers."""
        return renamed(value, LORA)


class TokenSettings(Settings):
    """From text to token ids and loss mask.

    Attributes:
        template: how a row's messages become text. `chat` is the tokenizer's own template,
            `alpaca` is plain text with headings. `auto` takes the tokenizer's where it has one.
        max_length: the most tokens of a row, prompt and response together. Where the base model
            reads fewer at once, that number counts.
        overlong: what happens to a longer row. `drop` leaves it without a score and counts it;
            `truncate` scores and trains a copy whose end is cut (the middle of the question, where
            that alone is too long), and the row stays whole where it is kept; `error` stops.
        loss_on: the tokens that are trained and scored: those of every turn of the `assistant`, or
            of the `last` turn alone. The prompt never counts.
        odd_turns: what happens to a row whose turns the chat template refuses. `error` stops.
            `fold` joins neighbours of one role, leaves out an assistant's turn at the start, and
            puts a system turn in front of the user's where the template knows none; a row that
            cannot be folded is left out and counted. `drop` leaves all of them out.
        date: the day, as year-month-day, that a chat template is told if it writes today's date.
    """

    template: Literal["auto", "chat", "alpaca"] = "auto"
    max_length: int = Field(default=2048, ge=1, le=1_048_576)
    overlong: Literal["drop", "truncate", "error"] = "drop"
    loss_on: Literal["assistant", "last"] = "assistant"
    odd_turns: Literal["error", "fold", "drop"] = "error"
    date: datetime.date = datetime.date(2025, 1, 1)

    @model_validator(mode="before")
    @classmethod
    def _names_of_others(cls, value: Any) -> Any:
        """Accept the names of PEFT and transformers."""
        return renamed(value, TOKENS)


class TrainSettings(Settings):
    """The short training whose checkpoints score the rows; it makes no model for use.

    Attributes:
        epochs: passes over a silo's rows, if `steps` is null; at least 1 for in-run scores.
        steps: optimiser steps of each silo; if given, `epochs` does not count.
        rounds: how often the silos' adapters are joined, on trajectories `global` and `inrun`.
        aggregation: how the adapters are joined. `ffa` trains the factor B alone, so that averages
            are exact. `svd` averages the products of the factors. `factors` averages A and B
            apart.
        checkpoints: how many adapters along the training are used to score, the last one included.
        learning_rate: the highest learning rate. It is reached after `warmup` and falls linearly
            to zero.
        warmup: share of the steps in which the learning rate rises.
        batch_size: rows per optimiser step.
        weight_decay: weight decay of the optimiser AdamW.
    """

    epochs: float = Field(default=0.6, ge=1e-6, le=10_000.0)
    steps: Steps | None = None
    rounds: Rounds = 2
    aggregation: Literal["ffa", "svd", "factors"] = "ffa"
    checkpoints: Rounds = 1
    learning_rate: float = Field(default=2e-5, ge=1e-12, le=1e3)
    warmup: float = Field(default=0.03, ge=0.0, le=1.0)
    batch_size: int = Field(default=16, ge=1, le=65_536)
    weight_decay: FactorOrZero = 0.0

    @model_validator(mode="before")
    @classmethod
    def _names_of_others(cls, value: Any) -> Any:
        """Accept the names of PEFT and transformers."""
        return renamed(value, TRAIN)

    @model_validator(mode="after")
    def _rounds_hold_checkpoints(self) -> "TrainSettings":
        if self.checkpoints > self.rounds:
            raise ValueError("checkpoints must not exceed rounds")
        return self


class PublicFile(RowsFile):
    """A public file and the hash of its bytes.

    Attributes:
        path: one file of rows; a relative path starts at the configuration's folder.
        weight: weight of a validation set beside the others of its domain.
        sha256: hash of the file's bytes. It is filled in for you. If you give it, a file with
            other bytes is refused.
    """

    weight: Factor = 1.0
    sha256: str | None = None


class PublicSet(Settings):
    """Public rows of one domain: named validation sets and one anchor set.

    Attributes:
        validation: rows whose mean gradient is the direction. A path, or several sets by name:
            `{en: en.jsonl, es: {path: es.jsonl, weight: 0.5}}`. The scores by each set are put
            into units of the anchors before they are added.
        anchor: rows of known quality whose scores give the threshold. A path.
        reject: rows as they must not be: drafts, refusals, advertising. A path, or null. Likeness to
            them counts against a row. They stay with the coordinator, and silos get their mean
            gradient and the hash of the file: take no row that a silo must not guess.
    """

    validation: dict[Name, PublicFile]
    anchor: PublicFile
    # Without it, it is not written: recipes that never heard of it keep their hash.
    reject: PublicFile | None = Field(default=None, exclude_if=lambda value: value is None)

    @property
    def files(self) -> tuple[PublicFile, ...]:
        """The files that travel to silos."""
        return (self.anchor, *self.validation.values())

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """Accept a bare path for either set."""
        if not isinstance(value, dict):
            return value
        value = dict(value)
        one = value.get("validation")
        if isinstance(one, (str, Path)):
            value["validation"] = {"validation": {"path": one}}
        elif isinstance(one, dict) and isinstance(one.get("path"), (str, Path)):
            value["validation"] = {"validation": one}
        elif isinstance(value.get("validation"), dict):
            value["validation"] = {
                name: {"path": entry} if isinstance(entry, (str, Path)) else entry
                for name, entry in value["validation"].items()
            }
        for key in ("anchor", "reject"):
            if isinstance(value.get(key), (str, Path)):
                value[key] = {"path": value[key]}
        return value


def public_entries(recipe: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings of every public file in a recipe that is plain values."""
    for public in recipe["public"].values():
        yield from public["validation"].values()
        yield from (public[key] for key in ("anchor", "reject") if key in public)


class DuplicatesSettings(Settings):
    """Leave out rows whose question stands in another silo too; one silo keeps each of them.

    Attributes:
        similarity: how alike two questions are that count as one, as the share of short pieces of
            text that they have in common; 1 finds equal questions alone. Near this number a pair
            may fall on either side, because sketches of the questions are compared. A lower one
            would show how alike questions are that are not the same.
        max_share: the largest share of a silo's rows that may be left out for the rows of one
            other silo; where it would be more, the run stops and names both.
    """

    similarity: float = Field(default=0.8, ge=0.75, le=1.0)
    max_share: Share = 0.2


class Recipe(Settings):
    """All settings that can change a score or the threshold.

    Attributes:
        seed: number from which every random choice follows that can change a score.
        model: base model.
        lora: shape of the adapter.
        tokens: from text to tokens.
        train: the short training whose checkpoints score the rows.
        public: public rows, one entry per domain; a silo names its own domain.
        score: how a row is scored.
        threshold: how the anchors' scores become one threshold.
        duplicates: what to do about the same question in several silos; null leaves every row.
    """

    seed: int = Field(default=42, ge=0, le=2**63 - 1)
    model: ModelSettings = ModelSettings()
    lora: LoraSettings = LoraSettings()
    tokens: TokenSettings = TokenSettings()
    train: TrainSettings = TrainSettings()
    public: dict[Name, PublicSet]
    score: ScoreSettings = ScoreSettings()
    threshold: ThresholdSettings = ThresholdSettings()
    # Off, it is not written: recipes that never heard of it keep their hash.
    duplicates: DuplicatesSettings | None = Field(default=None, exclude_if=lambda v: v is None)

    @model_validator(mode="after")
    def _inrun_sees_every_row(self) -> "Recipe":
        if self.score.inrun and self.train.steps is None and self.train.epochs < 1.0:
            raise ValueError(
                "in-run scores come from training on every row: set train.epochs to 1 or more "
                "(3, in 8 rounds, for instance)"
            )
        return self

    @model_validator(mode="after")
    def _differences_are_fine_enough(self) -> "Recipe":
        half = self.model.dtype in HALF_TYPES
        if half and self.score.way == "finite_difference":
            raise ValueError(
                f"score.way finite_difference needs model.dtype float32: rounding in {self.model.dtype} "
                "is larger than the difference of two losses; set score.way: auto"
            )
        return self

    @model_validator(mode="after")
    def _parts_can_be_added(self) -> "Recipe":
        for name in (LOSS, ALIGNMENT, REJECT):
            if any(name in public.validation for public in self.public.values()):
                raise ValueError(f"no validation set may be called {name!r}: a part of a score is")
        if self.weighed and self.threshold.units == "raw":
            raise ValueError(
                "threshold.units raw adds scores as they are, and a loss and an influence have "
                "different units; set score.loss_weight: 0, score.alignment_weight: 0 and, with "
                "rejected rows, score.reject_weight: 0, or threshold.units: anchor"
            )
        return self

    @model_validator(mode="after")
    def _rejected_rows_have_a_direction(self) -> "Recipe":
        if any(p.reject for p in self.public.values()) and not self.score.sends_directions:
            raise ValueError(
                "public rows under `reject` are a direction that a row must not follow: they need "
                "score.method influence and score.trajectory global; leave reject out"
            )
        return self

    @model_validator(mode="after")
    def _aim_has_copies(self) -> "Recipe":
        if self.threshold.aim == "model" and not self.score.anchors_are_public:
            raise ValueError(
                "threshold.aim model reads damaged copies of the public anchors, which the "
                "coordinator scores on trajectory global, by influence or perplexity; set "
                "threshold.aim: keep, or score.trajectory: global"
            )
        return self

    @model_validator(mode="after")
    def _cascade_has_a_cut(self) -> "Recipe":
        rule = self.threshold
        if self.score.cascade and (
            rule.rule not in (*ANCHOR_RULES, "preset")
            or (rule.units, rule.combine) != ("anchor", "shortfall")
        ):
            raise ValueError(
                "score.cascade needs a threshold that is known before any row is scored, and parts "
                "that cannot make up for each other: set threshold.rule to preset or one that reads "
                "the anchors, units: anchor and combine: shortfall; or leave cascade out"
            )
        return self

    @model_validator(mode="after")
    def _turns_are_scored(self) -> "Recipe":
        if self.threshold.low_turn != "keep" and not self.score.turns:
            raise ValueError(
                f"threshold.low_turn {self.threshold.low_turn} needs a score of every turn: set "
                "score.turns: true"
            )
        if self.score.turns and self.tokens.loss_on == "last":
            raise ValueError(
                "score.turns is about rows of which several turns are trained, and tokens.loss_on "
                "last trains one; set one of the two"
            )
        return self

    @property
    def needs_copies(self) -> bool:
        """Whether damaged copies of the anchors are scored."""
        return self.weighs or self.threshold.aim == "model"

    @property
    def weighs(self) -> bool:
        """Whether a part's weight is to be found on damaged copies."""
        return any(self.weighed.values())

    @property
    def weighed(self) -> dict[str, bool]:
        """Parts beside the influence: whether each is to be weighed; those of weight 0 are out."""
        weight = self.score.reject_weight
        if weight == 0 or not any(public.reject for public in self.public.values()):
            return self.score.weighed
        return {**self.score.weighed, REJECT: weight == "auto"}

    @property
    def hash(self) -> str:
        """SHA-256 of the recipe; where a file lies does not count."""
        return content_hash(self._content())

    @property
    def scoring_hash(self) -> str:
        """The hash without the threshold: scores under an equal one are the same scores.

        With a cascade the threshold decides which rows have an influence at all.
        """
        content = self._content()
        if not self.score.cascade:
            del content["threshold"]
        return content_hash(content)

    def _content(self) -> dict[str, Any]:
        content = self.model_dump(mode="json")
        for entry in public_entries(content):
            del entry["path"]
        # Whoever has the same files has the same model, wherever it lies and whatever it is called.
        if content["model"]["files"]:
            content["model"] = {"files": self.model.files, **self.model.counted}
        return content
