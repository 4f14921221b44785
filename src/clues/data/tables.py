"""Containers: how rows lie in the bytes of a file, and how some of them are written back.

No exception that carries row text (a JSON error holds the document) may become the cause or
the context of ours. So errors are raised after the `except` block, never inside it.
"""

import bisect
import contextlib
import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from clues import reading
from clues.data.arrowvalues import with_values
from clues.data.jsonfiles import Changes, Rebuild, changed_object, find_rows
from clues.data.limits import (
    MAX_BRACKETS,
    MAX_COLUMNS,
    MAX_ROW_BYTES,
    check_counts,
    load_arrow_file,
    load_arrow_stream,
    load_parquet,
    too_long,
)
from clues.data.packing import packing
from clues.errors import BadRowsError, DataError
from clues.printable import rows_in_words

_N_SHOWN = 5
_DELIMITERS = ",;\t|"
_DECODER = json.JSONDecoder()
_SHORT = 1_000_000  # bytes of a line, which cannot hold more values than are read
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Table:
    """Rows of one source as they were stored. Text stays out of `repr`.

    Attributes:
        container: what it was read from and will be written as: jsonl, json or csv, each
            also packed, with one of `packing.ENDINGS`; parquet, arrow, arrow-stream.
        columns: names in order of first sight.
        n_rows: how many rows.
        parts: where each file's rows begin: (index of its first row, file).
        numbers: the line (`unit` line) or row (`unit` row) of each row in its file, from 1.
        unit: what `numbers` count.
        records: the rows as objects; empty where `arrow` is set.
        raw: the bytes of each row (jsonl, csv).
        head: bytes before the first row: a byte order mark, a csv header.
        rebuild: gives the text of a file of the same shape with some of the rows (json).
        arrow: the rows of parquet and arrow.
        named_by_row: the names are the first row of a csv, which may be no header.
        bad: where lines lie that are no rows, and why; they are in nothing else.
        repeated: keys that stand more than once in one object of JSON, and how often that is so; the
            last value counts.
    """

    container: str
    columns: tuple[str, ...]
    n_rows: int
    parts: tuple[tuple[int, Path], ...]
    numbers: Sequence[int] = field(repr=False)
    unit: str = "line"
    records: Sequence[dict[str, Any]] = field(default=(), repr=False)
    raw: Sequence[bytes] = field(default=(), repr=False)
    head: bytes = field(default=b"", repr=False)
    rebuild: Rebuild | None = field(default=None, repr=False)
    arrow: Any = field(default=None, repr=False)
    named_by_row: bool = False
    bad: tuple[tuple[str, str], ...] = ()
    repeated: Mapping[str, int] = field(default_factory=dict)

    def read(self, columns: Sequence[str]) -> Sequence[dict[str, Any]]:
        """Rows as objects; of parquet and arrow only these columns are decoded."""
        return self.records if self.arrow is None else self.arrow.select(columns).to_pylist()

    def place(self, row: int) -> str:
        """Where a row lies, such as `line 3` or, among several files, `b.jsonl line 3`."""
        part = bisect.bisect_right(self.parts, row, key=lambda start: start[0]) - 1
        place = f"{self.unit} {self.numbers[row]}"
        return place if len(self.parts) == 1 else f"{self.parts[part][1].name} {place}"


def bad_rows(path: str | Path, reasons: Sequence[tuple[str, str]]) -> BadRowsError:
    """Make one error of many bad rows: the count, the first few as (place, reason), the reasons."""
    shown = "; ".join(f"{place}: {reason}" for place, reason in reasons[:_N_SHOWN])
    rows = "1 bad row" if len(reasons) == 1 else f"{len(reasons):,} bad rows"
    text = f"{path}: {rows}; {shown}"
    if len(reasons) > _N_SHOWN:
        counted = Counter(reason for _, reason in reasons).most_common(_N_SHOWN)
        by_reason = "; ".join(f"{rows_in_words(n)}: {reason}" for reason, n in counted)
        text += f"; .... By reason: {by_reason}. clues check --bad-rows FILE lists all of them"
    return BadRowsError(f"{text}. Mend or remove them and read again.", str(path), tuple(reasons))


def keeps_schema(schema: Any) -> bool:
    """Whether parquet gives this pyarrow schema back as it is."""
    sink = io.BytesIO()
    try:
        pq.write_table(schema.empty_table(), sink)
    except pa.ArrowException:
        return False
    return pq.read_schema(io.BytesIO(sink.getvalue())).equals(schema)


