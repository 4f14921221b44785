"""One process against two that share the shards of one job.

`torchrun --nproc-per-node 2 -m benchmarks.processes` is a program of its own. Scoring itself has no
collective; gloo only lets the clocks of both processes start together.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.memory import ROOT
from benchmarks.scene import built_scene
from benchmarks.table import Row
from clues.data.tokens import EncodedRow
from clues.model.adapters import Checkpoint, LoraModel
from clues.scoring.job import Job
from clues.scoring.shards import Team, compute_shard, score_in_shards
from clues.silo.helpers import team_of_environment

N_PROCESSES = 2


@dataclass(frozen=True)
class Shared:
    """Seconds of one process, then of all, in every turn; and whether every bit was the same."""

    alone_s: list[float]
    together_s: list[float]
    identical: bool


def processes_row(model: str, n_rows: int, n_turns: int, *, short: bool = False) -> Row:
    """Speed-up by a second process; the scores must be the same to the last bit."""
    found = launch(model, n_rows, n_turns, short=short)
    ups = [a / b for a, b in zip(found.alone_s, found.together_s, strict=True)]
    same = "identical" if found.identical else "different"
    low, high = min(ups), max(ups)
    return Row(
        f"{N_PROCESSES} CPU processes against 1, one thread each, {n_rows} rows",
        "scores identical",
        f"scores {same}; {statistics.median(ups):.2f} x faster ({low:.2f} to {high:.2f})",
        found.identical,
    )


def launch(model: str, n_rows: int, n_turns: int, *, short: bool = False) -> Shared:
    """Start both processes and read what they measured."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(N_PROCESSES), "-m", "benchmarks.processes"]
        command += ["--model", model, "--rows", str(n_rows), "--turns", str(n_turns)]
        command += ["--folder", folder, *(["--short"] if short else [])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        result = Path(folder) / "result.json"
        if not result.exists():
            raise RuntimeError(f"the {N_PROCESSES} processes failed:\n{done.stderr[-2000:]}")
        return Shared(**json.loads(result.read_text()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run as one of the processes; the first writes the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("--model", default="built-in")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args(arguments)
    # The launcher's variables go first: the Trainer that makes the scene would use them.
    team, _ = team_of_environment()
    torch.set_num_threads(1)
    scene = built_scene(options.model, device="cpu")
    meeting = f"file://{options.folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=team.rank, world_size=team.size)
    if team.rank == 0:
        rows = scene.repeated(options.rows, short=options.short)
        found = _lead(scene.model, rows, scene.checkpoint, scene.directions(1), team, options)
        (options.folder / "result.json").write_text(json.dumps(asdict(found)))
    else:
        for turn in range(options.turns):
            _help(scene.model, options.folder / f"together-{turn}", team)
    dist.destroy_process_group()


def _lead(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    checkpoint: Checkpoint,
    directions: Sequence[dict[str, torch.Tensor]],
    team: Team,
    options: argparse.Namespace,
) -> Shared:
    job = Job(rows, checkpoint, directions, "sgd", "side_branch")
    alone_s, together_s, identical = [], [], True
    compute_shard(model, job, 0, options.folder / "first")
    for turn in range(options.turns):
        start = time.perf_counter()
        alone = score_in_shards(model, job, options.folder / f"alone-{turn}")
        alone_s.append(time.perf_counter() - start)
        place = options.folder / f"together-{turn}"
        job.write(place / job.key)
        dist.barrier()
        start = time.perf_counter()
        together = score_in_shards(model, job, place, team=team)
        together_s.append(time.perf_counter() - start)
        identical &= np.array_equal(alone.products, together.products)
        identical &= np.array_equal(alone.losses, together.losses)
        n_theirs = sum(1 for _ in place.glob("*/helped-*"))
        assert n_theirs == len(job.shards()) // team.size, "the second process did not do its part"
    return Shared(alone_s, together_s, bool(identical))


def _help(model: LoraModel, place: Path, team: Team) -> None:
    """As `clues.silo.helpers.help_scoring` does, for one job that is there already."""
    dist.barrier()
    (file,) = place.glob("*/job.safetensors")
    job = Job.read(file.parent)
    for number in range(team.rank, len(job.shards()), team.size):
        # Before the shard: once that is there, the first process no longer waits.
        (file.parent / f"helped-{number}").touch()
        compute_shard(model, job, number, file.parent)


if __name__ == "__main__":
    main()
