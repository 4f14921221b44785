"""Processes that are killed at any of their writes leave nothing half, and go on to the same end."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from federation_helpers import (
    open_micro,
    plain,
    run_micro,
    tiny_model,
    without_volatile,
    write_micro,
)

from clues import atomic
from clues.pipeline import ModelCache, run_until
from clues.progress import Silent
from clues.silo.silo import Silo
from clues.wall import ledger
from clues.wall.messages import REPLIES, REQUESTS, HelloReply, from_bytes

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked to be killed"),
    # A child of a process with threads may hang on a lock; here it runs one thread of torch.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning"),
]
TIMEOUT_S = 300


def killed_at_write(number: int, work: Callable[[], object], *, before: bool) -> bool:
    """Do work in another process that is killed (SIGKILL) at one of its writes.

    Args:
        number: of the write, from one.
        work: what to do.
        before: kill when the bytes are written and not in place, or else just after.

    Returns:
        Whether it was killed; False if the work was over before.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work itself failed"
        return os.WIFSIGNALED(status)
    signal.alarm(TIMEOUT_S)
    count = [0]
    sync, rename = os.fsync, Path.replace

    def reached() -> bool:
        count[0] += 1
        return count[0] == number

    def counted_sync(file: int) -> None:
        sync(file)
        if before and reached():
            os.kill(os.getpid(), signal.SIGKILL)

    def counted_replace(path: Path, target: Path) -> Path:
        result = rename(path, target)
        if not before and reached():
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    atomic.os.fsync = counted_sync
    Path.replace = counted_replace
    code = 1
    try:
        work()
        code = 0
    finally:
        # No clean-up of pytest's may run twice.
        sys.stderr.flush()
        os._exit(code)


class World:
    """A finished run, and silo north's folder as it was before every request."""

    def __init__(self, folder: Path) -> None:
        self.config = write_micro(folder / "input", tiny_model(folder / "model"))
        self.root = folder / "run"
        run = open_micro(self.config, self.root)
        self.settings = run.silos["north"].settings
        self.cache = ModelCache()
        self.steps: list[tuple[str, Path, bytes, bytes]] = []
        answers = dict(run.coordinator.exchange.transport.answers)  # pyright: ignore
        honest = answers["north"]

        def recorded(request: bytes) -> bytes:
            place = folder / f"before-{len(self.steps)}"
            shutil.copytree(self.root / "silos" / "north", place)
            reply = honest(request)
            kind = from_bytes(request, allowed=REQUESTS, sender="").kind
            self.steps.append((kind, place, request, reply))
            return reply

        answers["north"] = recorded
        run.coordinator.exchange.transport.answers = answers  # pyright: ignore
        self.results = plain(run_until(run).results)

    def silo(self, folder: Path) -> Silo:
        """Silo north in another process than before."""
        return Silo(
            self.settings,
            folder,
            load_model=self.cache.load,
            progress=Silent(),
            allow_degenerate=True,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def without_token(data: bytes):
    """A reply; of hello without its tokens, whose key a killed process may not have kept."""
    reply = from_bytes(data, allowed=REPLIES, sender="")
    return replace(reply, data_token="", oracle_token="") if isinstance(reply, HelloReply) else data


# Short: around the first write, and a few of those that follow.
SOME = (1, 2, 3, 6, 11, 20, 37, 68)


@pytest.mark.slow
@pytest.mark.parametrize(
    "numbers", [SOME, pytest.param(range(1, 200), marks=pytest.mark.long)], ids=["some", "all"]
)
# A run that does not look for duplicates asks for neither of these two.
@pytest.mark.parametrize("kind", sorted(set(REQUESTS) - {"sketch", "leave"}))
def test_a_silo_killed_at_any_write_answers_the_same_when_it_is_back(
    world, tmp_path, kind, numbers
):
    _, before, request, reply = next(step for step in world.steps if step[0] == kind)
    for number in numbers:
        folder = tmp_path / str(number)
        shutil.copytree(before, folder)
        # The first write just before it is in place, then just after, then the second ...
        killed = killed_at_write(
            (number + 1) // 2,
            lambda place=folder: world.silo(place).answer(request),
            before=number % 2 == 1,
        )
        found = world.silo(folder).answer(request)
        assert without_token(found) == without_token(reply), f"killed at write {number}"
        outbox = (folder / "outbox").rglob("*")
        left = [p.name for p in outbox if p.is_file() and p.suffix != ".clues"]
        assert not left, "half a reply could be read by a transport"
        if not killed:
            break
    assert number > 2, "it was never killed"


@pytest.mark.walk
def test_a_silo_killed_in_every_phase_of_a_run_ends_where_an_unbroken_one_does(world, tmp_path):
    """One folder for all phases: what one death leaves is there at the next."""
    folder = tmp_path / "north"
    (folder / "private").mkdir(parents=True)
    # Its token is made with this key, and stands in the hello reply.
    key = world.root / "silos" / "north" / "private" / "data.key"
    shutil.copy(key, folder / "private" / "data.key")
    for _, _, request, reply in world.steps:
        for number in (1, 2, 3):
            killed_at_write(
                number, lambda r=request: world.silo(folder).answer(r), before=number % 2 == 0
            )
        assert world.silo(folder).answer(request) == reply
    for name in ("selection.json", "kept.jsonl", "dropped.jsonl", "decisions.csv"):
        found = (folder / "private" / name).read_bytes()
        assert found == (world.root / "silos" / "north" / "private" / name).read_bytes()


@pytest.mark.walk
@pytest.mark.parametrize(
    ("numbers", "least"),
    [
        (range(4, 1000, 13), 4),
        pytest.param(range(1, 1000, 3), 8, marks=pytest.mark.long),
    ],
    ids=["some", "all"],
)
def test_a_coordinator_killed_at_ever_later_writes_ends_in_the_same_results(
    world, tmp_path, numbers, least
):
    root = tmp_path / "run"
    n_killed = 0
    for number in numbers:
        work = lambda: run_micro(world.config, root)  # noqa: E731
        if not killed_at_write(number, work, before=number % 2 == 0):
            break
        n_killed += 1
    assert n_killed >= least, "it was hardly killed"
    continued = json.loads((root / "results.json").read_text())
    expected = world.results
    assert without_volatile(continued) == without_volatile(expected)
    ledger.verify(root / "ledger.jsonl")
