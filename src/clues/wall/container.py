"""The bytes of a message: one plain safetensors file, with a checksum in its metadata.

    8 bytes          length of the header
    {"__metadata__":{"sha256":"CHECKSUM","clues":"TEXT"},"0":{"dtype":"F32",...},...}
    the tensors

The checksum is the SHA-256 of the whole file with 64 zeros in its own place. It finds what was
changed by accident or cut. Who changes a message on purpose can make a new one, and shows in the
two sides' ledgers.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from clues.model.tensorfile import DTYPES as KNOWN
from clues.model.tensorfile import PLACE, UNSET, checksum_of, sealed_parts
from clues.model.tensorfile import begins_sealed as is_container
from clues.model.tensorfile import is_sealed as is_whole
from clues.reading import parse_json

# What messages may hold, by safetensors' names.
DTYPES = {name: KNOWN[name] for name in ("F32", "F64", "U8")}
# A tensor takes 100 to 250 bytes of header and more than that of its own; 4 MB are 200,000 numbers.
# An adapter of 70 billion weights with LoRA on every layer has a header of 0.3 MB.
MAX_HEADER_BYTES, FREE_HEADER_BYTES = 64_000_000, 4_000_000
MAX_HEADER_ITEMS = 2_000_000

__all__ = [
    "DTYPES",
    "MAX_HEADER_BYTES",
    "PLACE",
    "UNSET",
    "checksum_of",
    "is_container",
    "is_whole",
    "read_header",
    "read_text",
    "write",
]


def write(text: str, tensors: Mapping[str, Tensor]) -> bytes:
    """Write a message.

    Args:
        text: the message's own header, JSON.
        tensors: of the dtypes above. Order does not matter.

    Returns:
        The file. Equal contents give equal bytes, and it is the only copy that is made.
    """
    return b"".join(sealed_parts(tensors, {"clues": text}))


def read_header(data: bytes, *, n_bytes: int | None = None) -> dict[str, Any]:
    """The file's header, from its first bytes; whatever is wrong with it is one of many exceptions.

    Args:
        data: the message, or its beginning.
        n_bytes: length of the whole message; None where `data` is all of it.

    Raises:
        ValueError: it is no JSON, or larger than what it describes. Nothing is built of it then.
    """
    n_header = int.from_bytes(data[:8], "little")
    n_tensors = (len(data) if n_bytes is None else n_bytes) - 8 - n_header
    if n_tensors < 0 or n_header > min(MAX_HEADER_BYTES, FREE_HEADER_BYTES + n_tensors):
        raise ValueError
    return parse_json(data[8 : 8 + n_header], max_items=MAX_HEADER_ITEMS)


def read_text(header: Mapping[str, Any]) -> dict[str, Any]:
    """The message's own header; whatever is wrong with it is one of many exceptions."""
    return parse_json(header["__metadata__"]["clues"], max_items=MAX_HEADER_ITEMS)
