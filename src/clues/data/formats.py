"""Rows in and out: find the shape of a user's file, parse it, write some of it back."""

import contextlib
import gc
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from clues.atomic import write_atomically
from clues.config import RowsFile
from clues.data.choosing import (
    PLAIN_NAME,
    choose_layout,
    is_headless,
    known_schemas,
    named_columns,
    near_name,
    settled,
    shown_columns,
)
from clues.data.files import named_container, read_source, suffix_of
from clues.data.jsonfiles import Changes
from clues.data.layouts import SCHEMAS, Layout
from clues.data.samples import Message, Sample
from clues.data.schemas import MAX_CHARACTERS, parse_row
from clues.data.tables import Table, bad_rows, write_table
from clues.data.values import BadRow, is_empty
from clues.errors import ConfigError, DataError, UsageError
from clues.printable import rows_in_words

_PLAIN_KEY = re.compile(
    rf"{PLAIN_NAME.pattern}((\[\])?\.{PLAIN_NAME.pattern}){{0,6}}"
    r"( of other turns| of a thought| after the first| before its last place)?",
    re.ASCII,
)


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
        unused: columns and keys of turns that are not read, and in how many rows they say
            something.
        unusable: by position, why a row cannot be used; its sample holds what could be read.
        layout: how the columns are read.
        parts: the file's own column of each part of a row.
    """

    path: Path
    description: str
    container: str
    schema: str
    n_rows: int
    samples: tuple[Sample, ...] = field(repr=False)
    columns: tuple[str, ...]
    table: Table = field(repr=False, compare=False)
    unused: Mapping[str, int] = field(default_factory=dict, compare=False)
    unusable: dict[int, str] = field(default_factory=dict)
    layout: Layout = field(default=Layout("", "", ""), repr=False, compare=False)
    parts: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

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
            raise DataError(f"{self.path}: no column {name}. Found: {shown_columns(self.table)}.")
        return [record.get(name) for record in self.table.read([name])]


def read_rows(
    source: str | Path,
    *,
    schema: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    skip_bad: bool = False,
    lenient: bool = False,
) -> RowFile:
    """Read and check every row of a file, a folder, a saved data set or a hub data set.

    Args:
        source: a path, or the name of a hub data set as `owner/name` or `owner/name:split`.
        schema: a key of `SCHEMAS`; None finds it from the columns.
        columns: the file's own names by what they hold, such as `{"prompt": "question"}`; None for
            a column that is not to be read.
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
        raise ConfigError(
            f"no schema is named {schema}.{near_name(schema, SCHEMAS)} Known: {known_schemas()}"
        )
    with _without_collection():
        return _read(source, schema, columns or {}, skip_bad=skip_bad, lenient=lenient)


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Rows hold no circles, and looking for some takes a third of the time of reading them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read(
    source: str | Path,
    schema: str | None,
    columns: Mapping[str, str | None],
    *,
    skip_bad: bool,
    lenient: bool,
) -> RowFile:
    path, table, said = read_source(source)
    named = named_columns(path, table, columns)
    layout = settled(choose_layout(path, table, named, schema), table, named, path)
    used = {part: named[part] for part in layout.columns if part in named}
    samples: list[Sample] = []
    bad = list(table.bad)
    bad_at: dict[int, str] = {}
    keys: Counter[str] = Counter()
    for row, record in enumerate(_records(table, used)):
        try:
            samples.append(parse_row(layout, record, row, keys))
        except BadRow as reason:
            bad_at[row] = _in_own_words(str(reason), used)
            bad.append((table.place(row), bad_at[row]))
    unusable: dict[int, str] = {}
    # A line that is no row at all has no place among them.
    if lenient and not table.bad and 2 * len(bad) < table.n_rows:
        samples, unusable = _with_placeholders(samples, bad_at, layout, table, used)
    elif bad and not (skip_bad and not table.bad):
        raise bad_rows(path, bad)
    others = tuple(name for name in table.columns if name not in used.values())
    return RowFile(
        path,
        f"{layout.schema} rows in {said}",
        table.container,
        layout.schema,
        table.n_rows,
        tuple(samples),
        others,
        table,
        _unused(table, others, keys),
        unusable,
        layout,
        used,
    )


