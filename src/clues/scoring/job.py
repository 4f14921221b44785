"""What is to be scored at one checkpoint, and how it is dealt into shards.

A shard is a fixed set of rows, so that its numbers are the same whoever computes it and whenever.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from clues.atomic import make_folder, read_bytes
from clues.data.tokenfile import TokenRows, hash_rows, write_rows
from clues.data.tokens import EncodedRow
from clues.errors import DataError
from clues.model.adapters import AdapterState, Checkpoint, write_tensors
from clues.model.tensorfile import is_sealed, pack, sealed_parts, unpack

ROWS_PER_SHARD, MOST_SHARDS = 256, 10_000
FILE = "job.safetensors"
LOSS_ONLY = "loss"  # stands for a form where rows have a loss and no inner products


@dataclass(frozen=True)
class Job:
    """Rows to score at one checkpoint.

    Attributes:
        rows: in memory, or in a token file.
        checkpoint: whose adapter counts.
        directions: one column of inner products each; none where the form is `loss`.
        form: of the score, or `loss`.
        way: how it is computed.
        skip_nonfinite: give NaN instead of raising.
    """

    rows: Sequence[EncodedRow]
    checkpoint: Checkpoint
    directions: Sequence[AdapterState]
    form: str
    way: str
    skip_nonfinite: bool = False

    @classmethod
    def of_losses(
        cls, rows: Sequence[EncodedRow], adapter: AdapterState, *, skip_nonfinite: bool = False
    ) -> "Job":
        """Losses of rows under an adapter, and nothing else."""
        checkpoint = Checkpoint(0, 0.0, adapter, {})
        return cls(rows, checkpoint, [], LOSS_ONLY, "forward", skip_nonfinite)

    @property
    def what(self) -> str:
        """What is computed, for people."""
        if self.form == LOSS_ONLY:
            return "losses"
        return f"scores at step {self.checkpoint.step}"

    @cached_property
    def key(self) -> str:
        """Hash of everything a score depends on; the rows count by the hash of their file."""
        digest = hashlib.sha256()
        settings = [self.form, self.way, self.skip_nonfinite, self.checkpoint.optimizer_steps]
        plan, tensors = pack(self._states())
        digest.update(json.dumps([settings, hash_rows(self.rows), plan]).encode())
        for tensor in tensors.values():
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:24]

    @cached_property
    def plan(self) -> list[np.ndarray]:
        """Positions of every shard's rows: rows of similar length, whatever the file's order."""
        lengths, ids = self._columns
        # The last key counts first; rows that are equal in both stay in the file's order.
        order = np.lexsort((ids, -lengths)) if len(lengths) else np.zeros(0, int)
        size = rows_per_shard(len(order))
        return [order[i : i + size] for i in range(0, len(order), size)]

    def shards(self) -> list[list[int]]:
        """The plan as plain numbers."""
        return [shard.tolist() for shard in self.plan]

    def rows_of(self, number: int) -> list[EncodedRow]:
        """The rows of one shard."""
        return [self.rows[int(i)] for i in self.plan[number]]

    def ids_of(self, number: int) -> list[str]:
        """Content ids of one shard's rows."""
        return self._columns[1][self.plan[number]].tolist()

    @cached_property
    def _columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Length and content id of every row."""
        if isinstance(self.rows, TokenRows):
            return self.rows.lengths, self.rows.id_texts
        return np.array([len(row.ids) for row in self.rows]), np.array(
            [row.id for row in self.rows]
        )

    def write(self, folder: Path) -> None:
        """Write the job for other processes, and the rows' token ids beside its folder.

        Both stay in the silo.
        """
        rows = (
            self.rows if isinstance(self.rows, TokenRows) else write_rows(self.rows, folder.parent)
        )
        plan, tensors = pack(self._states())
        make_folder(folder)
        place = os.path.relpath(rows.path, folder)
        head = {**self._head(plan), "tokens": [place, rows.hash]}
        write_tensors(folder / FILE, tensors, clues=json.dumps(head))

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """Read what `write` wrote.

        Raises:
            DataError: it is missing or unreadable.
        """
        try:
            data = read_bytes(folder / FILE)
            _, head = unsealed(data)
            place, hash_ = head["tokens"]
            rows = TokenRows(folder / place, hash_)
            return cls.unpacked(data, rows)
        except (OSError, KeyError, ValueError, SafetensorError):
            raise DataError(f"{folder.name}: the scoring job cannot be read.") from None

    def packed(self) -> bytes:
        """The job without its rows, as a sealed safetensors file."""
        plan, tensors = pack(self._states())
        return b"".join(sealed_parts(tensors, {"clues": json.dumps(self._head(plan))}))

    @classmethod
    def unpacked(cls, data: bytes, rows: Sequence[EncodedRow]) -> "Job":
        """The job that `packed` or `write` made, with its rows or some of them.

        Raises:
            ValueError: it is something else.
        """
        tensors, head = unsealed(data)
        states = unpack(head["plan"], tensors.pop)
        checkpoint = Checkpoint(
            head["step"],
            head["learning_rate"],
            states["adapter"],
            states["second_moment"],
            states["first_moment"],
            head["optimizer_steps"],
        )
        how = (head["form"], head["way"], head["skip_nonfinite"])
        return cls(rows, checkpoint, states["directions"], *how)

    def _head(self, plan: Any) -> dict[str, Any]:
        return {
            "plan": plan,
            "form": self.form,
            "way": self.way,
            "skip_nonfinite": self.skip_nonfinite,
            "step": self.checkpoint.step,
            "learning_rate": self.checkpoint.learning_rate,
            "optimizer_steps": self.checkpoint.optimizer_steps,
        }

    def _states(self) -> dict[str, Any]:
        return {
            "adapter": self.checkpoint.adapter,
            "second_moment": self.checkpoint.second_moment,
            "first_moment": self.checkpoint.first_moment,
            "directions": list(self.directions),
        }


def rows_per_shard(n_rows: int) -> int:
    """Length of a shard: enough rows that no job has more than ten thousand."""
    return max(ROWS_PER_SHARD, -(-n_rows // MOST_SHARDS))


def unsealed(data: bytes) -> tuple[dict[str, Tensor], Any]:
    """Tensors and our part of the metadata of a sealed safetensors file.

    Raises:
        ValueError: it is not what was written.
    """
    if not is_sealed(data):
        raise ValueError("not what was written")
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return load(data), json.loads(header["__metadata__"]["clues"])
