"""A coordinator whose silos are on other machines: SuperLink, edge, and the run in this process."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

from clues.atomic import make_folder
from clues.carriers.flower import GridTransport, find_silos
from clues.errors import NetworkError
from clues.network import flower_inside
from clues.network.edge import open_edge
from clues.network.keys import fingerprint, read_public_key
from clues.network.settings import Coordinator
from clues.network.superlink import explain, open_superlink
from clues.pipeline import open_coordinator, run_until
from clues.progress import Progress
from clues.results.run import Results
from clues.wall.ledger import Ledger
from clues.wall.messages import kind_of
from clues.wall.transport import Missing, Transport

Say = Callable[[str], None]


class Told:
    """A transport that tells the terminal who answered. Implements `Transport`."""

    def __init__(self, inner: Transport, say: Say) -> None:
        """Wrap another transport.

        Args:
            inner: the one that does it.
            say: takes a line.
        """
        self.inner, self.say = inner, say

    @property
    def silos(self) -> tuple[str, ...]:
        """Names of the expected silos, in order."""
        return self.inner.silos

    def exchange(
        self, requests: Mapping[str, bytes], *, most: Mapping[str, int]
    ) -> Iterator[tuple[str, bytes | Missing]]:
        """Pass everything on, and tell when all have answered."""
        started, n_here = time.monotonic(), 0
        kinds = sorted({kind_of(data) for data in requests.values()})
        for name, data in self.inner.exchange(requests, most=most):
            n_here += not isinstance(data, Missing)
            if isinstance(data, Missing):
                self.say(f"{name}: {data.why}")
            yield name, data
        seconds = time.monotonic() - started
        self.say(f"{', '.join(kinds)}: {n_here} of {len(requests)} silos answered, {seconds:.0f} s")


def serve(coordinator: Coordinator, *, progress: Progress, say: Say) -> Results:
    """Run everything with silos on other machines; goes on where it was interrupted.

    Args:
        coordinator: its file.
        progress: where long steps report to.
        say: takes a line for the terminal.

    Returns:
        The results, as a run in one process.

    Raises:
        NetworkError: a port is taken, or a program of the network ended.
        CluesError: as a run in one process.
    """
    folder, settings = coordinator.folder, coordinator.settings
    make_folder(folder)
    network = folder / "network"
    for name, line in coordinator.keys.items():
        say(f"{name}: key {fingerprint(read_public_key(line, silo=name))}")
    try:
        with ExitStack() as stack:
            superlink = stack.enter_context(open_superlink(coordinator, network))
            nodes = superlink.register(coordinator.keys)
            if not settings.insecure:
                stack.enter_context(open_edge(settings, network))
            grid = stack.enter_context(superlink.open_grid())
            federation = coordinator.run.federation
            say(f"Waiting for {len(settings.names)} silos at {settings.public}.")
            ledger = Ledger(folder / "ledger.jsonl")
            if settings.insecure:
                names = list(settings.names)
                nodes = find_silos(grid, names, settings=federation, ledger=ledger)
            transport = GridTransport(
                grid, nodes, ledger, settings=federation, pull=grid.pull_bounded
            )
            run = open_coordinator(
                coordinator.run, folder, transport=Told(transport, say), progress=progress
            )
            results = run_until(run).results
    except flower_inside.CallError as error:
        raise explain(error) from None
    if results is None:
        raise NetworkError(
            "the run ended before its report. The same command goes on where it stopped."
        )
    return results
