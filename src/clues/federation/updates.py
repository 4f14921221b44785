"""Silos' adapters of one round, on the coordinator's disk until they are joined.

Every silo's reply is written as it came. What reads it takes one weight at a time, so that memory
grows with the adapter and not with the number of silos.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from clues.atomic import atomic_write_bytes, make_folder


class StoredTensors(Mapping[str, Tensor]):
    """One tensor field of a stored message; every access reads from the disk."""

    def __init__(self, path: Path, field: str) -> None:
        """Read the names."""
        self.path, self.field = path, field
        with safe_open(path, framework="pt") as file:
            owned = [n for n in file.keys() if n.startswith(f"{field}|")]  # noqa: SIM118
        self.names = tuple(name.removeprefix(f"{field}|") for name in owned)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(f"{self.field}|{name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Update:
    """What stays in memory of a silo's reply.

    Attributes:
        weight: rows it was trained on, rounded to tens.
        norm: length of the change.
        learning_rate: of the last step; 0 where the message has none.
        path: the whole reply.
    """

    weight: int
    norm: float
    learning_rate: float
    path: Path

    def tensors(self, field: str = "adapter") -> StoredTensors:
        """One of the reply's tensor fields."""
        return StoredTensors(self.path, field)


@dataclass(frozen=True)
class Inbox:
    """A folder for the replies of one round."""

    folder: Path

    def path(self, name: str) -> Path:
        """Where a silo's reply lies."""
        return self.folder / f"{name}.safetensors"

    def put(self, name: str, data: bytes) -> None:
        """Write a silo's reply."""
        make_folder(self.folder)
        atomic_write_bytes(self.path(name), data)

    def clear(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
