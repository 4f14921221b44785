"""Token ids in an Arrow file: written once, and read from the disk where they are asked for.

A row in memory is Python numbers, some thirty bytes per token; in the file it is five. The file is
mapped, so that processes of one machine share it and none holds more than what it looks at.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from clues.atomic import make_folder, refuse_what_never_ends, write_atomically
from clues.data.pieces import TurnRun
from clues.data.samples import Sample
from clues.data.tokens import EncodedRow, EncodedRows, RowEncoder, each_encoded, none_left
from clues.data.views import Rows
from clues.errors import DataError

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("ids", pa.list_(pa.int32())),
        # A byte per token, not a bit: it can be read in place.
        ("mask", pa.list_(pa.uint8())),
        ("truncated", pa.bool_()),
        # Three numbers for each run of a turn's tokens: turn, start, end.
        ("turns", pa.list_(pa.int32())),
    ]
)
ROWS_PER_BATCH = 1024


class TokenRows(Rows):
    """Rows of a token file; each is made when it is asked for, and nothing is kept.

    Attributes:
        path: of the file.
        hash: SHA-256 of what it holds, as `hash_rows` gives it for the same rows.
    """

    def __init__(self, path: Path, hash_: str) -> None:
        """Map the file, once it is seen to be the one that was written.

        Arrow trusts what a file says of its own sizes: a damaged one would end the process, or be
        read as other tokens.

        Raises:
            DataError: it is missing, damaged or no token file.
        """
        self.path, self.hash = path, hash_
        try:
            refuse_what_never_ends(path)
            mapped = pa.memory_map(str(path)).read_buffer()
            if hashlib.sha256(mapped).hexdigest() != hash_:
                raise pa.ArrowInvalid
            table = pa.ipc.open_file(mapped).read_all()
            if not table.schema.equals(SCHEMA):
                raise pa.ArrowInvalid
        except (OSError, pa.ArrowException):
            raise DataError(
                f"{path.name}: not the file of token ids that was written. It is made anew when the "
                "silo works."
            ) from None
        self.batches = table.to_batches()
        self.starts = np.cumsum([0, *(len(batch) for batch in self.batches)])
        # What lies in the file, as arrays: made once per batch, for a row they are cheap.
        self.arrays: list[_Arrays | None] = [None] * len(self.batches)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def row(self, position: int) -> EncodedRow:
        """One row, read from the file."""
        place = position + len(self) if position < 0 else position
        if not 0 <= place < len(self):
            raise IndexError(position)
        number = int(np.searchsorted(self.starts, place, side="right")) - 1
        return self._batch(number).row(place - int(self.starts[number]))

    def numbers(self) -> list[int]:
        """Every row's place in the silo's file, from its column alone."""
        return [n for batch in self.batches for n in batch.column(0).to_pylist()]

    def __iter__(self) -> Iterator[EncodedRow]:
        for number, batch in enumerate(self.batches):
            arrays = self._batch(number)
            for n in range(len(batch)):
                yield arrays.row(n)

    def _batch(self, number: int) -> "_Arrays":
        found = self.arrays[number]
        if found is None:
            found = self.arrays[number] = _arrays(self.batches[number])
        return found

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every row, (rows,) int64."""
        found = [np.diff(batch.column(2).offsets.to_numpy()) for batch in self.batches]
        return np.concatenate([np.zeros(0, np.int64), *found]).astype(np.int64)

    @property
    def id_texts(self) -> np.ndarray:
        """Content id of every row, (rows,) of text."""
        found = [np.array(batch.column(1).to_pylist(), dtype=str) for batch in self.batches]
        return np.concatenate(found) if found else np.zeros(0, dtype="U1")


