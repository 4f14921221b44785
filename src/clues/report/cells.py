"""How a value is written in a report: rounded, suppressed where few rows are behind it, never made up."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from clues.errors import DataError
from clues.reading import visible

DASH = "\N{EN DASH}"
# Rows by which a told count may be off.
OFF = 9
FEW = "<10"
FEW_ROWS = "n<10"


def need(mapping: Mapping[str, Any], key: str, where: str) -> Any:
    """The value under `key`, which may be None but must be there."""
    if key not in mapping:
        raise DataError(
            f"{where}: key '{key}' is missing. Run the last stage again; "
            "a number that was not measured is written as null."
        )
    return mapping[key]


def clean(text: object) -> str:
    """Text without control, line-break or direction-changing characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


# Control characters (a line's end and a tabulator stay), and what turns, hides or joins others
# unseen. Joiners stay: Persian words and family emojis are made with them.
_UNSEEN = [
    *range(9),
    11,
    12,
    *range(14, 32),
    *range(127, 160),
    0xAD,
    0x61C,
    0x180E,
    0x200B,
    0x200E,
    0x200F,
]
_UNSEEN += [*range(0x2028, 0x202F), *range(0x2060, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFC)]
_UNSEEN += [*range(0xE0000, 0xE0080)]
_ESCAPES = {code: visible(chr(code)) for code in _UNSEEN}


def escaped(text: str) -> str:
    """A row's text as it is, with an escape in place of each character that nobody would see."""
    return text.translate(_ESCAPES)


def number(value: float | None, decimals: int = 3) -> str:
    """A number as text, an en dash where it was not measured."""
    if value is None:
        return DASH
    return f"{value:,.{decimals}f}" if math.isfinite(value) else "not finite"


def count(n_rows: int | None) -> str:
    """A number of rows rounded to tens, '<10' below ten, an en dash where not measured."""
    if n_rows is None:
        return DASH
    return FEW if n_rows < 10 else f"{_tens(n_rows):,}"


def _tens(n_rows: int) -> int:
    return (n_rows + 5) // 10 * 10


def band(n_rows: int | None, n_kept: int | None) -> str:
    """The keep rates that two rounded counts leave open, in whole per cent; an en dash for few rows.

    A silo's key draws whether a count is rounded up or down, so either may be up to nine rows off.
    """
    if n_rows is None or n_kept is None or min(n_rows, n_kept) < 10:
        return DASH
    rows, kept = _tens(n_rows), _tens(n_kept)
    low = 100 * max(1, kept - OFF) // (rows + OFF)
    high = min(100, math.ceil(100 * (kept + OFF) / max(1, rows - OFF)))
    return f"{low}{DASH}{high} %"


def with_error(value: float | None, stderr: float | None) -> str:
    """A figure and its standard error, where it has one."""
    error = "" if value is None or stderr is None else f" \N{PLUS-MINUS SIGN} {number(stderr)}"
    return number(value) + error


def with_interval(
    value: float | None,
    interval: Sequence[float] | None,
    *,
    decimals: int = 3,
    signed: bool = False,
) -> str:
    """A figure and both ends of its interval, where it has one."""
    if value is None:
        return DASH
    ends = f" ({' to '.join(number(end, decimals) for end in interval)})" if interval else ""
    return f"{'+' if signed and value > 0 else ''}{number(value, decimals)}{ends}"


def percent(rate: float) -> str:
    """A rate in per cent."""
    return f"{number(100 * rate, 1)} %"


def size(n_bytes: int | None) -> str:
    """A number of bytes in the unit that suits it."""
    if n_bytes is None or n_bytes < 1000:
        return DASH if n_bytes is None else f"{n_bytes} B"
    power = min(int(math.log10(n_bytes)) // 3, 3)
    return f"{n_bytes / 1000**power:.1f} {('kB', 'MB', 'GB')[power - 1]}"


def questions(n_questions: int | None) -> str:
    """How many questions knowledge was asked with, in words."""
    return "the questions" if n_questions is None else f"{n_questions:,} questions"