def arrow_table(path: Path, rows: Any, container: str) -> Table:
    """Wrap a pyarrow table after checking its content and its column names."""
    columns = tuple(rows.column_names)
    _check_names(path, columns)
    try:
        rows.validate(full=True)
        broken = False
    except pa.ArrowException:
        broken = True
    if broken:
        raise DataError(f"{path}: holds broken values, such as text that is not UTF-8.")
    numbers = range(1, rows.num_rows + 1)
    return Table(container, columns, rows.num_rows, ((0, path),), numbers, "row", arrow=rows)


class _Repeated:
    """Parses JSON, and counts keys that stand more than once in one object."""

    def __init__(self) -> None:
        self.keys: Counter[str] = Counter()
        self.parse = json.JSONDecoder(object_pairs_hook=self._object).decode

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            often = Counter(key for key, _ in pairs)
            self.keys.update(key for key, n in often.items() if n > 1)
        return found


def parse_json(text: str, parse: Callable[[str], Any] = json.loads) -> tuple[Any, str | None]:
    """Parse JSON; returns (value, None), or (None, reason) without any of the text."""
    try:
        return reading.parse_json(text, max_items=MAX_BRACKETS, parse=parse), None
    except reading.Unreadable as problem:
        return None, str(problem)


def _parse_line(line: bytes, parse: Callable[[str], Any]) -> tuple[Any, str | None]:
    """A line of JSON as `parse_json` reads it; most lines are too short for its limits."""
    if len(line) < _SHORT and line.count(b"[") + line.count(b"{") <= reading.MAX_DEPTH:
        # Whatever is wrong with it is looked at below.
        with contextlib.suppress(ValueError):
            return parse(line.decode()), None
    return parse_json(line.rstrip(b"\r\n").decode(), parse)


def write_table(
    table: Table, indices: Sequence[int], sink: BinaryIO, changes: Changes | None = None
) -> None:
    """Write the rows at `indices`, in that order, in the container of the table.

    Args:
        table: the rows.
        indices: zero-based positions.
        sink: where the bytes go.
        changes: by row and column, values in place of the table's own.
    """
    kind, _, packed_as = table.container.partition(".")
    if not packed_as:
        _WRITERS[kind](table, indices, sink, changes or {})
        return
    with packing(sink, f".{packed_as}") as packed:
        _WRITERS[kind](table, indices, packed, changes or {})


def decode(path: Path, data: bytes) -> str:
    """Decode UTF-8 with or without a byte order mark; an error gives the offset and the line."""
    try:
        return data.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        at = error.start + (len(BOM) if data.startswith(BOM) else 0)
    line = data.count(b"\n", 0, at) + 1
    raise DataError(
        f"{path} line {line}: not UTF-8 at byte offset {at}. Save the file as UTF-8, "
        "for example with: iconv -f WINDOWS-1252 -t UTF-8"
    )


def _read_jsonl(path: Path, data: bytes) -> Table:
    check_counts(path, data)
    decode(path, data)
    numbers: list[int] = []
    raw: list[bytes] = []
    records: list[dict[str, Any]] = []
    bad: list[tuple[str, str]] = []
    repeated = _Repeated()
    for number, line in enumerate(_lines(data.removeprefix(BOM)), start=1):
        if not line.strip():
            continue
        value: Any = None
        problem = too_long(line) or None
        if problem is None:
            value, problem = _parse_line(line, repeated.parse)
        if problem is None and not isinstance(value, dict):
            problem = f"not a JSON object but {kind_of(value)}"
        if problem is not None:
            bad.append((f"line {number}", problem))
            continue
        numbers.append(number)
        raw.append(line)
        records.append(value)
    if bad and bad[0][0] == "line 1" and _are_documents(data):
        raise DataError(
            f"{path} line 1: its rows are JSON objects one after another, and not one per line. To write "
            f"one per line: jq -c . {path.name} > NEW.jsonl"
        )
    head = BOM if data.startswith(BOM) else b""
    return Table(
        "jsonl",
        _keys(records),
        len(raw),
        ((0, path),),
        numbers,
        records=records,
        raw=raw,
        head=head,
        bad=tuple(bad),
        repeated=repeated.keys,
    )


def _lines(data: bytes) -> Iterator[bytes]:
    """Lines with their ends; they end as the file's own do: old ones of the Mac in CR alone."""
    if b"\n" in data or b"\r" not in data:
        return iter(io.BytesIO(data))
    return (line for line in data.splitlines(keepends=True))


