"""Peak memory of a silo's process at every stage around the scoring: python -m benchmarks.stages.

Rows are short and all different. Training and public scores are those of a tiny model; the scores of
the silo's rows are stand-ins, so that a million rows take minutes. What the stages hold is what they
hold with any model, but for the model itself. Each number of rows has a process of its own.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import clues.scoring.shards as shards
import clues.silo.select as select
import clues.silo.silo as silo
import clues.silo.workspace as workspace
from benchmarks.cluster import write
from benchmarks.memory import status_kib
from clues.config import load_config
from clues.pipeline import open_run, run_until
from clues.progress import Silent
from clues.scoring.influence import RowScores
from clues.scoring.job import Job

# By stage, the module and the name of the function that does it.
STAGES: dict[str, tuple[Any, str]] = {
    "read": (workspace, "read_rows"),
    "tokenise": (workspace, "encode_into"),
    "score (stand-ins)": (silo, "score"),
    "look at texts": (workspace, "look"),
    "decide": (silo, "decide"),
    "kept and decisions.csv": (silo, "write_selection"),
    "kept alone": (select, "write_rows"),
    "private report": (silo, "write_review"),
}
RESET = Path("/proc/self/clear_refs")


class Meter:
    """Peak resident memory of stages, one within another too."""

    def __init__(self) -> None:
        """Nothing is measured yet."""
        self.peaks: dict[str, tuple[float, float, float]] = {}
        self.open: list[float] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what happens inside; a stage that comes again counts with its highest."""
        if self.open:
            self.open[-1] = max(self.open[-1], status_kib("VmHWM") / 1e3)
        before, started = status_kib("VmRSS") / 1e3, time.process_time()
        RESET.write_text("5")
        self.open.append(0.0)
        yield
        peak = max(self.open.pop(), status_kib("VmHWM") / 1e3)
        seconds = time.process_time() - started
        earlier = self.peaks.get(name, (before, 0.0, 0.0))
        self.peaks[name] = (earlier[0], max(earlier[1], peak), earlier[2] + seconds)
        if self.open:
            self.open[-1] = max(self.open[-1], peak)

    def watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, measured."""

        def measured(*args: Any, **how: Any) -> Any:
            # Public rows are read again and again, whatever is held beside them.
            if name == "read" and Path(args[0]).name != "rows.jsonl":
                return call(*args, **how)
            with self.stage(name):
                return call(*args, **how)

        return measured


def stand_ins(model: Any, job: Job, folder: Path, **how: Any) -> RowScores:
    """Numbers in the place of scores; the plan is made, as for a real job."""
    n = sum(len(shard) for shard in job.plan)
    draw = np.random.default_rng(n + len(job.directions))
    return RowScores(0.1 * draw.normal(size=(n, len(job.directions))), draw.normal(5.0, 1.0, n))


def one(n_rows: int) -> None:
    """Go through the stages, and print their peaks as JSON."""
    meter = Meter()
    for name, (module, function) in STAGES.items():
        setattr(module, function, meter.watched(name, getattr(module, function)))
    shards.score_in_shards = stand_ins
    with TemporaryDirectory() as folder:
        write(Path(folder), n_rows)
        config = load_config(Path(folder) / "clues.yaml")
        run = open_run(config, Path(folder) / "run", progress=Silent(), allow_degenerate=True)
        run_until(run, "select")
    print(json.dumps(meter.peaks))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one)
        return
    found: list[dict[str, list[float]]] = []
    for n_rows in options.rows:
        command = [sys.executable, "-m", "benchmarks.stages", "--one", str(n_rows)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(n_rows, found[-1], file=sys.stderr, flush=True)
    counts = " | ".join(f"{n:,} rows, MB (s)" for n in options.rows)
    print(f"| stage | {counts} | kB per row |")
    span = options.rows[-1] - options.rows[0]
    for name in found[0]:
        cells = " | ".join(f"{each[name][1]:.0f} ({each[name][2]:.0f})" for each in found)
        growth = (found[-1][name][1] - found[0][name][1]) * 1e3 / span if span else 0.0
        print(f"| {name} | {cells} | {growth:.2f} |")


if __name__ == "__main__":
    main()
