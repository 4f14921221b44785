"""A first configuration from a few answers: commented, valid, and nothing overwritten."""

import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from os.path import relpath
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from clues.atomic import atomic_write_bytes, make_folder
from clues.config import BUILT_IN, Columns, TrainSettings, derived_seed
from clues.config import check_name as checked_name
from clues.data.formats import RowFile, fitting, read_rows, write_rows
from clues.errors import UsageError
from clues.reading import folder_and_split
from clues.selection.units import MIN_ANCHORS

Side = Literal["all", "coordinator", "silo"]
ONE_DOMAIN = "general"
HALVES = ("validation", "anchor")
# What `clues serve` and `clues join` read, by the side that they are for.
FOR_SIDE = {"coordinator": "coord.yaml", "silo": "join.yaml"}
USUAL_LENGTH = 2048
# A joint model sees the largest silo's rows this often; more learns few rows by heart.
PASSES, ROUNDS, LOCAL_STEPS = 3, 20, 10
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.+%:\[\]-]+)?", re.ASCII)


@dataclass(frozen=True)
class SiloAnswer:
    """One silo: its name, where its rows lie, which public set speaks for them, and how many there are.

    `n_rows` is 0 where nobody has read them, such as those of a hub data set.
    """

    name: str
    data: str
    domain: str
    n_rows: int = 0


@dataclass(frozen=True)
class PublicAnswer:
    """Public rows of one domain.

    Attributes:
        domain: its name.
        validation: file whose mean gradient gives the direction.
        anchor: file whose scores give the threshold; None where `validation` is to be split.
    """

    domain: str
    validation: Path
    anchor: Path | None


@dataclass(frozen=True)
class Answers:
    """What a first configuration needs to know.

    Attributes:
        path: the configuration to write.
        side: everything on this machine, or the coordinator's or a silo's files alone.
        name: of the run.
        silos: one or more; of a coordinator alone, none.
        public: one a domain.
        heldout: public test rows, or None.
        model: `built-in`, a folder or a hub name.
        labels: column that tells bad rows, in experiments.
        targets: layers of the model that get an adapter, or `all-linear`; not of `built-in`.
        max_length: the most tokens of a row; likewise.
        columns: a mapping for those files that have the columns it names.
        address: host and port where silos on other machines reach the coordinator; a file for
            `clues serve` or `clues join` is written as well. None writes none.
        expected: names of the silos that will connect, for the coordinator's file.
    """

    path: Path
    side: Side
    name: str
    silos: tuple[SiloAnswer, ...]
    public: tuple[PublicAnswer, ...]
    heldout: Path | None = None
    model: str = BUILT_IN
    labels: str | None = None
    targets: tuple[str, ...] | str = ("q_proj", "v_proj")
    max_length: int = USUAL_LENGTH
    columns: Columns | None = None
    address: str | None = None
    expected: tuple[str, ...] = ()

    @property
    def alone(self) -> bool:
        """Whether one silo cleans its own rows and trains nothing with others."""
        return self.side == "all" and len(self.silos) == 1


def silo_answer(text: str, *, domain: str, columns: Columns | None = None) -> SiloAnswer:
    """Read `FILE`, `NAME=FILE` or `NAME:DOMAIN=FILE`.

    Args:
        text: as typed.
        domain: where none is named.
        columns: a mapping, for files that have its columns.

    Raises:
        UsageError: there is no such file, or a name cannot be one.
    """
    label, data = _split_label(text)
    data = str(Path(data).expanduser()) if data.startswith("~") else data
    rows = check_data(data, columns)
    name, _, own_domain = label.partition(":")
    if not name:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(data).name.split(".")[0]).strip("-.")
    check_name(name, what="a silo")
    check_name(own_domain or domain, what="a domain")
    return SiloAnswer(name, data, own_domain or domain, rows.n_rows if rows else 0)


def public_answer(text: str, *, domain: str, columns: Columns | None = None) -> PublicAnswer:
    """Read `FILE` or `VALIDATION,ANCHOR`, either with `DOMAIN=` in front.

    Raises:
        UsageError: there is no such file, or the name cannot be one.
    """
    label, given = _split_label(text)
    check_name(label or domain, what="a domain")
    # A comma may be part of a file's name.
    parts = [given] if Path(given).exists() else given.split(",")
    if len(parts) > 2:
        raise UsageError(f"{given}: give one file of public rows, or VALIDATION,ANCHOR.")
    files = [Path(_existing(part.strip())) for part in parts]
    for file in files:
        read_rows(file, columns=fitting(file, columns))
    return PublicAnswer(label or domain, files[0], files[1] if len(files) == 2 else None)


def public_domain(text: str) -> str | None:
    """The domain that stands in front of public files; None where there is none."""
    return _split_label(text)[0] or None


def check_name(name: str, *, what: str) -> str:
    """Return a name that can be a folder and a key.

    Raises:
        UsageError: it cannot be one, of what it was meant to be and why.
    """
    try:
        return checked_name(name, what)
    except ValueError as error:
        raise UsageError(f"{error}.") from None


