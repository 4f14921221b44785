"""What runs in a worker process of a silo's cluster: it holds the base model and scores shards.

It is given token ids and adapters, never text, and answers with the bytes of a shard's file.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from socket import gethostname
from typing import Any, NamedTuple

import torch

from clues import __version__
from clues.cluster.connection import AUTH_MODE
from clues.config import Recipe, differing, validate
from clues.data.batching import token_budget_of
from clues.data.tokenfile import TokenRows, pack_rows, unpack_rows
from clues.data.tokens import EncodedRow
from clues.errors import CluesError, DataError
from clues.extras import needs
from clues.model.adapters import LoraModel
from clues.model.place import identify
from clues.scoring.influence import RowScores
from clues.scoring.job import Job
from clues.scoring.shards import packed_scores, scores_of

# Numbers depend on these; Ray itself compares its own version and Python's.
COMPARED = ("torch", "transformers", "peft")
MOST_HALVINGS = 8


class Task(NamedTuple):
    """One shard to score.

    Attributes:
        key: of the job.
        positions: of the shard's rows in the token file.
        place: the token file's path and hash.
        digest: SHA-256 of the shard's rows as `pack_rows` writes them.
        rows: these bytes, for a worker that does not see the file; None for the others.
        halvings: how often batches are halved from the beginning: workers have run out of memory
            at this shard.
    """

    key: str
    positions: Sequence[int]
    place: tuple[str, str]
    digest: str
    rows: bytes | None
    halvings: int = 0


class Answer(NamedTuple):
    """What became of a shard.

    Attributes:
        shard: the bytes of its file; None where something is wrong.
        unseen: the worker does not see the same token file.
        refused: what our own code says against it: kind of error and text.
        notes: warnings that came up, for the silo's log.
    """

    shard: bytes | None = None
    unseen: bool = False
    refused: tuple[str, str] | None = None
    notes: tuple[str, ...] = ()


class Scorer:
    """One worker; Ray makes it an actor."""

    def __init__(self) -> None:
        """Load nothing yet, so that whatever is wrong can be said in an answer."""
        self.model: LoraModel | None = None
        self.jobs: dict[str, Job] = {}
        self.files: dict[tuple[str, str], TokenRows] = {}

    def begin(self, recipe: str, n_threads: int) -> dict[str, str]:
        """Load the base model.

        Args:
            recipe: as JSON, with the base model where the silo's settings say.
            n_threads: for CPU work.

        Returns:
            `host`; `auth`, whether its node asks for a token; the versions of what numbers depend
            on; and `problem` where there is one.
        """
        # Of the machine, for Ray gives a worker the environment of the node that it runs on.
        found = {"host": gethostname(), "auth": os.environ.get(AUTH_MODE, ""), **versions()}
        torch.set_num_threads(n_threads)
        try:
            settings = validate(Recipe, json.loads(recipe), where="the recipe")
            theirs = settings.model.files
            if theirs and (what := differing(identify(settings.model), theirs)):
                return found | {"problem": f"its base model is another one ({what})"}
            self.model = LoraModel.load(settings.model, settings.lora, seed=settings.seed)
        except CluesError as error:
            return found | {"problem": str(error)}
        return found

    def score(self, task: Task, job: Sequence[Any]) -> Answer:
        """Score one shard.

        Args:
            task: what to score.
            job: a list of one reference to the packed job; fetched once per job.
        """
        assert self.model is not None
        if task.key not in self.jobs:
            self.jobs = {task.key: Job.unpacked(fetched(job[0]), ())}
        rows = self._rows(task)
        if rows is None:
            return Answer(unseen=True)
        with collected() as notes:
            try:
                found = halving(self.model, self.jobs[task.key], rows, halvings=task.halvings)
            except CluesError as error:
                return Answer(refused=(type(error).__name__, str(error)), notes=tuple(notes))
        return Answer(packed_scores(found, rows), notes=tuple(notes))

    def _rows(self, task: Task) -> list[EncodedRow] | None:
        """The shard's rows; None where the worker does not see the silo's own file."""
        if task.rows is not None:
            if hashlib.sha256(task.rows).hexdigest() != task.digest:
                raise DataError("rows of a shard did not arrive as they were sent.")
            return unpack_rows(task.rows)
        if task.place not in self.files:
            try:
                self.files = {task.place: TokenRows(Path(task.place[0]), task.place[1])}
            except DataError:
                return None
        file = self.files[task.place]
        if max(task.positions, default=0) >= len(file):
            return None
        rows = [file[position] for position in task.positions]
        # Another file may stand under the same path on another machine.
        return rows if hashlib.sha256(pack_rows(rows)).hexdigest() == task.digest else None


def fetched(reference: Any) -> Any:
    """What a reference into Ray's object store stands for."""
    with needs("ray", what="a worker of a silo's cluster"):
        import ray
    return ray.get(reference)


def versions() -> dict[str, str]:
    """Versions of what numbers depend on, by name."""
    found = {"clues": __version__}
    for name in COMPARED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def halving(
    model: LoraModel, job: Job, rows: Sequence[EncodedRow], *, halvings: int = 0
) -> RowScores:
    """Score rows; where the machine's memory runs out, in batches half as large, and say so.

    A GPU's memory is looked after where batches are made.

    Args:
        model: its adapter is set to the checkpoint's.
        job: how to score.
        rows: to score.
        halvings: how often batches are halved before the first try.

    Raises:
        MemoryError: the smallest batch does not fit.
    """
    budget = token_budget_of(model.device) // 2**halvings if halvings else None
    for _ in range(MOST_HALVINGS):
        try:
            return scores_of(model, job, rows, token_budget=budget)
        except (MemoryError, RuntimeError) as error:
            # torch has no class of its own for a CPU that has no memory left.
            if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
                raise
        budget = (budget or token_budget_of(model.device)) // 2
        logging.getLogger("clues").warning(
            "%s: out of memory; going on with batches of %d tokens there", gethostname(), budget
        )
    raise MemoryError


@contextmanager
def collected() -> Iterator[list[str]]:
    """Inside, warnings of ours go into a list as well."""
    handler, log = _Collector(), logging.getLogger("clues")
    log.addHandler(handler)
    try:
        yield handler.texts
    finally:
        log.removeHandler(handler)


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