def _read_json(path: Path, data: bytes) -> Table:
    check_counts(path, data)
    text, repeated = decode(path, data), _Repeated()
    value, problem = parse_json(text, repeated.parse)
    if problem is not None:
        raise DataError(
            f"{path}: {problem}. Mend the file, or write one object a line as .jsonl; jq -c . does it."
        )
    found = find_rows(path, text, value)
    bad = [
        (f"row {number}", f"not a JSON object but {kind_of(row)}")
        for number, row in enumerate(found.records, start=1)
        if not isinstance(row, dict)
    ]
    if bad:
        raise bad_rows(path, bad)
    n_rows = len(found.records)
    return Table(
        "json",
        _keys(found.records),
        n_rows,
        ((0, path),),
        range(1, n_rows + 1),
        "row",
        records=found.records,
        head=BOM if data.startswith(BOM) else b"",
        rebuild=found.rebuild,
        repeated=repeated.keys,
    )


def _are_documents(data: bytes) -> bool:
    """Whether a text is JSON objects one after another, and the first is not a line of its own."""
    text, at = data.removeprefix(BOM).decode().strip(), 0
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(text.partition("\n")[0])
        return False  # what is wrong with the line is another thing
    while at < len(text):
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return False
        if not isinstance(value, dict):
            return False
        while at < len(text) and text[at].isspace():
            at += 1
    return True


def _read_csv(path: Path, data: bytes) -> Table:
    check_counts(path, data)
    decode(path, data)
    lines = list(_lines(data.removeprefix(BOM)))
    text = [line.decode() for line in lines]
    numbers: list[int] = []
    raw: list[bytes] = []
    records: list[dict[str, Any]] = []
    bad: list[tuple[str, str]] = []
    overlong = [
        (f"line {n}", reason) for n, line in enumerate(lines, start=1) if (reason := too_long(line))
    ]
    if overlong:
        raise bad_rows(path, overlong)
    with _long_cells():
        reader = csv.reader(text, delimiter=_delimiter(path, text), strict=True)
        columns = next((cells for cells in _cells(reader) if cells), None)
        if columns is None:
            raise DataError(f"{path} line 1: the header cannot be read.")
        _check_names(path, columns)
        n_head = start = reader.line_num
        for cells in _cells(reader):
            if cells is None:
                bad.append((f"line {start + 1}", _NO_CELLS))
            elif cells and len(cells) != len(columns):
                bad.append((f"line {start + 1}", f"{len(cells)} cells for {len(columns)} columns"))
            elif cells:
                numbers.append(start + 1)
                raw.append(b"".join(lines[start : reader.line_num]))
                records.append(dict(zip(columns, cells, strict=True)))
            start = reader.line_num
    head = (BOM if data.startswith(BOM) else b"") + b"".join(lines[:n_head])
    return Table(
        "csv",
        tuple(columns),
        len(raw),
        ((0, path),),
        numbers,
        records=records,
        raw=raw,
        head=head,
        named_by_row=True,
        bad=tuple(bad),
    )


_NO_CELLS = (
    "a quote is not closed or not doubled, or a cell has more than "
    f"{reading.megabytes(MAX_ROW_BYTES)}"
)


def _cells(reader: Any) -> Iterator[list[str] | None]:
    """Rows of a csv reader, [] for an empty line and None for one that cannot be read."""
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            cells = None
        yield cells


def _delimiter(path: Path, text: list[str]) -> str:
    """Take the delimiter that gives the first line the most columns."""
    n_columns: dict[str, int] = {}
    for delimiter in _DELIMITERS:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        header = next((cells for cells in _cells(reader) if cells != []), None)
        if header is not None:
            n_columns[delimiter] = len(header)
    if not n_columns:
        raise DataError(f"{path} line 1: the header has a quote that is not closed.")
    return max(n_columns, key=lambda delimiter: n_columns[delimiter])


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    # The csv module refuses cells over 128 KiB; a clinical note can be longer.
    before = csv.field_size_limit(MAX_ROW_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _arrow_reader(
    container: str, load: Callable[[Path, Any], Any]
) -> Callable[[Path, bytes], Table]:
    def read(path: Path, data: bytes) -> Table:
        try:
            rows = load(path, pa.BufferReader(data))
            reason = ""
        except MemoryError:
            rows, reason = None, "needs more memory than there is. Split it"
        except (pa.ArrowException, OSError):
            rows, reason = None, f"{container} data is cut off or damaged. Copy it again"
        if reason:
            raise DataError(f"{path}: {reason}.")
        return arrow_table(path, rows, container)

    return read


def _check_names(path: Path, columns: Sequence[str]) -> None:
    if len(columns) > MAX_COLUMNS:
        raise DataError(
            f"{path}: has {len(columns):,} columns, and at most {MAX_COLUMNS:,} are read. Leave out "
            "those that are not needed."
        )
    # Positions, not names: the first line of a csv without a header is a row.
    first: dict[str, int] = {}
    twice = [str(i + 1) for i, name in enumerate(columns) if first.setdefault(name, i) != i]
    if twice:
        more = ", ..." if len(twice) > _N_SHOWN else ""
        raise DataError(
            f"{path}: column {', '.join(twice[:_N_SHOWN])}{more} has the name of an earlier column."
        )


def _keys(records: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for record in records for key in record))


