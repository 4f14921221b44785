"""The bytes of a message: one safetensors file, whose header begins with a seal over all of it.

    8 bytes          length of the header
    {"__metadata__":{"sha256-sum":"SEAL","clues":"TEXT"},"NAME":{"dtype":"F32",...},...}
    the tensors

The seal is the SHA-256 of the same file without the seal. It finds what was changed by accident or
cut; who changes a message on purpose can seal it anew, and shows in the two sides' ledgers. The file
without its seal is what earlier versions wrote, so a stored reply keeps its name.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from clues.model.tensorfile import DTYPES as KNOWN
from clues.model.tensorfile import parts_of

# What messages may hold, by safetensors' names.
DTYPES = {name: KNOWN[name] for name in ("F16", "F32", "F64", "U8")}
MAX_HEADER_BYTES = 64_000_000
START = b'{"__metadata__":{'
BEFORE, AFTER = b'"sha256-sum":"', b'",'
N_HEX = 64
# Of the seal in the header; a multiple of eight, so that the tensors stay aligned without it too.
N_SEAL = len(BEFORE) + N_HEX + len(AFTER)
PLACE = 8 + len(START)


def write(text: str, tensors: Mapping[str, Tensor]) -> bytes:
    """Write a sealed message.

    Args:
        text: the message's own header, JSON.
        tensors: of the dtypes above. Order does not matter.

    Returns:
        The file. Equal contents give equal bytes, and it is the only copy that is made.
    """
    return _with_seal(parts_of(tensors, {"clues": text}))


def sealed(data: bytes) -> bytes:
    """Seal what an earlier version wrote without a seal; anything else stays as it is."""
    if is_sealed(data) or data[8:PLACE] != START:
        return data
    return _with_seal([data[:PLACE], memoryview(data)[PLACE:]])


def is_sealed(data: bytes) -> bool:
    """Whether there is a seal, whole or broken."""
    end = PLACE + N_SEAL
    return (
        data[8 : PLACE + len(BEFORE)] == START + BEFORE
        and data[end - len(AFTER) : end] == AFTER
        and int.from_bytes(data[:8], "little") >= N_SEAL
    )


def is_whole(data: bytes) -> bool:
    """Whether a sealed message is what its sender has sealed."""
    begin = PLACE + len(BEFORE)
    return data[begin : begin + N_HEX] == identity_of(data).encode()


def identity_of(data: bytes) -> str:
    """SHA-256 of a message without its seal: the same in every version of this program."""
    view = memoryview(data)
    if not is_sealed(data):
        return hashlib.sha256(view).hexdigest()
    n_header = int.from_bytes(view[:8], "little") - N_SEAL
    digest = hashlib.sha256(n_header.to_bytes(8, "little"))
    digest.update(view[8:PLACE])
    digest.update(view[PLACE + N_SEAL :])
    return digest.hexdigest()


def read_header(data: bytes) -> dict[str, Any]:
    """The file's header; whatever is wrong with it is one of many exceptions.

    Raises:
        ValueError: it is no JSON, or claims to be giant.
    """
    n_header = int.from_bytes(data[:8], "little")
    if n_header > MAX_HEADER_BYTES:
        raise ValueError
    return json.loads(data[8 : 8 + n_header])


def _with_seal(parts: list[Any]) -> bytes:
    """Put the seal into a file given in parts, of which the first reaches into the header."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    first, *others = parts
    n_header = int.from_bytes(first[:8], "little") + N_SEAL
    seal = BEFORE + digest.hexdigest().encode() + AFTER
    start = n_header.to_bytes(8, "little") + first[8:PLACE] + seal
    return b"".join([start, first[PLACE:], *others])
