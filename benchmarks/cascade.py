"""What two stages of scoring save, and whether they keep the same rows.

    python -m benchmarks.cascade --model runs/base/smollm2-135m-instruct --data rows.jsonl.gz

One silo of real rows, part of them damaged, is scored in one stage. Then its rows are scored in two,
with the same checkpoints, directions and units, for the threshold of either aim. Seconds are of the
processor, of the silo's scoring after the losses before the training, which both need.
"""

import argparse
import gzip
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml

import clues.silo.score as silo_side
from clues.config import ALIGNMENT, LOSS, load_config
from clues.data.damage import damage_rows
from clues.pipeline import open_run, run_until
from clues.progress import Silent
from clues.scoring.cascade import Gate, score_in_stages
from clues.scoring.trajectory import TrajectoryScores
from clues.selection.threshold import by_aim

KINDS = ("cut", "delete", "swap")


def main() -> None:
    """Run, score again in two stages, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="built-in")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--anchors", type=int, default=40)
    parser.add_argument("--validation", type=int, default=24)
    parser.add_argument("--damaged", type=float, default=0.4)
    parser.add_argument("--max-length", type=int, default=192)
    parser.add_argument("--checkpoints", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        report(Path(folder), options)


def write(root: Path, options: argparse.Namespace) -> Path:
    """One silo, its public rows and its configuration."""
    with gzip.open(options.data, "rt", encoding="utf-8") as file:
        read = [json.loads(line) for line in file]
    found = [{"instruction": row["instruction"], "output": row["output"]} for row in read]
    random.Random(options.seed).shuffle(found)
    sizes = {"rows": options.rows, "anchor": options.anchors, "validation": options.validation}
    for name, size in sizes.items():
        part, found = found[:size], found[size:]
        if name == "rows":
            part, _ = damage_rows(part, share=options.damaged, kinds=KINDS, seed=options.seed)
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    content = {
        "name": "cascade",
        "recipe": {
            "seed": options.seed,
            "model": {"name": options.model},
            "tokens": {"max_length": options.max_length, "overlong": "truncate"},
            "train": {"checkpoints": options.checkpoints, "rounds": max(2, options.checkpoints)},
            "public": {"d": {"validation": "validation.jsonl", "anchor": "anchor.jsonl"}},
            "threshold": {"aim": "model"},
        },
        "silos": [{"name": "north", "data": "rows.jsonl", "domain": "d"}],
    }
    (root / "clues.yaml").write_text(yaml.safe_dump(content))
    return root / "clues.yaml"


def report(root: Path, options: argparse.Namespace) -> None:
    """Score in one stage and in two, and print a line for each threshold."""
    config = load_config(write(root, options))
    run = open_run(config, root / "run", progress=Silent(), allow_degenerate=True)
    whole: list[tuple[Any, Any, TrajectoryScores, float]] = []
    score_rows = silo_side.score_rows

    def watched(*place: Any, **how: Any) -> TrajectoryScores:
        found, seconds = timed(lambda: score_rows(*place, **how))
        whole.append((place, how, found, seconds))
        return found

    silo_side.score_rows = watched
    outcome = run_until(run, "threshold")
    silo_side.score_rows = score_rows
    assert outcome.threshold is not None
    assert outcome.scored is not None
    ((place, how, one, seconds),) = whole
    rows, how = place[1], {"settings": how["settings"], "before": how["before"]}
    (units,) = outcome.threshold.units.values()
    length = np.mean([len(row.ids) for row in rows])
    print(f"weights {units.weights}; {len(rows)} rows of {length:.0f} tokens", flush=True)
    scores = units.apply(one.raw)
    aims = by_aim(
        outcome.threshold,
        outcome.scored.raw,
        outcome.scored.damaged,
        config.recipe.threshold,
    )
    (anchors,), (copies,) = outcome.scored.raw.values(), outcome.scored.damaged.values()
    print(
        "| aim | threshold | decided by the loss | by the alignment too | need gradients | other rows kept |"
        " s, one stage | s, two stages | saved | anchors, copies decided early |"
    )
    for aim, found in aims.items():
        gate = Gate(units, found.value)
        two, staged = timed(lambda gate=gate: score_in_stages(*place, gate=gate, **how))
        assert two.early is not None
        kept = ~two.early
        kept[kept] = units.apply({n: v[kept] for n, v in two.raw.items()}) >= found.value
        by_loss = (~gate.leaves_open({LOSS: one.raw[LOSS]})).mean() if LOSS in units.parts else 0.0
        public = [
            (~gate.leaves_open({n: raw[n] for n in (LOSS, ALIGNMENT) if n in units.parts})).mean()
            for raw in (anchors, copies.raw)
        ]
        changed = int((kept != (scores >= found.value)).sum())
        print(
            f"| {aim} | {found.value:.2f} | {by_loss:.0%} | {two.early.mean() - by_loss:.0%} | "
            f"{1 - two.early.mean():.0%} | {changed} of {len(rows)} | {seconds:.0f} | {staged:.0f} | "
            f"{1 - staged / seconds:.0%} | {public[0]:.0%}, {public[1]:.0%} |",
            flush=True,
        )


def timed(work: Callable[[], TrajectoryScores]) -> tuple[TrajectoryScores, float]:
    """What some work found, and its seconds of the processor."""
    started = time.process_time()
    found = work()
    return found, time.process_time() - started


if __name__ == "__main__":
    main()
