"""Times of calls that take turns: a busy moment of the machine hits all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ratio:
    """How many times as long one call takes as another, over several turns."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} x ({self.low:.2f} to {self.high:.2f})"


def take_turns(
    calls: Mapping[str, Callable[[], object]], n_turns: int, *, device: torch.device | str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of every call in every turn; the order turns round from one turn to the next.

    The calls should have run once before: the first one pays for what libraries set up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(n_turns):
        names = list(calls)[:: -1 if turn % 2 else 1]
        for name in names:
            seconds[name].append(seconds_of(calls[name], device=device))
    return seconds


def seconds_of(call: Callable[[], object], *, device: torch.device | str = "cpu") -> float:
    """Wall-clock seconds of one call, a GPU's work included."""
    wait = torch.device(device).type == "cuda"
    if wait:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if wait:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def ratio(seconds: Sequence[float], base: Sequence[float]) -> Ratio:
    """Median, smallest and largest ratio of two calls' times in the same turn."""
    found = [a / b for a, b in zip(seconds, base, strict=True)]
    return Ratio(statistics.median(found), min(found), max(found))
