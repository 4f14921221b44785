"""What an experiment is: one YAML file that says which rows, which damage, which runs.

No torch here.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, PositiveInt, model_validator

from clues.config import Settings, validate
from clues.data.damage import ALL_KINDS, DAMAGE_KINDS
from clues.errors import ConfigError, UsageError

FILE = "experiment.yaml"
NAME = r"^[a-z0-9][a-z0-9_-]{0,40}$"


def _known_kind(kind: str) -> str:
    if kind not in ALL_KINDS:
        raise ValueError(f"no kind of damage is called {kind}; known are {', '.join(ALL_KINDS)}")
    return kind


class Source(Settings):
    """Rows of one domain, before they are dealt out.

    Attributes:
        file: path under the data folder, or a hub name as `owner/name:split`.
        fetch: what to fetch and from where, for whoever does not have it.
        where: columns and the value that a row must have there.
        starts: columns and how their value must begin.
        unread: only rows whose question no built-in base model has read.
        max_chars: longest row, question and answer together; longer ones are left out.
        split_by: rows that share this column's value go into one set together; `question` for the
            question itself, `position` for the place among the rows of `where`, which keeps
            translations of one text in the same set.
    """

    file: str
    fetch: str
    where: dict[str, str] = Field(default_factory=dict)
    starts: dict[str, str] = Field(default_factory=dict)
    unread: bool = False
    max_chars: PositiveInt | None = None
    split_by: str = "question"


class SiloGroup(Settings):
    """Silos that are alike: `n` of them, named after the group, each with so many rows.

    Attributes:
        source: whose rows; also the domain.
        n: how many silos share the source's rows, iid.
        rows: of each silo.
        damage: share of its rows that is damaged.
    """

    source: str
    n: PositiveInt = 1
    rows: PositiveInt
    damage: float = Field(default=0.0, ge=0.0, le=1.0)


class Questions(Settings):
    """A file of multiple-choice questions that the arms' models are asked.

    Attributes:
        file: path under the data folder.
        fetch: what to fetch and from where, for whoever does not have it.
        ask: as a task under `evaluate.tasks`, without its path: style, where, limit.
    """

    file: str
    fetch: str
    ask: dict[str, Any] = Field(default_factory=dict)


class PublicSizes(Settings):
    """Public rows of one source, disjoint from each other and from the silos' rows."""

    validation: PositiveInt = 48
    anchor: PositiveInt = 60
    heldout: PositiveInt = 100


class Variant(Settings):
    """What changes from one run of a seed to the next.

    Attributes:
        damage: share of every silo's rows, instead of the groups' own.
        config: settings laid over the scale's.
    """

    damage: float | None = Field(default=None, ge=0.0, le=1.0)
    config: dict[str, Any] = Field(default_factory=dict)


class Scale(Settings):
    """One size of an experiment.

    Attributes:
        sources: rows by domain.
        silos: groups by name.
        damage: kinds that are mixed in equal parts.
        public: sizes of the public sets, for every source.
        questions: files of multiple-choice questions, asked of every arm.
        config: settings of a run, as in its YAML, without silos and public sets.
        variants: by name; runs of one seed share what they can, and the first is the one that
            the others are compared with.
        cost: what to expect, in words.
        model_from: how to get the base model where it is a folder that may be missing, in words.
    """

    sources: dict[str, Source] = Field(min_length=1)
    silos: dict[str, SiloGroup] = Field(min_length=1)
    damage: tuple[Annotated[str, AfterValidator(_known_kind)], ...] = DAMAGE_KINDS
    public: PublicSizes = PublicSizes()
    questions: tuple[Questions, ...] = ()
    config: dict[str, Any] = Field(default_factory=dict)
    variants: dict[str, Variant] = Field(default_factory=lambda: {"default": Variant()})
    cost: str
    model_from: str = ""

    @model_validator(mode="after")
    def _sources_are_there(self) -> "Scale":
        for name, group in self.silos.items():
            if group.source not in self.sources:
                known = ", ".join(sorted(self.sources))
                raise ValueError(
                    f"silo group {name}: no source {group.source!r}; there are {known}"
                )
        return self


class Experiment(Settings):
    """One table of the paper, or one question of ours.

    Attributes:
        title: heading of its tables.
        asks: the question, in a sentence.
        repeats: what of the paper it repeats, and how it differs.
        with_runs_of: another experiment with the same rows and scores; its runs are gone on with, so
            that nothing is trained or scored twice.
        scales: `small` runs on two cores with the built-in base model, `laptop` on two cores with a
            published one, `real` needs GPUs and a hub.
    """

    title: str
    asks: str
    repeats: str
    with_runs_of: str | None = Field(default=None, pattern=NAME)
    scales: dict[Literal["small", "laptop", "real"], Scale]


def known_experiments(root: Path) -> list[str]:
    """Names of the experiments under a folder.

    Raises:
        UsageError: there is none.
    """
    known = sorted(path.parent.name for path in root.glob(f"*/{FILE}"))
    if not known:
        raise UsageError(f"{root} holds no NAME/{FILE}. Name the folder that does: --recipes")
    return known


def load_experiment(name: str, root: Path) -> Experiment:
    """Read an experiment by name.

    Raises:
        UsageError: there is none of this name; the known ones are listed. Or there is none at all.
        ConfigError: its file cannot be read, or a key in it is wrong.
    """
    path = root / name / FILE
    known = known_experiments(root)
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"there is no experiment {name!r}.{hint} Known: {', '.join(known)}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML.") from None
    return validate(Experiment, content, where=f"{name}/{FILE}")


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings with changes laid over them, key by key; a list is replaced whole."""
    result = dict(base)
    for key, value in changes.items():
        below = result.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        result[key] = merged(below, value) if both else value  # pyright: ignore[reportArgumentType]
    return result