def write_rows(rows: Iterable[EncodedRow], folder: Path) -> TokenRows:
    """Write rows to `tokens-HASH.arrow` in a folder, a batch in memory at a time.

    A file of the same rows that is there already is left as it is.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    make_folder(folder)
    digest = hashlib.sha256()
    part = folder / "tokens.new"

    def write(place: Path) -> None:
        with place.open("wb") as file:
            _fill(_Hashed(file, digest), rows)

    write_atomically(part, write)
    path = place_of(folder, digest.hexdigest())
    part.replace(path)
    return TokenRows(path, digest.hexdigest())


def encode_into(
    folder: Path, samples: Iterable[Sample], encoder: RowEncoder, *, where: str
) -> EncodedRows:
    """As `encode_rows`, into a token file: in memory are a batch of rows and the reasons of others.

    Token files of other rows that lie in the folder are removed.

    Raises:
        DataError: as `encode_rows`; or the disk is full.
    """
    dropped: dict[int, str] = {}
    rows = write_rows(each_encoded(samples, encoder, where=where, dropped=dropped), folder)
    for old in folder.glob("tokens-*.arrow"):
        if old != rows.path:
            old.unlink()
    if not rows:
        raise none_left(dropped, encoder, where=where)
    return EncodedRows(rows, dropped)


def place_of(folder: Path, hash_: str) -> Path:
    """Where the token file of a hash lies in a folder."""
    return folder / f"tokens-{hash_[:24]}.arrow"


def hash_rows(rows: Sequence[EncodedRow]) -> str:
    """SHA-256 of the file that `write_rows` would write, without writing it."""
    if isinstance(rows, TokenRows):
        return rows.hash
    digest = hashlib.sha256()
    _fill(_Hashed(None, digest), rows)
    return digest.hexdigest()


def pack_rows(rows: Sequence[EncodedRow]) -> bytes:
    """A few rows as the bytes of a token file."""
    buffer = io.BytesIO()
    _fill(buffer, rows)
    return buffer.getvalue()


def unpack_rows(data: bytes) -> list[EncodedRow]:
    """Read what `pack_rows` made.

    Raises:
        DataError: it is something else.
    """
    try:
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        if not table.schema.equals(SCHEMA):
            raise pa.ArrowInvalid
        # Before anything is taken out: offsets that lead nowhere would end the process.
        table.validate(full=True)
        return [
            arrays.row(n)
            for batch in table.to_batches()
            for arrays in (_arrays(batch),)
            for n in range(len(batch))
        ]
    # ValueError and TypeError: values that are missing, or turns that are not three numbers each.
    except (OSError, ValueError, TypeError, pa.ArrowException):
        raise DataError("a slice of token ids cannot be read.") from None


def _fill(file: Any, rows: Iterable[EncodedRow]) -> None:
    with pa.ipc.new_file(pa.PythonFile(file, mode="w"), SCHEMA) as writer:
        waiting: list[EncodedRow] = []
        for row in rows:
            waiting.append(row)
            if len(waiting) == ROWS_PER_BATCH:
                writer.write_batch(_batch(waiting))
                waiting = []
        if waiting:
            writer.write_batch(_batch(waiting))


def _batch(rows: Sequence[EncodedRow]) -> pa.RecordBatch:
    ends = np.cumsum([0, *(len(row.ids) for row in rows)], dtype=np.int32)
    ids = np.fromiter((i for row in rows for i in row.ids), np.int32, int(ends[-1]))
    mask = np.fromiter((m for row in rows for m in row.mask), np.uint8, int(ends[-1]))
    columns = [
        pa.array([row.row for row in rows], pa.int64()),
        pa.array([row.id for row in rows], pa.string()),
        pa.ListArray.from_arrays(pa.array(ends), pa.array(ids)),
        pa.ListArray.from_arrays(pa.array(ends), pa.array(mask)),
        pa.array([row.truncated for row in rows], pa.bool_()),
        pa.array([[n for run in row.turns for n in run] for row in rows], pa.list_(pa.int32())),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


class _Arrays(NamedTuple):
    """A batch's columns as arrays over the file's own memory."""

    rows: np.ndarray
    id_texts: pa.Array
    ends: np.ndarray
    ids: np.ndarray
    mask: np.ndarray
    truncated: pa.Array
    turns: pa.Array

    def row(self, n: int) -> EncodedRow:
        here = slice(self.ends[n], self.ends[n + 1])
        return EncodedRow(
            int(self.rows[n]),
            self.id_texts[n].as_py(),
            tuple(self.ids[here].tolist()),
            tuple(self.mask[here].astype(bool).tolist()),
            self.truncated[n].as_py(),
            turns=tuple(
                TurnRun(*run) for run in zip(*[iter(self.turns[n].as_py())] * 3, strict=True)
            ),
        )


def _arrays(batch: pa.RecordBatch) -> _Arrays:
    row, id_, ids, mask, truncated, turns = (batch.column(k) for k in range(6))
    # Offsets count from the start of the batch's own memory.
    numbers = (ids.offsets.to_numpy(), ids.values.to_numpy(), mask.values.to_numpy())
    return _Arrays(row.to_numpy(), id_, *numbers, truncated, turns)


class _Hashed:
    """A file that is hashed while it is written; without a file, only hashed."""

    def __init__(self, file: Any, digest: Any) -> None:
        self.file, self.digest, self.closed, self.n_bytes = file, digest, False, 0

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.digest.update(view)
        self.n_bytes += view.nbytes
        if self.file is not None:
            self.file.write(view)
        return view.nbytes

    def tell(self) -> int:
        return self.n_bytes

    def flush(self) -> None:
        if self.file is not None:
            self.file.flush()

    def close(self) -> None:
        self.closed = True
