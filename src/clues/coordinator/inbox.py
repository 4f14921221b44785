"""Silos' adapters of one round, on the coordinator's disk until they are joined.

Every silo's reply is written as it came. What reads it takes one weight at a time, so that memory
grows with the adapter and not with the number of silos.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clues.atomic import atomic_write_bytes, make_folder
from clues.wall.container import DTYPES, read_header, read_text
from clues.wall.messages import stored_names


class StoredTensors(Mapping[str, Tensor]):
    """One tensor field of a stored message; every access reads that tensor from the disk.

    The header is read once: `safe_open` reads all of it at every opening, which with thousands of
    weights takes longer than the weights, and a file left open for every silo runs into limits.
    """

    def __init__(self, path: Path, field: str) -> None:
        """Read the names and where each tensor lies."""
        self.path, self.field = path, field
        with path.open("rb") as file:
            n_header = int.from_bytes(start := file.read(8), "little")
            header = read_header(start + file.read(n_header), n_bytes=path.stat().st_size)
        self.start = 8 + n_header
        names = stored_names(read_text(header), field)
        self.specs: dict[str, Any] = {weight: header[name] for weight, name in names.items()}

    def __getitem__(self, name: str) -> Tensor:
        spec = self.specs[name]
        begin, end = spec["data_offsets"]
        dtype, shape = DTYPES[spec["dtype"]], spec["shape"]
        if begin == end:
            return torch.zeros(shape, dtype=dtype)
        with self.path.open("rb") as file:
            file.seek(self.start + begin)
            return torch.frombuffer(bytearray(file.read(end - begin)), dtype=dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


@dataclass(frozen=True)
class Update:
    """What stays in memory of a silo's reply.

    Attributes:
        weight: rows it was trained on, rounded to tens.
        norm: length of the change.
        learning_rate: of the last step; 0 where the message has none.
        path: the whole reply.
        means: lengths of the optimiser's first and second mean; 0 where the message has none.
    """

    weight: int
    norm: float
    learning_rate: float
    path: Path
    means: tuple[float, float] = (0.0, 0.0)

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
