"""Settings: a recipe that every silo shares and hashes, and what each side keeps to itself.

Whatever can change a score or the threshold is in the recipe; the rest is the silo's business.
No torch here: reading a configuration takes milliseconds.
"""

import hashlib
import json
from difflib import get_close_matches
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from clues.errors import ConfigError

BUILT_IN = "built-in"
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
Fraction = float
LOSS = "loss"  # name of the part of a score that is the row's own loss
ARMS = ("mixed", "random", "clues", "oracle")


class Settings(BaseModel):
    """Frozen; an unknown key is an error; input never shows in an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ModelSettings(Settings):
    """Base model: `built-in`, a local folder or a hub name.

    Attributes:
        name: `built-in`, a folder with a causal model and its tokenizer, or a hub name.
        weights_sha256: hash of weights on disk, filled in by itself, so that the recipe's hash
            speaks of them and not of where they lie. Given by hand, other weights are refused.
        revision: commit or tag of a hub model; weights on a hub may change under a name.
        dtype: of the base weights. The adapter and every sum are float32 or wider.
        trust_remote_code: let a hub model run code of its own.
    """

    name: str = BUILT_IN
    weights_sha256: str | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    trust_remote_code: bool = False


class LoraSettings(Settings):
    """Adapter shape, as in PEFT.

    Attributes:
        rank: of the two factors of every adapted matrix.
        alpha: the update is alpha / rank times the product of the factors.
        dropout: share of an adapter's inputs set to zero in training; none in scoring.
        target_modules: which linear layers get an adapter: their names, or `all-linear`.
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 16.0
    dropout: float = Field(default=0.05, ge=0.0, lt=1.0)
    target_modules: tuple[str, ...] | Literal["all-linear"] = ("q_proj", "v_proj")


class TokenSettings(Settings):
    """From text to token ids and loss mask.

    Attributes:
        template: `chat` is the tokenizer's own, `alpaca` is plain text with headings; `auto` takes
            the tokenizer's where it has one.
        max_length: tokens of a row, prompt and response together.
        overlong: what happens to a longer row: `drop` leaves it out and counts it, `truncate` cuts
            its end, `error` stops.
        loss_on: tokens that are trained and scored: every turn of the `assistant`, or the `last`
            one alone. Never the prompt.
    """

    template: Literal["auto", "chat", "alpaca"] = "auto"
    max_length: PositiveInt = 2048
    overlong: Literal["drop", "truncate", "error"] = "drop"
    loss_on: Literal["assistant", "last"] = "assistant"


class TrainSettings(Settings):
    """The training whose dynamics are scored; it makes no model for use.

    Attributes:
        epochs: passes over a silo's rows, where `steps` is null.
        steps: optimiser steps of each silo; wins over `epochs`.
        rounds: how often the silos' adapters are joined, on trajectories `global` and `inrun`.
        aggregation: how they are joined: `ffa` trains B alone, so that averages are exact; `svd`
            averages the products; `factors` averages A and B apart.
        checkpoints: how many adapters along the training are scored with, the last one included.
        learning_rate: the highest, after the warm-up; it falls linearly to zero.
        warmup: share of the steps in which the learning rate rises.
        batch_size: rows of an optimiser step.
        weight_decay: of AdamW.
    """

    epochs: PositiveFloat = 3.0
    steps: PositiveInt | None = None
    rounds: PositiveInt = 8
    aggregation: Literal["ffa", "svd", "factors"] = "ffa"
    checkpoints: PositiveInt = 4
    learning_rate: PositiveFloat = 2e-5
    warmup: float = Field(default=0.03, ge=0.0, le=1.0)
    batch_size: PositiveInt = 16
    weight_decay: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _rounds_hold_checkpoints(self) -> "TrainSettings":
        if self.checkpoints > self.rounds:
            raise ValueError("checkpoints must not exceed rounds")
        return self


class PublicFile(Settings):
    """A public file and the hash of its bytes.

    Attributes:
        path: of one file of rows, from the configuration's folder.
        weight: of a validation set beside the others of its domain.
        sha256: filled in by itself; given by hand, a file with other bytes is refused.
    """

    path: Path
    weight: PositiveFloat = 1.0
    sha256: str | None = None


