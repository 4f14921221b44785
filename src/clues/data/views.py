"""Some of many rows, or what is made of them, without holding them."""

from collections.abc import Callable, Sequence
from typing import overload

from clues.data.tokens import EncodedRow


class View(Sequence[EncodedRow]):
    """Rows by position, made when they are asked for."""

    def __init__(
        self,
        rows: Sequence[EncodedRow],
        positions: Sequence[int],
        change: Callable[[EncodedRow], EncodedRow] | None = None,
    ) -> None:
        """Take rows, which of them, and what is made of each."""
        self.rows, self.positions, self.change = rows, positions, change

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, where: int) -> EncodedRow: ...
    @overload
    def __getitem__(self, where: slice) -> list[EncodedRow]: ...
    def __getitem__(self, where: int | slice) -> EncodedRow | list[EncodedRow]:
        """One row, or several as a list."""
        if isinstance(where, slice):
            return [self[i] for i in range(*where.indices(len(self)))]
        row = self.rows[int(self.positions[where])]
        return self.change(row) if self.change else row
