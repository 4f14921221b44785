"""How the coordinator reaches silos: bytes out, and for each silo bytes back or a reason why not."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Missing:
    """A silo from which no reply came.

    Attributes:
        why: for the run's record; never text that a silo's rows could stand in.
    """

    why: str


class Transport(Protocol):
    """Carries requests to silos and brings their replies."""

    @property
    def silos(self) -> tuple[str, ...]:
        """Names of the silos that are expected, in order."""
        ...

    def exchange(
        self, requests: Mapping[str, bytes], *, most: Mapping[str, int]
    ) -> Iterator[tuple[str, bytes | Missing]]:
        """Send one request to each named silo, and yield each answer when it is there.

        An answer with more bytes than `most` says for its silo need not be fetched.

        The order does not matter. Yielding, and not returning all at once, is what lets the
        coordinator hold one adapter at a time. Every named silo comes up once, after a bounded
        wait.
        """
        ...
