"""What the authors have: their stored scores in their metric and as AUC, and figures they published.

    python -m experiments.outside.theirs --data FOLDER

writes experiments/outside/results/theirs.json: figures, no row and no score.
"""

import argparse
import csv
import gzip
from pathlib import Path

import numpy as np

from clues.rundir import write_json
from experiments.outside.forms import judged
from experiments.outside.sets import read_texts

RESULTS = Path(__file__).parent / "results"
STORED = RESULTS / "theirs.json"
# How their files name a score, and what it is.
KINDS = {"gmatch": "sgd", "inf": "datainf", "lissa": "lissa"}


def stored_scores(path: Path, n_rows: int) -> np.ndarray:
    """Scores of a file, higher is better: they store how much a loss would rise.

    Args:
        path: a header, then a line for every test row; the first column may be its number.
        n_rows: training rows, the last columns.
    """
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = list(csv.reader(file))[1:]
    return -np.array([[float(value) for value in line[-n_rows:]] for line in lines])


def judge_all(folder: Path) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """By set, model and score: Acc, Cover and AUC on all of their rows."""
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for path in sorted((folder / "failures").glob("scores.*.csv.gz")):
        _, model, files, kind, *_ = path.name.split(".")
        name = files.rsplit("_", 1)[0]
        labels = {
            part: [
                text.label
                for text in read_texts(folder / "failures" / f"{name}.{part}.jsonl.gz", "failures")
            ]
            for part in ("train", "test")
        }
        scores = stored_scores(path, len(labels["train"]))
        figures = judged(scores, labels["test"], labels["train"])
        found.setdefault(name, {}).setdefault(model, {})[KINDS[kind]] = figures
    return found


def main() -> None:
    """Judge their scores and keep the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    write_json(STORED, judge_all(options.parse_args().data))


if __name__ == "__main__":
    main()
