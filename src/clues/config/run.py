"""One silo's settings, and a whole run's."""

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from clues.config.base import BUILT_IN, Count, Factor, Name, Settings, Share
from clues.config.columns import Columns
from clues.config.combine import CombineSettings, FederationSettings
from clues.config.compute import ComputeSettings, short_form
from clues.config.evaluate import ARMS, EvaluateSettings
from clues.config.findings import FindingsSettings
from clues.config.recipe import Recipe


class PrivacySettings(Settings):
    """Differential privacy per row, for a silo's counts, warm-up and one training together.

    Attributes:
        epsilon: how much the outcome may depend on any single row. Of what two counts leave, half
            sets the noise of the warm-up, the other half that of the training on the kept rows.
        delta: probability that epsilon does not hold; choose it well below 1 / rows.
        max_grad_norm: the length to which every longer gradient of a row is cut.
        count_epsilon: what a number of rows costs that leaves the silo; its noise has a standard
            deviation of about 1.4 / count_epsilon rows.
    """

    epsilon: float = Field(ge=1e-4, le=1e6)
    delta: float = Field(ge=1e-20, lt=1.0)
    max_grad_norm: Factor = 1.0
    count_epsilon: float = Field(default=0.2, ge=1e-5, le=1e6)

    @property
    def training_epsilon(self) -> float:
        """What the number of rows and that of the kept ones leave."""
        return self.epsilon - 2 * self.count_epsilon

    @model_validator(mode="after")
    def _counts_leave_something(self) -> "PrivacySettings":
        if self.training_epsilon <= 0:
            raise ValueError("two counts cost all of epsilon: lower count_epsilon")
        return self


class SiloModel(Settings):
    """A silo's own copy of the base model.

    Attributes:
        name: `built-in`, a folder (relative to this file), or a hub name whose files are already
            in this machine's cache. A silo that takes part in runs fetches nothing.
        revision: commit or tag of a hub model.
        trust_remote_code: let the model run the code in its folder, on this machine.
    """

    name: str = BUILT_IN
    revision: str | None = None
    trust_remote_code: bool = False


