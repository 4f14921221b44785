"""The bytes of a message: one plain safetensors file, with a checksum in its metadata.

    8 bytes          length of the header
    {"__metadata__":{"sha256":"CHECKSUM","clues":"TEXT"},"0":{"dtype":"F32",...},...}
    the tensors

The checksum is the SHA-256 of the whole file with 64 zeros in its own place. It finds what was
changed by accident or cut. Who changes a message on purpose can make a new one, and shows in the
two sides' ledgers.
"""

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from clues.model.tensorfile import DTYPES as KNOWN
from clues.model.tensorfile import PLACE, UNSET, checksum_of, sealed_parts
from clues.model.tensorfile import begins_sealed as is_container
from clues.model.tensorfile import is_sealed as is_whole

# What messages may hold, by safetensors' names.
DTYPES = {name: KNOWN[name] for name in ("F32", "F64", "U8")}
MAX_HEADER_BYTES = 64_000_000

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


def read_header(data: bytes) -> dict[str, Any]:
    """The file's header, from its first bytes; whatever is wrong with it is one of many exceptions.

    Raises:
        ValueError: it is no JSON, or claims to be giant.
    """
    n_header = int.from_bytes(data[:8], "little")
    if n_header > MAX_HEADER_BYTES:
        raise ValueError
    return json.loads(data[8 : 8 + n_header])


def read_text(header: Mapping[str, Any]) -> dict[str, Any]:
    """The message's own header; whatever is wrong with it is one of many exceptions."""
    return json.loads(header["__metadata__"]["clues"])