class PublicSet(Settings):
    """Public rows of one domain: named validation sets and one anchor set.

    Attributes:
        validation: rows whose mean gradient is the direction. A path, or several sets by name:
            `{en: en.jsonl, es: {path: es.jsonl, weight: 0.5}}`; each is put into units of the
            anchors before they are added.
        anchor: rows of known quality whose scores give the threshold. A path.
    """

    validation: dict[str, PublicFile]
    anchor: PublicFile

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """Accept a bare path for either set."""
        if not isinstance(value, dict):
            return value
        value = dict(value)
        if isinstance(value.get("validation"), (str, Path)):
            value["validation"] = {"validation": {"path": value["validation"]}}
        elif isinstance(value.get("validation"), dict):
            value["validation"] = {
                name: {"path": entry} if isinstance(entry, (str, Path)) else entry
                for name, entry in value["validation"].items()
            }
        if isinstance(value.get("anchor"), (str, Path)):
            value["anchor"] = {"path": value["anchor"]}
        return value


Baseline = Literal[
    "base_perplexity", "ifd", "alignment", "datainf", "embedding", "length", "random"
]
Form = Literal["sgd", "adam", "adam_two_sided", "adam_exact", "cosine", "less"]
# Whose rows a model is trained on; a score's name stands for what that score would select.
Arm = Literal["mixed", "random", "clues", "oracle", Form, Baseline, "inrun"]
BASELINE_NAMES: tuple[str, ...] = get_args(Baseline)
FORMS: tuple[str, ...] = get_args(Form)
LINEAR_FORMS = ("sgd", "adam", "adam_two_sided")
# Which running means of the optimiser a form looks at.
NEEDS_SECOND_MOMENT = ("adam", "adam_two_sided", "adam_exact", "less")
NEEDS_FIRST_MOMENT = ("adam_exact", "less")


class ScoreSettings(Settings):
    """How a row is scored; higher is better, always.

    Attributes:
        method: the score that decides. `influence` is ours and the paper's; the others are
            baselines.
        form: of the influence: what of the optimiser is in the inner product.
        way: how it is computed. `auto` takes the cheapest exact way; `finite_difference` needs no
            backward pass.
        trajectory: whose checkpoints score the rows: of a training of all silos (`global`), at
            the step that trains on a row (`inrun`), of a silo's own training (`local`), or of
            its two halves, each scoring the other (`crossfit`).
        refresh: optimiser steps after which the next round brings a new validation direction
            (`inrun`); null for every round.
        visits: whether every visit to a row counts, or its first alone (`inrun`).
        layers: transformer blocks that count: `all`, `first`, `last`, or numbers from 0 on.
        projections: linear layers that count, by the end of their name, or `all`.
        factors: of the adapter that count.
        per_block: also keep every block's share of a score.
        loss_weight: weight of minus the row's mean loss along the checkpoints, beside the
            influence, each in units of the anchors; 0 gives the score of the paper.
        compare: scores to compute beside it, with thresholds of their own; they decide nothing.
    """

    method: Literal["influence", "perplexity", Baseline] = "influence"
    form: Form = "adam"
    way: Literal["auto", "side_branch", "gradients", "finite_difference"] = "auto"
    trajectory: Literal["local", "crossfit", "global", "inrun"] = "global"
    refresh: PositiveInt | None = None
    visits: Literal["first", "every"] = "every"
    layers: tuple[NonNegativeInt, ...] | Literal["all", "first", "last"] = "all"
    projections: tuple[str, ...] | Literal["all"] = "all"
    factors: Literal["both", "A", "B"] = "both"
    per_block: bool = False
    loss_weight: NonNegativeFloat = 1.0
    compare: tuple[Literal[Form, Baseline, "inrun"], ...] = ()

    @model_validator(mode="after")
    def _way_fits_form(self) -> "ScoreSettings":
        if self.form not in LINEAR_FORMS and self.way in ("side_branch", "finite_difference"):
            raise ValueError(
                f"way {self.way} computes inner products; form {self.form} needs the gradients "
                "themselves. Set way: auto"
            )
        if self.form not in LINEAR_FORMS and self.per_block:
            raise ValueError(f"per_block scores add up only for forms {', '.join(LINEAR_FORMS)}")
        return self

    @model_validator(mode="after")
    def _inrun_is_linear(self) -> "ScoreSettings":
        if self.trajectory in ("local", "crossfit") and "inrun" in self.compare:
            raise ValueError("in-run scores come from the rounds of trajectory global or inrun")
        if self.inrun and (self.method != "influence" or self.form not in LINEAR_FORMS):
            raise ValueError(f"in-run scores need a form of {', '.join(LINEAR_FORMS)}")
        if self.trajectory == "inrun" and (
            self.per_block or self.way not in ("auto", "side_branch")
        ):
            raise ValueError("in-run scores come from side branches, all blocks in one number")
        return self

    @property
    def shared(self) -> bool:
        """Whether all silos train one adapter together, round by round."""
        return self.trajectory in ("global", "inrun")

    @property
    def sends_directions(self) -> bool:
        """Whether the coordinator's directions come with the checkpoints to score at."""
        return self.trajectory == "global" and self.method == "influence"

    @property
    def inrun(self) -> bool:
        """Whether training scores the rows that it sees."""
        return self.trajectory == "inrun" or "inrun" in self.compare

    @property
    def forms(self) -> set[str]:
        """Every influence form that is computed."""
        own = {self.form} if self.method == "influence" else set[str]()
        return own | {name for name in self.compare if name in FORMS}


