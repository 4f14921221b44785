"""Where rows come from: a file, a folder, a saved data set, the hub."""

import difflib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from clues.data.limits import MAX_FILE_BYTES, SPLIT
from clues.data.packing import ENDINGS, name_of, packed_as, unpack
from clues.data.signatures import foreign
from clues.data.tables import (
    BOM,
    READERS,
    Table,
    arrow_table,
    bad_rows,
    decode,
    keeps_schema,
    parse_json,
)
from clues.errors import DataError
from clues.reading import cannot_read, folder_and_split, is_folder, read_bytes, shown, status

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_MAGIC = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow-stream"}
_NAMED = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_TEXT = ("jsonl", "json", "csv")
_SUPPORTED = ".jsonl, .json, .csv (each also with .gz, .zst, .xz, .bz2), .parquet, .arrow"
# What describes a data set and is none.
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_HUB_NAME = re.compile(
    r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(:(?P<split>[\w.+%:\[\]-]+))?", re.ASCII
)


def named_container(path: Path) -> str | None:
    """Container that a file's name promises, such as `jsonl.gz`; None where it names none."""
    name = path.name.lower()
    ending = Path(name).suffix
    stem = name.removesuffix(ending) if ending in ENDINGS else name
    kind = _NAMED.get(Path(stem).suffix)
    if kind is None or (stem != name and kind not in _TEXT):
        return None
    return kind + name[len(stem) :]


def suffix_of(container: str) -> str:
    """End of the name of a file in this container, such as `.jsonl.gz`."""
    return "." + container.removesuffix("-stream")


def read_source(source: str | Path) -> tuple[Path, Table, str]:
    """Read every row of a file, a folder, a saved data set or a hub data set.

    Returns:
        The path (of a hub data set, its name), the rows, and what they lay in, in words.

    Raises:
        DataError: there is nothing there, or it cannot be read.
    """
    path = Path(source)
    if is_folder(path):
        return _read_folder(path)
    if status(path):
        table = read_table(path)
        named = named_container(path)
        lies = named != table.container.removesuffix("-stream")
        return path, table, table.container + (f" (named {path.name})" if lies else "")
    if named := folder_and_split(source):
        return _read_folder(*named)
    hub = _HUB_NAME.fullmatch(source) if isinstance(source, str) else None
    # owner/name is also how a path looks: a folder `owner` or a file suffix says it is one.
    if hub and not is_folder(path.parent) and named_container(path) is None:
        return _read_hub(hub["name"], hub["split"] or "train")
    raise DataError(_missing(path))


def read_table(path: Path) -> Table:
    """Read one file; what it is follows from its bytes first and from its name second.

    Raises:
        DataError: the file is empty, damaged, of no known kind, not UTF-8, or has bad rows.
    """
    data = read_bytes(path, limit=MAX_FILE_BYTES, advice=SPLIT)
    packed = packed_as(data)
    if packed:
        data = unpack(path, data, packed)
    if reason := foreign(data):
        raise DataError(f"{path}: {reason}")
    if not data.removeprefix(BOM).strip():
        raise DataError(f"{path}: the file is empty.")
    kind = _sniff(path, data)
    if packed and kind not in _TEXT:
        raise DataError(f"{path}: {kind} inside {name_of(packed)} cannot be read. Unpack it first.")
    table = READERS[kind](path, data)
    if table.n_rows == 0 and table.bad:
        raise bad_rows(path, table.bad)
    if table.n_rows == 0:
        raise DataError(f"{path}: the file has no rows.")
    return replace(table, container=f"{kind}{packed}") if packed else table


def _sniff(path: Path, data: bytes) -> str:
    for magic, kind in _MAGIC.items():
        if data.startswith(magic):
            return kind
    named = (named_container(path) or "").partition(".")[0]
    if data.startswith(_UTF16):
        raise DataError(f"{path} line 1: UTF-16 at byte offset 0. Save the file as UTF-8.")
    if named in ("parquet", "arrow"):
        raise DataError(f"{path}: is not a readable {named} file. Copy or write it again.")
    text = decode(path, data).lstrip()
    if not text.startswith(("{", "[")):
        if not named:
            raise DataError(f"{path}: is none of {_SUPPORTED}.")
        return named
    first, _, rest = text.partition("\n" if "\n" in text else "\r")
    value, problem = parse_json(first)
    if problem is None and not rest.strip():  # one line, and it is whole
        return "json" if named == "json" or isinstance(value, list) else "jsonl"
    if problem is None:
        return "jsonl"
    # A first line that is not whole: a bad line, or one value over many lines.
    return "json" if not named or (named == "jsonl" and parse_json(text)[1] is None) else named


