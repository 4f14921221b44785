"""How far the scoring of a silo's rows is, in a small file beside them: for who asks meanwhile."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clues.rundir import write_json

FILE = "progress.json"
EVERY_S = 1.0


@dataclass
class Watch:
    """Writes the file, at most once a second but for what matters.

    Attributes:
        path: of the file; it holds counts and our own messages, never a row.
        engine: `local` or `ray`.
    """

    path: Path
    engine: str = "local"

    def __post_init__(self) -> None:
        """Nothing is known yet."""
        self.state: dict[str, Any] = {"engine": self.engine, "pid": os.getpid(), "workers": 1}
        if self.engine != "local":
            self.state["workers"] = 0
        self.state["last_error"] = ""
        self.written = 0.0

    def job(self, what: str, *, n_shards: int, n_rows: int) -> None:
        """A job begins: what is computed, and of how much."""
        self.state |= {"step": what, "shards": n_shards, "done": 0, "rows": n_rows, "rows_done": 0}
        self.state["began"] = time.time()
        self._write()

    def took(self, n_rows: int) -> None:
        """One more shard is done."""
        self.state["done"] += 1
        self.state["rows_done"] += n_rows
        if self.state["done"] == self.state["shards"] or time.time() - self.written > EVERY_S:
            self._write()

    def workers(self, n_ready: int, last_error: str) -> None:
        """How many workers are ready, and the last thing that went wrong."""
        self.state |= {"workers": n_ready, "last_error": last_error}
        self._write()

    def _write(self) -> None:
        self.written = time.time()
        write_json(self.path, {**self.state, "updated": self.written})
