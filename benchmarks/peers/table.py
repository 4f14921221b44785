"""What came out of the comparison, as a table per setting."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.clock import Ratio

HEADER = "| way | time, side branch = 1 | peak memory | difference | correlation |"
RULE = "| :--- | ---: | ---: | ---: | ---: |"


@dataclass(frozen=True)
class Measured:
    """One way on one setting.

    Attributes:
        name: of the way.
        time: of the side branch's in the same turn; None where it did not run.
        peak: most resident bytes above those before it; None likewise, or where nobody counts them.
        difference: length of the difference to the side branch's scores by their length; None
            where other numbers are meant.
        correlation: with the side branch's scores; None likewise.
    """

    name: str
    time: Ratio | None
    peak: int | None = None
    difference: float | None = None
    correlation: float | None = None


def lines_of(about: str, found: Sequence[Measured]) -> list[str]:
    """A paragraph and its table."""
    return [about, "", HEADER, RULE, *map(_line, found), ""]


def _line(way: Measured) -> str:
    time = "not measured" if way.time is None else str(way.time)
    peak = "-" if way.peak is None else f"{way.peak / 2**20:,.0f} MB"
    difference = "-" if way.difference is None else f"{way.difference:.0e}"
    correlation = "-" if way.correlation is None else f"{way.correlation:.5f}"
    return f"| {way.name} | {time} | {peak} | {difference} | {correlation} |"
