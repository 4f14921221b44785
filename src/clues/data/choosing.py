"""Which columns of a table hold what: as mapped, as named, and as their values show."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clues.data.layouts import KNOWN_COLUMNS, PAIRS, SCHEMAS, Layout, layouts_of
from clues.data.schemas import truth_of
from clues.data.tables import Table, bad_rows
from clues.errors import DataError

PLAIN_NAME = re.compile(r"[A-Za-z_]\w{0,39}", re.ASCII)


def named_columns(path: Path, table: Table, columns: Mapping[str, str | None]) -> dict[str, str]:
    """The file's columns by what they hold: as mapped, the others under their own names.

    Raises:
        DataError: the mapping names a column that is not there.
    """
    mapped = {part: column for part, column in columns.items() if column is not None}
    missing = [column for column in mapped.values() if column not in table.columns]
    if missing:
        raise DataError(
            f"{path}: columns names {missing[0]}, which is no column. Found: {shown_columns(table)}."
        )
    hidden = {*mapped.values(), *columns}
    found = mapped | {name: name for name in table.columns if name not in hidden}
    if layouts_of(tuple(found)):
        return found
    # Names in capitals are the same names, where they are read at all.
    lower = {name if name in mapped else name.lower(): column for name, column in found.items()}
    return lower if len(lower) == len(found) and layouts_of(tuple(lower)) else found


def settled(layout: Layout, table: Table, named: Mapping[str, str], path: Path) -> Layout:
    """A layout after a look at the values that decide how it is to be read.

    Raises:
        DataError: nobody can tell from where numbers of choices count.
    """
    if layout.label:
        column = named[layout.label]
        values = {str(r.get(column)) for r in table.read([column])} - {"None", ""}
        if any(truth_of(value) is None for value in values):
            layout = replace(layout, label="")
    if "cop" in layout.answers:
        numbers = {str(r.get(named["cop"])) for r in table.read([named["cop"]])} - {"None", ""}
        from_one = str(len(layout.choices)) in numbers
        if not from_one and not numbers & {"0", "-1"}:
            raise DataError(
                f"{path}: cop is never 0 and never {len(layout.choices)}, so nobody can tell whether "
                "it counts from 0 or from 1. Give the answer as a letter, in a column named answer."
            )
        layout = replace(layout, first=int(from_one and "0" not in numbers))
    return layout


def choose_layout(path: Path, table: Table, named: Mapping[str, str], schema: str | None) -> Layout:
    """The one way to read a table.

    Args:
        path: of the file, for messages.
        table: the rows.
        named: its columns by what they hold.
        schema: a key of `SCHEMAS`, where several fit.

    Raises:
        DataError: no schema fits, or several do; lines that are no rows are named first.
    """
    layouts = layouts_of(tuple(named))
    mapped = {part for part, column in named.items() if part != column and part != column.lower()}
    if mapped:
        layouts = [way for way in layouts if mapped <= set(way.columns)]
    if schema is not None:
        layouts = [layout for layout in layouts if layout.schema == schema][:1]
        if not layouts:
            raise DataError(
                f"{path}: schema {schema} needs {SCHEMAS[schema]}. Found: {shown_columns(table)}."
            )
        return layouts[0]
    # A question with choices and a free answer of its own is the richer shape.
    if any(layout.choices and layout.schema != "multiple_choice" for layout in layouts):
        layouts = [layout for layout in layouts if layout.schema != "multiple_choice"]
    if len(layouts) == 1:
        return layouts[0]
    if table.bad:
        raise bad_rows(path, table.bad)
    if layouts:
        fits = ", ".join(f"{way.schema} ({way.prompt}, {way.response})" for way in layouts)
        problem, advice = f"several schemas fit: {fits}", "Name one with schema"
    elif mapped:
        problem = f"no schema has {', '.join(sorted(mapped))} together"
        advice = "Map other columns"
    else:
        problem, advice = "no schema fits", _renaming(table) or "Say with columns what they hold"
    raise DataError(
        f"{path}: {problem}. Found: {shown_columns(table)}. {advice}; known: {known_schemas()}"
    )


def _renaming(table: Table) -> str:
    """Which columns hold what, where their names are nearly those of a schema."""
    if is_headless(table):
        return ""
    lower = {name.lower(): name for name in table.columns}
    for wanted in (("instruction", "output"), *PAIRS, ("conversations",), ("messages",)):
        near = [difflib.get_close_matches(name, lower, n=1, cutoff=0.75) for name in wanted]
        if all(near):
            pairs = [(lower[found[0]], name) for found, name in zip(near, wanted, strict=True)]
            said = ", ".join(f"{name}: {old}" for old, name in pairs if old != name)
            return f"Is it columns: {{{said}}}?"
    return ""


def is_headless(table: Table) -> bool:
    """Whether the names may be a row: without a header the first line, read as one, is one."""
    return table.named_by_row and not KNOWN_COLUMNS & {name.lower() for name in table.columns}


def known_schemas() -> str:
    """All schemas, for a message."""
    return "; ".join(f"{name} ({columns})" for name, columns in SCHEMAS.items()) + "."


def near_name(name: str, names: Sequence[str] | dict[str, str]) -> str:
    """A question whether a near name was meant; empty where none is near."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def shown_columns(table: Table) -> str:
    """Column names for a message. What may be text is counted, not shown."""
    names = table.columns
    if is_headless(table):
        return f"{len(names)} columns of unknown names; does the first line hold the names?"
    plain = [name for name in names if PLAIN_NAME.fullmatch(name)][:20]
    n_hidden = len(names) - len(plain)
    return ", ".join(plain + ([f"{n_hidden} not shown"] if n_hidden else []))
