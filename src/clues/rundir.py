"""Where a run's files go, and which of its stages are finished.

A finished stage has a marker with the hash of its inputs and its result. A rerun with the same
inputs takes the result; other inputs make it run again.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clues.atomic import atomic_write_bytes, make_folder
from clues.errors import DataError


@dataclass(frozen=True)
class RunDir:
    """Paths of one run."""

    root: Path

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.root / "coordinator"

    def silo(self, name: str) -> Path:
        """A silo's folder."""
        return self.root / "silos" / name

    @property
    def ledger(self) -> Path:
        """The ledger of all messages."""
        return self.root / "ledger.jsonl"


@dataclass(frozen=True)
class Stages:
    """Markers of one run's finished stages."""

    folder: Path

    def run(
        self, name: str, inputs: Mapping[str, Any], compute: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return a stage's result, from its marker if it finished with the same inputs.

        The result must be plain JSON; it gains `seconds`, measured when it really ran, unless it
        says them itself because some of its work was done before.
        """
        marker = self.folder / f"{name}.json"
        key = hash_of(inputs)
        done = self._read(marker)
        if done and done.get("inputs") == key:
            return done["result"]
        started = time.perf_counter()
        result = compute()
        result = {"seconds": round(time.perf_counter() - started, 3), **result}
        write_json(marker, {"stage": name, "inputs": key, "result": result})
        return result

    def forget(self, name: str) -> None:
        """Have a finished stage run again."""
        (self.folder / f"{name}.json").unlink(missing_ok=True)

    @staticmethod
    def _read(marker: Path) -> dict[str, Any] | None:
        if not marker.exists():
            return None
        try:
            return json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            raise DataError(
                f"{marker}: not readable. Remove it, and the stage runs again."
            ) from None


def hash_of(content: Any) -> str:
    """SHA-256 of plain JSON values."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON beside and rename; NaN is refused."""
    make_folder(path.parent)
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    atomic_write_bytes(path, text.encode())
