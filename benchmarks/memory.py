"""Peak memory: of tensors in one call, and of a process that scores more and more rows.

`python -m benchmarks.memory --model built-in 1000 10000` prints what the process has held at
most while it scored each number of rows. It is a program of its own so that nothing else is held.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.scene import built_scene
from clues.scoring.influence import influence_scores

ROOT = Path(__file__).parent.parent


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Most bytes of tensors alive at once in a call, above those alive before it.

    On a GPU the allocator counts them. On a CPU the profiler logs every allocation and every
    release of torch's allocator; resident memory would be rounded to what the C library keeps.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [e for e in events if e.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda e: e["args"]["Ev Idx"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def resident_peak(call: Callable[[], object]) -> int:
    """Most bytes that this process holds during a call, all it held before included.

    Returns:
        What the kernel counts; 0 where there is no such count, or it cannot be started afresh.
    """
    # Not getrusage: its ru_maxrss starts at what the parent held, and never goes down.
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not (status.exists() and os.access(reset, os.W_OK)):
        return 0
    reset.write_text("5")
    call()
    return 1024 * status_kib("VmHWM")


def resident_growth_of(call: Callable[[], object]) -> int | None:
    """Most resident bytes during a call above those before it; what was free is given back first.

    Returns:
        None where the system has no such count.
    """
    _trim()
    before = 1024 * status_kib("VmRSS")
    peak = resident_peak(call)
    return peak - before if before and peak else None


def _trim() -> None:
    """What the C library keeps for later goes back to the system, where that can be asked for."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def status_kib(name: str) -> int:
    """What the kernel counts of this process under a name, in KiB; 0 where it counts nothing."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    found = [line for line in status.read_text().splitlines() if line.startswith(name)]
    return int(found[0].split()[1])


@dataclass(frozen=True)
class Resident:
    """What a process held at most while scoring so many rows, in bytes, and how long it took."""

    n_rows: int
    peak: int
    seconds: float


def resident_growth(model: str, counts: Sequence[int], *, device: str) -> list[Resident]:
    """Peak resident memory and time of a fresh process at each number of short rows."""
    arguments = ["--model", model, "--device", device, *map(str, counts)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [Resident(*found) for found in json.loads(done.stdout.splitlines()[-1])]


def main(arguments: Sequence[str] | None = None) -> None:
    """Score more and more rows, and print the peaks as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--model", default="built-in")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("counts", type=int, nargs="+")
    options = parser.parse_args(arguments)
    scene = built_scene(options.model, device=options.device)
    directions = scene.directions(1)
    adapter = scene.checkpoint.adapter
    found = []
    for n_rows in options.counts:
        rows = scene.repeated(n_rows, short=True)
        score = partial(influence_scores, scene.model, rows, adapter=adapter, directions=directions)
        if not found:
            score()  # what the allocator keeps from the first call on is no growth
        start = time.perf_counter()
        peak = resident_peak(score)
        found.append((n_rows, peak, time.perf_counter() - start))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
