"""The demo with several seeds, for docs/results/demo.md.

python -m experiments.demo.run --seeds 42 43 44
python -m experiments.demo.run --seeds 42 43 44 --scores
"""

import argparse
from pathlib import Path

from rich.console import Console

from clues.config import load_config
from clues.pipeline import open_run, run_until
from clues.prepare.demo import EVERY_ROW, write_demo
from clues.progress import Terminal
from experiments.scores import compare_all, write_scores

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run every seed that has no stored result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--work", type=Path, default=Path("runs/demo-seeds"))
    parser.add_argument(
        "--scores", action="store_true", help="every score side by side, without arms"
    )
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for seed in args.seeds:
        stored = RESULTS / f"{'scores-' if args.scores else ''}{seed}.json"
        if stored.exists():
            continue
        folder = args.work / str(seed)
        if args.scores:
            config = write_demo(folder / "scores-input", seed=seed)
            compare_all(config, train=EVERY_ROW)
            write_scores(config, folder / "scores", stored, base_model="built-in")
            continue
        config = load_config(write_demo(folder / "input", seed=seed))
        run = open_run(config, folder, progress=Terminal(Console(stderr=True)))
        results = run_until(run).results
        assert results is not None
        results.write(stored)


if __name__ == "__main__":
    main()
