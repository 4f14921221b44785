"""What a field of a message may hold: its type, and nothing that is not finite, endless or unseen."""

import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, get_args, get_origin

import torch
from torch import Tensor

from clues.errors import DataError, NumericsError
from clues.printable import MAX_TEXT, is_printable

TENSOR_TYPES = (torch.float32, torch.float64, torch.uint8)
MAX_COUNT = 2**63  # no whole number in a message is that large
MAX_PATH = 4096  # characters of the longest text, a path


def holds_tensors(wanted: Any) -> bool:
    """Whether a field of this type holds tensors, at any depth."""
    return wanted is Tensor or any(holds_tensors(part) for part in get_args(wanted))


def fits(value: Any, wanted: Any) -> bool:
    """Whether a value from JSON is of a field's type, down to the items of lists and dicts."""
    origin, parts = get_origin(wanted), get_args(wanted)
    if wanted is Any:
        return True
    if origin is UnionType:
        return any(fits(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(item, parts[1]) for item in value.values())
    # The very type: True is an int to isinstance. A tensor's number stands in its place.
    return type(value) is (int if wanted is Tensor else wanted)


def check_tensors(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors of another type, and numbers in them that are not finite."""
    for tensor in tensors.values():
        if tensor.dtype not in TENSOR_TYPES:
            raise DataError(f"{where} carries a tensor of type {tensor.dtype}.")
        if not torch.isfinite(tensor).all():
            raise NumericsError(f"{where} carries a tensor that is not finite.")


def check_values(value: Any, where: str) -> None:
    """Refuse what no message of ours holds, however deep it lies.

    Raises:
        NumericsError: a number is not finite.
        DataError: a whole number is larger than 64 bits, a text too long or no text, or a key is
            too long or cannot be printed.
    """
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, float) and not math.isfinite(item):
            raise NumericsError(f"{where} is not finite.")
        if isinstance(item, int) and abs(item) >= MAX_COUNT:
            raise DataError(f"{where} holds a number that is too large.")
        if isinstance(item, str) and not _is_text(item):
            raise DataError(f"{where} holds a text that is too long, or no text.")
        if isinstance(item, dict):
            # Keys are names, and stand in errors, records and pages.
            if not all(is_printable(key) for key in item):
                raise DataError(f"{where} holds a name that is too long, or not printable.")
            left += item.values()
        elif isinstance(item, list):
            left += item


def _is_text(value: str) -> bool:
    # Half a surrogate pair is no character, and nothing could write it down.
    return len(value) <= MAX_PATH and not any("\ud800" <= c <= "\udfff" for c in value)


def check_short(value: Any, where: str) -> None:
    """Refuse what a silo could flood a terminal or a record with, before anything repeats it.

    The coordinator's own messages hold long texts, such as a recipe.
    """
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str) and not is_printable(item):
            raise DataError(
                f"{where} holds text that is longer than {MAX_TEXT} characters or cannot be printed."
            )
        if isinstance(item, dict):
            left += [*item, *item.values()]
        elif isinstance(item, list):
            left += item
