"""Rows as Python callers have them: written to a file that a run reads, and given back as they came.

A caller's rows are a list of dicts, a `datasets.Dataset`, a pandas DataFrame, or a path. What a run
says about its file is said about the caller's rows: `rows.jsonl line 4` is `rows[3]`.
"""

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, time
from pathlib import Path
from typing import Any

import numpy as np

from clues.atomic import atomic_write_bytes
from clues.data.arrowvalues import with_values
from clues.data.formats import RowFile, read_rows, write_rows
from clues.data.jsonfiles import Changes
from clues.data.layouts import READ_COLUMNS, layouts_of
from clues.data.untrained import mark_untrained
from clues.errors import CluesError, DataError, UsageError

TYPES = "a list of dicts, a datasets.Dataset, a pandas DataFrame, or a path"
CONFIG = "_clues.yaml"  # a name that no silo's file has
Record = dict[str, Any]


@dataclass(frozen=True)
class Given:
    """One argument's rows.

    Attributes:
        name: of the argument.
        source: what the caller gave.
        file: what a run reads: the caller's own path, or a file of ours.
        rows: the same, parsed.
    """

    name: str
    source: Any = field(repr=False)
    file: str
    rows: RowFile = field(repr=False)

    @property
    def ids(self) -> list[str]:
        """Content ids, in order."""
        return [sample.id for sample in self.rows.samples]

    def at(self, positions: Sequence[int], untrained: Mapping[int, Sequence[int]]) -> Any:
        """Rows at these positions: in the type that went in, of a path as a list of dicts.

        Args:
            positions: from 0 on.
            untrained: by position, turns that a row is to say of that they are not trained. Such a
                row is a copy; the caller's own stays as it is.
        """
        changes = mark_untrained(self.rows, untrained)
        if isinstance(self.source, str | Path):
            records = self.rows.table.read(self.rows.table.columns)
            return [{**records[i], **changes.get(i, {})} for i in positions]
        if _is_a(self.source, "datasets", "Dataset"):
            return _changed_dataset(self.source.select(list(positions)), positions, changes)
        if _is_a(self.source, "pandas", "DataFrame"):
            frame = self.source.iloc[list(positions)]
            for name in dict.fromkeys(name for values in changes.values() for name in values):
                new = [
                    changes.get(i, {}).get(name, old)
                    for i, old in zip(positions, frame[name], strict=True)
                ]
                frame = frame.assign(**{name: new})
            return frame
        return [
            {**self.source[i], **changes[i]} if i in changes else self.source[i] for i in positions
        ]


def _changed_dataset(rows: Any, positions: Sequence[int], changes: Changes) -> Any:
    """A `datasets.Dataset` with other values in some cells."""
    if not changes:
        return rows
    at = {place: changes[row] for place, row in enumerate(positions) if row in changes}
    return type(rows)(with_values(rows.flatten_indices().data.table, at))


def take_rows(
    source: Any,
    name: str,
    folder: Path,
    *,
    schema: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    one_file: bool = False,
    lenient: bool = False,
) -> Given:
    """Read a caller's rows, and write those that lie in memory to `folder/NAME.jsonl`.

    Args:
        source: see `TYPES`.
        name: of the argument, for messages.
        folder: private; rows in memory go there.
        schema: which columns hold prompt and answer, where several schemas fit.
        columns: the rows' own names by what they hold.
        one_file: write a folder of files or a hub data set as one file too.
        lenient: name rows that cannot be used instead of refusing all of them, as `read_rows` does.

    Raises:
        UsageError: another type, or no rows.
        DataError: a row cannot be used.
    """
    if isinstance(source, str | Path):
        rows = read_rows(source, schema=schema, columns=columns, lenient=lenient)
        path = Path(source).resolve() if Path(source).exists() else source
        if one_file and not Path(source).is_file():
            path = write_rows(rows, range(rows.n_rows), folder / f"{name}{rows.suffix}")
        return Given(name, source, str(path), rows)
    records = _records(source, name)
    _check_one_schema(records, name, schema)
    path = folder / f"{name}.jsonl"
    plain = [_plain_row(row, f"{name}[{n}]", columns or {}) for n, row in enumerate(records)]
    lines = [json.dumps(row) + "\n" for row in plain]
    atomic_write_bytes(path, "".join(lines).encode())
    read = read_rows(path, schema=schema, columns=columns, lenient=lenient)
    return Given(name, source, str(path), read)


