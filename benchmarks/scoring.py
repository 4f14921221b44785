"""What scoring costs: one table, every target beside what was measured.

python -m benchmarks.scoring                    the table, on the built-in model
python -m benchmarks.scoring --write            and put it into docs/benchmarks.md
"""

import argparse
import datetime
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.footprint import disk_row, peak_row
from benchmarks.growth import draw, growth_rows, long_rows
from benchmarks.memory import ROOT, resident_growth
from benchmarks.observer import observer_rows
from benchmarks.processes import processes_row
from benchmarks.scene import built_scene, demo_owner, describe, with_rows
from benchmarks.speed import large_rows, speed_rows
from benchmarks.table import Row, table_text, write_section
from clues.config import BUILT_IN
from clues.scoring.job import ROWS_PER_SHARD

PAGE = ROOT / "docs" / "benchmarks.md"
PACKAGES = ("torch", "transformers", "peft")


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        rows: rows of every timing that says nothing else.
        turns: turns of the calls that are compared.
        few: turns of the longer comparisons.
        memory: numbers of rows for the growth of memory.
        shards: shards that two processes share.
        short: whether these are of short rows.
        rounds: rounds of training per call.
        owner: rows of a silo larger than the demo's.
    """

    rows: int
    turns: int
    few: int
    memory: tuple[int, ...]
    shards: int
    short: bool
    rounds: int
    owner: int


def sizes_of(options: argparse.Namespace) -> Sizes:
    """Sizes for the options; `--quick` shows that every row can be made, and nothing else."""
    if options.quick:
        return Sizes(8, 1, 1, (8, 16), 2, True, 1, 256)
    memory = (1_000, 10_000, *([100_000] if options.large else []))
    return Sizes(options.rows, options.pairs, min(3, options.pairs), memory, 4, False, 2, 4_000)


def measure(
    model: str, device: str, sizes: Sizes, *, figure: Path | None = None
) -> tuple[str, list[Row]]:
    """Everything, in the order of the table.

    Args:
        model: built-in, or an absolute folder.
        device: cpu or cuda.
        sizes: how much.
        figure: where to draw growth.

    Returns:
        What was measured on, in one line, and the rows.
    """
    _say("model, adapter and rows")
    scene = built_scene(model, device=device)
    rows = scene.repeated(sizes.rows)
    owner = demo_owner(model)
    n_shared = sizes.shards * ROWS_PER_SHARD

    def many() -> list[Row]:
        found = resident_growth(model, sizes.memory, device=device)
        if figure:
            draw(found, figure)
        return long_rows(found)

    steps: dict[str, Callable[[], list[Row]]] = {
        "limit, other ways, directions": lambda: speed_rows(scene, rows, sizes.turns),
        "large shapes": lambda: large_rows(scene.model.device, sizes.few),
        "bytes on disk": lambda: [disk_row(scene, sizes.rows)],
        "peak memory": lambda: [peak_row(scene, sizes.rows)],
        "growth of time": lambda: growth_rows(scene, max(1, sizes.rows // 2), sizes.few),
        "growth in one process": many,
        "processes": lambda: [processes_row(model, n_shared, min(2, sizes.few), short=sizes.short)],
        "in-run scores, demo": lambda: observer_rows(
            scene, owner, n_rounds=sizes.rounds, n_turns=sizes.turns
        ),
        "in-run scores, a larger silo": lambda: observer_rows(
            scene, with_rows(owner, sizes.owner), n_rounds=1, n_turns=sizes.few
        ),
    }
    found: list[Row] = []
    for number, (what, make) in enumerate(steps.items(), start=1):
        _say(f"{number}/{len(steps)} {what}")
        found += make()
    return f"{describe(scene, sizes.rows)}; {sizes.turns} turns", found


def machine_name(device: str) -> str:
    """System, processor and number of cores, and the GPU where one is used."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    name = f"{platform.system()} {platform.machine()}, {cpu}, {os.cpu_count()} cores"
    return f"{torch.cuda.get_device_name(device)}, {name}" if device != "cpu" else name


def facts(about: str) -> str:
    """Date, versions, threads and sizes, in one line above the table."""
    versions = [f"{name} {version(name)}" for name in PACKAGES]
    date = datetime.datetime.now(tz=datetime.UTC).date()
    words = [str(date), f"python {platform.python_version()}", *versions]
    return f"{', '.join(words)}; {torch.get_num_threads()} threads. {about}."


def main(arguments: Sequence[str] | None = None, *, page: Path = PAGE) -> None:
    """Measure, print the table, and write it where asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scoring",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=BUILT_IN, help="built-in, or a local folder")
    parser.add_argument("--rows", type=int, default=200, help="rows of every timing")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--pairs", type=int, default=5, help="turns of the calls compared")
    parser.add_argument("--quick", action="store_true", help="seconds; the numbers mean nothing")
    parser.add_argument("--large", action="store_true", help="memory up to 100,000 rows")
    parser.add_argument(
        "--figure", action="store_true", help="draw growth into docs/images (needs matplotlib)"
    )
    parser.add_argument("--write", action="store_true", help=f"into docs/{PAGE.name}")
    options = parser.parse_args(arguments)
    silence_libraries()
    folder = Path(options.model)
    # Programs that this one starts work in another folder.
    model = options.model if options.model == BUILT_IN else str(folder.resolve())
    figure = page.parent / "images" / "growth.svg" if options.figure else None
    about, rows = measure(model, options.device, sizes_of(options), figure=figure)
    key = f"{BUILT_IN if model == BUILT_IN else folder.name} on {machine_name(options.device)}"
    text = f"{facts(about)}\n\n{table_text(rows)}"
    sys.stdout.write(f"{key}\n\n{text}")
    if options.write:
        write_section(page, key, text)
        _say(f"written into {page.name}")


def silence_libraries() -> None:
    """No bars and no warnings of the libraries between the lines of a table."""
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers.*")


def _say(what: str) -> None:
    sys.stderr.write(f"benchmark: {what}\n")


if __name__ == "__main__":
    main()