class ThresholdSettings(Settings):
    """How anchor scores become one threshold.

    Attributes:
        rule: `anchor_tolerance` keeps at least 1 - `quantile` of the clean rows with probability
            `confidence`; `anchor_quantile` cuts at that quantile of the anchors, without the
            confidence; `anchor_mean` is the paper's; `ratio` keeps a share of all rows; `preset`
            cuts at a number; `mixture` fits two groups of scores.
        quantile: share of the clean rows that may go.
        ratio: share of the rows that rule `ratio` keeps.
        preset: the threshold of rule `preset`.
        units: `anchor` measures a score from the anchors' median in spreads of the anchors, each
            domain by its own; `raw` leaves it as it is and pools all domains, as the paper does.
        bootstrap: draws for the threshold's interval.
        confidence: of rule `anchor_tolerance`, and the content of the bootstrap interval.
    """

    rule: Literal[
        "anchor_tolerance", "anchor_mean", "anchor_quantile", "ratio", "preset", "mixture"
    ] = "anchor_tolerance"
    quantile: float = Field(default=0.05, gt=0.0, lt=1.0)
    ratio: float = Field(default=0.5, gt=0.0, lt=1.0)
    preset: float | None = None
    units: Literal["anchor", "raw"] = "anchor"
    bootstrap: PositiveInt = 1000
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)

    @model_validator(mode="after")
    def _preset_has_a_number(self) -> "ThresholdSettings":
        if self.rule == "preset" and self.preset is None:
            raise ValueError("rule preset needs a number in threshold.preset")
        return self


class Recipe(Settings):
    """All settings that can change a score or the threshold.

    Attributes:
        seed: of everything random that can change a score.
        model: base model.
        lora: shape of the adapter.
        tokens: from text to tokens.
        train: the short training whose checkpoints are scored.
        public: public rows, one entry a domain; a silo names its own.
        score: how a row is scored.
        threshold: how the anchors' scores become one threshold.
    """

    seed: NonNegativeInt = 42
    model: ModelSettings = ModelSettings()
    lora: LoraSettings = LoraSettings()
    tokens: TokenSettings = TokenSettings()
    train: TrainSettings = TrainSettings()
    public: dict[str, PublicSet]
    score: ScoreSettings = ScoreSettings()
    threshold: ThresholdSettings = ThresholdSettings()

    @model_validator(mode="after")
    def _parts_can_be_added(self) -> "Recipe":
        if any(LOSS in public.validation for public in self.public.values()):
            raise ValueError("no validation set may be called 'loss': the row's own loss is")
        uses_both = self.score.method == "influence" and self.score.loss_weight > 0
        if uses_both and self.threshold.units == "raw":
            raise ValueError(
                "threshold.units raw adds scores as they are, and a loss and an influence have "
                "different units; set score.loss_weight: 0 or threshold.units: anchor"
            )
        return self

    @property
    def hash(self) -> str:
        """First 12 hex digits of the SHA-256 of the recipe; where a file lies does not count."""
        return _hash(self._content())

    @property
    def scoring_hash(self) -> str:
        """The hash without the threshold: scores under an equal one are the same scores."""
        content = self._content()
        del content["threshold"]
        return _hash(content)

    def _content(self) -> dict[str, Any]:
        content = self.model_dump(mode="json")
        for public in content["public"].values():
            for entry in [public["anchor"], *public["validation"].values()]:
                del entry["path"]
        if content["model"]["weights_sha256"]:
            del content["model"]["name"]
        return content