def _records(source: Any, name: str) -> Sequence[Mapping[Any, Any]]:
    if _is_a(source, "datasets", "Dataset"):
        records: Sequence[Any] = list(source.with_format(None))
    elif _is_a(source, "pandas", "DataFrame"):
        if not source.columns.is_unique:
            raise UsageError(
                f"{name}: two columns of the DataFrame have the same name. Rename one."
            )
        columns = [str(column) for column in source.columns]
        records = [
            dict(zip(columns, row, strict=True))
            for row in source.itertuples(index=False, name=None)
        ]
    elif isinstance(source, list | tuple):
        records = source
    else:
        raise UsageError(f"{name}: {_other_type(source, name)}")
    if not len(records):
        raise UsageError(f"{name}: there are no rows in it.")
    odd = [n for n, row in enumerate(records) if not isinstance(row, Mapping)]
    if odd:
        raise UsageError(
            f"{name}[{odd[0]}]: type {type(records[odd[0]]).__name__}, not a dict. Give {TYPES}."
        )
    return records


def _other_type(source: Any, name: str) -> str:
    kind = type(source).__name__
    splits = ("DatasetDict", "IterableDatasetDict")
    if kind in splits and isinstance(source, Mapping):
        names = ", ".join(str(split) for split in source)
        return f"type {kind} of the splits {names}. Give one of them, such as {name}[{next(iter(source), 'train')!r}]."
    if kind == "IterableDataset":
        return "type IterableDataset, which cannot be read twice. Give Dataset.from_list(list(it))."
    return f"type {kind}. Give {TYPES}."


def _check_one_schema(records: Sequence[Mapping[Any, Any]], name: str, schema: str | None) -> None:
    """Refuse a list whose rows are of two shapes: its columns taken together would fit both.

    Raises:
        DataError: with the first row of each shape.
    """
    shapes: dict[frozenset[str], frozenset[str]] = {}
    first: dict[frozenset[str], int] = {}
    for n, row in enumerate(records):
        keys = frozenset(str(key) for key, value in row.items() if value is not None)
        if keys not in shapes:
            shapes[keys] = frozenset(layout.schema for layout in layouts_of(sorted(keys)))
        if shapes[keys]:
            first.setdefault(shapes[keys], n)
    if schema is None and len(first) > 1 and not frozenset.intersection(*first):
        found = "; ".join(
            f"{name}[{n}] is {' or '.join(sorted(fits))}" for fits, n in list(first.items())[:3]
        )
        raise DataError(f"{name}: rows of several schemas: {found}. Give rows of one schema.")


def _plain_row(row: Mapping[Any, Any], where: str, mapped: Mapping[str, str | None]) -> Record:
    """Values that JSON holds. Of a column that is no part of a sample, that there is one is enough.

    Raises:
        DataError: a part of the sample holds what JSON cannot hold.
    """
    plain: Record = {}
    read = (READ_COLUMNS - mapped.keys()) | set(mapped.values())
    for key, value in row.items():
        column = str(key)
        try:
            plain[column] = plain_value(value)
        except TypeError as odd:
            plain[column] = True
            if column in read or (column.lower() in read and column.lower() not in row):
                what = "is" if type(value).__name__ == str(odd) else "holds something"
                problem = f"{where}: {column} {what} of type {odd}, which is neither text nor JSON."
                raise DataError(problem) from None
    return plain


def plain_value(value: Any) -> Any:
    """The value as JSON has it; NaN and its kin are null, days are text, bytes the UTF-8 they are.

    Raises:
        TypeError: JSON has no such value; the type that it does not have.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.ndarray | np.generic):
        return plain_value(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): plain_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(v) for v in value]
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return value.decode()
    raise TypeError(type(value).__name__)


def _is_a(value: Any, module: str, name: str) -> bool:
    # Who has one has imported its module; nobody else waits for the import.
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name, ()))


@contextmanager
def callers_words(folder: Path, *, silo: str, domain: str) -> Iterator[None]:
    """Say errors in terms of the arguments: no temporary path, positions from 0 on.

    Args:
        folder: of the run's own files.
        silo: name of the silo that holds the rows.
        domain: of the rows.
    """
    said: CluesError | None = None
    try:
        yield
    except CluesError as error:
        said = type(error)(_translated(str(error), folder, silo=silo, domain=domain))
    if said is not None:
        # The first error names our files; nobody needs to see it beside this one.
        raise said from None


def _translated(text: str, folder: Path, *, silo: str, domain: str) -> str:
    ours = re.compile(rf"{re.escape(str(folder))}/(?:public/{re.escape(domain)}\.)?(\w+)\.\w+")
    if found := ours.match(text):
        text = re.sub(r"\bline (\d+)", lambda m: f"{found[1]}[{int(m[1]) - 1}]", text)
    text = ours.sub(lambda m: m[1], text)
    text = text.replace(f"{folder}/", "").replace(f"{CONFIG}: ", "")
    places = {
        rf"silo {re.escape(silo)}": "rows",
        r"(?:validation|public) set validation": "validation",
        rf"(?:public set anchor|(?:damaged )?anchors of {re.escape(domain)})": "anchors",
    }
    for place, name in places.items():
        text = re.sub(rf"\b{place} row (\d+)", lambda m, n=name: f"{n}[{int(m[1]) - 1}]", text)
    return re.sub(rf"\bsilo {re.escape(silo)}\b", "rows", text)
