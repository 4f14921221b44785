"""Rows in and out: find the shape of a user's file, parse it, write some of it back."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from clues.atomic import write_atomically
from clues.data.files import named_container, read_source, suffix_of
from clues.data.samples import Message, Sample
from clues.data.schemas import (
    KNOWN_COLUMNS,
    MAX_CHARACTERS,
    PAIRS,
    SCHEMAS,
    BadRow,
    Layout,
    layouts_of,
    parse_row,
)
from clues.data.tables import Table, bad_rows, write_table
from clues.errors import ConfigError, DataError, UsageError


@dataclass(frozen=True)
class RowFile:
    """A user's rows, parsed, and what is needed to write some of them back.

    Attributes:
        path: the file or folder; of a hub data set its name.
        description: what was found, such as `alpaca rows in jsonl.gz`.
        container: in which some of the rows are written, such as `jsonl.gz`.
        schema: a key of `SCHEMAS`.
        n_rows: how many rows.
        samples: the rows, parsed, in order.
        columns: the user's columns that are no part of the sample, for keys and labels.
        unusable: by position, why a row cannot be used; its sample holds what could be read.
    """

    path: Path
    description: str
    container: str
    schema: str
    n_rows: int
    samples: tuple[Sample, ...] = field(repr=False)
    columns: tuple[str, ...]
    table: Table = field(repr=False, compare=False)
    unusable: dict[int, str] = field(default_factory=dict)

    @property
    def suffix(self) -> str:
        """End of the name of a file that `write_rows` writes, such as `.jsonl.gz`."""
        return suffix_of(self.container)

    def column(self, name: str) -> list[Any]:
        """Values of any column of the user's, None where a row lacks it.

        Raises:
            DataError: no row has this column.
        """
        if name not in self.table.columns:
            raise DataError(f"{self.path}: no column {name}. Found: {_shown(self.table)}.")
        return [record.get(name) for record in self.table.read([name])]


def read_rows(
    source: str | Path,
    *,
    schema: str | None = None,
    skip_bad: bool = False,
    lenient: bool = False,
) -> RowFile:
    """Read and check every row of a file, a folder, a saved data set or a hub data set.

    Args:
        source: a path, or the name of a hub data set as `owner/name` or `owner/name:split`.
        schema: a key of `SCHEMAS`; None finds it from the columns.
        skip_bad: leave bad rows out of the samples instead of raising. For public collections
            that nobody here can mend; never for a user's own rows.
        lenient: name bad rows in `unusable` instead of raising, as long as they are fewer than
            half: a column of the wrong kind is no bad row.

    Raises:
        ConfigError: there is no schema of this name.
        DataError: the source cannot be read, its schema is not clear, or rows are bad; the
            first five bad rows are named by line.
    """
    if schema is not None and schema not in SCHEMAS:
        raise ConfigError(f"no schema is named {schema}.{_near(schema, SCHEMAS)} Known: {_known()}")
    path, table, said = read_source(source)
    layout = _choose_layout(path, table, schema)
    used = tuple(name for name in layout.columns if name in table.columns)
    samples: list[Sample] = []
    bad: list[tuple[str, str]] = []
    bad_at: dict[int, str] = {}
    for row, record in enumerate(table.read(used)):
        try:
            samples.append(parse_row(layout, record, row))
        except BadRow as reason:
            bad.append((table.place(row), str(reason)))
            bad_at[row] = str(reason)
    unusable: dict[int, str] = {}
    if lenient and 2 * len(bad) < table.n_rows:
        samples, unusable = _with_placeholders(samples, bad_at, layout, table)
    elif bad and not skip_bad:
        raise bad_rows(path, bad)
    columns = tuple(name for name in table.columns if name not in used)
    description = f"{layout.schema} rows in {said}"
    return RowFile(
        path,
        description,
        table.container,
        layout.schema,
        table.n_rows,
        tuple(samples),
        columns,
        table,
        unusable,
    )


def _with_placeholders(
    samples: Sequence[Sample], bad: dict[int, str], layout: Layout, table: Table
) -> tuple[list[Sample], dict[int, str]]:
    """Samples of all rows, so that positions stay; those of bad rows hold the text that is there."""
    if not bad:
        return list(samples), {}
    records = table.read([n for n in (layout.prompt, layout.response) if n in table.columns])
    found = {sample.row: sample for sample in samples}
    for row in bad:
        texts = [_readable(records[row].get(name)) for name in (layout.prompt, layout.response)]
        turns = (Message("user", texts[0]), Message("assistant", texts[1]))
        found[row] = Sample(row, turns)
    return [found[row] for row in sorted(found)], bad


def _readable(value: Any) -> str:
    """A text as it can be written anywhere; of anything else nothing."""
    return (
        value.encode(errors="replace").decode()[:MAX_CHARACTERS] if isinstance(value, str) else ""
    )


def write_rows(rows: RowFile, indices: Sequence[int], path: Path) -> Path:
    """Write the rows at `indices`, in that order, with every column of the user's untouched.

    The container is `rows.container`: lines of jsonl and csv keep their bytes, parquet and
    arrow their schema. Folders of text files are written as jsonl.gz; folders of parquet or
    arrow files, saved data sets and hub data sets as parquet (jsonl.gz where parquet cannot
    hold their columns); `rows.description` says which.

    Args:
        rows: what `read_rows` returned.
        indices: zero-based row positions.
        path: file to write; without a known suffix, `rows.suffix` is added.

    Returns:
        The file that was written.

    Raises:
        UsageError: an index is not a row, or `path` names another container.
        DataError: the file cannot be written; what was there before is unchanged.
    """
    wrong = [int(row) for row in indices if not 0 <= row < rows.n_rows]
    if wrong:
        raise UsageError(f"{rows.path}: no row {wrong[0]}; there are {rows.n_rows}, from 0 on.")
    named = named_container(path)
    if named is None:
        path = path.with_name(path.name + rows.suffix)
    elif named != rows.container.removesuffix("-stream"):
        raise UsageError(f"{path}: these rows are written as {rows.container}. Use {rows.suffix}.")
    write_atomically(path, partial(_write, rows.table, [int(row) for row in indices]))
    return path


def _write(table: Table, indices: Sequence[int], part: Path) -> None:
    with part.open("wb") as sink:
        write_table(table, indices, sink)


def _choose_layout(path: Path, table: Table, schema: str | None) -> Layout:
    layouts = layouts_of(table.columns)
    if schema is not None:
        layouts = [layout for layout in layouts if layout.schema == schema][:1]
        if not layouts:
            raise DataError(
                f"{path}: schema {schema} needs {SCHEMAS[schema]}. Found: {_shown(table)}."
            )
        return layouts[0]
    # A question with choices and a free answer of its own is the richer shape.
    if any(layout.choices and layout.schema != "multiple_choice" for layout in layouts):
        layouts = [layout for layout in layouts if layout.schema != "multiple_choice"]
    if len(layouts) == 1:
        return layouts[0]
    if layouts:
        fits = ", ".join(f"{way.schema} ({way.prompt}, {way.response})" for way in layouts)
        problem, advice = f"several schemas fit: {fits}", "Name one with schema"
    else:
        problem, advice = "no schema fits", _renaming(table) or "Rename the columns"
    raise DataError(f"{path}: {problem}. Found: {_shown(table)}. {advice}; known: {_known()}")


def _renaming(table: Table) -> str:
    """Which columns to rename where they are nearly those of a schema."""
    if table.named_by_row and not KNOWN_COLUMNS & {name.lower() for name in table.columns}:
        return ""
    lower = {name.lower(): name for name in table.columns}
    for wanted in (("instruction", "output"), *PAIRS, ("conversations",), ("messages",)):
        near = [difflib.get_close_matches(name, lower, n=1, cutoff=0.75) for name in wanted]
        if all(near):
            pairs = [(lower[found[0]], name) for found, name in zip(near, wanted, strict=True)]
            renamed = [f"{old} to {new}" for old, new in pairs if old != new]
            return f"Rename {' and '.join(renamed)}"
    return ""


def _known() -> str:
    return "; ".join(f"{name} ({columns})" for name, columns in SCHEMAS.items()) + "."


def _near(name: str, names: Sequence[str] | dict[str, str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _shown(table: Table) -> str:
    """Column names for a message. What may be text is counted, not shown."""
    names = table.columns
    if table.named_by_row and not KNOWN_COLUMNS & set(names):
        # Without a header the first line, read as one, is a row.
        return f"{len(names)} columns of unknown names; does the first line hold the names?"
    plain = [name for name in names if re.fullmatch(r"[A-Za-z_]\w{0,39}", name, re.ASCII)][:20]
    n_hidden = len(names) - len(plain)
    return ", ".join(plain + ([f"{n_hidden} not shown"] if n_hidden else []))
