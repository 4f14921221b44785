"""Shards of a job on a silo's Ray cluster: dealt to workers, brought home, written by us.

A worker, its machine or this process may be killed at any moment: what is lost are the shards that
were open then. A worker that is gone is replaced as soon as the cluster has room for another.
"""

import hashlib
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clues.cluster.connection import AUTH_MODE, NO_MEMORY, connect, error_of, why_lost
from clues.cluster.worker import Answer, Scorer, Task, versions
from clues.config import ComputeSettings, Recipe
from clues.data.tokenfile import TokenRows, pack_rows, write_rows
from clues.errors import ClusterError
from clues.model.place import first_line
from clues.scoring.job import Job
from clues.scoring.shards import unpacked_scores, write_shard

IN_FLIGHT = 2  # shards a worker has at a time, so that it never waits for the next one
POLL_S = 0.5
MOST_DEATHS = 4  # of workers that had the same shard, or that died before they were ready

log = logging.getLogger("clues")


@dataclass
class _Hand:
    """One worker process, as this side sees it."""

    actor: Any
    host: str = ""
    ready: bool = False
    blind: bool = False  # does not see the silo's token file
    open: deque[int] = field(default_factory=deque)


class RayEngine:
    """Computes shards on a Ray cluster; a context, at whose end the workers go."""

    def __init__(
        self,
        settings: ComputeSettings,
        recipe: Recipe,
        *,
        on_workers: Callable[[int, str], None] | None = None,
    ) -> None:
        """Connect nothing yet.

        Args:
            settings: of the cluster.
            recipe: with the base model where the silo's settings say.
            on_workers: called with the number of ready workers and the last thing that went wrong.
        """
        self.settings, self.recipe, self.on_workers = settings, recipe, on_workers
        self.hands: list[_Hand] = []
        self.waiting: dict[Any, tuple[_Hand, int | None]] = {}
        self.said: set[str] = set()
        self.n_unready, self.last_error = 0, ""
        self.crowded = Counter[int]()
        self.refused: set[str] = set()

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *_: object) -> None:
        for hand in self.hands:
            self.ray.kill(hand.actor)
        self.hands, self.waiting = [], {}

    def shards(self, job: Job, numbers: Sequence[int], folder: Path) -> Iterator[int]:
        """Have shards computed and write each into the folder; yields their numbers.

        Raises:
            ClusterError: no worker becomes ready in time, or the same shard ends one worker after
                the other. What is written stays.
            NumericsError: a score is not finite, and the job does not skip such rows.
        """
        self._begin()
        rows = job.rows if isinstance(job.rows, TokenRows) else write_rows(job.rows, folder.parent)
        with self._room():
            sent = _Sent(job, (str(rows.path.resolve()), rows.hash), self.ray.put(job.packed()))
        open_, deaths, n_done = deque(numbers), Counter[int](), 0
        self.crowded = Counter[int]()
        busy_since = time.monotonic()
        while n_done < len(numbers):
            self._deal(open_, sent)
            done, _ = self.ray.wait(list(self.waiting), num_returns=1, timeout=POLL_S)
            if any(hand.ready for hand in self.hands):
                busy_since = time.monotonic()
            elif not done and time.monotonic() - busy_since > self.settings.wait_s:
                raise ClusterError(self._nobody(n_done, len(numbers)))
            for ref in done:
                hand, number = self.waiting.pop(ref)
                answer = self._fetch(ref, hand, open_, deaths)
                if answer is None or number is None:
                    continue
                hand.open.remove(number)
                if self._accept(answer, hand, number, open_, sent, folder):
                    n_done += 1
                    yield number

    def _begin(self) -> None:
        if self.hands:
            return
        self.ray = connect(self.settings)
        for _ in range(self.settings.workers):
            self._hire()

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Around what puts something into the object store.

        Raises:
            ClusterError: it is full, and so is the disk behind it.
        """
        full = (self.ray.exceptions.ObjectStoreFullError, self.ray.exceptions.OutOfDiskError)
        try:
            yield
        except full:
            raise ClusterError(
                "Ray's object store is full, and so is the disk that it spills to. Start the cluster "
                "with a larger --object-store-memory, or free the disk. What is done stays; the same "
                "command goes on."
            ) from None

    def _hire(self) -> None:
        """Ask the cluster for one more worker."""
        how = {"num_cpus": self.settings.cpus, "num_gpus": self.settings.gpus, "max_restarts": 0}
        hand = _Hand(self.ray.remote(Scorer).options(**how).remote())
        self.hands.append(hand)
        begun = hand.actor.begin.remote(self.recipe.model_dump_json(), self.settings.cpus)
        self.waiting[begun] = (hand, None)

    def _deal(self, open_: "deque[int]", sent: "_Sent") -> None:
        """Give every ready worker work; in turns, so that the last shards are spread."""
        for depth in range(1, IN_FLIGHT + 1):
            for hand in self.hands:
                if not open_:
                    return
                if hand.ready and len(hand.open) < depth:
                    number = open_.popleft()
                    hand.open.append(number)
                    task = sent.task(number, blind=hand.blind, halvings=self.crowded[number])
                    with self._room():
                        ref = hand.actor.score.remote(task, [sent.job_ref])
                    self.waiting[ref] = (hand, number)

    def _fetch(
        self, ref: Any, hand: _Hand, open_: "deque[int]", deaths: "Counter[int]"
    ) -> Answer | None:
        """A worker's answer; None where it was lost, or was about the worker itself."""
        gone = self.ray.exceptions.RayError
        try:
            answer = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None) or error
            raise ClusterError(
                f"a worker on {hand.host or 'the cluster'} stopped ({type(cause).__name__}: "
                f"{first_line(cause)}). Its log lies with Ray's on that machine."
            ) from None
        except gone as error:
            self._lose(hand, open_, deaths, error)
            return None
        if isinstance(answer, Answer):
            return answer
        self._admit(hand, answer)
        return None

    def _admit(self, hand: _Hand, said: dict[str, str]) -> None:
        """Let a worker take part whose versions and base model are ours."""
        hand.host = said["host"]
        others = {n: said.get(n) for n, ours in versions().items() if said.get(n) != ours}
        if others:
            theirs = ", ".join(f"{name} {value}" for name, value in sorted(others.items()))
            ours = ", ".join(f"{name} {versions()[name]}" for name in sorted(others))
            problem = f"it has {theirs}, and this silo {ours}. Install the same there"
        elif said["auth"] != os.environ.get(AUTH_MODE, said["auth"]):
            problem = (
                f"its node was started without {AUTH_MODE}=token, so whoever reaches its ports runs "
                "code as this silo. Start every node with it"
            )
        else:
            problem = said.get("problem", "")
        if not problem:
            hand.ready, self.n_unready = True, 0
            self._tell()
            return
        text = f"worker on {hand.host} is refused: {problem.rstrip('.')}."
        self._say(text)
        self._dismiss(hand)
        # A machine that was refused is refused again; the others may still do the work.
        if not self.hands:
            raise ClusterError(f"no worker of the cluster can be used: {text}")

    def _lose(
        self, hand: _Hand, open_: "deque[int]", deaths: "Counter[int]", error: Exception
    ) -> None:
        """Take back what a lost worker had, and ask for another."""
        if hand not in self.hands:
            return
        if hand.open:
            deaths[hand.open[0]] += 1
        elif not hand.ready:
            self.n_unready += 1
        open_.extendleft(reversed(hand.open))
        reason = why_lost(error)
        if hand.open and reason == NO_MEMORY:
            self.crowded[hand.open[0]] += 1
            reason += f"; shard {hand.open[0]} goes on in batches half as large"
        self._dismiss(hand)
        self._say(
            f"a worker on {hand.host or 'the cluster'} is lost ({reason}); its shards go to others"
        )
        worst = deaths.most_common(1)[0][1] if deaths else 0
        if max(worst, self.n_unready) >= MOST_DEATHS:
            raise ClusterError(
                f"{MOST_DEATHS} workers were lost one after the other at the same work ({reason}). Is "
                "there memory enough on every machine? What is done stays, and the same command "
                "goes on."
            )
        self._hire()

    def _dismiss(self, hand: _Hand) -> None:
        self.hands.remove(hand)
        self.waiting = {ref: (h, n) for ref, (h, n) in self.waiting.items() if h is not hand}
        self.ray.kill(hand.actor)
        self._tell()

    def _accept(
        self,
        answer: Answer,
        hand: _Hand,
        number: int,
        open_: "deque[int]",
        sent: "_Sent",
        folder: Path,
    ) -> bool:
        """Write a shard that came home; whether it did."""
        for note in answer.notes:
            self._say(note)
        if answer.unseen:
            hand.blind = True
            self._say(f"{hand.host} does not see {sent.place[0]}; its rows go to it by Ray")
        elif answer.refused is not None:
            raise error_of(*answer.refused)
        elif answer.shard is None or unpacked_scores(answer.shard, sent.job, number) is None:
            self._say(f"{hand.host} answered with another shard; it is done again")
        else:
            write_shard(folder, number, answer.shard)
            return True
        open_.appendleft(number)
        return False

    def _nobody(self, n_done: int, n_all: int) -> str:
        there = self.ray.cluster_resources()
        cpus, gpus = there.get("CPU", 0), there.get("GPU", 0)
        why = f" The last thing that went wrong: {self.last_error}" if self.last_error else ""
        return (
            f"{self.settings.address or 'this machine'}: no worker was ready for "
            f"{self.settings.wait_s:.0f} s. Each needs {self.settings.cpus} CPUs and "
            f"{self.settings.gpus:g} GPUs, and the cluster has {cpus:g} and {gpus:g}, taken ones "
            f"included.{why} {n_done} of {n_all} shards are done and stay; the same command goes on."
        )

    def _say(self, text: str) -> None:
        self.last_error = text
        if text not in self.said:
            log.warning("%s", text)
        self.said.add(text)
        self._tell()

    def _tell(self) -> None:
        if self.on_workers:
            self.on_workers(sum(hand.ready for hand in self.hands), self.last_error)


@dataclass(frozen=True)
class _Sent:
    """A job as workers get it: its rows by reference, the rest in Ray's object store."""

    job: Job
    place: tuple[str, str]
    job_ref: Any

    def task(self, number: int, *, blind: bool, halvings: int = 0) -> Task:
        data = pack_rows(self.job.rows_of(number))
        positions = self.job.plan[number].tolist()
        digest = hashlib.sha256(data).hexdigest()
        rows = data if blind else None
        return Task(self.job.key, positions, self.place, digest, rows, halvings)
