"""Scores at one checkpoint, in shards that are written as they finish.

A shard is a fixed set of rows, so that its numbers are the same whoever computes it and whenever:
after a kill, or by another process that takes every second shard of the same job. Processes share
nothing but the job's folder; nobody waits in the loop.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from clues.atomic import make_folder
from clues.data.tokens import EncodedRow
from clues.errors import DataError
from clues.model.adapters import AdapterState, Checkpoint, LoraModel, write_tensors
from clues.model.tensorfile import is_sealed, pack, unpack
from clues.scoring.forms import form_scores
from clues.scoring.influence import RowScores

ROWS_PER_SHARD = 256
POLL_S, PATIENCE_S = 0.05, 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Team:
    """The processes that score together; `rank` takes shards rank, rank + size, ..."""

    rank: int = 0
    size: int = 1


@dataclass(frozen=True)
class Job:
    """Rows to score at one checkpoint."""

    rows: Sequence[EncodedRow]
    checkpoint: Checkpoint
    directions: Sequence[AdapterState]
    form: str
    way: str
    skip_nonfinite: bool = False

    @property
    def key(self) -> str:
        """Hash of everything a score depends on, the rows' content included."""
        digest = hashlib.sha256()
        settings = [self.form, self.way, self.skip_nonfinite, self.checkpoint.optimizer_steps]
        rows = [[row.id, row.ids, row.mask] for row in self.rows]
        plan, tensors = pack(self._states())
        digest.update(json.dumps([settings, rows, plan]).encode())
        for tensor in tensors.values():
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:24]

    def shards(self) -> list[list[int]]:
        """Positions of every shard's rows: rows of similar length, whatever the file's order."""
        rows = self.rows
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].ids), rows[i].id, i))
        return [order[i : i + ROWS_PER_SHARD] for i in range(0, len(order), ROWS_PER_SHARD)]

    def write(self, folder: Path) -> None:
        """Write the job for other processes of this machine. Holds rows: stays in the silo."""
        ids = [t for row in self.rows for t in row.ids]
        mask = [int(t) for row in self.rows for t in row.mask]
        tokens = {"ids": torch.tensor(ids), "mask": torch.tensor(mask, dtype=torch.uint8)}
        plan, tensors = pack({**self._states(), "tokens": tokens})
        head = {
            "plan": plan,
            "form": self.form,
            "way": self.way,
            "skip_nonfinite": self.skip_nonfinite,
            "step": self.checkpoint.step,
            "learning_rate": self.checkpoint.learning_rate,
            "optimizer_steps": self.checkpoint.optimizer_steps,
            "rows": [[row.row, row.id, len(row.ids), row.truncated] for row in self.rows],
        }
        make_folder(folder)
        write_tensors(folder / "job.safetensors", tensors, clues=json.dumps(head))

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """Read what `write` wrote.

        Raises:
            DataError: it is missing or unreadable.
        """
        try:
            tensors, head = _read(folder / "job.safetensors")
            states = unpack(head["plan"], tensors.pop)
            ids, mask = states["tokens"]["ids"].tolist(), states["tokens"]["mask"].tolist()
            rows: list[EncodedRow] = []
            start = 0
            for row, id_, length, truncated in head["rows"]:
                part = slice(start, start + length)
                flags = tuple(bool(x) for x in mask[part])
                rows.append(EncodedRow(row, id_, tuple(ids[part]), flags, truncated))
                start += length
            checkpoint = Checkpoint(
                head["step"],
                head["learning_rate"],
                states["adapter"],
                states["second_moment"],
                states["first_moment"],
                head["optimizer_steps"],
            )
            directions = states["directions"]
        except (OSError, KeyError, ValueError, SafetensorError):
            raise DataError(f"{folder.name}: the scoring job cannot be read.") from None
        return cls(rows, checkpoint, directions, head["form"], head["way"], head["skip_nonfinite"])

    def _states(self) -> dict[str, Any]:
        return {
            "adapter": self.checkpoint.adapter,
            "second_moment": self.checkpoint.second_moment,
            "first_moment": self.checkpoint.first_moment,
            "directions": list(self.directions),
        }


def score_in_shards(
    model: LoraModel,
    job: Job,
    folder: Path,
    *,
    team: Team | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> RowScores:
    """Score a job's rows, taking finished shards from disk.

    Args:
        model: its adapter is set to the checkpoint's.
        job: what to score.
        folder: of all jobs; this one's is named after its key.
        team: processes that share the work; shards that the others do not bring within
            `PATIENCE_S` of the last one are computed here, with a line in the log.
        on_rows: called with the number of rows finished.

    Raises:
        NumericsError: a score is not finite.
    """
    team = team or Team()
    place, shards = folder / job.key, job.shards()
    if team.size > 1:
        job.write(place)
    products = np.zeros((len(job.rows), len(job.directions)))
    losses = np.zeros(len(job.rows))

    def take(number: int, found: RowScores) -> None:
        products[shards[number]] = found.products
        losses[shards[number]] = found.losses
        if on_rows:
            on_rows(len(shards[number]))

    theirs: list[int] = []
    for number in range(len(shards)):
        found = read_shard(place, number, job)
        if found is None and number % team.size != team.rank:
            theirs.append(number)
            continue
        take(number, found or compute_shard(model, job, number, place))
    waited = time.monotonic()
    while theirs:
        arrived = [(n, found) for n in theirs if (found := read_shard(place, n, job))]
        for number, found in arrived:
            take(number, found)
            theirs.remove(number)
            waited = time.monotonic()
        if theirs and not arrived:
            if time.monotonic() - waited > PATIENCE_S:
                log.warning("no other process brought %d shards; computing them", len(theirs))
                number = theirs.pop()
                take(number, compute_shard(model, job, number, place))
            else:
                time.sleep(POLL_S)
    return RowScores(products, losses)


def compute_shard(model: LoraModel, job: Job, number: int, folder: Path) -> RowScores:
    """Score one shard and write it."""
    members = job.shards()[number]
    rows = [job.rows[i] for i in members]
    found = form_scores(
        model,
        rows,
        job.checkpoint,
        list(job.directions),
        form=job.form,
        way=job.way,
        skip_nonfinite=job.skip_nonfinite,
    )
    tensors = {"products": torch.tensor(found.products), "losses": torch.tensor(found.losses)}
    make_folder(folder)
    head = json.dumps([row.id for row in rows])
    write_tensors(folder / f"shard-{number}.safetensors", tensors, clues=head)
    return found


def read_shard(folder: Path, number: int, job: Job) -> RowScores | None:
    """A finished shard; None where it is absent, damaged, or of other rows."""
    path = folder / f"shard-{number}.safetensors"
    if not path.exists():
        return None
    members = job.shards()[number]
    try:
        tensors, ids = _read(path)
        found = RowScores(tensors["products"].numpy(), tensors["losses"].numpy())
    except (OSError, KeyError, ValueError, SafetensorError):
        return None
    fits = (
        ids == [job.rows[i].id for i in members]
        and found.products.shape == (len(members), len(job.directions))
        and found.losses.shape == (len(members),)
    )
    return found if fits else None


def _read(path: Path) -> tuple[dict[str, Tensor], Any]:
    data = path.read_bytes()
    if not is_sealed(data):
        raise ValueError
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return load(data), json.loads(header["__metadata__"]["clues"])
