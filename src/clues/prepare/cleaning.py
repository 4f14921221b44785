"""From one file of rows to a clean file: a run of one silo with settings for the model at hand.

Everything stays on this machine. The run lies in the folder beside what comes out of it, and goes on
there when the same is asked for again.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from clues.atomic import atomic_write_bytes, make_private_folder, read_bytes
from clues.config import BUILT_IN, Columns, LowTurn
from clues.data.files import named_container
from clues.data.formats import RowFile, fitting, read_rows, write_rows
from clues.errors import DataError
from clues.findings.look import look
from clues.pipeline import Run, open_run, overrule, run_until
from clues.prepare.checklist import duration
from clues.prepare.estimate import minutes_ahead
from clues.prepare.onefile import configure
from clues.prepare.scaffold import check_data
from clues.progress import Progress
from clues.report.first import N_FIRST
from clues.report.pairs import weak_promise
from clues.scoring.shards import Team
from clues.selection.decisions import PERSON
from clues.selection.threshold import Threshold
from clues.selection.weighing import FEWEST_REJECTED
from clues.silo.overrides import (
    CHECKED,
    REJECTED,
    Override,
    Overrides,
    check_overrides,
    in_force,
    read_overrides,
)
from clues.underway import run_of

FILES = {"kept": "kept", "dropped": "set_aside", "unscored": "unscored"}
LONG = 2  # minutes, from which a person wants to know
NAMES = {
    "score": "with a low score",
    "person": "by a person",
    "turn": "with a low turn",
    "not usable": "null or empty",
    "duplicate": "repeated",
    "near_duplicate": "nearly repeated",
    "html": "with HTML",
    "boilerplate": "with a page's frame",
    "mojibake": "with broken letters",
    "refusal": "with a refusal",
    "prompt_repeated": "repeating their question",
    "cut": "cut",
    "language": "in another language",
    "near_empty": "nearly empty",
}


@dataclass(frozen=True)
class Cleaned:
    """What came out.

    Attributes:
        n_rows: in the file.
        n_kept: of them.
        n_unscored: without a score, and nothing speaks against them.
        why: how many rows are set aside, by why.
        files: what was written.
        warnings: what makes the outcome worth less than it says.
        page: the report, where rows were scored.
        n_first: rows that a person is asked to read first.
        n_masked: kept rows in which a low turn is marked as not to be trained.
        unread: columns and keys that were not read, and in how many rows they say something; of
            the rows, and those of checked and rejected rows that no row has.
    """

    n_rows: int
    n_kept: int
    n_unscored: int
    why: dict[str, int]
    files: tuple[Path, ...]
    warnings: tuple[str, ...] = field(default=())
    page: Path | None = None
    n_masked: int = 0
    n_first: int = 0
    unread: Mapping[str, int] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """The outcome for a person."""
        aside = sum(self.why.values())
        said = ", ".join(f"{n:,} {NAMES.get(why, why)}" for why, n in self.why.items())
        text = f"{aside:,} of {self.n_rows:,} rows set aside" + (f": {said}" if said else "")
        if self.n_unscored:
            verbs = ("has", "is") if self.n_unscored == 1 else ("have", "are")
            text += f"; {self.n_unscored:,} {verbs[0]} no score and {verbs[1]} in {self._named('unscored')}"
        if self.n_masked:
            text += f"; in {self.n_masked:,} kept rows a low turn is marked as not trained"
        these = f"these {self.n_first}" if self.n_first > 1 else "this one"
        first = f"; read {these} first: {self.page}" if self.page and aside and self.n_first else ""
        if aside and not self.page:
            first = f"; {self._named('decisions')} says which, and why"
        return f"{text}{first}."

    def _named(self, name: str) -> str:
        return next((p.name for p in self.files if p.name.startswith(name)), name)

    def to_json(self) -> dict[str, Any]:
        """Figures and places."""
        return {
            "rows": self.n_rows,
            "kept": self.n_kept,
            "set_aside": self.why,
            "unscored": self.n_unscored,
            "masked": self.n_masked,
            "not_read": dict(self.unread),
            "warnings": list(self.warnings),
            "files": [str(path) for path in self.files],
            "report": str(self.page) if self.page else None,
            "sentence": self.sentence,
        }


class _Known(NamedTuple):
    """Content ids of rows that a person has judged."""

    good: frozenset[str]
    bad: frozenset[str]
    unread: Mapping[str, int] = MappingProxyType({})

    @classmethod
    def read(cls, checked: Path, rejected: Path | None, columns: Columns | None) -> "_Known":
        """Of the two files.

        Raises:
            DataError: a file cannot be read, or a row stands in both.
        """
        files = [checked, rejected] if rejected else [checked]
        read = [read_rows(file, columns=fitting(file, columns)) for file in files]
        ids = [frozenset(sample.id for sample in rows.samples) for rows in read]
        unread = {name: n for rows in read for name, n in rows.unused.items()}
        found = cls(ids[0], ids[1] if rejected else frozenset(), unread)
        if both := len(found.good & found.bad):
            raise DataError(
                f"{both} rows are checked rows and also rejected ones. Take them out of one of "
                "the two files."
            )
        return found


def clean_file(
    rows: str,
    checked: Path,
    out: Path,
    *,
    model: str = BUILT_IN,
    schema: str | None = None,
    columns: Columns | None = None,
    rejected: Path | None = None,
    overrides: Path | None = None,
    low_turn: LowTurn | None = None,
    team: Team | None = None,
    say: Callable[[str], None] | None = None,
    progress: Progress,
) -> Cleaned:
    """Score the rows against checked ones, look at their text, and write what is kept.

    Args:
        rows: a file, a folder, or a hub data set.
        checked: rows that a person has found good.
        out: folder for the outcome and the run; private.
        model: base model.
        schema: which columns hold prompt and answer, where several schemas fit.
        columns: a mapping, for those of the two files that have the columns it names.
        rejected: rows that a person has found bad. Those of them that stand in `rows` are set
            aside, and likeness to them counts against the others, if there are enough of them.
        overrides: what a person has exported from the report; None leaves in force what was.
        low_turn: score every turn of chats, too, and what one below the threshold costs; None scores
            whole rows alone.
        team: processes of this machine that score together.
        say: takes a line about how long it will take, where that is long.
        progress: where long steps report to.

    Raises:
        CluesError: rows, checked rows, overrides or model cannot be used.
    """
    given = read_overrides(overrides) if overrides else None
    make_private_folder(out)
    known = _Known.read(checked, rejected, columns)
    enough = len(known.bad) >= FEWEST_REJECTED
    config, warned = configure(
        rows,
        checked,
        run_of(out),
        model=model,
        schema=schema,
        columns=columns,
        rejected=rejected if enough else None,
        low_turn=low_turn,
    )
    if known.bad and not enough:
        warned.append(
            f"{len(known.bad)} rejected rows are too few to count against rows that are like them; "
            f"{FEWEST_REJECTED} are needed. Where they stand in {Path(rows).name}, they are set aside."
        )
    run = open_run(
        config,
        run_of(out),
        progress=progress,
        allow_degenerate=True,
        skip_nonfinite=True,
        team=team,
    )
    if say and not any((run_of(out) / "coordinator" / "stages").iterdir()):
        minutes = minutes_ahead(run, config)
        if minutes >= LONG:
            say(
                f"{duration(minutes).capitalize()} on this machine. Interrupted, the same command goes on "
                "where it stopped."
            )
    found = run_until(run, "threshold").threshold
    assert found is not None
    run_until(run, "select")
    (silo,) = run.silos.values()
    by_hand = _by_hand(run, known, found, given)
    if by_hand.overrides or given or in_force(silo.space, found.recipe_hash):
        overrule(run, {silo.settings.name: by_hand})
    private = silo.private
    decided = list(csv.DictReader(io.StringIO(read_bytes(private / "decisions.csv").decode())))
    files = _copied(private, out, silo.space.rows())
    unread = {**known.unread, **silo.space.rows().unused}
    warned += [said] if (said := weak_promise(found.as_result(config.recipe.threshold))) else []
    return Cleaned(
        **_counts(decided),
        files=files,
        warnings=tuple(warned),
        page=out / "report.html",
        unread=unread,
    )


def clean_by_text(
    rows: str, out: Path, *, schema: str | None = None, columns: Columns | None = None
) -> Cleaned:
    """Without checked rows: set aside what a reader sees in the text, and score nothing.

    Raises:
        CluesError: the rows cannot be used.
    """
    make_private_folder(out)
    file = check_data(rows, columns, schema=schema) or read_rows(
        rows, schema=schema, columns=columns, lenient=True
    )
    seen = look([sample for sample in file.samples if sample.row not in file.unusable])
    decided: list[dict[str, str]] = []
    for sample in file.samples:
        sure = next((f for f in seen.of(sample.row) if f.sure), None)
        if (why := file.unusable.get(sample.row)) is not None:
            fate = ("dropped", "not usable", why)
        elif sure:
            fate = ("dropped", sure.kind, f"{sure.says}, {sure.place}")
        else:
            fate = ("kept", "", "")
        kinds = " ".join(dict.fromkeys(f.kind for f in seen.of(sample.row)))
        row = (str(sample.row), str(sample.row + 1), sample.id, *fate, kinds)
        names = ("row", "number", "id", "file", "why", "reason", "findings")
        decided.append(dict(zip(names, row, strict=True)))
    places = {name: [int(d["row"]) for d in decided if d["file"] == name] for name in FILES}
    files = [write_rows(file, at, out / FILES[name]) for name, at in places.items() if at]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(decided[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(decided)
    atomic_write_bytes(out / "decisions.csv", buffer.getvalue().encode(), private=True)
    _remove_others(out, files)
    warned = (
        "no checked rows were given, so nothing was scored: wrong, cut and odd answers that read "
        "well are all kept. clues sample makes a page to check 150 rows, in a quarter of an hour."
    )
    return Cleaned(
        **_counts(decided),
        files=(*files, out / "decisions.csv"),
        warnings=(warned,),
        unread=file.unused,
    )


def _by_hand(
    run: Run,
    known: _Known,
    found: Threshold,
    given: Overrides | None,
) -> Overrides:
    """Decisions that are no rule's: rows a person has judged, and what a reader of the report says.

    A checked row has been found good, so it is kept, and a rejected one is not; the reader's word is
    the later one.
    """
    (silo,) = run.silos.values()
    scored = set(silo.space.scores().id)
    there = {sample.id for sample in silo.space.rows().samples}
    decided = {
        id_: Override(id=id_, keep=True, reason=CHECKED) for id_ in sorted(known.good & scored)
    }
    decided |= {
        id_: Override(id=id_, keep=False, reason=REJECTED) for id_ in sorted(known.bad & there)
    }
    if given is None:
        said = in_force(silo.space, found.recipe_hash).items()
        decided |= {
            id_: Override(id=id_, keep=r.keep, reason=r.reason)
            for id_, r in said
            # What the two files say now counts, and not what they said before.
            if r.reason not in (CHECKED, REJECTED)
        }
    else:
        check_overrides(silo.space, given)
        decided |= {override.id: override for override in given.overrides}
    return Overrides(
        silo=silo.settings.name, recipe_hash=found.recipe_hash, overrides=tuple(decided.values())
    )


def _copied(private: Path, out: Path, rows: RowFile) -> tuple[Path, ...]:
    """The outcome where a user looks for it."""
    files: list[Path] = []
    for name, new in FILES.items():
        source = private / f"{name}{rows.suffix}"
        if source.exists():
            files.append(out / f"{new}{rows.suffix}")
            atomic_write_bytes(files[-1], source.read_bytes(), private=True)
    for name in ("decisions.csv", "report.html"):
        files.append(out / name)
        atomic_write_bytes(files[-1], (private / name).read_bytes(), private=True)
    _remove_others(out, files)
    return tuple(files)


def _remove_others(out: Path, files: Sequence[Path]) -> None:
    """Of an earlier run: nobody should find two answers side by side."""
    for name in FILES.values():
        for old in out.glob(f"{name}.*"):
            if old not in files and named_container(old):
                old.unlink()


def _is_read(decision: Mapping[str, str]) -> bool:
    """Whether a row is among those that a person may be asked to read, as `first_to_read` has it."""
    judged = decision.get("score") or decision["file"] != "kept"
    return decision["why"] != PERSON and bool(judged)


def _counts(decided: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    files = Counter(decision["file"] for decision in decided)
    why = Counter(decision["why"] for decision in decided if decision["file"] == "dropped")
    return {
        "n_rows": len(decided),
        "n_kept": files["kept"],
        "n_unscored": files["unscored"],
        "why": dict(why.most_common()),
        "n_first": min(N_FIRST, sum(map(_is_read, decided))),
        "n_masked": sum(bool(d.get("untrained_turns")) for d in decided if d["file"] == "kept"),
    }