def kind_of(value: Any) -> str:
    """Say what a value is in words for a message, never the value."""
    names = {str: "text", dict: "an object", list: "a list", bool: "a truth value"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _write_lines(table: Table, indices: Sequence[int], sink: BinaryIO, changes: Changes) -> None:
    ends = {line[len(line.rstrip(b"\r\n")) :] for line in table.raw}
    end = next((end for end in (b"\r\n", b"\n", b"\r") if end in ends), b"\n")
    sink.write(table.head)
    for position, row in enumerate(indices, start=1):
        line = table.raw[row]
        if row in changes:
            line = _changed_line(table, row, changes[row])
        sink.write(line)
        # The last line of a file may have no end; it needs one when another row follows.
        if position < len(indices) and not line.endswith((b"\n", b"\r")):
            sink.write(end)


def _changed_line(table: Table, row: int, values: Mapping[str, Any]) -> bytes:
    """A line of jsonl, or the lines of a row of csv, with other values in some columns."""
    text = table.raw[row].decode()
    if not table.container.startswith("csv"):
        return changed_object(text, values).encode()
    body = text.rstrip("\r\n")
    cells = list(table.records[row].values())
    read = (
        d
        for d in _DELIMITERS
        if next(_cells(csv.reader([body], delimiter=d, strict=True))) == cells
    )
    with _long_cells():
        delimiter = next(read) if len(cells) > 1 else ","
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter=delimiter, lineterminator=text[len(body) :])
    writer.writerow({**table.records[row], **values}.values())
    return sink.getvalue().encode()


def _write_json(table: Table, indices: Sequence[int], sink: BinaryIO, changes: Changes) -> None:
    assert table.rebuild is not None
    sink.write(table.head + table.rebuild(indices, changes).encode())


def _write_parquet(table: Table, indices: Sequence[int], sink: BinaryIO, changes: Changes) -> None:
    pq.write_table(_rows_at(table, indices, changes), sink)


def _write_arrow(table: Table, indices: Sequence[int], sink: BinaryIO, changes: Changes) -> None:
    rows = _rows_at(table, indices, changes)
    new = pa.ipc.new_stream if table.container == "arrow-stream" else pa.ipc.new_file
    with new(sink, rows.schema) as writer:
        writer.write_table(rows)


def _rows_at(table: Table, indices: Sequence[int], changes: Changes) -> Any:
    at = {position: changes[row] for position, row in enumerate(indices) if row in changes}
    return with_values(_take(table, indices), at) if at else _take(table, indices)


def _take(table: Table, indices: Sequence[int]) -> Any:
    # Some types cannot be picked from, such as the text of polars; but any table can be cut.
    with contextlib.suppress(pa.ArrowNotImplementedError):
        return table.arrow.take(pa.array(indices, type=pa.int64()))
    return pa.concat_tables([table.arrow.slice(0, 0), *_runs(table.arrow, indices)])


def _runs(rows: Any, indices: Sequence[int]) -> Iterator[Any]:
    """Rows at these positions, in pieces of rows that follow one another."""
    start = 0
    for end in range(1, len(indices) + 1):
        if end == len(indices) or indices[end] != indices[end - 1] + 1:
            yield rows.slice(indices[start], end - start)
            start = end


READERS: dict[str, Callable[[Path, bytes], Table]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _arrow_reader("parquet", load_parquet),
    "arrow": _arrow_reader("arrow", load_arrow_file),
    "arrow-stream": _arrow_reader("arrow-stream", load_arrow_stream),
}
_WRITERS: dict[str, Callable[[Table, Sequence[int], BinaryIO, Changes], None]] = {
    "jsonl": _write_lines,
    "csv": _write_lines,
    "json": _write_json,
    "parquet": _write_parquet,
    "arrow": _write_arrow,
    "arrow-stream": _write_arrow,
}
