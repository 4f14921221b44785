"""Where a run's files go, and which of its stages are finished.

A finished stage has a marker with the hash of its inputs, its result, and the hashes of the files
that it wrote. A rerun with the same inputs takes the result. Other inputs, a damaged marker or a
file that is not the one that was written make the stage run again.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clues.atomic import atomic_write_bytes, make_folder, read_bytes, refuse_what_never_ends
from clues.errors import DataError

log = logging.getLogger("clues")
SUM = "sha256"
# What a stage depends on at first hand, in words; its other inputs are what earlier stages found.
CAUSES = {
    "recipe": "recipe.{}",
    "silos": "silo {} (its rows or its domain)",
    "labels": "the labels of silo {}",
    "heldout": "the held-out rows",
    "tasks": "the tasks",
    "lm_eval": "evaluate.lm_eval",
    "combine": "combine.{}",
    "overruled": "the decisions of a person in silo {}",
}


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
    def rows_key(self) -> Path:
        """The key that hides questions, where one person owns all silos."""
        return self.root / "rows.key"

    @property
    def ledger(self) -> Path:
        """The ledger of all messages."""
        return self.root / "ledger.jsonl"


@dataclass(frozen=True)
class Stages:
    """Markers of one run's finished stages."""

    folder: Path
    _said: set[str] = field(default_factory=set[str])

    def run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        compute: Callable[[], dict[str, Any]],
        *,
        files: Callable[[dict[str, Any]], Iterable[Path]] | None = None,
    ) -> dict[str, Any]:
        """Return a stage's result, from its marker if it finished with the same inputs.

        The result must be plain JSON; it gains `seconds`, measured when it really ran, unless it
        says them itself because some of its work was done before.

        Args:
            name: of the stage.
            inputs: everything that the result depends on; plain JSON.
            compute: does the work.
            files: of a result, the files that the stage wrote beside it and that are read again.
        """
        marker, key = self.folder / f"{name}.json", hash_of(inputs)
        done = self._read(marker)
        if done and done["inputs"] == key and self._files_stand(name, done["files"]):
            return done["result"]
        if done and done["inputs"] != key:
            self._say_why(name, done["parts"], _parts(inputs))
        started = time.perf_counter()
        result = compute()
        result = {"seconds": round(time.perf_counter() - started, 3), **result}
        written = {self._short(path): file_hash(path) for path in (files(result) if files else ())}
        content = {"stage": name, "inputs": key, "parts": _parts(inputs), "files": written}
        write_record(marker, {**content, "result": result})
        return result

    def forget(self, name: str) -> None:
        """Have a stage run again, if it has run."""
        (self.folder / f"{name}.json").unlink(missing_ok=True)

    @staticmethod
    def _read(marker: Path) -> dict[str, Any] | None:
        """A marker as it was written; None where there is none, or a damaged one."""
        if not marker.exists():
            return None
        try:
            return read_record(marker, advice="The stage is done again.")
        except DataError as error:
            log.warning("%s", error)
            return None

    def _files_stand(self, name: str, written: Mapping[str, str]) -> bool:
        root = self.folder.parent
        odd = [n for n, digest in written.items() if hash_if_there(root / n) != digest]
        if odd:
            log.warning("%s is not what stage %s wrote; it is made again.", odd[0], name)
        return not odd

    def _short(self, path: Path) -> str:
        return path.relative_to(self.folder.parent).as_posix()

    def _say_why(self, name: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
        """One line for everything that changed, at the first stage that depends on it."""
        odd = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        whys = [_in_words(key) for key in odd if key.partition(".")[0] in CAUSES]
        new = [why for why in dict.fromkeys(whys) if why not in self._said]
        self._said.update(new)
        if new:
            why = ", ".join(new)
            log.warning("Changed: %s. Done again: %s, and what depends on it.", why, name)


def hash_of(content: Any) -> str:
    """SHA-256 of plain JSON values."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        DataError: it is missing, no plain file, or may not be read.
    """
    try:
        refuse_what_never_ends(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        reason = error.strerror or type(error).__name__
    raise DataError(f"{path}: cannot be read ({reason}). Mend its permissions or put it back.")


def source_hash(path: Path) -> str:
    """SHA-256 of a file's bytes and of how its name ends, or of every file in a folder.

    The end of the name is in it because it says how the bytes are read.

    Raises:
        DataError: it is missing or may not be read.
    """
    if not path.is_dir():
        return hash_of(["".join(path.suffixes), file_hash(path)])
    files = sorted(entry for entry in path.rglob("*") if entry.is_file())
    return hash_of([[f.relative_to(path).as_posix(), file_hash(f)] for f in files])


def hash_if_there(path: Path) -> str | None:
    """SHA-256 of a file's bytes; None where there is no such file."""
    return file_hash(path) if path.is_file() else None


def read_json(path: Path, *, advice: str) -> Any:
    """Read a JSON file of ours.

    Args:
        path: the file.
        advice: what to do where it cannot be read.

    Raises:
        DataError: it is missing, may not be read, or is not JSON.
    """
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError):
        # Their text is not shown: it may quote the file.
        reason = "not JSON"
    raise DataError(f"{path}: damaged ({reason}). {advice}")


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write keys and values, plain JSON, with their own checksum beside them."""
    plain = json.loads(json.dumps(content))
    write_json(path, {**plain, SUM: hash_of(plain)})


def read_record(path: Path, *, advice: str) -> dict[str, Any]:
    """Read what `write_record` wrote.

    Raises:
        DataError: it is missing, may not be read, or is not what was written.
    """
    content = read_json(path, advice=advice)
    if isinstance(content, dict) and content.pop(SUM, None) == hash_of(content):
        return content
    raise DataError(f"{path}: damaged (not what was written). {advice}")


def _parts(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of a stage's inputs one by one, to say later which of them changed."""
    found: dict[str, str] = {}
    for name, value in inputs.items():
        if isinstance(value, Mapping) and "{}" in CAUSES.get(name, ""):
            found |= {f"{name}.{key}": hash_of(part)[:16] for key, part in value.items()}
        else:
            found[name] = hash_of(value)[:16]
    return found


def _in_words(key: str) -> str:
    name, _, part = key.partition(".")
    return CAUSES[name].format(part)


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON beside and rename; NaN is refused."""
    make_folder(path.parent)
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    atomic_write_bytes(path, text.encode())
