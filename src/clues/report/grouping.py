"""Rows in groups, by a column of theirs: bands of numbers, the commonest of many texts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_BANDS = 5
N_VALUES = 24  # groups of a column; what is left is one more


@dataclass(frozen=True)
class Grouping:
    """A value of every row that keep rates can be looked at by.

    Attributes:
        name: of the column.
        values: labels of the groups, in order.
        codes: for each row the index of its group.
        note: what the reader should know, such as why there are no groups.
    """

    name: str
    values: tuple[str, ...] = field(repr=False)
    codes: NDArray[np.uint8] = field(repr=False)
    note: str = ""


def grouping(name: str, values: Sequence[Any]) -> Grouping:
    """Groups of a column: bands of equal size for many numbers, the commonest of many texts."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    present = sum(v is not None for v in values)
    if present and len(numbers) == present and len(set(numbers)) > N_BANDS:
        return _bands(name, values)
    texts = [_text(v) for v in values]
    counts: dict[str, int] = {}
    for text in texts:
        counts[text] = counts.get(text, 0) + 1
    if len(counts) > max(50, len(values) // 2):
        note = f"{len(counts):,} different values in {len(values):,} rows: nothing to group by."
        return Grouping(name, ("all rows",), np.zeros(len(values), np.uint8), note)
    order = sorted(counts, key=lambda text: (-counts[text], text))
    shown, rest = order[:N_VALUES], len(order) - N_VALUES
    codes = {text: k for k, text in enumerate(shown)}
    named = tuple(shown) + ((f"{rest:,} other values",) if rest > 0 else ())
    coded = np.array([codes.get(text, len(shown)) for text in texts], np.uint8)
    return Grouping(name, named, coded)


def _bands(name: str, values: Sequence[Any]) -> Grouping:
    """Numbers in bands that hold about as many rows each."""
    numbers = np.array([np.nan if v is None else float(v) for v in values])
    known = np.isfinite(numbers)
    inner = np.unique(np.quantile(numbers[known], np.linspace(0, 1, N_BANDS + 1)[1:-1]))
    codes = np.searchsorted(inner, np.where(known, numbers, 0.0), side="left")
    labels: list[str] = []
    for band in range(len(inner) + 1):
        members = numbers[known & (codes == band)]
        span = (members.min(), members.max()) if len(members) else (inner[-1], inner[-1])
        labels.append(f"{span[0]:g}" if span[0] == span[1] else f"{span[0]:g} to {span[1]:g}")
    codes = np.where(known, codes, len(labels))
    return Grouping(
        name, (*labels, *(("not known",) if not known.all() else ())), codes.astype(np.uint8)
    )


def _text(value: Any) -> str:
    if value is None or value == "":
        return "(empty)"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:79]}\N{HORIZONTAL ELLIPSIS}"
