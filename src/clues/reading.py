"""The one place where a file from outside is opened: what it is and how large, before what it says.

A limit is checked before the memory is taken. No error shows what stands in a file, because it may
be a row.
"""

import json
import math
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from clues.errors import CluesError, DataError

MAX_DEPTH = 100  # brackets in brackets; ours have at most ten, and Python itself ends near 1,000
MAX_ITEMS = 2_000_000  # of one JSON text: an empty list takes 3 bytes there and 64 in memory
MAX_BYTES = 100_000_000  # of one file of settings, results or answers; ours are a few MB at most
MAX_PATH = 4096  # what Linux itself takes

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Unreadable(ValueError):
    """Why a text is refused, in words that hold none of it."""


def shown(path: str | Path) -> str:
    """A path for a message: cut where it is long, and without characters that move a cursor."""
    text = visible(str(path))
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-60:]}"


def visible(text: str, *, keep: str = "") -> str:
    """Text in which characters that nobody sees, or that change what others see, are escapes.

    Args:
        text: any, also with halves of surrogate pairs.
        keep: characters that stay as they are, such as a line's end.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def status(path: str | Path, *, error: type[CluesError] = DataError) -> os.stat_result | None:
    """What the system says about a path; None where nothing is there.

    Raises:
        CluesError: it is no path, turns in a circle, or may not be looked at.
    """
    text = str(path)
    if "\0" in text or len(os.fsencode(_encodable(text))) > MAX_PATH:
        what = "holds a zero byte" if "\0" in text else f"is longer than {MAX_PATH} bytes"
        raise error(f"{shown(text)}: this {what}, so it is no path. Name a file.")
    try:
        return Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as problem:
        failure = problem
    except UnicodeEncodeError:
        return None
    raise cannot_read(path, failure, error=error)


def is_folder(path: str | Path, *, error: type[CluesError] = DataError) -> bool:
    """Whether a path is a folder; errors as `status`."""
    known = status(path, error=error)
    return known is not None and stat.S_ISDIR(known.st_mode)


def folder_and_split(
    source: str | Path, base: Path = Path(), *, error: type[CluesError] = DataError
) -> tuple[Path, str] | None:
    """What `FOLDER:SPLIT` names; None where it names no folder that is there.

    Args:
        source: as it was written.
        base: where a relative path starts.
        error: what to raise.

    Raises:
        CluesError: as `status`.
    """
    folder, colon, split = str(source).rpartition(":")
    if colon and folder and split and is_folder(base / folder, error=error):
        return base / folder, split
    return None


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()


def cannot_read(
    path: str | Path, failure: OSError, *, error: type[CluesError] = DataError
) -> CluesError:
    """Return the error that says why a file cannot be read, and what to do."""
    reason = os.strerror(failure.errno) if failure.errno else type(failure).__name__
    if isinstance(failure, PermissionError):
        advice = "Give yourself the right to read it (chmod u+r, or ask its owner)"
    else:
        advice = "Look at it, or name another file"
    return error(f"{shown(path)}: cannot be read ({reason}). {advice}.")


def check_file(path: str | Path, *, error: type[CluesError] = DataError) -> int:
    """Size in bytes of a plain file; anything else could wait for ever, or never end.

    Raises:
        CluesError: it is missing, or no plain file.
    """
    known = status(path, error=error)
    if known is None:
        raise error(f"{shown(path)}: there is no such file.")
    if not stat.S_ISREG(known.st_mode):
        what = next((name for fits, name in _KINDS if fits(known.st_mode)), "no plain file")
        raise error(f"{shown(path)}: this is {what}, and only plain files are read. Name a file.")
    return known.st_size


def read_bytes(
    path: str | Path,
    *,
    limit: int = MAX_BYTES,
    advice: str = "Is it the right file?",
    error: type[CluesError] = DataError,
) -> bytes:
    """Read a plain file of at most `limit` bytes.

    Args:
        path: of the file.
        limit: the most bytes.
        advice: what to do where there are more.
        error: what to raise.

    Raises:
        CluesError: it is missing, no plain file, larger, or may not be read.
    """
    size = check_file(path, error=error)
    if size <= limit:
        try:
            with Path(path).open("rb") as file:
                data = _all_of(file, size, limit)
        except OSError as problem:
            failure = problem
        else:
            if len(data) <= limit:
                return data
            failure, size = None, max(size, len(data))
        if failure is not None:
            raise cannot_read(path, failure, error=error)
    raise error(
        f"{shown(path)}: has {megabytes(size)}, and at most {megabytes(limit)} are read. {advice}"
    )


def _all_of(file: BinaryIO, size: int, limit: int) -> bytes:
    """A file that says it has `size` bytes, or one more than `limit` where it has more.

    A reader takes the memory that it is asked for, so it is asked for what there is.
    """
    data = file.read(size + 1)
    # Some files of the system say that they are empty and are not; others grow.
    while len(data) <= limit and (more := file.read(min(1_000_000, limit + 1 - len(data)))):
        data += more
    return data


def megabytes(n_bytes: float) -> str:
    """A size in MB of 10^6 bytes."""
    return f"{n_bytes / 1e6:,.1f} MB"


def read_text(
    path: str | Path,
    *,
    limit: int = MAX_BYTES,
    advice: str = "Is it the right file?",
    error: type[CluesError] = DataError,
) -> str:
    """Read a plain file of UTF-8; arguments as `read_bytes`.

    Raises:
        CluesError: as `read_bytes`, or it is no UTF-8.
    """
    data = read_bytes(path, limit=limit, advice=advice, error=error)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        at = problem.start
    raise error(f"{shown(path)}: not UTF-8 at byte offset {at}. Save it as UTF-8.")


def read_json(
    path: str | Path,
    *,
    limit: int = MAX_BYTES,
    advice: str = "Restore or remove the file.",
    error: type[CluesError] = DataError,
) -> Any:
    """Read a file of JSON; arguments as `read_bytes`, and `advice` is for damage too.

    Raises:
        CluesError: as `read_text`, or it is no JSON, or too deep or large for one of ours.
    """
    text = read_text(path, limit=limit, advice=advice, error=error)
    try:
        return parse_json(text)
    except Unreadable as problem:
        reason = str(problem)
    raise error(f"{shown(path)}: {reason}. {advice}")


def parse_json(
    text: str | bytes,
    *,
    max_items: int = MAX_ITEMS,
    max_depth: int = MAX_DEPTH,
    parse: Callable[[Any], Any] = json.loads,
) -> Any:
    """Parse JSON whose memory and depth are bounded before it is built.

    Args:
        text: of the value.
        max_items: the most values in it.
        max_depth: the most brackets in brackets.
        parse: what parses it once it is known to be small enough.

    Raises:
        Unreadable: it is no JSON, or too large or deep; the reason holds none of the text.
    """
    comma, opening = (b",", (b"[", b"{")) if isinstance(text, bytes) else (",", ("[", "{"))
    # Those within strings are counted too: a limit far above what is meant takes no harm.
    brackets = sum(text.count(bracket) for bracket in opening)  # pyright: ignore
    if text.count(comma) + brackets > max_items:  # pyright: ignore
        raise Unreadable(f"not readable JSON (more than {max_items:,} values)")
    try:
        value = parse(text)
    except json.JSONDecodeError as problem:
        at = f"character {problem.colno}"
        where = at if problem.lineno == 1 else f"line {problem.lineno}, {at}"
        hint = _hint(problem)
        reason = f"not valid JSON ({where}{hint and f': {hint}'})"
    except RecursionError:
        reason = "not readable JSON (brackets too deep)"
    except ValueError:
        reason = "not readable JSON (a number too long, or bytes that are no UTF-8)"
    else:
        if brackets > max_depth:
            check_depth(value, max_depth=max_depth)
        return value
    raise Unreadable(reason)


def _hint(problem: json.JSONDecodeError) -> str:
    """What people write that is nearly JSON, and how to mend it; empty where it is something else."""
    before, after = problem.doc[: problem.pos].rstrip(), problem.doc[problem.pos :].lstrip()
    if problem.msg.startswith("Extra data"):
        if after.strip() == ",":
            return "a comma after the end; remove it"
        if after.lstrip(", \t\r\n").startswith(("{", "[")):
            return "another value begins, and one is read here"
        return ""
    ends = after.removeprefix(",").lstrip().startswith(("]", "}"))
    if ends and (after.startswith(",") or before.endswith(",")):
        return "a comma before the closing bracket; remove it"
    if problem.msg.startswith("Invalid control character"):
        return "a line break or a tab within a text; JSON writes \\n, \\r or \\t"
    if not after:
        return "the text ends before the value does"
    return ""


def check_depth(value: Any, *, max_depth: int = MAX_DEPTH, max_items: int = MAX_ITEMS) -> None:
    """Refuse plain values that are nested too deep, or that hold each other in a circle.

    Raises:
        Unreadable: they are; a value that is named twice counts twice.
    """
    level: list[Any] = [value]
    n_items = depth = 0
    while level:
        depth, n_items = depth + 1, n_items + len(level)
        if depth > max_depth + 1:
            raise Unreadable(f"nested more than {max_depth} deep")
        if n_items > max_items:
            raise Unreadable(f"more than {max_items:,} values")
        below: list[Any] = []
        for part in level:
            children: Iterable[Any] = (
                part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
            )
            below += [child for child in children if isinstance(child, dict | list)]
            if len(below) > max_items:
                raise Unreadable(f"more than {max_items:,} values")
        level = below


def is_plain_number(value: object, *, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether a value from JSON is a finite number within limits, and no truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # An integer of a thousand digits has no float, but can be compared with one.
    return low <= value <= high and value not in (math.inf, -math.inf)
