"""How far the work on a silo's rows is, in a small file beside them: for who asks meanwhile."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname
from typing import Any

from clues.rundir import write_json

EVERY_S = 1.0


@dataclass
class Watch:
    """Writes the file, at most once per second but for what matters.

    Attributes:
        path: of the file; it holds counts and our own messages, never a row.
        engine: `local` or `ray`.
    """

    path: Path
    engine: str = "local"

    def __post_init__(self) -> None:
        """Nothing is known yet."""
        self.state: dict[str, Any] = {
            "engine": self.engine,
            "host": gethostname(),
            "pid": os.getpid(),
            "workers": 1 if self.engine == "local" else 0,
            "last_error": "",
        }
        self.written = 0.0

    def begin(self, what: str, *, part: str, n_parts: int, n_rows: int) -> None:
        """A piece of work begins.

        Args:
            what: is computed.
            part: what it is done in: `shard` or `step`.
            n_parts: how many of these.
            n_rows: how many rows all of them have.
        """
        self.state |= {"what": what, "part": part, "parts": n_parts, "parts_done": 0}
        self.state |= {"rows": n_rows, "rows_done": 0, "rows_found": 0, "began": time.time()}
        self._write()

    def took(self, n_rows: int, *, found: bool = False) -> None:
        """One more part is done; `found` where an earlier call had done it."""
        self.state["parts_done"] += 1
        self.state["rows_done"] += n_rows
        self.state["rows_found"] += n_rows if found else 0
        last = self.state["parts_done"] == self.state["parts"]
        if last or time.time() - self.written > EVERY_S:
            self._write()

    def tell(self) -> None:
        """Write what is known now, such as that many parts were found at once."""
        self._write()

    def workers(self, n_ready: int, last_error: str) -> None:
        """How many workers are ready, and the last thing that went wrong."""
        self.state |= {"workers": n_ready, "last_error": last_error}
        self._write()

    def _write(self) -> None:
        self.written = time.time()
        write_json(self.path, {**self.state, "updated": self.written})