def check_data(
    data: str, columns: Columns | None = None, *, schema: str | None = None
) -> RowFile | None:
    """Read a silo's rows; None for the name of a hub data set, which a run reads.

    Raises:
        CluesError: there is nothing there, or it holds no rows of a known shape.
    """
    if not _is_here(data) and _HUB_NAME.fullmatch(data) and not Path(data).suffix:
        return None
    path = _existing(data)
    # A bad row is dropped by name; a run that must not have one says strict in the silo's file.
    return read_rows(path, schema=schema, columns=fitting(path, columns), lenient=True)


def check_model(name: str) -> str:
    """Return a base model's name; a folder must hold a model."""
    folder = Path(name)
    if name == BUILT_IN or (not folder.exists() and _HUB_NAME.fullmatch(name)):
        return name
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{name}: no model there. Give {BUILT_IN}, a folder with config.json and weights, or a "
            "hub name as owner/name."
        )
    return name


def check_answers(answers: Answers) -> None:
    """Refuse answers that do not go together, and files that are there already.

    Raises:
        UsageError: with what to change.
    """
    names = [silo.name for silo in answers.silos]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two silos are called {twice[0]}. Name them: --silo NAME=FILE.")
    domains = [public.domain for public in answers.public]
    twice = sorted({domain for domain in domains if domains.count(domain) > 1})
    if twice:
        raise UsageError(f"domain {twice[0]} has two public sets; give one --public for each.")
    for silo in answers.silos if answers.side == "all" else ():
        if silo.domain not in domains:
            close = get_close_matches(silo.domain, domains, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise UsageError(
                f"silo {silo.name} is of domain {silo.domain}, which has no public rows.{hint} "
                f"Give --public {silo.domain}=FILE, or another domain: --silo NAME:DOMAIN=FILE."
            )
    unused = [d for d in domains if d not in {silo.domain for silo in answers.silos}]
    if unused and answers.side == "all":
        raise UsageError(
            f"no silo is of domain {unused[0]}. Name its silos as --silo NAME:{unused[0]}=FILE."
        )
    _check_files(answers)


def _check_files(answers: Answers) -> None:
    seen: dict[Path, str] = {}
    for what, file in _used_files(answers):
        before = seen.setdefault(file.resolve(), what)
        if before != what:
            raise UsageError(f"{file}: used as {before} and as {what}. They must share no row.")
    if answers.labels is not None:
        for silo in answers.silos:
            if rows := check_data(silo.data, answers.columns):
                rows.column(answers.labels)
    used = [str(file) for _, file in _used_files(answers) if _is_here(str(file))]
    if answers.columns and not any(fitting(file, answers.columns) for file in used):
        named = ", ".join(str(column) for column in answers.columns.values() if column)
        raise UsageError(f"--map: no file has all the columns {named}. Name columns of one file.")
    there = [str(path) for path in _written(answers) if path.exists()]
    if there:
        raise UsageError(
            f"{', '.join(there)}: already there, and nothing is overwritten. Remove it, or give "
            "another place: clues init OTHER/clues.yaml"
        )


def _used_files(answers: Answers) -> Iterable[tuple[str, Path]]:
    for silo in answers.silos:
        yield f"rows of silo {silo.name}", Path(silo.data)
    for public in answers.public:
        yield f"public rows of {public.domain}", public.validation
        if public.anchor:
            yield f"anchors of {public.domain}", public.anchor
    if answers.heldout:
        yield "held-out rows", answers.heldout


def _written(answers: Answers) -> list[Path]:
    """Every file that will be written; of split public rows those that are there already."""
    folder = answers.path.parent
    silos = [folder / f"{silo.name}.yaml" for silo in answers.silos]
    silos += [folder / FOR_SIDE[answers.side]] if answers.address else []
    if answers.side == "silo":
        return silos
    split = [public.domain for public in answers.public if public.anchor is None]
    parts = [f"public/{domain}.{part}.*" for domain in split for part in HALVES]
    return [answers.path, *silos, *(file for part in parts for file in folder.glob(part))]


def write_scaffold(answers: Answers) -> list[Path]:
    """Write the files, and return them.

    Raises:
        UsageError: the answers do not fit, or a file is there already; then nothing is written.
    """
    check_answers(answers)
    folder = answers.path.parent
    make_folder(folder)
    written: dict[Path, str] = {}
    halves: list[Path] = []
    if answers.side != "silo":
        public = [
            halves_of(p, folder, answers.columns) if p.anchor is None else p for p in answers.public
        ]
        halves = [
            file
            for before, after in zip(answers.public, public, strict=True)
            if before.anchor is None
            for file in (after.validation, after.anchor)
            if file
        ]
        written[answers.path] = _run_yaml(answers, public)
    for silo in answers.silos:
        written[folder / f"{silo.name}.yaml"] = _silo_yaml(silo, answers)
    if answers.address:
        named = FOR_SIDE[answers.side]
        one = {"silo": answers.silos[0]} if answers.silos else {}
        written[folder / named] = _render(f"{named}.j2", answers, named=named, **one)
    for path, text in written.items():
        atomic_write_bytes(path, text.encode())
    return [*written, *halves]


def halves_of(public: PublicAnswer, folder: Path, columns: Columns | None = None) -> PublicAnswer:
    """Deal one file's rows at random: half give the direction, half the threshold."""
    rows = read_rows(public.validation, columns=fitting(public.validation, columns))
    if rows.n_rows < 2 * MIN_ANCHORS:
        raise UsageError(
            f"{public.validation}: {rows.n_rows} rows, and {2 * MIN_ANCHORS} are needed to split it "
            "into validation and anchor rows. 150 are a good number; clues sample helps to get them."
        )
    order = list(range(rows.n_rows))
    random.Random(derived_seed(42, "split", public.domain)).shuffle(order)
    make_folder(folder / "public")
    first, second = (
        write_rows(rows, sorted(part), folder / "public" / f"{public.domain}.{name}{rows.suffix}")
        for name, part in zip(
            HALVES, (order[: rows.n_rows // 2], order[rows.n_rows // 2 :]), strict=True
        )
    )
    return PublicAnswer(public.domain, first, second)


def _split_label(text: str) -> tuple[str, str]:
    """Split off what stands before '=', unless the whole names a file."""
    label, equals, rest = text.partition("=")
    return (label.strip(), rest.strip()) if equals and not Path(text).exists() else ("", text)


def _existing(text: str) -> str:
    path = Path(text).expanduser()
    if text and (path.exists() or folder_and_split(text)):
        return str(path)
    beside = path.parent if path.parent.is_dir() else Path()
    close = get_close_matches(path.name, [p.name for p in beside.glob("*")], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UsageError(f"{text or 'an empty name'}: there is no such file.{hint}")


def _scalar(value: Any) -> str:
    """One YAML value, quoted only where it must be."""
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _relative(file: str | Path, folder: Path) -> str:
    """The path as the configuration names it: relative to itself where that is short."""
    if named := folder_and_split(file):
        return f"{_relative(named[0], folder)}:{named[1]}"
    if not Path(file).exists():
        return str(file)
    path = Path(file).resolve()
    relative = relpath(path, folder.resolve())
    return str(path) if relative.startswith("../../..") else Path(relative).as_posix()


def _render(template: str, answers: Answers, **more: Any) -> str:
    environment = Environment(
        loader=PackageLoader("clues", "assets/init"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # YAML, not HTML
    )
    environment.filters["yaml"] = _scalar
    known = {field.name: getattr(answers, field.name) for field in fields(answers)}
    values = {**known, "alone": answers.alone, "built_in": BUILT_IN, **more}
    return environment.get_template(template).render(values)


def _run_yaml(answers: Answers, public: Sequence[PublicAnswer]) -> str:
    folder = answers.path.parent
    model, heldout = answers.model, answers.heldout
    rounds, local_steps = _steps_of_fit(answers)
    return _render(
        "clues.yaml.j2",
        answers,
        rounds=rounds,
        local_steps=local_steps,
        # A bare name is a hub's; a folder must look like one.
        model=model if model == BUILT_IN else _relative(model, folder),
        heldout=_entry(heldout, answers) if heldout else None,
        public=[
            (p.domain, _entry(p.validation, answers), _entry(p.anchor or "", answers))
            for p in public
        ],
    )


def _steps_of_fit(answers: Answers) -> tuple[int, int]:
    """Rounds, and steps of a silo between them, for the largest silo; the usual where nobody knows."""
    n_rows = max((silo.n_rows for silo in answers.silos), default=0)
    if not n_rows or answers.side != "all":
        return ROUNDS, LOCAL_STEPS
    n_steps = math.ceil(PASSES * n_rows / TrainSettings().batch_size)
    rounds = min(ROUNDS, n_steps)
    return rounds, min(LOCAL_STEPS, math.ceil(n_steps / rounds))


def _entry(file: str | Path, answers: Answers) -> Any:
    """A file as the configuration names it: its path, and how its columns are mapped."""
    path = _relative(file, answers.path.parent)
    columns = fitting(file, answers.columns) if Path(file).is_file() else None
    return {"path": path, "columns": dict(columns)} if columns else path


def _is_here(data: str) -> bool:
    return Path(data).exists() or folder_and_split(data) is not None


def _silo_yaml(silo: SiloAnswer, answers: Answers) -> str:
    folder, model = answers.path.parent, answers.model
    return _render(
        "silo.yaml.j2",
        answers,
        silo=silo,
        data=_relative(silo.data, folder),
        columns=fitting(silo.data, answers.columns) if _is_here(silo.data) else None,
        model=model if model == BUILT_IN else _relative(model, folder),
    )
