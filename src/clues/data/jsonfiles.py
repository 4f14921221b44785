"""JSON that holds rows: a list of them, by columns or by ids, and how some are written back.

Rows that lie in the file one by one keep their very bytes: they are cut out of its text. What is
between them, and around them, stays too.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clues.data.layouts import layouts_of
from clues.errors import DataError
from clues.printable import is_printable, rows_in_words

_DECODER = json.JSONDecoder()
_SPACE = " \t\n\r"
# By row and column, values that take the place of the file's own.
Changes = Mapping[int, Mapping[str, Any]]
Rebuild = Callable[[Sequence[int], Changes], str]


@dataclass(frozen=True)
class JsonRows:
    """Rows of a JSON file.

    Attributes:
        records: the rows; those that are no objects too.
        rebuild: gives the text of a file of the same shape with some of them, and with changes.
    """

    records: Sequence[Any]
    rebuild: Rebuild


def find_rows(path: Path, text: str, value: Any) -> JsonRows:
    """Find the rows of a JSON file.

    Args:
        path: of the file, for messages.
        text: of the file.
        value: what the text holds.

    Raises:
        DataError: nobody can tell which they are; the message says what there is.
    """
    if isinstance(value, list):
        return JsonRows(value, _cut_out(text, ()))
    if not isinstance(value, dict):
        raise DataError(f"{path}: is JSON but neither a list nor an object with one list.")
    lists = {key: part for key, part in value.items() if isinstance(part, list)}
    if found := _by_split(value) or _by_columns(value, lists) or _by_ids(text, value):
        return found
    if len(lists) == 1:
        key, rows = next(iter(lists.items()))
        return JsonRows(rows, _cut_out(text, (key,)))
    raise DataError(f"{path}: {_unclear(lists)}")


def _unclear(lists: Mapping[str, list[Any]]) -> str:
    splits = {
        key: rows for key, rows in lists.items() if rows and all(isinstance(r, dict) for r in rows)
    }
    if len(splits) > 1 and all(key.isidentifier() and is_printable(key, 40) for key in splits):
        named = ", ".join(
            f"{key} ({rows_in_words(len(rows))})" for key, rows in list(splits.items())[:5]
        )
        return (
            f"the object holds {len(lists)} lists of rows: {named}. Write the one that is meant as a "
            "file of its own."
        )
    return (
        f"the object holds {len(lists)} lists, so its rows cannot be found. Give a list of "
        "objects, an object with one list, columns of equal length, or rows by id."
    )


def _by_columns(value: Mapping[str, Any], lists: Mapping[str, list[Any]]) -> JsonRows | None:
    """Lists of equal length that are columns, or objects with the same keys that are."""
    lengths = {len(part) for part in lists.values()}
    if len(lists) == len(value) and len(lengths) == 1 and max(lengths):
        cells = [cell for part in lists.values() for cell in part]
        mixed = len(lists) > 1 and not all(isinstance(cell, dict) for cell in cells)
        if mixed or layouts_of(_spellings(lists)):
            return _columns(lists, range(lengths.pop()), as_lists=True)
    objects = [part for part in value.values() if isinstance(part, dict)]
    if objects and len(objects) == len(value):
        keys = list(objects[0])
        numbered = len(value) > 1 and keys == [str(n) for n in range(len(keys))]
        fits = numbered or layouts_of(_spellings(value))
        if fits and all(list(part) == keys for part in objects):
            return _columns(value, keys, as_lists=False)
    return None


def _spellings(names: Mapping[str, Any]) -> tuple[str, ...]:
    return (*names, *(name.lower() for name in names))


def _columns(columns: Mapping[str, Any], keys: Sequence[Any], *, as_lists: bool) -> JsonRows:
    records = [{name: part[key] for name, part in columns.items()} for key in keys]

    def rebuild(indices: Sequence[int], changes: Changes) -> str:
        kept = {keys[row]: {**records[row], **changes.get(row, {})} for row in indices}
        if as_lists:
            return _dumped({name: [kept[keys[row]][name] for row in indices] for name in columns})
        return _dumped({name: {key: kept[key][name] for key in kept} for name in columns})

    return JsonRows(records, rebuild)


def _by_split(value: Mapping[str, Any]) -> JsonRows | None:
    """What pandas writes with orient="split": names, index and cells apart."""
    names, cells = value.get("columns"), value.get("data")
    if not (isinstance(names, list) and isinstance(cells, list)):
        return None
    if not all(isinstance(name, str) for name in names) or not all(
        isinstance(row, list) and len(row) == len(names) for row in cells
    ):
        return None

    def rebuild(indices: Sequence[int], changes: Changes) -> str:
        kept = {
            "data": [
                [
                    changes.get(row, {}).get(n, cell)
                    for n, cell in zip(names, cells[row], strict=True)
                ]
                for row in indices
            ]
        }
        index = value.get("index")
        if isinstance(index, list) and len(index) == len(cells):
            kept["index"] = [index[row] for row in indices]
        return _dumped({**value, **kept})

    return JsonRows([dict(zip(names, row, strict=True)) for row in cells], rebuild)


def _by_ids(text: str, value: Mapping[str, Any]) -> JsonRows | None:
    """An object whose values are rows."""
    rows = list(value.values())
    if not rows or not all(isinstance(row, dict) for row in rows):
        return None
    columns = dict.fromkeys(key for row in rows for key in row)
    alike = len(rows) > 1 and all(row.keys() == rows[0].keys() for row in rows)
    if not alike and not layouts_of(_spellings(columns)):
        return None
    # A key that stands twice has one value, and two places.
    members = list(_members(text, _after(text, 0)))
    if len(members) != len(rows):
        return None
    return JsonRows(rows, _joined(text, [(start, at, end) for start, at, end, _ in members]))


def _cut_out(text: str, keys: tuple[str, ...]) -> Rebuild:
    """Text of the rows of a list, which is the whole or the value of a key."""
    start = _after(text, 0)
    for key in keys:
        # Of a key that stands twice the last value counts.
        start = [at for _, at, _, name in _members(text, start) if name == key][-1]
    return _joined(text, [(at, at, end) for at, end in _elements(text, start)])


def _joined(text: str, places: Sequence[tuple[int, int, int]]) -> Rebuild:
    """From where a row begins (its id, if it has one), over where its object does, to its end."""
    if not places:
        return lambda indices, changes: text
    head, tail = text[: places[0][0]], text[places[-1][2] :]
    gap = text[places[0][2] : places[1][0]] if len(places) > 1 else ","

    def rebuild(indices: Sequence[int], changes: Changes) -> str:
        if not changes and list(indices) == list(range(len(places))):
            return text
        return head + gap.join(_row(*places[row], changes.get(row, {})) for row in indices) + tail

    def _row(first: int, start: int, end: int, values: Mapping[str, Any]) -> str:
        return text[first:start] + changed_object(text[start:end], values)

    return rebuild


def changed_object(text: str, values: Mapping[str, Any]) -> str:
    """The text of an object with other values of some keys; all else keeps its characters.

    Args:
        text: holds one object, and white space around it.
        values: by key; all of them are there.
    """
    if not values:
        return text
    # Of a key that stands twice the last value counts.
    places = {key: (at, end) for _, at, end, key in _members(text, _after(text, 0))}
    for key, (at, end) in sorted(places.items(), key=lambda item: -item[1][0]):
        if key in values:
            text = text[:at] + json.dumps(values[key], ensure_ascii=text.isascii()) + text[end:]
    return text


def _elements(text: str, start: int) -> Iterator[tuple[int, int]]:
    """From where to where each value of a list stands; `start` is at its bracket."""
    at = _after(text, start + 1)
    while text[at] != "]":
        _, end = _DECODER.raw_decode(text, at)
        yield at, end
        at = _after(text, end)
        at = _after(text, at + 1) if text[at] == "," else at


def _members(text: str, start: int) -> Iterator[tuple[int, int, int, str]]:
    """Of each member of an object where its key and its value begin, where it ends, and the key."""
    at = _after(text, start + 1)
    while text[at] != "}":
        key, end = _DECODER.raw_decode(text, at)
        value = _after(text, _after(text, end) + 1)
        _, stop = _DECODER.raw_decode(text, value)
        yield at, value, stop, key
        at = _after(text, stop)
        at = _after(text, at + 1) if text[at] == "," else at


def _after(text: str, at: int) -> int:
    """The next character that is no white space."""
    while text[at] in _SPACE:
        at += 1
    return at


def _dumped(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can write
        text = json.dumps(value)
    return text + "\n"
