"""Files that appear whole or not at all."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

from clues.errors import DataError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a `.part` file beside `path`, then put it in place in one step.

    Args:
        path: the file that shall exist afterwards; its folder must exist.
        write: gets the path of the `.part` file and writes it in full.

    Raises:
        DataError: the disk is full or the folder cannot be written. Whatever stood at
            `path` before still stands there, and the `.part` file is gone.
    """
    part = path.with_name(path.name + ".part")
    failure = None
    try:
        write(part)
        # A full disk may show only when the bytes reach it, so before the old file is replaced.
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        part.replace(path)
    except OSError as error:
        failure = error
    finally:
        # The reason of the failure matters to the reader, not that its cleaning failed too.
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    if failure is not None:
        raise cannot_write(path, failure)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` through `write_atomically`."""
    write_atomically(path, lambda part: _write_bytes(part, data))


def append_line(path: Path, text: str) -> None:
    """Append a line and force it to the disk, or leave the file as it was.

    Raises:
        DataError: the disk is full or the file cannot be written.
    """
    before = path.stat().st_size if path.exists() else 0
    failure = None
    try:
        with path.open("ab") as file:
            file.write(text.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        failure = error
        with contextlib.suppress(OSError):
            # Half a line would be glued to the next one.
            os.truncate(path, before)
    if failure is not None:
        raise cannot_write(path, failure)


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        DataError: the disk is full or the folder above cannot be written.
    """
    failure = None
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        failure = error
    if failure is not None:
        raise cannot_write(path, failure)


def cannot_write(path: Path, failure: OSError) -> DataError:
    """Return the error that says why a file cannot be written, and what to do."""
    reason = os.strerror(failure.errno) if failure.errno else type(failure).__name__
    kept = " The file that was there is unchanged." if path.is_file() else ""
    advice = "Free disk space" if failure.errno == errno.ENOSPC else "Mend the folder"
    return DataError(f"{path}: cannot be written ({reason}).{kept} {advice} and try again.")


def _write_bytes(part: Path, data: bytes) -> None:
    part.write_bytes(data)