class SiloSettings(Settings):
    """One owner of private rows. Never leaves the silo.

    Attributes:
        name: name of the silo, for folders, messages and reports.
        data: a file, a folder, or a hub data set as `owner/name` or `owner/name:split`.
        domain: the domain of the rows, a key of `recipe.public`.
        schema_name: which columns hold prompt and response, where several schemas fit: alpaca,
            sharegpt, messages, prompt_completion, preference, multiple_choice.
        columns: the file's own names by what they hold, such as `{prompt: question, context:
            passage}`; null for a column that is not to be read. Others count under their names.
        labels: a column that is empty where a row is good; for experiments.
        strict: refuse the file where a row cannot be used, for experiments: its answer is null or
            empty, or no text. Else such rows are dropped with that reason.
        findings: what happens to a row for what its text shows: `off`, `flag` or `set_aside`, for all
            kinds or by kind. It stays in the silo; the selection follows it.
        mark_words: mark, on the private page, the words of the rows to read first that the base model
            finds unlikely. It reads 40 rows more for this. False leaves them unmarked.
        cleans: name of the file that `clues clean` cleans here, for the words on its private page.
            `clues clean` writes it; null elsewhere.
        share_diagnostics: tell the coordinator exact counts and how well damage was found.
        min_kept: the fewest rows that an update may be made of, counted by their weight in it; a
            step takes as many, or 16 if that is fewer. Every training sets as many aside,
            so a selection must keep twice as many, and up to nine more that the silo's key draws for
            each recipe; where no row is set aside (see `order_seed`), this number.
        max_selections: how many recipes may be used on the rows in one folder, each with one
            threshold. A question of a recipe that is asked in another way counts as one more, and so
            does every hundredth update beyond the first hundred, and every failure.
        approval: whether every selection waits for `clues approve`, and every joint model for the
            selection.
        order_seed: number from which the order of the rows in training follows. Null: it follows
            from the silo's own key, nobody else can know it, and every training sets some rows
            aside. Give a number where a run must be repeatable and its rows are no secret.
        privacy: train with differential privacy; null is off.
        model: where the base model lies on this machine, and whether it may run code. What a
            coordinator sends decides neither: it only says which files it must consist of. A path
            or a hub name, or `{name: ..., revision: ..., trust_remote_code: ...}`. Null is the
            run's own `recipe.model` under `clues run`, and `built-in` under `clues join`.
        license: license of the rows, for the card beside those kept.
        duplicates_key: file of the key with which all silos hide their questions while those that
            stand in several silos are looked for (`recipe.duplicates`). Silos share it, and the
            coordinator must not have it; `clues keys rows FILE` makes one. A relative path starts
            at this file. Null refuses such a run; under `clues run` the run makes its own key.
        max_duplicates: the largest share of the silo's usable rows that a coordinator may have it
            leave out because their question stands in other silos.
        compute: where this silo scores and trains: `local`, `ray`, or `{engine: ray, address: ...}`.
            Null is the run's own `compute` under `clues run`, and `local` under `clues join`.
    """

    name: Name
    data: str
    domain: Name
    schema_name: str | None = Field(default=None, alias="schema")
    # Unset, it is not written: what was agreed before it was known stays the same.
    columns: Columns | None = Field(default=None, exclude_if=lambda value: value is None)
    labels: str | None = None
    strict: bool = False
    findings: FindingsSettings = FindingsSettings()
    mark_words: bool = True
    cleans: str | None = None
    share_diagnostics: bool = False
    min_kept: Count = 5
    max_selections: Count = 20
    approval: bool = False
    order_seed: int | None = Field(default=None, ge=0, le=2**63 - 1)
    privacy: PrivacySettings | None = None
    model: SiloModel | None = None
    license: str = "unknown"
    duplicates_key: str | None = None
    max_duplicates: Share = 0.2
    compute: ComputeSettings | None = None

    @property
    def read_columns(self) -> dict[str, str | None]:
        """The mapping of columns; labels of an experiment say nothing about what is to be trained."""
        own = {self.labels: None} if self.labels else {}
        return {**own, **(self.columns or {})}

    def agreed(self) -> dict[str, Any]:
        """What a silo's answers depend on, as plain JSON.

        Where things lie does not count, nor how much is permitted, nor what the silo's page shows: the
        same is answered.
        """
        places = {"data", "model", "duplicates_key", "compute"}
        permits = {"max_selections", "approval", "max_duplicates"}
        return self.model_dump(mode="json", exclude={*places, *permits, "mark_words", "cleans"})

    @model_validator(mode="after")
    def _privacy_shares_no_counts(self) -> "SiloSettings":
        if self.privacy and self.share_diagnostics:
            raise ValueError(
                "share_diagnostics tells exact numbers of rows, which privacy covers with noise; "
                "set one of the two"
            )
        return self

    @model_validator(mode="after")
    def _noise_goes_alone(self) -> "SiloSettings":
        if self.privacy and self.compute and self.compute.gradient_checkpointing:
            raise ValueError(
                "privacy needs every row's gradient, which compute.gradient_checkpointing would make "
                "twice; set it to false for this silo"
            )
        if self.privacy and self.compute and self.compute.report_to != "none":
            raise ValueError(
                "compute.report_to would tell losses and numbers of rows as they are, which privacy "
                "covers with noise; set one of the two"
            )
        return self

    @model_validator(mode="after")
    def _noise_is_made_in_one_process(self) -> "SiloSettings":
        if self.privacy and self.compute and self.compute.train_workers > 1:
            raise ValueError(
                "privacy adds its noise in one process: remove compute.train_workers. Scoring may use "
                "as many workers as it likes"
            )
        return self

    @field_validator("model", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """Accept a bare path or name."""
        return {"name": value} if isinstance(value, str | Path) else value

    @field_validator("compute", mode="before")
    @classmethod
    def _engine_alone(cls, value: Any) -> Any:
        return short_form(value)


class SharedConfig(Settings):
    """A run without its silos, as the coordinator of separate machines reads it.

    Attributes:
        name: name of the run, and of its folder in `runs/`.
        license: license of the joint adapter, for its card.
        recipe: what every silo shares; its hash travels with every message.
        combine: how the kept rows become one adapter.
        evaluate: what the joint models are measured on.
        federation: what the coordinator accepts, and how long it waits.
    """

    name: Name = "run"
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
        silos: the owners of private rows; each entry is a file, or the settings themselves.
        compute: where the silos of this run score and train, for those whose own file does not say:
            `local`, `ray`, or `{engine: ray, address: ...}`.
    """

    silos: tuple[SiloSettings, ...] = Field(min_length=1)
    compute: ComputeSettings = ComputeSettings()

    @field_validator("compute", mode="before")
    @classmethod
    def _engine_alone(cls, value: Any) -> Any:
        return short_form(value)

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
