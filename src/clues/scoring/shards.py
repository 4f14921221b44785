"""Scores at one checkpoint, in shards that are written as they finish.

A finished shard is taken from the disk: after a kill, or where another process has computed it.
Processes of one machine share nothing but the job's folder; nobody waits in the loop.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError

from clues.atomic import atomic_write_bytes, make_folder
from clues.data.tokens import EncodedRow
from clues.model.adapters import AdapterState, LoraModel
from clues.model.tensorfile import sealed_parts
from clues.scoring.forms import form_scores
from clues.scoring.influence import RowScores
from clues.scoring.job import LOSS_ONLY, Job, unsealed
from clues.scoring.perplexity import mean_losses
from clues.scoring.watch import Watch

POLL_S, PATIENCE_S = 0.05, 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Team:
    """The processes of this machine that score together; `rank` takes shards rank, rank + size, ..."""

    rank: int = 0
    size: int = 1


class Engine(Protocol):
    """Who computes shards in this process's place."""

    def shards(self, job: Job, numbers: Sequence[int], folder: Path) -> Iterator[int]:
        """Have shards computed and write each into the folder; yields their numbers.

        Raises:
            ClusterError: nobody is left to compute them. What is written stays.
        """
        ...


@dataclass(frozen=True)
class Sharing:
    """Where shards of a silo's rows lie, and who computes them.

    Attributes:
        folder: of all jobs.
        team: processes of this machine that share the work.
        engine: computes all shards, where there is one.
        watch: is told how far it is.
    """

    folder: Path
    team: Team | None = None
    engine: Engine | None = None
    watch: Watch | None = None

    def scores(
        self, model: LoraModel, job: Job, *, on_rows: Callable[[int], None] | None = None
    ) -> RowScores:
        """As `score_in_shards`."""
        return score_in_shards(
            model,
            job,
            self.folder,
            team=self.team,
            engine=self.engine,
            watch=self.watch,
            on_rows=on_rows,
        )

    def losses(
        self,
        model: LoraModel,
        rows: Sequence[EncodedRow],
        adapter: AdapterState,
        *,
        skip_nonfinite: bool = False,
        on_rows: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Mean response-token loss of every row under an adapter, in nats."""
        job = Job.of_losses(rows, adapter, skip_nonfinite=skip_nonfinite)
        return self.scores(model, job, on_rows=on_rows).losses


def score_in_shards(
    model: LoraModel,
    job: Job,
    folder: Path,
    *,
    team: Team | None = None,
    engine: Engine | None = None,
    watch: Watch | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> RowScores:
    """Score a job's rows, taking finished shards from disk.

    Args:
        model: its adapter is set to the checkpoint's.
        job: what to score.
        folder: of all jobs; this one's is named after its key.
        team: processes that share the work; shards that the others do not bring within
            `PATIENCE_S` of the last one are computed here, with a line in the log.
        engine: computes all shards that are not there yet.
        watch: is told of every shard.
        on_rows: called with the number of rows finished.

    Raises:
        NumericsError: a score is not finite.
        ClusterError: the engine has nobody to compute them.
    """
    team = team or Team()
    place, plan = folder / job.key, job.plan
    if team.size > 1:
        job.write(place)
    products = np.zeros((len(job.rows), len(job.directions)))
    losses = np.zeros(len(job.rows))

    def take(number: int, found: RowScores, *, again: bool = False, n_told: int = 0) -> None:
        products[plan[number]] = found.products
        losses[plan[number]] = found.losses
        if watch:
            watch.took(len(plan[number]), found=again)
        if on_rows and (rest := len(plan[number]) - n_told):
            on_rows(rest)

    def here(number: int) -> None:
        """Compute a shard that nobody has brought meanwhile.

        A shard of long rows takes minutes, so its rows are told as they finish.
        """
        if (found := read_shard(place, number, job)) is not None:
            take(number, found)
            return
        n_told = 0

        def within(n: int) -> None:
            nonlocal n_told
            n_told += n
            if on_rows:
                on_rows(n)

        take(number, compute_shard(model, job, number, place, on_rows=within), n_told=n_told)

    if watch:
        watch.begin(job.what, part="shard", n_parts=len(plan), n_rows=len(job.rows))
    open_: list[int] = []
    for number in range(len(plan)):
        found = read_shard(place, number, job)
        if found is None:
            open_.append(number)
        else:
            take(number, found, again=True)
    if watch:
        watch.tell()
    if engine is not None:
        for number in engine.shards(job, open_, place) if open_ else ():
            found = read_shard(place, number, job)
            assert found is not None, "the engine wrote another shard"
            take(number, found)
        return RowScores(products, losses)
    for number in spread([n for n in open_ if n % team.size == team.rank]):
        here(number)
    theirs = [n for n in open_ if n % team.size != team.rank]
    _take_from_others(job, place, theirs, take, here)
    return RowScores(products, losses)


def spread(numbers: Sequence[int]) -> list[int]:
    """Shards in an order in which any first part is much like the whole.

    Shards go from long rows to short ones; one after the other, the first tenth of the rows may
    take a third of the time, and what is said of the time left is wrong by as much.
    """

    def place(at: int) -> float:
        """Van der Corput's sequence in base 2: 1/2, 1/4, 3/4, 1/8, ..."""
        value, part, at = 0.0, 0.5, at + 1
        while at:
            value, part, at = value + part * (at % 2), part / 2, at // 2
        return value

    ranks = {at: rank for rank, at in enumerate(sorted(range(len(numbers)), key=place))}
    return [numbers[ranks[at]] for at in range(len(numbers))]


def _take_from_others(
    job: Job,
    place: Path,
    theirs: list[int],
    take: Callable[[int, RowScores], None],
    here: Callable[[int], None],
) -> None:
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
                here(theirs.pop())
            else:
                time.sleep(POLL_S)


def compute_shard(
    model: LoraModel,
    job: Job,
    number: int,
    folder: Path,
    *,
    on_rows: Callable[[int], None] | None = None,
) -> RowScores:
    """Score one shard and write it; `on_rows` is called with the number of rows finished."""
    rows = job.rows_of(number)
    found = scores_of(model, job, rows, on_rows=on_rows)
    write_shard(folder, number, packed_scores(found, rows))
    return found


def scores_of(
    model: LoraModel,
    job: Job,
    rows: Sequence[EncodedRow],
    *,
    token_budget: int | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> RowScores:
    """Score some rows as a job says.

    Args:
        model: its adapter is set to the checkpoint's.
        job: its own rows do not count.
        rows: to score.
        token_budget: padded tokens per batch to begin with; by the device if None.
        on_rows: called with the number of rows finished.

    Raises:
        NumericsError: a score is not finite.
        DataError: one row alone does not fit into memory.
    """
    if job.form == LOSS_ONLY:
        losses = mean_losses(
            model,
            rows,
            adapter=job.checkpoint.adapter,
            token_budget=token_budget,
            on_rows=on_rows,
            skip_nonfinite=job.skip_nonfinite,
        )
        return RowScores(np.zeros((len(rows), 0)), losses)
    return form_scores(
        model,
        rows,
        job.checkpoint,
        list(job.directions),
        form=job.form,
        way=job.way,
        token_budget=token_budget,
        on_rows=on_rows,
        skip_nonfinite=job.skip_nonfinite,
    )


def packed_scores(found: RowScores, rows: Sequence[EncodedRow]) -> bytes:
    """A shard's file: its numbers, whose they are, and the file's own checksum."""
    tensors = {"products": torch.tensor(found.products), "losses": torch.tensor(found.losses)}
    head = json.dumps([row.id for row in rows])
    return b"".join(sealed_parts(tensors, {"clues": head}))


def write_shard(folder: Path, number: int, data: bytes) -> None:
    """Put a shard's file into its job's folder."""
    make_folder(folder)
    atomic_write_bytes(shard_path(folder, number), data)


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard of a job lies."""
    return folder / f"shard-{number}.safetensors"


def read_shard(folder: Path, number: int, job: Job) -> RowScores | None:
    """A finished shard; None where it is absent, damaged, or of other rows."""
    path = shard_path(folder, number)
    if not path.exists():
        return None
    try:
        return unpacked_scores(path.read_bytes(), job, number)
    except OSError:
        return None


def unpacked_scores(data: bytes, job: Job, number: int) -> RowScores | None:
    """The numbers in a shard's file; None where it is damaged or of other rows."""
    n_rows = len(job.plan[number])
    try:
        tensors, ids = unsealed(data)
        found = RowScores(tensors["products"].numpy(), tensors["losses"].numpy())
    except (KeyError, ValueError, SafetensorError):
        return None
    fits = (
        found.products.shape == (n_rows, len(job.directions))
        and found.losses.shape == (n_rows,)
        and ids == job.ids_of(number)
    )
    return found if fits else None