def _with_placeholders(
    samples: Sequence[Sample],
    bad: dict[int, str],
    layout: Layout,
    table: Table,
    used: Mapping[str, str],
) -> tuple[list[Sample], dict[int, str]]:
    """Samples of all rows, so that positions stay; those of bad rows hold the text that is there."""
    if not bad:
        return list(samples), {}
    names = [used.get(part, part) for part in (layout.prompt, layout.response)]
    records = table.read([name for name in names if name in table.columns])
    found = {sample.row: sample for sample in samples}
    for row in bad:
        question, answer = (_readable(records[row].get(name)) for name in names)
        found[row] = Sample(row, (Message("user", question), Message("assistant", answer)))
    return [found[row] for row in sorted(found)], bad


def _readable(value: Any) -> str:
    """A text as it can be written anywhere; of anything else nothing."""
    return (
        value.encode(errors="replace").decode()[:MAX_CHARACTERS] if isinstance(value, str) else ""
    )


def fitting(
    source: str | Path, columns: Mapping[str, str | None] | None
) -> Mapping[str, str | None] | None:
    """A mapping where a source has all the columns that it names; None where it does not."""
    named = {column for column in (columns or {}).values() if column is not None}
    return columns if columns and named <= set(read_source(source)[1].columns) else None


def read_file(file: RowsFile) -> RowFile:
    """Read the rows of a file as settings name it; errors as `read_rows`."""
    return read_rows(file.path, schema=file.schema_name, columns=file.columns)


def write_rows(
    rows: RowFile, indices: Sequence[int], path: Path, *, changes: Changes | None = None
) -> Path:
    """Write the rows at `indices`, in that order, with every column of the user's untouched.

    The container is `rows.container`: lines of jsonl and csv keep their bytes, parquet and
    arrow their schema. Folders of text files are written as jsonl.gz; folders of parquet or
    arrow files, saved data sets and hub data sets as parquet (jsonl.gz where parquet cannot
    hold their columns); `rows.description` says which.

    Args:
        rows: what `read_rows` returned.
        indices: zero-based row positions.
        path: file to write; without a known suffix, `rows.suffix` is added.
        changes: by row and column, values that are written instead, as `untrained` gives them.

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
    chosen = [int(row) for row in indices]
    write_atomically(path, partial(_write, rows.table, chosen, changes or {}))
    return path


def _write(table: Table, indices: Sequence[int], changes: Changes, part: Path) -> None:
    with part.open("wb") as sink:
        write_table(table, indices, sink, changes)


def _records(table: Table, used: Mapping[str, str]) -> Sequence[dict[str, Any]]:
    """The rows with what is read of them, under the names of their parts."""
    records = table.read(tuple(used.values()))
    if table.arrow is None and all(part == column for part, column in used.items()):
        return records
    return [in_parts(record, used, from_arrow=table.arrow is not None) for record in records]


def in_parts(
    record: Mapping[str, Any], used: Mapping[str, str], *, from_arrow: bool
) -> dict[str, Any]:
    """A row as it is parsed: by the names of its parts.

    Args:
        record: its values by column.
        used: the column of each part.
        from_arrow: whether null was filled in for keys that a turn or a call does not have.
    """
    return {
        part: _without_nulls(record[column]) if from_arrow else record[column]
        for part, column in used.items()
        if column in record
    }


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    return value


def _in_own_words(reason: str, used: Mapping[str, str]) -> str:
    """A reason with the file's own name of the column that it begins with."""
    part = reason.partition(" ")[0]
    column = used.get(part, part)
    return reason if column == part else f"{part} (column {column}){reason.removeprefix(part)}"


def not_read(unused: Mapping[str, int], *, option: str) -> str:
    """Say which columns and keys are not read, and in how many rows.

    Args:
        unused: as `RowFile.unused`.
        option: what says what a column holds.
    """
    listed = ", ".join(f"{name} ({rows_in_words(n)})" for name, n in unused.items())
    return f"not read: {listed}. {option} says what a column holds."


def _unused(table: Table, columns: Sequence[str], keys: Mapping[str, int]) -> dict[str, int]:
    """In how many rows each column says something that is not read; keys of turns follow."""
    found: dict[str, int] = {}
    for name in columns:
        if table.arrow is not None:
            found[name] = table.n_rows - table.arrow.column(name).null_count
        else:
            found[name] = sum(not is_empty(record.get(name)) for record in table.records)
    plain: Counter[str] = Counter()
    twice = {f"{key} before its last place": n for key, n in sorted(table.repeated.items())}
    for name, n in (*found.items(), *sorted(keys.items()), *twice.items()):
        hidden = not _PLAIN_KEY.fullmatch(name) or is_headless(table)
        plain["columns or keys with names that are not shown" if hidden else name] += n
    return {name: n for name, n in plain.items() if n}
