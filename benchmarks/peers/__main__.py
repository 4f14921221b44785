"""Time and memory of row scores beside those of other programs: one table per model.

    make peers                                  an environment with the peers, and the table
    python -m benchmarks.peers --turns 3        without them: their lines say `not measured`

Every way scores the same rows with the same adapter and the same validation gradient, in one
process; loading and tokenising are left out for all. Numbers are compared before anything is timed.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.clock import ratio, take_turns
from benchmarks.memory import ROOT, resident_growth_of
from benchmarks.peers import bergson, dattri
from benchmarks.peers.scenes import Setting, scene_of, settings, tokens_of
from benchmarks.peers.table import Measured, lines_of
from benchmarks.peers.ways import OURS, WAYS
from benchmarks.scene import Scene
from benchmarks.scoring import PAGE, facts, machine_name, silence_libraries
from benchmarks.table import write_section
from benchmarks.ways import relative_difference

PUBLISHED = ROOT / "runs" / "base" / "smollm2-135m-instruct"


def compare(scene: Scene, *, n_turns: int) -> list[Measured]:
    """Every way that can run here; the first calls, whose numbers are compared, are not timed."""
    direction = scene.directions(1)[0]
    rows = scene.rows
    able = [way for way in WAYS if way.can_run]
    calls = {way.name: partial(way.scores, scene, rows, direction) for way in able}
    ours = calls[OURS.name]()
    found = {way.name: calls[way.name]() for way in able if way.same_numbers}
    seconds = take_turns(calls, n_turns, device=scene.model.device)
    measured = []
    for way in WAYS:
        if way not in able:
            measured.append(Measured(way.name, None))
            continue
        difference = correlation = None
        if way is not OURS and way.name in found:
            scores = found[way.name]
            difference = relative_difference(scores, ours)
            correlation = float(np.corrcoef(scores, ours)[0, 1])
        measured.append(
            Measured(
                way.name,
                ratio(seconds[way.name], seconds[OURS.name]),
                resident_growth_of(calls[way.name]),
                difference,
                correlation,
            )
        )
    return measured


def section(setting: Setting, *, n_turns: int) -> list[str]:
    """The lines of one setting, or why there are none."""
    if setting.base == str(PUBLISHED) and not PUBLISHED.exists():
        return [f"**{setting.name}**: not measured; `make base` makes the model.", ""]
    scene = scene_of(setting)
    lengths = [len(row.ids) for row in scene.rows]
    about = (
        f"**{setting.name}**: {len(lengths)} rows, {tokens_of(scene.rows):,} tokens, the longest "
        f"{max(lengths)}; {n_turns} turns."
    )
    return lines_of(about, compare(scene, n_turns=n_turns))


def versions() -> str:
    """Versions of the peers that are installed, or that they are not."""
    words = []
    for name in (dattri.PACKAGE, bergson.PACKAGE):
        try:
            words.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            words.append(f"{name} not installed")
    return ", ".join(words)


def main(arguments: Sequence[str] | None = None, *, page: Path = PAGE) -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=32, help="rows per setting with a real model")
    parser.add_argument("--turns", type=int, default=3, help="turns of the calls compared")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", type=int, nargs="*", help="numbers of settings, from 0")
    parser.add_argument("--write", action="store_true", help=f"into docs/{PAGE.name}")
    options = parser.parse_args(arguments)
    silence_libraries()
    torch.set_num_threads(options.threads)
    chosen = list(enumerate(settings(PUBLISHED, n_rows=options.rows)))
    chosen = [one for i, one in chosen if options.only is None or i in options.only]
    about = f"rows are questions of the demo, joined; seed 0; LoRA of rank 16; {versions()}"
    lines = [facts(about), ""]
    for setting in tqdm(chosen, desc="settings", file=sys.stderr):
        found = section(setting, n_turns=options.turns)
        sys.stdout.write("\n".join(found) + "\n")
        sys.stdout.flush()
        lines += found
    if options.write:
        write_section(page, f"Beside other programs, on {machine_name('cpu')}", "\n".join(lines))


if __name__ == "__main__":
    main()
