"""Some of many rows, or what is made of them, without holding them."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import overload

from clues.data.tokens import EncodedRow


class Rows(Sequence[EncodedRow]):
    """Rows that are made when they are asked for."""

    @abstractmethod
    def row(self, position: int) -> EncodedRow:
        """One row; a negative position counts from the end."""

    def numbers(self) -> list[int]:
        """Every row's place in the silo's file."""
        return [row.row for row in self]

    @overload
    def __getitem__(self, where: int) -> EncodedRow: ...
    @overload
    def __getitem__(self, where: slice) -> list[EncodedRow]: ...
    def __getitem__(self, where: int | slice) -> EncodedRow | list[EncodedRow]:
        """One row, or several as a list."""
        if isinstance(where, slice):
            return [self.row(i) for i in range(*where.indices(len(self)))]
        return self.row(where)


class View(Rows):
    """Rows by position."""

    def __init__(
        self,
        rows: Sequence[EncodedRow],
        positions: Sequence[int],
        change: Callable[[EncodedRow], EncodedRow] | None = None,
    ) -> None:
        """Take rows, which of them, and what is made of each; no change moves a row."""
        self.rows, self.positions, self.change = rows, positions, change

    def __len__(self) -> int:
        return len(self.positions)

    def row(self, position: int) -> EncodedRow:
        """One row, as the view changes it."""
        row = self.rows[int(self.positions[position])]
        return self.change(row) if self.change else row

    def numbers(self) -> list[int]:
        """Every row's place in the silo's file, without making the rows."""
        found = row_numbers(self.rows)
        return [found[int(i)] for i in self.positions]


def row_numbers(rows: Sequence[EncodedRow]) -> list[int]:
    """Every row's place in the silo's file; rows that are not held are not made for it."""
    return rows.numbers() if isinstance(rows, Rows) else [row.row for row in rows]
