"""A safetensors file in parts: its header, then every tensor's own memory.

`safetensors.torch.save` holds all tensors three times on the way to a file; these parts hold them
not once more. The bytes are the same, which a test compares.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

# By safetensors' names.
DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# A sealed file begins with its own checksum, the SHA-256 of the file with zeros in its place.
START = b'{"__metadata__":{"sha256":"'
UNSET = "0" * 64
PLACE = slice(8 + len(START), 8 + len(START) + len(UNSET))


def parts_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[Any]:
    """The file as a list of buffers; written one after the other they are the file.

    Args:
        tensors: of the dtypes above. Order does not matter.
        metadata: of the file; none where it is empty.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    parts: list[memoryview] = []
    end = 0
    # As safetensors does it: wide types first, so that each tensor is aligned.
    for name, tensor in sorted(tensors.items(), key=lambda t: (-t[1].element_size(), t[0])):
        whole = tensor.detach().cpu().contiguous()
        begin, end = end, end + whole.nbytes
        shape, dtype = list(whole.shape), NAMES[whole.dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        parts.append(whole.reshape(-1).view(torch.uint8).numpy().data)
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    return [len(head).to_bytes(8, "little") + head, *parts]


def sealed_parts(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[Any]:
    """As `parts_of`, with the file's checksum in its metadata."""
    first, *others = parts_of(tensors, {"sha256": UNSET, **metadata})
    checksum = _sha256([first, *others]).encode()
    return [first[: PLACE.start] + checksum + first[PLACE.stop :], *others]


def checksum_of(data: bytes) -> str:
    """What the checksum of these bytes must be: equal for equal files."""
    view = memoryview(data)
    return _sha256([view[: PLACE.start], UNSET.encode(), view[PLACE.stop :]])


def begins_sealed(data: bytes) -> bool:
    """Whether this is meant to be a sealed file, whole or not."""
    return data[8 : PLACE.start] == START


def is_sealed(data: bytes) -> bool:
    """Whether a file is what `sealed_parts` made."""
    return begins_sealed(data) and data[PLACE] == checksum_of(data).encode()


def _sha256(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def pack(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Take the tensors out of nested dictionaries and lists.

    Args:
        tree: dictionaries with names as keys, lists, and tensors; nothing else.

    Returns:
        The same tree with a number in every tensor's place, which is plain JSON, and the tensors by
        their numbers. The order of keys does not matter.
    """
    tensors: dict[str, Tensor] = {}
    return _numbered(tree, tensors), tensors


# No function inside `pack`: one that calls itself keeps its tensors until the garbage is collected.
def _numbered(part: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(part, Mapping):
        return {name: _numbered(part[name], tensors) for name in sorted(part)}
    if isinstance(part, list | tuple):
        return [_numbered(item, tensors) for item in part]
    tensors[str(len(tensors))] = part
    return len(tensors) - 1


def unpack(plan: Any, take: Callable[[str], Tensor]) -> Any:
    """Put tensors back into the tree that `pack` made.

    Args:
        plan: the tree with numbers.
        take: returns the tensor of a number.
    """
    if isinstance(plan, Mapping):
        return {name: unpack(part, take) for name, part in plan.items()}
    if isinstance(plan, list):
        return [unpack(part, take) for part in plan]
    return take(str(plan))
