"""All silos in this process, one after the other; bytes still cross a wall, and are recorded."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from clues.wall.ledger import Ledger
from clues.wall.messages import kind_of


@dataclass
class LocalTransport:
    """Calls each silo in turn; a silo's error stops the run. Implements `Transport`."""

    answers: Mapping[str, Callable[[bytes], bytes]]
    ledger: Ledger

    @property
    def silos(self) -> tuple[str, ...]:
        """Names of all silos, in order."""
        return tuple(sorted(self.answers))

    def exchange(
        self, requests: Mapping[str, bytes], *, most: Mapping[str, int]
    ) -> Iterator[tuple[str, bytes]]:
        """Ask one silo after the other; their answers are in memory, however large they are."""
        for name in sorted(requests):
            self.ledger.record(name, "in", kind_of(requests[name]), requests[name])
            reply = self.answers[name](requests[name])
            self.ledger.record(name, "out", kind_of(reply), reply)
            yield name, reply
