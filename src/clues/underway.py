"""Where a run is while it runs, read from its folder alone; no torch, no rows, no network."""

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from socket import gethostname
from typing import Any

from clues.errors import DataError, UsageError
from clues.printable import MAX_TEXT, printable
from clues.reading import is_plain_number
from clues.rundir import read_json

PROGRESS = "progress.json"
# What a silo notes of its work, by type.
TEXTS = ("host", "what", "part", "last_error")
COUNTS = ("pid", "parts", "parts_done", "rows", "rows_done", "rows_found", "workers")
TIMES = ("began", "updated")
MOST = 2**53  # of a count or a second
LONGEST = 1000  # characters of an error
_ANEW = "It is written anew when the silo works."


@dataclass(frozen=True)
class SiloStatus:
    """What a silo has noted last of its work.

    Attributes:
        state: `running`; `done`, this piece of work is; `stopped`, its process is gone and the same
            command goes on; `elsewhere`, it ran on another machine, of which nothing is known here.
        what: is computed.
        part: what it is done in: shard or step.
        parts: how many there are.
        parts_done: and are done.
        parts_open: and are not.
        rows: how many rows all parts have.
        rows_done: rows of the parts that are done.
        rows_per_s: of those that this process did; None before the first.
        seconds_left: at that rate; None where it is unknown or nothing is under way.
        workers: processes that are ready.
        last_error: what went wrong last, in the words of the log; empty for nothing.
        silent_s: seconds since the last note.
    """

    state: str
    what: str
    part: str
    parts: int
    parts_done: int
    parts_open: int
    rows: int
    rows_done: int
    rows_per_s: float | None
    seconds_left: float | None
    workers: int
    last_error: str
    silent_s: float


@dataclass(frozen=True)
class RunStatus:
    """A run as its folder shows it.

    Attributes:
        stages: seconds that each finished stage took, by its name, in the order of their ends.
        silos: by name, of those that are here and have begun to work.
    """

    stages: dict[str, float]
    silos: dict[str, SiloStatus]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def run_of(cleaned: Path) -> Path:
    """Where the run lies in a folder that `clues clean` writes."""
    return cleaned / "run"


def run_in(folder: Path) -> Path:
    """A run's folder; in what `clues clean` writes, the one inside."""
    inner = run_of(folder)
    own = [folder / name for name in ("coordinator", "silos", "private", "ledger.jsonl")]
    return inner if inner.is_dir() and not any(path.exists() for path in own) else folder


def read_status(root: Path) -> RunStatus:
    """Read a run's folder, a silo's own, or one that `clues clean` has written.

    Raises:
        UsageError: it is neither.
    """
    root = run_in(root)
    notes = {path.parent.parent.name: path for path in root.glob(f"silos/*/private/{PROGRESS}")}
    if (own := root / "private" / PROGRESS).exists():
        notes[root.name] = own
    known = [root / "coordinator", root / "silos", root / "private"]
    if not any(folder.is_dir() for folder in known):
        raise UsageError(f"{root}: this is no run's folder. Name one, such as runs/demo.")
    silos = {name: _silo(path) for name, path in sorted(notes.items())}
    return RunStatus(_stages(root / "coordinator" / "stages"), silos)


def _stages(folder: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for path in sorted(folder.glob("*.json"), key=lambda p: p.lstat().st_mtime_ns):
        try:
            content = read_json(path, advice="The stage is done again.")
            seconds = content["result"]["seconds"]
            stage = content["stage"]
        except (DataError, KeyError, TypeError):
            # Half-written or damaged: the stage is done again, and stands nowhere until then.
            continue
        if isinstance(stage, str) and is_plain_number(seconds, low=0.0, high=MOST):
            found[printable(stage, MAX_TEXT)] = float(seconds)
    return found


def _silo(path: Path) -> SiloStatus:
    content = read_json(path, advice=_ANEW)
    fits = (
        isinstance(content, dict)
        and all(isinstance(content.get(name), str) for name in TEXTS)
        and all(_is_count(content.get(name)) for name in COUNTS)
        and all(is_plain_number(content.get(n), low=0.0, high=MOST) for n in TIMES)
    )
    if not fits:
        raise DataError(f"{path}: damaged (not a silo's progress). {_ANEW}")
    # It may have come with a copied folder, and a person will print it.
    return _read({**content, **{name: printable(content[name], LONGEST) for name in TEXTS}})


def _is_count(value: object) -> bool:
    return isinstance(value, int) and is_plain_number(value, low=0, high=MOST)


def _read(content: Mapping[str, Any]) -> SiloStatus:
    left = content["parts"] - content["parts_done"]
    if not left:
        state = "done"
    elif content["host"] != gethostname():
        state = "elsewhere"
    else:
        state = "running" if _lives(content["pid"]) else "stopped"
    fresh = content["rows_done"] - content["rows_found"]
    took = content["updated"] - content["began"]
    rate = fresh / took if fresh and took > 0 else None
    under_way = state == "running" and rate
    rows_left = content["rows"] - content["rows_done"]
    return SiloStatus(
        state=state,
        what=content["what"],
        part=content["part"],
        parts=content["parts"],
        parts_done=content["parts_done"],
        parts_open=left,
        rows=content["rows"],
        rows_done=content["rows_done"],
        rows_per_s=round(rate, 1) if rate else None,
        seconds_left=round(rows_left / rate) if under_way and rate else None,
        workers=content["workers"],
        last_error=content["last_error"],
        silent_s=round(max(0.0, time.time() - content["updated"]), 1),
    )


def _lives(pid: int) -> bool:
    if not 0 < pid < 2**31:
        return False  # no process has such a number; to others, signals go to many
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True
