"""MedQuAD: five silos, damage 80 / 50 / 40 / 20 / 10 %, several seeds and base models.

    python -m experiments.medquad.run --data ../shared/data/medical_medquad_en.jsonl.gz \
        --model built-in --model runs/tinystories/model --seeds 0 1 2

Uses only questions that no base model of this project has read (experiments/reserved.py).
Every run resumes; finished ones are kept as experiments/medquad/results/MODEL-SEED.json.
"""

import argparse
import gzip
import json
import random
from pathlib import Path
from typing import Any

from rich.console import Console

from clues.config import derived_seed, load_config
from clues.data.damage import damage_rows
from clues.pipeline import open_run, run_until
from clues.progress import Terminal
from experiments.partition import take_disjoint
from experiments.reserved import is_reserved
from experiments.rows import LABELS, labelled_silo, write_config, write_jsonl
from experiments.run import name_of
from experiments.scores import ALL_SCORES, compare_all, write_scores

SHARES = {"site-a": 0.8, "site-b": 0.5, "site-c": 0.4, "site-d": 0.2, "site-e": 0.1}
KINDS = ("cut", "delete", "swap")
ROWS, VALIDATION, ANCHORS, HELD_OUT = 400, 100, 64, 300
RESULTS = Path(__file__).parent / "results"


def unread_rows(path: Path) -> list[dict[str, Any]]:
    """Reserved questions, each question and each answer once."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    questions: set[str] = set()
    answers: set[str] = set()
    kept = []
    for row in rows:
        question, answer = row["instruction"].strip(), row["output"].strip()
        if is_reserved(question) and question not in questions and answer not in answers:
            kept.append({"instruction": question, "output": answer})
            questions.add(question)
            answers.add(answer)
    return kept


def write_inputs(folder: Path, rows: list[dict[str, Any]], *, model: str, seed: int) -> Path:
    """Write one seed's silos, public sets and configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {**dict.fromkeys(SHARES, ROWS), "validation": VALIDATION, "anchor": ANCHORS}
    parts = take_disjoint(len(rows), {**sizes, "heldout": HELD_OUT}, seed=seed)
    for name in ("validation", "anchor"):
        write_jsonl(folder / f"{name}.jsonl", [rows[i] for i in parts[name]])
    write_jsonl(
        folder / "heldout.jsonl", _with_choices([rows[i] for i in parts["heldout"]], seed=seed)
    )
    for silo, share in SHARES.items():
        damaged, labels = damage_rows(
            [rows[i] for i in parts[silo]],
            share=share,
            kinds=KINDS,
            seed=derived_seed(seed, "damage", silo),
        )
        private = [{**r, LABELS: x or ""} for r, x in zip(damaged, labels, strict=True)]
        write_jsonl(folder / f"{silo}.jsonl", private)
    recipe = {
        "seed": seed,
        "model": {"name": model, "dtype": "bfloat16"},
        "lora": {"rank": 16, "alpha": 16, "dropout": 0.0, "target_modules": "all-linear"},
        # A row that loses its ending says nothing about endings, and `cut` is about nothing else.
        "tokens": {"max_length": 512, "overlong": "truncate", "template": "alpaca"},
        "train": {
            "steps": 120,
            "rounds": 6,
            "aggregation": "svd",
            "checkpoints": 3,
            "learning_rate": 0.002,
            "batch_size": 8,
        },
        "score": {"compare": ALL_SCORES},
        "public": {"medicine": {"validation": "validation.jsonl", "anchor": "anchor.jsonl"}},
    }
    config = {
        "name": f"medquad-{seed}",
        "recipe": recipe,
        "combine": {"method": "fedavg", "rounds": 6, "local_steps": 10},
        "evaluate": {"heldout": "heldout.jsonl"},
        "silos": [labelled_silo(silo, domain="medicine") for silo in SHARES],
    }
    return write_config(config, folder / "clues.yaml")


def _with_choices(rows: list[dict[str, Any]], *, seed: int) -> list[dict[str, Any]]:
    """Give every held-out question three wrong choices: answers to other held-out questions."""
    rng = random.Random(derived_seed(seed, "choices"))
    with_choices = []
    for row in rows:
        others = [other["output"] for other in rows if other is not row]
        choices = [row["output"], *rng.sample(others, 3)]
        rng.shuffle(choices)
        answer = choices.index(row["output"])
        with_choices.append({**row, "choices": choices, "answer": answer})
    return with_choices


def main() -> None:
    """Run every model with every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/medquad"))
    parser.add_argument(
        "--scores", action="store_true", help="every score side by side, without arms"
    )
    args = parser.parse_args()
    rows = unread_rows(args.data)
    print(f"{len(rows):,} unread questions")
    for model in args.model:
        for seed in args.seeds:
            label = name_of(model)
            stored = RESULTS / f"{'scores-' if args.scores else ''}{label}-{seed}.json"
            if stored.exists():
                continue
            folder = args.work / f"{label}-{seed}"
            name = model if model == "built-in" else str(Path(model).resolve())
            if args.scores:
                config = write_inputs(folder / "scores-input", rows, model=name, seed=seed)
                compare_all(config)
                write_scores(config, folder / "scores", stored, base_model=label)
                continue
            config = load_config(write_inputs(folder / "input", rows, model=name, seed=seed))
            run = open_run(config, folder, progress=Terminal(Console(stderr=True)))
            results = run_until(run).results
            assert results is not None
            results.model_copy(update={"base_model": label}).write(stored)
            auc = results.arms["clues"].auc
            print(f"{label}, seed {seed}: AUC {auc:.3f}", flush=True)


if __name__ == "__main__":
    main()
