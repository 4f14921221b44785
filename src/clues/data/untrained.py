"""Saying in a row itself that some of its turns are not to be trained, so that any reader obeys.

The mark is a key of the turn, `train: false`, or the one that the turn has already, such as
`weight`. Which object becomes which turn is not worked out a second time: the row is marked, read
again, and the reader says which turn is not trained now.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from clues.data.arrowvalues import keys_of
from clues.data.conversations import TRAINED
from clues.data.formats import RowFile, in_parts
from clues.data.samples import Sample
from clues.data.schemas import parse_row
from clues.data.tables import parse_json
from clues.data.values import BadRow

MARK = "train"
_MOST_OBJECTS = 6  # that one turn is made of: an answer, and calls that are turns of their own
Place = tuple[str, int | None]  # a column, and the position in its list; None for an object alone
Values = dict[str, Any]


def mark_untrained(
    rows: RowFile, turns: Mapping[int, Collection[int]]
) -> dict[int, dict[str, Any]]:
    """New values of those columns of rows that hold turns which are not to be trained.

    Args:
        rows: the file.
        turns: by row, positions of turns in its sample.

    Returns:
        By row and column, as `write_rows` takes them as changes. Rows that have no place for the
        mark are left out: an earlier turn in pairs of texts, for example.
    """
    if not turns:
        return {}
    columns = [rows.parts[p] for p in _parts(rows) if p in rows.parts]
    records = rows.table.read(tuple(rows.parts.values()))
    found: dict[int, dict[str, Any]] = {}
    for row, unwanted in turns.items():
        marker = _Marker(rows, row, records[row], _Types.of(rows, columns))
        changed = marker.without(unwanted)
        if changed is not None:
            found[row] = changed
    return found


def markable(rows: RowFile, turns: Mapping[int, Collection[int]]) -> frozenset[int]:
    """Rows that can say of each of these turns that it is not trained."""
    return frozenset(mark_untrained(rows, turns))


def _parts(rows: RowFile) -> tuple[str, ...]:
    return tuple(dict.fromkeys((rows.layout.prompt, rows.layout.response)))


@dataclass(frozen=True)
class _Types:
    """Types of the keys of turns, by column; columns whose type takes no marks are not there."""

    keys: Mapping[str, Mapping[str, Any] | None]

    @classmethod
    def of(cls, rows: RowFile, columns: Sequence[str]) -> "_Types":
        if rows.table.arrow is None:
            return cls(dict.fromkeys(columns))
        kinds = {name: rows.table.arrow.schema.field(name).type for name in columns}
        texts = {n for n, kind in kinds.items() if "string" in str(kind)}
        known = {n: keys_of(kind) for n, kind in kinds.items()}
        return cls({n: keys for n, keys in known.items() if keys is not None or n in texts})


class _Marker:
    """One row, its turns as objects, and what the reader makes of marks on them."""

    def __init__(self, rows: RowFile, row: int, record: Values, types: _Types) -> None:
        self.rows, self.row, self.record, self.types = rows, row, record, types
        self.sample = rows.samples[row]
        # The objects of a text of JSON are within it.
        self.objects = {n: _objects(record.get(n)) for n in types.keys}
        self.places = [place for n, value in self.objects.items() for place in _places(n, value)]

    def without(self, turns: Collection[int]) -> Values | None:
        """The changed columns, once the reader takes these turns as untrained and changes nothing else."""
        wanted = [turn for turn in sorted(turns) if self.sample.messages[turn].trained]
        chosen: list[Place] = []
        single = {turn: [place] for place in self.places if (turn := self._turn_of([place])) >= 0}
        for turn in wanted:
            places = single.get(turn) or self._run_of(turn)
            if places is None:
                return None
            chosen += places
        changed = self._marked(chosen)
        return changed if self._untrained(changed) == set(wanted) else None

    def _run_of(self, turn: int) -> list[Place] | None:
        """Objects that follow one another and are one turn together."""
        for first in range(len(self.places)):
            for size in range(2, _MOST_OBJECTS + 1):
                run = self.places[first : first + size]
                if len(run) == size and self._turn_of(run) == turn:
                    return run
        return None

    def _turn_of(self, places: Sequence[Place]) -> int:
        """The one turn that marks on these objects keep from being trained; -1 for none or several."""
        found = self._untrained(self._marked(places)) or set()
        return found.pop() if len(found) == 1 else -1

    def _untrained(self, changed: Values) -> set[int] | None:
        """Turns that are not trained any more; None where anything else is other than it was."""
        record = {**self.record, **changed}
        from_arrow = self.rows.table.arrow is not None
        try:
            sample = parse_row(
                self.rows.layout, in_parts(record, self.rows.parts, from_arrow=from_arrow), self.row
            )
        except BadRow:
            return None
        if _all_trained(sample) != _all_trained(self.sample):
            return None
        pairs = zip(self.sample.messages, sample.messages, strict=True)
        return {
            i for i, (before, after) in enumerate(pairs) if before.trained and not after.trained
        }

    def _marked(self, places: Sequence[Place]) -> Values:
        changed: Values = {}
        for column in dict.fromkeys(column for column, _ in places):
            at = [position for name, position in places if name == column]
            value = self.objects[column]
            if isinstance(value, dict):
                value = self._off(value, column)
            else:
                value = [
                    self._off(part, column) if i in at else part for i, part in enumerate(value)
                ]
            own = self.record[column]
            changed[column] = (
                json.dumps(value, ensure_ascii=own.isascii()) if isinstance(own, str) else value
            )
        return changed

    def _off(self, turn: Values, column: str) -> Values:
        """A turn that says that it is not trained, in its own way where it has one."""
        kinds = self.types.keys[column] or {}
        own = (name for name in TRAINED if turn.get(name) is not None)
        # Where a column has a type, a key of it serves that other rows use.
        key = next(own, None) or next((name for name in TRAINED if name in kinds), MARK)
        return {**turn, key: _off_like(turn.get(key), kinds.get(key))}


def _off_like(value: Any, kind: Any) -> Any:
    """What says no in the place of a value: false, 0 or their text."""
    if value is None and kind is not None and not pa.types.is_boolean(kind):
        return "false" if "string" in str(kind) else 0
    if isinstance(value, str):
        return "0" if value.strip() in ("0", "1") else "false"
    return False if value is None or isinstance(value, bool) else type(value)(0)


def _objects(value: Any) -> Any:
    """The turns of a column as objects, read out of a text of JSON if it is one; else None."""
    if isinstance(value, str):
        value = parse_json(value)[0] if value.lstrip().startswith(("[", "{")) else None
    return value if isinstance(value, list | dict) else None


def _places(column: str, value: Any) -> Iterator[Place]:
    if isinstance(value, dict):
        yield column, None
    elif value is not None:
        yield from ((column, i) for i, part in enumerate(value) if isinstance(part, dict))


def _all_trained(sample: Sample) -> Sample:
    """The sample without what its turns say of training."""
    turns = tuple(replace(turn, trained=True) for turn in sample.messages)
    return replace(sample, messages=turns, rejected=())
