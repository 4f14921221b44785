"""Everything that results.json holds: aggregates of a whole run, no row text, no row scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import JsonValue, ValidationError
from pydantic_core import from_json

from clues.config import Aim
from clues.errors import DataError
from clues.reading import is_folder, read_bytes, shown, status
from clues.results.arms import ArmResult
from clues.results.base import Figures
from clues.results.problems import first_problem
from clues.results.silos import SiloResult
from clues.results.tasks import JudgeResult, TaskResult
from clues.rundir import write_json

VERSION = 1
Curve = tuple[tuple[int, float], ...]
_AGAIN = "clues report CLUES.YAML writes it anew from the run's folder."


class Method(Figures):
    """How rows were scored, selected and trained on, in short; `recipe` has the whole.

    Attributes:
        score: name of the score that decides.
        form: of the influence: how a row's gradient is turned into a step.
        loss_weight: weight of the row's own loss in the score, as it was set or found.
        loss_under: whose loss that is: of the base model, or along the checkpoints.
        alignment_weight: weight of the alignment of a row with its question.
        reject_weight: weight of the part that tells rows from the rejected ones; null without
            rejected rows.
        parts: how the parts of the score are joined.
        trajectory: whose checkpoints the rows are scored at.
        layers: of the model that count: `all`, `first`, `last` or their numbers.
        rule: that sets the threshold.
        combine: how the silos' adapters become one.
        aggregation: how the factors of the adapters are joined in a round.
    """

    score: str
    form: str
    loss_weight: float
    loss_under: str
    alignment_weight: float
    parts: str
    trajectory: str
    layers: str | tuple[int, ...]
    rule: str
    combine: str
    aggregation: str
    reject_weight: float | None = None


class AimResult(Figures):
    """The threshold that an aim would take, and what public rows say of it.

    Attributes:
        value: rows that score lower would be dropped.
        anchors_kept: share of the anchors that are not below it.
        copies_kept: share of damaged copies of anchors that are not below it, every kind with one
            vote; rejected rows, where there are any, are one more kind.
    """

    value: float
    anchors_kept: float
    copies_kept: float


class ThresholdResult(Figures):
    """The one threshold.

    Attributes:
        value: rows that score lower are dropped; null for rule `ratio`.
        rule: that set it.
        units: `anchor` where scores are measured by the spread of the anchors' scores, or `raw`.
        interval: bootstrap interval of the value over the anchors.
        confidence: probability content of the interval.
        assurance: probability that a group keeps at least 1 - quantile of its clean rows, if they
            score like its anchors; for rule `anchor_tolerance` alone, and null where aim `model`
            has raised its cut.
        quantile: share of clean rows that the rule may drop, as the recipe says.
        n_anchors: number of anchor scores that the value rests on.
        anchor_quantiles: pairs of a share and a score: this share of the anchors scores lower.
        aim: what it is for: `keep` spares clean rows, `model` serves the joint model.
        aims: by aim, the threshold it would take; empty where anchors have no damaged copies.
    """

    value: float | None
    rule: str
    units: str
    interval: tuple[float, float] | None
    confidence: float
    assurance: float | None
    quantile: float
    n_anchors: int
    anchor_quantiles: tuple[tuple[float, float], ...]
    aim: Aim = "keep"
    aims: Mapping[Aim, AimResult] = {}


class Absence(Figures):
    """A silo that was missing.

    Attributes:
        silo: its name.
        stage: where it was missing.
        time: when, in UTC.
        why: in words.
    """

    silo: str
    stage: str
    time: str
    why: str


class Seconds(Figures):
    """How long the selection took.

    Attributes:
        train: seconds of the warm-up.
        score: seconds of scoring.
        select: seconds that the silos took to decide.
    """

    train: float
    score: float
    select: float


class Passes(Figures):
    """What the selection computed, whatever the machine: forward passes that cost as much.

    Counted from numbers of rows, as if all were equally long; looking at an answer alone counts as
    looking at its row. A pass with gradients counts as two. Per row of all silos that took part;
    public rows' passes are shared out among them. With `score.cascade` as if every row got gradients:
    which did not, only its silo knows.

    Attributes:
        train: of the warm-up, per private row.
        score: of all scores, per private row.
    """

    train: float
    score: float


class Results(Figures):
    """What a run found.

    Attributes:
        results_version: of this format. It changes when a key goes or means something else.
        name: of the run.
        date: day on which the results were written, in UTC.
        machine: processor and system that the coordinator ran on.
        base_model: name of the base model, without its folder.
        recipe_hash: hash of every setting that can change a score or the threshold.
        recipe: these settings, as [Configuration](configuration.md) explains them. Public rows are
            named by the hash of their file.
        seeds: of the run.
        versions: of the packages that computed the figures.
        method: the settings that matter most.
        arms: joint models by name; empty where none was trained.
        silos: by name, those that took part to the end.
        absences: silos that were left out to the end of the run.
        stops: silos that were missing when the run stopped, and were asked again when it went on.
        curves: pairs of the number of rounds done and the loss of public rows, for the warm-up and
            for every arm with more than one round.
        threshold: the one for all silos.
        controls: by group and kind of damage, how often a public anchor scores above a damaged
            copy of one.
        controls_kept: by group and kind of damage, the share of the damaged copies above the
            threshold; empty for rule `ratio`.
        questions: number of held-out questions; null without a held-out set.
        guessing: share of the held-out questions that guessing answers right.
        tasks: by name, multiple-choice tasks; empty without tasks.
        judge: what a judge says; null before `clues judge`.
        seconds: how long the selection took.
        passes: forward passes that the selection cost per private row; null in results of versions
            that did not count them.
    """

    results_version: Literal[1]
    name: str
    date: str
    machine: str
    base_model: str
    recipe_hash: str
    recipe: Mapping[str, JsonValue]
    seeds: tuple[int, ...]
    versions: Mapping[str, str]
    method: Method
    arms: Mapping[str, ArmResult]
    silos: Mapping[str, SiloResult]
    absences: tuple[Absence, ...]
    stops: tuple[Absence, ...]
    curves: Mapping[str, Curve]
    threshold: ThresholdResult
    controls: Mapping[str, Mapping[str, float]]
    controls_kept: Mapping[str, Mapping[str, float]]
    questions: int | None
    guessing: float | None
    tasks: Mapping[str, TaskResult]
    judge: JudgeResult | None
    seconds: Seconds
    passes: Passes | None = None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a results.json.

        Raises:
            DataError: there is no such file, it is of another version, or it is broken; says what
                is wrong, where, and what to do.
        """
        if status(path) is None or is_folder(path):
            raise DataError(
                f"{shown(path)}: cannot be read (there is no such file). Name the results.json in the "
                "folder of a run; `clues run` writes one at its end."
            )
        return cls.from_bytes(read_bytes(path, advice=_AGAIN), where=shown(path))

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Self:
        """Read what `write` wrote; `where` it stood, for errors.

        Raises:
            DataError: as `load`.
        """
        try:
            found = from_json(data, allow_inf_nan=False)
        except ValueError:
            raise DataError(f"{where}: is no JSON, or only a part of it. {_AGAIN}") from None
        if not isinstance(found, dict) or "results_version" not in found:
            raise DataError(
                f"{where}: holds no results of a run with a results_version. Name the results.json "
                f"in the folder of a run; {_AGAIN}"
            )
        version = found["results_version"]
        if type(version) is not int or version != VERSION:
            raise DataError(
                f"{where}: its results_version is {str(version)[:20]}, and this version of clues reads "
                f"{VERSION}. Read it with the clues that wrote it, or: {_AGAIN}"
            )
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            problem = first_problem(error)
        raise DataError(f"{where}: {problem}. {_AGAIN}")

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, keys in the order of the file."""
        return self.model_dump(exclude_unset=True)

    def write(self, path: Path) -> None:
        """Write results.json.

        Raises:
            DataError: the disk is full or the folder cannot be written.
        """
        write_json(path, self.to_json())
