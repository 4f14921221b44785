"""How much of a file of rows is read, and how it is found out before the memory is taken.

The limits are no settings. They stand far above what can be scored in a lifetime, so that a file
beyond them is a mistake or an attack; every message says what to do.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clues.errors import DataError
from clues.reading import megabytes

# One file of rows is in memory as a whole, some three times over.
MAX_FILE_BYTES = 2_000_000_000
SPLIT = "Split it into a folder of smaller files (shards), or into several silos."
MAX_ROWS = 10_000_000  # as federation.max_rows; scoring as many takes years
MAX_ROW_BYTES = 16_000_000  # with every column; what a model may read of it is less (`schemas`)
MAX_COLUMNS = 2_000
# Lists and objects in all of a file: an empty one takes 3 bytes there and 64 in memory.
MAX_BRACKETS = 20_000_000
# Rows of parquet that are unpacked at a time: few where a part of the file is large.
_BATCH_ROWS, _BATCH_BYTES = 1024, 100_000_000


def check_counts(path: Path, data: bytes) -> None:
    """Count rows, lists and objects in the bytes before any of them is built.

    Raises:
        DataError: they are too many.
    """
    counted = {
        "lines": (data.count(b"\n"), MAX_ROWS),
        "lists and objects": (data.count(b"[") + data.count(b"{"), MAX_BRACKETS),
    }
    for what, (n, most) in counted.items():
        if n > most:
            raise DataError(f"{path}: has {n:,} {what}, and at most {most:,} are read. {SPLIT}")


def too_long(line: bytes) -> str:
    """Why a row is refused for its length; empty where it is not."""
    if len(line) <= MAX_ROW_BYTES:
        return ""
    size, most = megabytes(len(line)), megabytes(MAX_ROW_BYTES)
    return f"the row has {size}, and at most {most} are read"


def load_parquet(path: Path, source: Any) -> Any:
    """Read parquet in batches: a small file can unpack to any size, so it is counted on the way.

    Raises:
        DataError: too many rows, columns or values, or too large when unpacked.
    """
    file = pq.ParquetFile(source)
    about = file.metadata
    parts = [
        about.row_group(group).column(column)
        for group in range(about.num_row_groups)
        for column in range(about.num_columns if about.num_columns <= MAX_COLUMNS else 0)
    ]
    _check_arrow(
        path, about.num_rows, about.num_columns, sum(p.total_uncompressed_size for p in parts)
    )
    values = max((part.num_values for part in parts), default=0)
    if values > MAX_BRACKETS:
        raise _refused(path, f"{values:,} values in one column", f"{MAX_BRACKETS:,}")
    # No value is larger than its part of the file, however often a dictionary repeats it.
    largest = max(
        (about.row_group(g).total_byte_size for g in range(about.num_row_groups)), default=0
    )
    size = max(8, min(_BATCH_ROWS, _BATCH_BYTES // max(largest, 1)))
    return _collected(path, file.schema_arrow, file.iter_batches(batch_size=size))


def load_arrow_file(path: Path, source: Any) -> Any:
    """Read an arrow file; errors as `load_parquet`."""
    file = pa.ipc.open_file(source)
    batches = (file.get_batch(number) for number in range(file.num_record_batches))
    return _collected(path, file.schema, batches)


def load_arrow_stream(path: Path, source: Any) -> Any:
    """Read an arrow stream; errors as `load_parquet`."""
    stream = pa.ipc.open_stream(source)
    return _collected(path, stream.schema, stream)


def _collected(path: Path, schema: Any, batches: Any) -> Any:
    """Batches as one table, refused as soon as they are too many or too large together."""
    _check_arrow(path, 0, len(schema), 0)
    taken: list[Any] = []
    n_rows = n_bytes = 0
    for batch in batches:
        # Before anything else is asked of it: a missing part of a damaged one ends the process.
        batch.validate()
        n_rows, n_bytes = n_rows + batch.num_rows, n_bytes + batch.nbytes
        _check_arrow(path, n_rows, len(schema), n_bytes)
        taken.append(batch)
    return pa.Table.from_batches(taken, schema=schema)


def _check_arrow(path: Path, n_rows: int, n_columns: int, n_bytes: int) -> None:
    if n_rows > MAX_ROWS:
        raise _refused(path, f"{n_rows:,} rows", f"{MAX_ROWS:,}")
    if n_columns > MAX_COLUMNS:
        raise _refused(path, f"{n_columns:,} columns", f"{MAX_COLUMNS:,}")
    if n_bytes > MAX_FILE_BYTES:
        most = megabytes(MAX_FILE_BYTES)
        raise _refused(path, f"unpacked more than {megabytes(n_bytes)}", most)


def _refused(path: Path, found: str, most: str) -> DataError:
    return DataError(f"{path}: has {found}, and at most {most} are read. {SPLIT}")
