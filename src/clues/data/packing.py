"""Packed files, unpacked in small pieces and never to more than text can grow to."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from clues.data.limits import MAX_FILE_BYTES
from clues.errors import DataError
from clues.reading import megabytes, shown

# Never more than this many times the size: text has a tenth of it.
PIECE_BYTES, FREE_BYTES, MAX_RATIO = 1_000_000, 100_000_000, 60
# What the unpacker itself may take; the most thorough levels take 65 MB.
_XZ_MEMORY = 2**28
_MAGIC = {
    b"\x1f\x8b": ".gz",
    b"BZh": ".bz2",
    b"\xfd7zXZ\x00": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
}
ENDINGS = tuple(_MAGIC.values())


def name_of(ending: str) -> str:
    """What people call a packing."""
    return {".gz": "gzip", ".zst": "zstd"}.get(ending, ending.removeprefix("."))


def packed_as(data: bytes) -> str:
    """How data is packed, as the ending of a name such as `.gz`; empty where it is not."""
    return next((ending for magic, ending in _MAGIC.items() if data.startswith(magic)), "")


def unpack(path: Path, data: bytes, ending: str) -> bytes:
    """What is in packed data, taken out piece by piece: a bomb is found when it has grown a little.

    Args:
        path: of the file, for messages.
        data: all of it.
        ending: as `packed_as` gives it.

    Raises:
        DataError: it is damaged, or holds too much.
    """
    parts: list[bytes] = []
    most = min(MAX_FILE_BYTES, max(FREE_BYTES, MAX_RATIO * len(data)))
    size, reason, name = 0, "", name_of(ending)
    try:
        for part in _PIECES[ending](data):
            parts.append(part)
            size += len(part)
            if size > most:
                reason = "bomb"
                break
    except EOFError:
        reason = f"the {name} data ends too early"
    except (zlib.error, lzma.LZMAError, OSError, ValueError, pa.ArrowException):
        reason = f"the {name} data is damaged"
    if reason == "bomb":
        raise DataError(
            f"{shown(path)}: {megabytes(len(data))} of {name} unpack to "
            f"{megabytes(size)} or more; at most {MAX_RATIO} times the size, and "
            f"{megabytes(MAX_FILE_BYTES)}, are read. Rows of text are packed to a tenth: look "
            "what is in it, and unpack it yourself if it is meant."
        )
    if reason:
        raise DataError(f"{path}: {reason} ({len(data)} bytes). Copy the file again.")
    return b"".join(parts)


def packing(sink: BinaryIO, ending: str) -> AbstractContextManager[Any]:
    """A file that packs what is written to it; the same rows give the same bytes.

    Args:
        sink: where the packed bytes go.
        ending: as `packed_as` gives it.
    """
    return _PACKERS[ending](sink)


def _from_gzip(data: bytes) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
        while part := packed.read(PIECE_BYTES):
            yield part


def _from_stream(data: bytes, new: Callable[[], Any]) -> Iterator[bytes]:
    """Streams of bz2 or xz, one after another; zeros between them are padding."""
    while data:
        stream = new()
        given = data
        while not stream.eof:
            part = stream.decompress(given, PIECE_BYTES)
            given = b""
            if part:
                yield part
            elif not stream.eof and stream.needs_input:
                raise EOFError
        data = stream.unused_data.lstrip(b"\0")


def _from_zstd(data: bytes) -> Iterator[bytes]:
    with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as packed:
        while part := packed.read(PIECE_BYTES):
            yield part


_PIECES: dict[str, Callable[[bytes], Iterator[bytes]]] = {
    ".gz": _from_gzip,
    ".bz2": lambda data: _from_stream(data, bz2.BZ2Decompressor),
    ".xz": lambda data: _from_stream(data, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY)),
    ".zst": _from_zstd,
}
_PACKERS: dict[str, Callable[[BinaryIO], AbstractContextManager[Any]]] = {
    # No name and no time in the gzip header.
    ".gz": lambda sink: gzip.GzipFile(filename="", mode="wb", fileobj=sink, mtime=0),
    ".bz2": lambda sink: bz2.BZ2File(sink, "wb"),
    ".xz": lambda sink: lzma.LZMAFile(sink, "wb"),  # noqa: SIM115 - the caller opens it
    ".zst": lambda sink: pa.CompressedOutputStream(pa.PythonFile(sink, "w"), "zstd"),
}
