"""Bytes that scoring writes, and bytes that it holds."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.memory import peak_bytes
from benchmarks.scene import Scene
from benchmarks.speed import products
from benchmarks.table import Row
from benchmarks.ways import gradient_step, published_scores
from clues.data.batching import token_budget_batches, token_budget_of

COUNTER = Path("/proc/self/io")
# Llama 2 7 B, LoRA of rank 16 on q_proj and v_proj, float32: blocks, layers, A and B, bytes.
BYTES_7B = 32 * 2 * (16 * 4096 + 4096 * 16) * 4


@dataclass(frozen=True)
class Written:
    """What a call left and what it handed to the system to be written.

    Attributes:
        n_files: files in its folders afterwards.
        n_bytes: bytes of all write calls of this process, files deleted since included;
            None where the system does not count them.
    """

    n_files: int
    n_bytes: int | None


def written_by(call: Callable[[], object]) -> Written:
    """Run a call in an empty working folder, which is the folder for temporary files as well."""
    with empty_place() as folder:
        before = _write_counter()
        call()
        after = _write_counter()
        n_files = sum(path.is_file() for path in folder.rglob("*"))
    n_bytes = None if before is None or after is None else after - before
    return Written(n_files, n_bytes)


@contextlib.contextmanager
def empty_place() -> Iterator[Path]:
    """An empty folder as working folder and for temporary files."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        tempfile.tempdir = name
        try:
            yield Path(name)
        finally:
            tempfile.tempdir = before


def _write_counter() -> int | None:
    if not COUNTER.exists():
        return None
    fields = dict(line.split(": ") for line in COUNTER.read_text().splitlines())
    return int(fields["wchar"])


def disk_row(scene: Scene, n_rows: int) -> Row:
    """Files and bytes that scoring writes, beside those of the published way."""
    rows, directions = scene.repeated(n_rows), scene.directions(1)
    ours = written_by(lambda: products(scene, rows, directions))
    with tempfile.TemporaryDirectory() as folder:
        theirs = published_scores(scene, rows[:8], directions[0], folder=Path(folder))
    text = f"{ours.n_files} files"
    if ours.n_bytes is not None:
        text += f", {ours.n_bytes} bytes written"
    text += (
        f"; published way {theirs.bytes_per_row / 1e6:.2f} MB a row here, "
        f"{BYTES_7B / 1e6:.1f} MB at 7 B (computed: rank 16, q_proj and v_proj, float32)"
    )
    met = ours.n_files == 0 and not ours.n_bytes
    return Row(f"gradient bytes on disk, {n_rows} rows", "0", text, met)


def peak_row(scene: Scene, n_rows: int) -> Row:
    """Peak memory of scoring one full batch against a training step on it, optimiser left out."""
    rows, device = scene.repeated(n_rows), scene.model.device
    lengths = [len(row.ids) for row in rows]
    first = token_budget_batches(lengths, budget=token_budget_of(device))[0]
    batch, directions = [rows[i] for i in first], scene.directions(1)
    scoring = partial(products, scene, batch, directions)
    training = partial(gradient_step, scene, batch)
    peaks = []
    for call in (scoring, training):
        call()  # what the first call sets up is not its own
        peaks.append(peak_bytes(call, device))
    return Row(
        f"peak memory against a training step without optimiser, batch of {len(batch)} rows",
        "at most 1.2 x",
        f"{peaks[0] / peaks[1]:.2f} x ({peaks[0] / 1e6:.0f} MB to {peaks[1] / 1e6:.0f} MB)",
        peaks[0] <= 1.2 * peaks[1],
    )
