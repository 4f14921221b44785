"""Advertising in true answers: what rows that were rejected add to a score.

    python -m experiments.rejected.run --data medical_medquad_en.jsonl.gz

Every seed is kept as experiments/rejected/results/MODEL-SEED.json, with one entry without and one with
the rejected rows.
"""

import argparse
import random
from pathlib import Path
from typing import Any

from rich.console import Console

from clues.collect import collect_results
from clues.config import derived_seed, load_config, short
from clues.pipeline import open_run, run_until
from clues.progress import Progress, Terminal
from clues.rundir import write_json
from experiments.medquad.run import unread_rows
from experiments.rows import LABELS, labelled_silo, write_config, write_jsonl
from experiments.run import name_of
from experiments.spec import merged

MODEL = "built-in"
SENTENCES = (
    "Our clinic shop has a remedy for this at a low price.",
    "Ask for the members' discount when you call our sales line.",
    "Order the home test kit from us today and save.",
    "You will find our supplements in every good pharmacy.",
    "Book a consultation with our partner doctors this week.",
    "Subscribe to our health plan and get the first month free.",
    "We recommend our own brand of tablets for this.",
    "Visit our store for offers on this treatment.",
)
REJECTED, PRIVATE = SENTENCES[:5], SENTENCES[3:]
SIZES = {"validation": 48, "anchor": 100, "reject": 40, "clinic": 80}
SHORTEST, LONGEST = 80, 400  # characters of an answer
ADVERTISING = "advertising"
RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def write_inputs(folder: Path, data: Path, *, model: str, seed: int) -> Row:
    """Write one seed's silo and public sets; the settings of its runs."""
    rng = random.Random(derived_seed(seed, "rejected"))
    rows = [r for r in unread_rows(data) if SHORTEST < len(r["output"]) < LONGEST]
    rng.shuffle(rows)
    for name, n in SIZES.items():
        taken, rows = rows[:n], rows[n:]
        if name == "reject":
            taken = [_advertising(row, REJECTED, rng) for row in taken]
        if name == "clinic":
            # Every second row; the order is a shuffled one already.
            taken = [
                {**_advertising(row, PRIVATE, rng), LABELS: ADVERTISING}
                if place % 2
                else {**row, LABELS: ""}
                for place, row in enumerate(taken)
            ]
        write_jsonl(folder / f"{name}.jsonl", taken)
    public = {"validation": "validation.jsonl", "anchor": "anchor.jsonl"}
    return {
        "recipe": {
            "seed": seed,
            "model": {"name": model, "dtype": "float32"},
            "lora": {"rank": 16, "alpha": 16, "dropout": 0.0, "target_modules": "all-linear"},
            "tokens": {"max_length": 384, "overlong": "truncate"},
            "train": {"learning_rate": 0.002, "batch_size": 8},
            "score": {"compare": ["base_perplexity", "repsim", "length"]},
            "public": {"medicine": public},
        },
        "evaluate": {"arms": []},
        "silos": [{**labelled_silo("clinic", domain="medicine"), "max_selections": 1000}],
    }


def run_seed(data: Path, folder: Path, *, model: str, seed: int, to: Progress) -> Row:
    """Results without and with the rejected rows."""
    settings = write_inputs(folder / "input", data, model=model, seed=seed)
    found: Row = {}
    for name, public in (("without", {}), ("with", {"reject": "reject.jsonl"})):
        changes = {"name": f"rejected-{name}", "recipe": {"public": {"medicine": public}}}
        path = write_config(merged(settings, changes), folder / "input" / f"{name}.yaml")
        config = load_config(path)
        root = folder / f"run-{short(config.recipe.scoring_hash)}"
        run = open_run(config, root, progress=to, allow_degenerate=True)
        results = collect_results(run.config, run.coordinator, run_until(run, "select"))
        found[name] = {**results.to_json(), "base_model": name_of(model)}
    return found


def _advertising(row: Row, sentences: tuple[str, ...], rng: random.Random) -> Row:
    return {**row, "output": f"{row['output'].rstrip()} {rng.choice(sentences)}"}


def main() -> None:
    """Run every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--work", type=Path, default=Path("runs/rejected"))
    args = parser.parse_args()
    for seed in args.seeds:
        stored = RESULTS / f"{name_of(args.model)}-{seed}.json"
        if stored.exists():
            continue
        folder = args.work / f"{name_of(args.model)}-{seed}"
        model = args.model if args.model == MODEL else str(Path(args.model).resolve())
        draw = {"model": model, "seed": seed, "to": Terminal(Console(stderr=True))}
        write_json(stored, run_seed(args.data, folder, **draw))


if __name__ == "__main__":
    main()
