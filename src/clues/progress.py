"""Progress bars where there is a terminal, plain lines where there is none."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

Advance = Callable[[int], None]


class Progress(Protocol):
    """Where long steps report to."""

    def task(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """Open a step of `total` parts; what it yields is called with the parts finished."""
        ...


class Silent:
    """Reports nothing."""

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Ignore what is reported."""
        yield lambda _: None


class Terminal:
    """A bar for the step under way; where output is no terminal, a line per slow step.

    A step of many minutes has a line every minute there, with the time that is left.
    """

    SLOW_S, EVERY_S = 2.0, 60.0

    def __init__(self, console: Console) -> None:
        """Write to this console, which should be the error stream."""
        self.console = console

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Show one step."""
        if not self.console.is_terminal:
            started = time.perf_counter()
            yield self._lines(description, total, started)
            seconds = time.perf_counter() - started
            if seconds >= self.SLOW_S:
                self.console.print(f"{description}: {seconds:.0f} s", highlight=False)
            return
        with RichProgress(
            TextColumn("{task.description:<34}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        ) as bar:
            task = bar.add_task(description, total=total)
            yield lambda n: bar.advance(task, n)

    def _lines(self, description: str, total: int, started: float) -> Advance:
        """Count what is finished, and say every minute how far it is."""
        done, said = 0, started

        def advance(n: int) -> None:
            nonlocal done, said
            done += n
            now = time.perf_counter()
            if now - said < self.EVERY_S or not 0 < done < total:
                return
            said = now
            left = (now - started) * (total - done) / done
            self.console.print(
                f"{description}: {done} of {total}, about {left / 60:.0f} min left", highlight=False
            )

        return advance


class _Rate(ProgressColumn):
    """Parts finished in a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s")
