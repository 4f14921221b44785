"""Many rows in one page: typed arrays and text, gzipped, as base64.

Base64 has no character that HTML or a script could take for its own, whatever the rows contain,
and a page of 100,000 rows stays a fifth of its size.
"""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clues.report.cells import escaped

TEXT_BUDGET = 40_000_000  # characters of all rows together
ROW_LIMIT = 20_000  # characters of one row
CUT = " \N{HORIZONTAL ELLIPSIS}"
TURN, ROLE = "\x1e", "\x1f"
_NAMES = {"float64": "f8", "float32": "f4", "uint32": "u4", "uint16": "u2", "uint8": "u1"}


def pack(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """One base64 string of a JSON header and arrays.

    The bytes before gzip: length of the header (4, little-endian), the header, then the arrays,
    each from a multiple of 8 on. The header gains `arrays`: by name (type, first byte, length).
    """
    places: dict[str, tuple[str, int, int]] = {}
    body = bytearray()
    for name, values in arrays.items():
        values = np.ascontiguousarray(values)
        body += b"\0" * (-len(body) % 8)
        places[name] = (_NAMES[values.dtype.name], len(body), len(values))
        body += values.astype(values.dtype.newbyteorder("<")).tobytes()
    text = json.dumps({**header, "arrays": places}, allow_nan=False, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 4) % 8)
    whole = len(text).to_bytes(4, "little") + text + bytes(body)
    # No time in it: equal rows give an equal page.
    return base64.b64encode(gzip.compress(whole, 6, mtime=0)).decode()


def pack_texts(
    texts: Sequence[Sequence[tuple[str, str]]],
) -> tuple[dict[str, np.ndarray], int | None]:
    """Turns of all rows as UTF-8 bytes and where each row ends; long rows are cut.

    Args:
        texts: for each row its turns as (role, content).

    Returns:
        The arrays, and the number of characters after which rows were cut, None if none was.
    """
    lengths = np.array([sum(len(content) for _, content in turns) for turns in texts], int)
    limit = row_limit(lengths)
    parts: list[bytes] = []
    for turns, length in zip(texts, lengths.tolist(), strict=True):
        shown = turns if length <= limit else _shortened(turns, limit)
        text = TURN.join(role + ROLE + escaped(content) for role, content in shown)
        # A lone surrogate has no UTF-8; such a row is refused before, and a column may hold one.
        parts.append(text.encode("utf-8", "replace"))
    ends = np.cumsum([len(part) for part in parts], dtype=np.uint64)
    arrays = {
        "text": np.frombuffer(b"".join(parts) or b"\0", np.uint8),
        "textEnd": ends.astype(np.uint32) if len(ends) else np.zeros(0, np.uint32),
    }
    return arrays, limit if bool((lengths > limit).any()) else None


def row_limit(lengths: np.ndarray) -> int:
    """The longest text a row may have so that all together stay within the budget."""
    limit = ROW_LIMIT
    while limit > 100 and int(np.minimum(lengths, limit).sum()) > TEXT_BUDGET:
        limit = limit * 9 // 10
    return limit


def _shortened(turns: Sequence[tuple[str, str]], limit: int) -> list[tuple[str, str]]:
    """Every turn's beginning; half of the room is for the last one, which is what is learnt."""
    last = min(len(turns[-1][1]), max(limit // 2, limit - sum(len(c) for _, c in turns[:-1])))
    each = (limit - last) // max(1, len(turns) - 1)
    rooms = [each] * (len(turns) - 1) + [last]
    return [
        (role, content if len(content) <= room else content[:room] + CUT)
        for (role, content), room in zip(turns, rooms, strict=True)
    ]
