"""The verb that puts several people's decisions together."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clues.atomic import atomic_write_bytes
from clues.cli.options import Json, out
from clues.errors import UsageError
from clues.printable import rows_are, rows_in_words

if TYPE_CHECKING:
    from clues.silo.agreement import Merged
    from clues.silo.overrides import Overrides

N_SHOWN = 20


def reviews(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE FILE ...", help="What each has exported from the report."),
    ],
    merged: Annotated[
        Path | None,
        typer.Option("--out", help="Write the decisions that nobody contradicts to this file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare what several people decided about one silo's rows, and merge it.

    Says how often two readers agree, with Cohen's kappa, and which rows one keeps and another sets
    aside: those are in no merged file. Then:

    clues select CLUES.YAML --overrides merged.json
    """
    from clues.silo.agreement import merge
    from clues.silo.overrides import read_overrides

    if merged is not None and merged.resolve() in {path.resolve() for path in files}:
        raise UsageError(f"--out: {merged} is one of the files that are compared. Name another.")
    read = [read_overrides(path) for path in files]
    found = merge(dict(zip(_names(files, read), read, strict=True)))
    if merged is not None:
        content = found.overrides.model_dump_json(indent=2) + "\n"
        atomic_write_bytes(merged, content.encode(), private=True)
    if as_json:
        out.print_json(json.dumps(_content(found)))
        return
    _say(found)
    if merged is not None:
        n = len(found.overrides.overrides)
        text = f"{n} decisions that nobody contradicts: {merged}. Put them in force with: "
        text += f"clues select CLUES.YAML --overrides {merged}"
        out.print(text, highlight=False, soft_wrap=True)


def _names(files: Sequence[Path], read: "Sequence[Overrides]") -> list[str]:
    """Each reader's name, or the file's where there is none or two have the same.

    Raises:
        UsageError: a file is named twice.
    """
    if len({path.resolve() for path in files}) < len(files):
        raise UsageError("a file is named twice: nobody disagrees with oneself.")
    names = [one.reviewer for one in read]
    known = all(names) and len(set(names)) == len(names)
    plain = [path.stem for path in files]
    if known:
        return names
    return plain if len(set(plain)) == len(plain) else [str(path) for path in files]


def _content(found: "Merged") -> dict[str, object]:
    return {
        "silo": found.overrides.silo,
        "agreements": [asdict(agreement) for agreement in found.agreements],
        "decisions": len(found.overrides.overrides),
        "contrary": list(found.contrary),
        "wishes": {name: wish.model_dump() for name, wish in found.wishes.items()},
    }


def _say(found: "Merged") -> None:
    for a in found.agreements:
        kappa = "not defined: all on one side" if a.kappa is None else f"{a.kappa:.2f}"
        text = f"{a.readers[0]} and {a.readers[1]}: both have read {rows_in_words(a.n_read)}"
        text += f" and agree about {a.n_same}; Cohen's kappa {kappa}" if a.n_read else ""
        out.print(f"{text}.", highlight=False, markup=False, soft_wrap=True)
    if found.contrary:
        ids = ", ".join(found.contrary[:N_SHOWN]) + (
            ", ..." if len(found.contrary) > N_SHOWN else ""
        )
        text = (
            f"{rows_are(len(found.contrary))} kept by one and set aside by another, and are in no "
        )
        text += f"merged file: {ids}. The report's search finds a row by its id."
        out.print(text, highlight=False, soft_wrap=True)
    for name, wish in found.wishes.items():
        text = f"{name} wishes for threshold {wish.threshold:.4g} instead of {wish.in_force:.4g}: "
        text += f"{rows_in_words(wish.kept)} kept instead of {wish.kept_in_force}."
        out.print(text, highlight=False, markup=False, soft_wrap=True)