class ServerSettings(Settings):
    """An optimiser of the coordinator, whose gradient is minus a round's joint update.

    Attributes:
        optimizer: which one.
        learning_rate: null is 1 for fedavgm and 0.01 for the others.
        beta_1: decay of the mean; of fedavgm, its momentum.
        beta_2: decay of the squares; fedavgm has none.
        tau: keeps small squares from making large steps; fedavgm has none.
    """

    optimizer: Literal["fedavgm", "fedadam", "fedyogi", "fedadagrad"]
    learning_rate: PositiveFloat | None = None
    beta_1: float = Field(default=0.9, ge=0.0, lt=1.0)
    beta_2: float = Field(default=0.99, ge=0.0, lt=1.0)
    tau: PositiveFloat = 1e-3

    @property
    def rate(self) -> float:
        """The learning rate in use."""
        return self.learning_rate or (1.0 if self.optimizer == "fedavgm" else 0.01)


class CombineSettings(Settings):
    """How the kept rows become one adapter.

    Every arm and every silo takes `rounds * local_steps` steps, whatever the method;
    docs/strategies.md says which settings go together.

    Attributes:
        method: `fedavg` joins after every round; the others merge once, at the end.
        aggregation: in which form adapters are joined. `fedavg` is another name of `factors`.
        rounds: how often adapters are joined.
        local_steps: optimiser steps of a silo between two rounds.
        learning_rate: of the fit; null for that of `recipe.train`.
        density: share of an update's entries that `ties` and `dare` keep.
        scale: factor of the merged update (`task_arithmetic`, `ties`, `dare`).
        rule: what joins the silos' adapters of a round; all but `mean` withstand hostile silos.
        trim: share of the silos cut off at either end by `trimmed_mean`.
        n_hostile: hostile silos that `krum` withstands.
        proximal: the mu of FedProx; 0 is off.
        server: an optimiser of the coordinator on top of the joined update; null is off.
    """

    method: Literal["fedavg", "average", "task_arithmetic", "ties", "dare", "adaptive"] = "fedavg"
    aggregation: Literal["ffa", "svd", "factors", "stack"] = "ffa"
    rounds: PositiveInt = 20
    local_steps: PositiveInt = 10
    learning_rate: PositiveFloat | None = None
    density: float = Field(default=0.2, gt=0.0, le=1.0)
    scale: PositiveFloat = 1.0
    rule: Literal["mean", "median", "trimmed_mean", "krum"] = "mean"
    trim: float = Field(default=0.2, gt=0.0, lt=0.5)
    n_hostile: PositiveInt = 1
    proximal: NonNegativeFloat = 0.0
    server: ServerSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _other_name(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("aggregation") == "fedavg":
            return {**value, "aggregation": "factors"}
        return value

    @model_validator(mode="after")
    def _parts_go_together(self) -> "CombineSettings":
        one_shot = self.method != "fedavg"
        if one_shot and (self.rule != "mean" or self.server):
            raise ValueError(f"rule and server need method fedavg, not {self.method}")
        if self.rule in ("median", "trimmed_mean") and self.aggregation not in ("ffa", "svd"):
            raise ValueError(
                f"rule {self.rule} on {self.aggregation} would join an A of one silo with a B of "
                "another; set aggregation ffa or svd"
            )
        if self.rule == "krum" and self.aggregation == "stack":
            raise ValueError("rule krum picks one adapter, so there is nothing to stack")
        if self.server and self.aggregation not in ("ffa", "factors"):
            raise ValueError("server needs factors that keep their meaning: aggregation ffa")
        return self

    def content(self) -> dict[str, Any]:
        """Plain JSON for hashes and messages; later settings only where they are in use.

        So a run stored before they existed goes on, and a silo that does not know them takes part.
        """
        later = {"rule", "trim", "n_hostile", "proximal", "server"}
        unused = {name for name in later if getattr(self, name) == self._default(name)}
        return self.model_dump(mode="json", exclude=unused)

    @classmethod
    def _default(cls, name: str) -> Any:
        return cls.model_fields[name].default


# A day of training or scoring; other answers only read rows or count.
LONG_TIMEOUT_S, SHORT_TIMEOUT_S = 86_400.0, 3_600.0


class FederationSettings(Settings):
    """What the coordinator accepts from silos, and how long it waits for them.

    Attributes:
        quorum: silos without which a run stops; null for all of them.
        norm_bound: an update may be so many times longer than the median of the silos' updates.
        max_rows: the largest number of rows that a silo may say it has.
        max_message_mb: the largest answer, in MB of 10^6 bytes; null for the adapters that the
            request lets expect, and 16 MB.
        wait_s: seconds that a silo on another machine may be out of reach.
        timeouts: seconds from a message to its answer, by kind of message.
    """

    quorum: PositiveInt | None = None
    norm_bound: float = Field(default=10.0, gt=1.0)
    max_rows: PositiveInt = 10_000_000
    max_message_mb: PositiveFloat | None = None
    wait_s: PositiveFloat = 900.0
    timeouts: dict[
        Literal["hello", "train", "score", "select", "fit", "evaluate"], PositiveFloat
    ] = {}

    def timeout_s(self, kind: str) -> float:
        """Seconds to wait for the answer to a kind of message."""
        default = LONG_TIMEOUT_S if kind in ("train", "score", "fit") else SHORT_TIMEOUT_S
        return {str(k): v for k, v in self.timeouts.items()}.get(kind, default)


class TaskSettings(Settings):
    """A file of multiple-choice questions.

    Attributes:
        path: any file of rows; each has choices and an answer, or lists its choices in the prompt.
        name: of the task; null makes one task of every value of the column `source`, or one
            with the name of the file.
        style: `as_written` leaves prompt and choices as they stand in the file; `cloze` takes a
            listing of the choices out of the prompt, and the marks off the choices.
        where: only rows whose columns have these values, such as `split: test`.
        limit: at most so many questions a task, the same ones in every run.
    """

    path: Path
    name: str | None = Field(default=None, pattern=NAME)
    style: Literal["as_written", "cloze"] = "as_written"
    where: dict[str, str] = {}
    limit: PositiveInt | None = None


class LmEvalSettings(Settings):
    """A task of lm-eval (extra `clues[eval]`).

    Attributes:
        task: its name, or a YAML file that describes it; `pubmedqa` is ours and needs `data`.
        data: a local file for the task's split `test`, instead of the task's own data.
        limit: at most so many questions, the first ones.
        num_fewshot: examples in front of each question; null leaves it to the task.
    """

    task: str
    data: Path | None = None
    limit: PositiveInt | None = None
    num_fewshot: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _data_needs_a_description(self) -> "LmEvalSettings":
        own = self.task == "pubmedqa" or self.task.endswith((".yaml", ".yml"))
        if self.data is not None and not own:
            raise ValueError("data goes with task: pubmedqa, or with a task that is a YAML file")
        return self


class JudgeSettings(Settings):
    """A model behind an OpenAI-compatible endpoint that judges answers (extra `clues[judge]`).

    Attributes:
        base_url: of the endpoint, such as `https://host/v1`; plain http only on this machine.
        model: its name there.
        api_key_env: environment variable that holds the key; null where none is needed.
        mode: `reference` scores an answer from 0 to 1 against the row's own; `pairwise` asks which
            of two arms' answers is better, in both orders.
        arms: whose answers are judged; those that the run has.
        against: the arm that every other is compared with in pairs.
        n_prompts: how many held-out prompts, drawn at random, the same ones in every run.
        prompts: another file of rows than `evaluate.heldout`; needs `--allow-private-prompts`.
        max_calls: most requests of one `clues judge`, repairs and retries included.
        concurrency: requests under way at a time.
        timeout_s: of one request, from its start to its last byte.
        retries: of a request that got no answer.
        retry_wait_s: before the first retry; it doubles, to at most a minute.
        max_answer_tokens: of an answer of ours.
        max_reply_tokens: of a reply of the judge.
        allow_http: send key and rows unencrypted to another machine.
    """

    base_url: str
    model: str = Field(min_length=1)
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    mode: tuple[Literal["reference", "pairwise"], ...] = ("reference", "pairwise")
    arms: tuple[Arm, ...] = ARMS
    against: Arm = "mixed"
    n_prompts: PositiveInt = 100
    prompts: Path | None = None
    max_calls: PositiveInt = 2000
    concurrency: int = Field(default=4, ge=1, le=64)
    timeout_s: PositiveFloat = 60.0
    retries: int = Field(default=3, ge=0, le=10)
    retry_wait_s: PositiveFloat = 1.0
    max_answer_tokens: PositiveInt = 256
    max_reply_tokens: PositiveInt = 300
    allow_http: bool = False

    @property
    def loopback(self) -> bool:
        """Whether the endpoint is on this machine."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return host == "localhost" or ip_address(host).is_loopback
        except ValueError:
            return False

    @model_validator(mode="after")
    def _endpoint_is_safe(self) -> "JudgeSettings":
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("base_url must look like https://host/v1")
        if url.username or url.password or url.query or url.fragment:
            raise ValueError("base_url must hold no key; name its variable in api_key_env")
        if url.scheme == "http" and not self.loopback and not self.allow_http:
            raise ValueError(
                "base_url sends rows and key unencrypted to another machine. Use https, or set "
                "allow_http: true"
            )
        return self


class EvaluateSettings(Settings):
    """What the joint models are measured on. All of it is public.

    Attributes:
        heldout: file of rows for the held-out loss; those with choices are also asked.
        tasks: files of multiple-choice questions; a bare path will do.
        lm_eval: tasks of lm-eval; a bare name will do.
        arms: whose rows models are trained on: `mixed` (all), `random` (as many as selected),
            `clues`, `oracle` (those known clean), or a score of `recipe.score.compare`, whose own
            anchors and the recipe's rule select then. The last kind is for experiments: every silo
            must share diagnostics, since each such arm tells how many rows another threshold
            keeps. An empty list stops after the selection.
        judge: a model that judges answers; null is off.
    """

    heldout: Path | None = None
    tasks: tuple[TaskSettings, ...] = ()
    lm_eval: tuple[LmEvalSettings, ...] = ()
    arms: tuple[Arm, ...] = ARMS
    judge: JudgeSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """Accept a bare path for a task, and a bare name for one of lm-eval."""
        if not isinstance(value, dict):
            return value
        value = dict(value)
        for key, name in (("tasks", "path"), ("lm_eval", "task")):
            if isinstance(entries := value.get(key), list | tuple):
                value[key] = [{name: e} if isinstance(e, str | Path) else e for e in entries]
        return value


class PrivacySettings(Settings):
    """Per-example differential privacy of a silo's trainings, warm-up and one fit together.

    Attributes:
        epsilon: half for the warm-up and half for the fit of one arm.
        delta: probability that epsilon does not hold; well below 1 / rows.
        max_grad_norm: length to which every row's gradient is cut.
    """

    epsilon: PositiveFloat
    delta: float = Field(gt=0.0, lt=1.0)
    max_grad_norm: PositiveFloat = 1.0


class SiloSettings(Settings):
    """One owner of private rows. Never leaves the silo.

    Attributes:
        name: of the silo, for folders, messages and reports.
        data: a file, a folder, or a hub data set as `owner/name` or `owner/name:split`.
        domain: a key of `recipe.public`.
        schema_name: which columns hold prompt and response, where several schemas fit: alpaca,
            sharegpt, messages, prompt_completion, multiple_choice.
        labels: column that is empty where a row is good, for experiments.
        share_diagnostics: tell the coordinator exact counts and detection figures.
        min_kept: how many rows a selection keeps at least, and how many an update is made of.
        max_selections: how many recipes may ever come to the rows in one folder, each with one
            threshold.
        approval: a selection waits for `clues approve`.
        privacy: train with differential privacy; null is off.
        model_path: where the recipe's base model lies on this machine, if elsewhere.
        license: of the rows, for the card beside those kept.
    """

    name: str = Field(pattern=NAME)
    data: str
    domain: str
    schema_name: str | None = Field(default=None, alias="schema")
    labels: str | None = None
    share_diagnostics: bool = False
    min_kept: PositiveInt = 5
    max_selections: PositiveInt = 20
    approval: bool = False
    privacy: PrivacySettings | None = None
    model_path: str | None = None
    license: str = "unknown"


class SharedConfig(Settings):
    """A run without its silos, as the coordinator of separate machines reads it.

    Attributes:
        name: of the run, and of its folder in `runs/`.
        license: of the joint adapter, for its card.
        recipe: what every silo shares; its hash travels with every message.
        combine: how the kept rows become one adapter.
        evaluate: what the joint models are measured on.
        federation: what the coordinator accepts, and how long it waits.
    """

    name: str = Field(default="run", pattern=NAME)
    license: str = "unknown"
    recipe: Recipe
    combine: CombineSettings = CombineSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    federation: FederationSettings = FederationSettings()

    @property
    def labelled(self) -> bool:
        """Whether arm oracle can run; a coordinator alone believes who asks for it by name."""
        return "arms" in self.evaluate.model_fields_set


class RunConfig(SharedConfig):
    """A whole run, as `clues run` reads it.

    Attributes:
        silos: the owners of private rows: each a file of its own, or its settings.
    """

    silos: tuple[SiloSettings, ...] = Field(min_length=1)

    @property
    def labelled(self) -> bool:
        """Whether every silo names a column of labels."""
        return all(silo.labels for silo in self.silos)

    @model_validator(mode="after")
    def _silos_fit(self) -> "RunConfig":
        names = [silo.name for silo in self.silos]
        if len(set(names)) < len(names):
            raise ValueError("two silos have the same name")
        if (self.federation.quorum or 0) > len(names):
            raise ValueError(f"federation.quorum exceeds the number of silos, {len(names)}")
        others = [arm for arm in self.evaluate.arms if arm not in ARMS]
        missing = [arm for arm in others if arm not in self.recipe.score.compare]
        if missing:
            raise ValueError(
                f"arm {missing[0]} needs its score; add it to recipe.score.compare, or leave it out"
            )
        silent = [silo.name for silo in self.silos if not silo.share_diagnostics]
        if others and silent:
            raise ValueError(
                f"arm {others[0]} needs share_diagnostics in every silo, and {silent[0]} has it off"
            )
        for silo in self.silos:
            if silo.domain not in self.recipe.public:
                known = ", ".join(sorted(self.recipe.public))
                raise ValueError(
                    f"silo {silo.name} names domain {silo.domain!r}, which has no public set; "
                    f"recipe.public lists: {known}"
                )
        return self


def _hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def built_in_folder() -> Path:
    """Folder of the base model that ships with the package."""
    return Path(str(files("clues") / "assets" / "base"))


def weights_sha256(name: str) -> str | None:
    """Hash of a base model on disk: weights, configuration, tokenizer. None for a hub name."""
    folder = built_in_folder() if name == BUILT_IN else Path(name)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        with file.open("rb") as opened:
            digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def derived_seed(seed: int, *parts: object) -> int:
    """A seed for one use, independent of the seeds of all other uses."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


Model = TypeVar("Model", bound=BaseModel)
Shared = TypeVar("Shared", bound=SharedConfig)


def load_config(path: str | Path) -> RunConfig:
    """Read a run's YAML and its silo files, and fill in the hashes of the public files.

    Paths are relative to the file that names them.

    Raises:
        ConfigError: unreadable YAML, an unknown key (with a suggestion), a value out of range,
            a missing file, or a public file whose bytes do not match its `sha256`.
    """
    path = Path(path)
    content = _read_yaml(path)
    silos = content.get("silos")
    if isinstance(silos, list):
        content["silos"] = [_silo_content(entry, path) for entry in silos]
    return _resolved(validate(RunConfig, content, where=path.name), path)


def load_shared(path: Path) -> SharedConfig:
    """Read a run's YAML for a coordinator whose silos are on other machines.

    Raises:
        ConfigError: as `load_config`; or it lists silos, whose settings are not the coordinator's.
    """
    content = _read_yaml(path)
    if "silos" in content:
        raise ConfigError(
            f"{path.name}: on separate machines each silo keeps its own settings. Remove `silos` "
            "here, and name silos and their public keys in the coordinator's file."
        )
    return _resolved(validate(SharedConfig, content, where=path.name), path)


def load_silo(path: Path) -> SiloSettings:
    """Read one silo's own file.

    Raises:
        ConfigError: unreadable, an unknown key, or a value out of range.
    """
    return validate(SiloSettings, _silo_content(path.name, path), where=path.name)


def _resolved(config: Shared, path: Path) -> Shared:
    """Fill in absolute paths and the hashes of public files."""
    base = path.parent
    public = {
        domain: PublicSet(
            validation={n: _hashed(f, base, path) for n, f in entry.validation.items()},
            anchor=_hashed(entry.anchor, base, path),
        )
        for domain, entry in config.recipe.public.items()
    }
    model = config.recipe.model
    if (base / model.name).is_dir():
        model = model.model_copy(update={"name": str((base / model.name).resolve())})
    found = weights_sha256(model.name)
    if found and model.weights_sha256 not in (None, found):
        raise ConfigError(
            f"{path.name}: the weights of {model.name} have changed since this config was "
            "written. Restore them or remove recipe.model.weights_sha256."
        )
    model = model.model_copy(update={"weights_sha256": found or model.weights_sha256})
    heldout, judge = config.evaluate.heldout, config.evaluate.judge
    if judge and judge.prompts:
        judge = judge.model_copy(update={"prompts": _existing(judge.prompts, base, path)})
    evaluate = config.evaluate.model_copy(
        update={
            "heldout": _existing(heldout, base, path) if heldout else None,
            "tasks": tuple(
                task.model_copy(update={"path": _existing(task.path, base, path)})
                for task in config.evaluate.tasks
            ),
            "lm_eval": tuple(_with_files(e, base, path) for e in config.evaluate.lm_eval),
            "judge": judge,
        }
    )
    recipe = config.recipe.model_copy(update={"public": public, "model": model})
    return config.model_copy(update={"recipe": recipe, "evaluate": evaluate})


def validate(model: type[Model], content: Any, *, where: str) -> Model:
    """Build a settings object, or say which key is wrong and what was probably meant.

    Raises:
        ConfigError: with one line per problem.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False, include_context=False)
    lines = [f"{where}: {_describe(model, problem)}" for problem in problems]
    raise ConfigError("\n".join(lines))


def dump_yaml(config: BaseModel) -> str:
    """Return settings as YAML that can be read again."""
    content = config.model_dump(mode="json", by_alias=True)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _describe(model: type[BaseModel], problem: Any) -> str:
    keys = [str(part) for part in problem["loc"]]
    dotted = ".".join(keys) or "the file"
    if problem["type"] == "extra_forbidden":
        close = get_close_matches(keys[-1], _known_keys(model, keys[:-1]), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"unknown key {dotted}.{hint}"
    if problem["type"] == "missing":
        return f"{dotted} is missing."
    return f"{dotted}: {problem['msg'].removeprefix('Value error, ')}."


def _known_keys(model: type[BaseModel], parents: list[str]) -> list[str]:
    """Keys allowed under a dotted path, found by walking the annotations."""
    models: list[Any] = [model]
    for key in parents:
        following: list[Any] = []
        for candidate in models:
            field = getattr(candidate, "model_fields", {}).get(key)
            inner = [field.annotation] if field else [candidate]
            following += _models_within(inner)
        models = following or models
    return [f.alias or name for m in models for name, f in getattr(m, "model_fields", {}).items()]


def _models_within(annotations: list[Any]) -> list[Any]:
    found: list[Any] = []
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        found += _models_within(list(getattr(annotation, "__args__", ())))
    return found


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file.{_yaml_beside(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: this is a folder, not a file.{_yaml_beside(path)}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text. Save it as UTF-8.") from None
    except yaml.YAMLError as error:
        if path.suffix not in (".yaml", ".yml"):
            raise ConfigError(
                f"{path}: not valid YAML. Is this a data file? clues init --help says how to name "
                "it in a configuration."
            ) from None
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise ConfigError(f"{path.name}{line}: not valid YAML: {problem}.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name}: expected keys such as recipe and silos at the top.")
    return content


def _yaml_beside(path: Path) -> str:
    """Say which configurations lie in the folder that was meant, or how to get one."""
    folder = path if path.is_dir() else path.parent
    found = sorted(p.name for p in folder.glob("*.y*ml")) if folder.is_dir() else []
    if found:
        return f" In {folder} there is: {', '.join(found[:5])}."
    return " clues init writes one from your files."


def _silo_content(entry: Any, config_path: Path) -> Any:
    """Return a silo's settings with its data path made independent of the working folder."""
    if isinstance(entry, str):
        source = config_path.parent / entry
        content: Any = _read_yaml(source)
        validate(SiloSettings, content, where=source.name)
    else:
        source, content = config_path, entry
    if isinstance(content, dict) and isinstance(content.get("data"), str):
        local = source.parent / content["data"]
        # A name that is no file may still be a data set on a hub; reading it decides.
        if local.exists() or local.suffix:
            content = {**content, "data": str(local.resolve())}
    return content


def _existing(file: Path, base: Path, config_path: Path) -> Path:
    resolved = (base / file).resolve()
    if not resolved.exists():
        near = [p.name for p in resolved.parent.glob("*")] if resolved.parent.is_dir() else []
        close = get_close_matches(resolved.name, near, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{config_path.name}: {file}: there is no such file.{hint}")
    return resolved


def _with_files(entry: LmEvalSettings, base: Path, config_path: Path) -> LmEvalSettings:
    update: dict[str, Any] = {}
    if entry.task.endswith((".yaml", ".yml")):
        update["task"] = str(_existing(Path(entry.task), base, config_path))
    if entry.data is not None:
        update["data"] = _existing(entry.data, base, config_path)
    return entry.model_copy(update=update)


def _hashed(file: PublicFile, base: Path, config_path: Path) -> PublicFile:
    resolved = _existing(file.path, base, config_path)
    if not resolved.is_file():
        raise ConfigError(f"{config_path.name}: {file.path}: a public set must be one file.")
    found = hashlib.sha256(resolved.read_bytes()).hexdigest()
    if file.sha256 not in (None, found):
        raise ConfigError(
            f"{config_path.name}: {file.path} has changed: its sha256 starts with {found[:12]}, "
            f"the config says {str(file.sha256)[:12]}. Restore the file or remove the hash."
        )
    return file.model_copy(update={"path": resolved, "sha256": found})
