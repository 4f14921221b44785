"""Files that appear whole or not at all, and private ones that nobody else on the machine can read.

A folder that is closed to other users stays closed all the way down: whatever is written into it
here is closed as well, whatever the umask. So `make_private_folder` is the one place that decides.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from clues.errors import DataError

OTHERS = 0o077
FOLDER, FILE = 0o700, 0o600


def write_atomically(
    path: Path, write: Callable[[Path], None], *, private: bool | None = None
) -> None:
    """Let `write` fill a `.part` file beside `path`, then put it in place in one step.

    Args:
        path: the file that shall exist afterwards; its folder must exist.
        write: gets the path of the `.part` file and writes it in full.
        private: whether other users must not read it; None asks its folder.

    Raises:
        DataError: the disk is full or the folder cannot be written. Whatever stood at
            `path` before still stands there, and the `.part` file is gone.
    """
    part = path.with_name(path.name + ".part")
    failure = None
    try:
        closed = _is_closed(path.parent) if private is None else private
        # Before its first byte: a file that is closed afterwards was open for a while.
        _make_own(part, FILE if closed else 0o666)
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


def atomic_write_bytes(path: Path, data: bytes, *, private: bool | None = None) -> None:
    """Write `data` to `path` through `write_atomically`."""
    write_atomically(path, lambda part: _write_bytes(part, data), private=private)


def read_bytes(path: Path) -> bytes:
    """Read a whole file of ours, which may be as large as a model.

    Raises:
        DataError: it is missing, no plain file, or may not be read.
    """
    try:
        refuse_what_never_ends(path)
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> DataError:
    """What to say of a file of ours that cannot be read."""
    reason = error.strerror or type(error).__name__
    return DataError(f"{path}: cannot be read ({reason}). Mend its permissions or put it back.")


def refuse_what_never_ends(path: Path) -> None:
    """Refuse a named pipe, a socket or a device: reading one could wait for ever, or never end.

    Raises:
        OSError: it is one, or nothing is there.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "this is no plain file", str(path))


def open_private(path: Path) -> TextIO:
    """Open a file that nobody else can read, to add text to it.

    Raises:
        OSError: it cannot be written.
    """
    make_private_folder(path.parent)
    return open(path, "a", encoding="utf-8", opener=private_opener)


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
    """Make a folder and those above it; in a closed folder they are closed.

    Raises:
        DataError: the disk is full or the folder above cannot be written.
    """
    failure = None
    try:
        if path.is_dir():
            return
        above = next((p for p in path.parents if p.is_dir()), None)
        path.mkdir(parents=True, exist_ok=True)
        if above is not None and _is_closed(above):
            for made in (path, *path.parents):
                if made == above:
                    break
                made.chmod(FOLDER)
    except OSError as error:
        failure = error
    if failure is not None:
        raise cannot_write(path, failure)


def make_private_folder(path: Path) -> None:
    """Make a folder that only its owner can open; one that is there already is closed.

    Raises:
        DataError: it cannot be made, or it belongs to another user.
    """
    make_folder(path)
    failure = None
    try:
        found = path.stat()
        _refuse_others(found)
        if found.st_mode & 0o777 != FOLDER:
            path.chmod(FOLDER)
    except OSError as error:
        failure = error
    if failure is not None:
        raise cannot_close(path, failure)


def close_to_others(folder: Path) -> int:
    """Close a folder, and all that an earlier run or a copy has left in it, to other users.

    What its owner could not read any more can be read again.

    Returns:
        How many folders and files were open to others.

    Raises:
        DataError: something belongs to another user.
    """
    n_open, failure, at = 0, None, folder
    try:
        # From the top down: a closed folder protects what lies below until its turn comes.
        waiting = [folder]
        while waiting:
            at = waiting.pop()
            found = at.lstat()
            mode = found.st_mode
            if stat.S_ISLNK(mode):
                continue
            _refuse_others(found)
            wanted = FOLDER if stat.S_ISDIR(mode) else FILE
            n_open += bool(mode & OTHERS)
            if mode & 0o777 != wanted:
                at.chmod(wanted)
            if stat.S_ISDIR(mode):
                waiting += at.iterdir()
    except OSError as error:
        failure = error
    if failure is not None:
        raise cannot_close(at, failure)
    return n_open


def cannot_write(path: Path, failure: OSError) -> DataError:
    """Return the error that says why a file cannot be written, and what to do."""
    reason = os.strerror(failure.errno) if failure.errno else type(failure).__name__
    kept = " The file that was there is unchanged." if path.is_file() else ""
    advice = "Free disk space" if failure.errno == errno.ENOSPC else "Mend the folder"
    return DataError(f"{path}: cannot be written ({reason}).{kept} {advice} and try again.")


def cannot_close(path: Path, failure: OSError) -> DataError:
    """Return the error that says why a private file cannot be closed to others."""
    reason = os.strerror(failure.errno) if failure.errno else type(failure).__name__
    return DataError(
        f"{path}: cannot be closed to other users ({reason}). Run as the user whom the folder "
        "belongs to, or name a folder of your own on a disk that keeps permissions."
    )


def _of_others(found: os.stat_result) -> bool:
    return os.name == "posix" and found.st_uid != os.geteuid()


def _refuse_others(found: os.stat_result) -> None:
    """Raise PermissionError for what another user owns: who runs as root could close it, in vain."""
    if _of_others(found):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def _is_closed(folder: Path) -> bool:
    """Whether other users can neither list nor enter a folder; elsewhere than on POSIX never."""
    return os.name == "posix" and not folder.stat().st_mode & OTHERS


def _make_own(part: Path, mode: int) -> None:
    """An empty file of our own, whatever somebody has put there: a link would be followed."""
    if part.is_symlink() or (part.exists() and _of_others(part.lstat())):
        part.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
    file = os.open(part, flags, mode)
    try:
        if mode == FILE and os.name == "posix":
            os.fchmod(file, FILE)  # the umask may have taken more, and an old file has old rights
    finally:
        os.close(file)


def private_opener(path: str, flags: int) -> int:
    """For `open`: the file is one that nobody else can read, before anything is written to it."""
    file = os.open(path, flags, FILE)
    if os.name == "posix":
        os.fchmod(file, FILE)  # the umask may have taken more, and an old file has old rights
    return file


def _write_bytes(part: Path, data: bytes) -> None:
    part.write_bytes(data)