def _missing(path: Path) -> str:
    if not is_folder(path.parent):
        return f"{shown(path)}: there is no folder {shown(path.parent)}."
    names = sorted(entry.name for entry in _entries(path.parent))
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"{path}: there is no such file, and it is not a hub data set (owner/name).{hint}"


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder.

    Raises:
        DataError: it may not be listed.
    """
    try:
        return list(folder.iterdir())
    except OSError as problem:
        failure = problem
    raise cannot_read(folder, failure)


def _read_folder(folder: Path, split: str = "") -> tuple[Path, Table, str]:
    if split and is_folder(folder / split):
        return _read_folder(folder / split)
    if (folder / "dataset_dict.json").exists():
        splits = sorted(entry.name for entry in _entries(folder) if entry.is_dir())
        raise DataError(f"{folder}: holds the splits {', '.join(splits)}. Name one of its folders.")
    if (folder / "state.json").exists() and (folder / "dataset_info.json").exists():
        return folder, *_saved(_load_saved(folder), folder, "a saved data set")
    files = _files_of_rows(folder)
    # As data sets lie on the hub: a page about them, and a folder with the rows.
    if not files and is_folder(folder / "data"):
        return _read_folder(folder / "data", split)
    if split:
        files = [file for file in files if re.match(rf"{re.escape(split)}(?![A-Za-z])", file.name)]
    if not files:
        what = f"of split {split} that" if split else "that"
        raise DataError(f"{folder}: holds no file {what} can be read ({_SUPPORTED}).")
    if len(files) == 1:
        return read_source(files[0])
    # train.jsonl and test.jsonl must not become one silo: shards differ in digits only.
    kinds = sorted({re.sub(r"\d+", "0", file.name) for file in files})
    if len(kinds) > 1:
        names = ", ".join(file.name for file in files[:8]) + (", ..." if len(files) > 8 else "")
        first = re.split(r"[-_.]", kinds[0])[0]
        raise DataError(
            f"{folder}: its files are not shards of one data set: {names}. Name one, or one split, "
            f"such as {folder}:{first}."
        )
    tables = [read_table(file) for file in files]
    container = tables[0].container
    if any(table.container != container for table in tables):
        raise DataError(f"{folder}: its files are of different kinds inside. Name one of them.")
    table = _join_text(tables) if tables[0].arrow is None else _join_arrow(folder, tables)
    said = f"a folder of {len(files)} {container} files, written as {table.container}"
    return folder, table, said


def _files_of_rows(folder: Path) -> list[Path]:
    return sorted(
        entry
        for entry in _entries(folder)
        if entry.is_file()
        and named_container(entry)
        and not entry.name.startswith(".")
        and entry.name not in _ABOUT
    )


def _join_text(tables: Sequence[Table]) -> Table:
    raw = [line for table in tables for line in (table.raw if _is_jsonl(table) else _lines(table))]
    return Table(
        "jsonl.gz",
        tuple(dict.fromkeys(name for table in tables for name in table.columns)),
        len(raw),
        _parts(tables),
        [number for table in tables for number in table.numbers],
        tables[0].unit,
        records=[record for table in tables for record in table.records],
        raw=raw,
        named_by_row=tables[0].named_by_row,
        repeated=sum((Counter(table.repeated) for table in tables), Counter()),
        bad=tuple(
            (f"{table.parts[0][1].name} {place}", why)
            for table in tables
            for place, why in table.bad
        ),
    )


def _join_arrow(folder: Path, tables: Sequence[Table]) -> Table:
    schema = tables[0].arrow.schema
    for table in tables:
        if not table.arrow.schema.equals(schema):
            raise DataError(
                f"{folder}: {table.parts[0][1].name} has other columns or types than "
                f"{tables[0].parts[0][1].name}. Give every shard one schema, or name one file."
            )
    joined, _ = _saved(pa.concat_tables([table.arrow for table in tables]), folder, "")
    numbers = [number for table in tables for number in table.numbers]
    return replace(joined, parts=_parts(tables), numbers=numbers)


def _parts(tables: Sequence[Table]) -> tuple[tuple[int, Path], ...]:
    first, parts = 0, []
    for table in tables:
        parts.append((first, table.parts[0][1]))
        first += table.n_rows
    return tuple(parts)


def _is_jsonl(table: Table) -> bool:
    return table.container.startswith("jsonl")


def _lines(table: Table) -> list[bytes]:
    return [json.dumps(record).encode() + b"\n" for record in table.records]


def _saved(rows: Any, path: Path, what: str) -> tuple[Table, str]:
    """Make a table of arrow rows that came from no single file, and say how it is written."""
    table = arrow_table(path, rows, "parquet")
    if table.n_rows == 0:
        raise DataError(f"{path}: the data set has no rows.")
    if not keeps_schema(rows.schema):
        records = table.read(table.columns)
        try:
            raw = [json.dumps(record).encode() + b"\n" for record in records]
        except TypeError:
            raw = None
        if raw is None:
            raise DataError(f"{path}: has column types that neither parquet nor JSON keeps.")
        table = replace(table, container="jsonl.gz", arrow=None, records=records, raw=raw)
    return table, f"{what}, written as {table.container}"


def _load_saved(folder: Path) -> Any:
    # Slow to import, and it may import torch; only saved and hub data sets need it.
    import datasets

    try:
        return datasets.load_from_disk(str(folder)).with_format("arrow")[:]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = type(error).__name__
    raise DataError(f"{folder}: the saved data set cannot be read ({reason}). Save it again.")


def _read_hub(name: str, split: str) -> tuple[Path, Table, str]:
    # Slow to import, and it may import torch; only saved and hub data sets need it.
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        rows = datasets.load_dataset(name, split=split).with_format("arrow")[:]
        reason = ""
    except (OSError, ValueError, DatasetsError) as error:
        # The type alone: what `datasets` says about a bad file may hold a row.
        rows, reason = None, type(error).__name__
    if rows is None:
        raise DataError(
            f"{name}: there is no such local file or folder, and the hub gives no data set "
            f"of this name with split {split} ({reason}). Check name, split and network."
        )
    return Path(name), *_saved(rows, Path(name), f"hub data set {name}, split {split}")
