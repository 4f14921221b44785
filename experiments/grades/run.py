"""People's grades: answers that medical experts graded 4 (excellent) against those graded 1.

    make base
    python -m experiments.grades.run --data train.jsonl.gz

Nothing is damaged and nothing is drawn to be bad: experts read every answer. Validation rows and
anchors are answers of grade 4 to questions that no silo has. Every draw resumes; finished ones are
kept as experiments/grades/results/MODEL-SEED.json, with one entry for each aim of the threshold.
"""

import gzip
import json
import random
from pathlib import Path
from typing import Any

from clues.config import derived_seed
from experiments.draws import (
    PUBLISHED,
    Draw,
    Row,
    adapter,
    by_aim,
    parser,
    run_draws,
    run_variants,
)
from experiments.rows import LABELS, labelled_silo, write_jsonl

BEST, WORST = 4, 1
# Rows of the best and of the worst grade, by silo.
SILOS = {"clinic-a": (30, 70), "clinic-b": (70, 30)}
VALIDATION, ANCHORS = 48, 100
# Long answers are mostly the good ones; cut alike, length says less, and a small base can read them.
MAX_CHARS = 700
SCORES = [
    *("adam", "sgd", "cosine", "less", "base_perplexity", "alignment"),
    *("datainf", "repsim", "rds", "length", "random"),
]
RESULTS = Path(__file__).parent / "results"


def graded_rows(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of the best and the worst grade by question, each answer once, cut at a word's end."""
    by_question: dict[str, list[dict[str, Any]]] = {}
    seen: set[str] = set()
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        answer = row["output"].strip()
        if len(answer) > MAX_CHARS:
            answer = answer[: answer.rindex(" ", 0, MAX_CHARS)]
        if row["grade"] not in (BEST, WORST) or not answer or answer in seen:
            continue
        seen.add(answer)
        kept = {"instruction": row["instruction"].strip(), "output": answer}
        by_question.setdefault(row["question_id"], []).append({**kept, "grade": row["grade"]})
    return by_question


def deal(
    by_question: dict[str, list[dict[str, Any]]], *, seed: int
) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Public rows, all of the best grade, and the silos' rows, of other questions."""
    rng = random.Random(derived_seed(seed, "grades"))
    questions = sorted(by_question)
    rng.shuffle(questions)
    public: list[dict[str, Any]] = []
    while len(public) < VALIDATION + ANCHORS:
        public += [row for row in by_question[questions.pop()] if row["grade"] == BEST]
    left = [row for question in questions for row in by_question[question]]
    rng.shuffle(left)
    piles = {g: [row for row in left if row["grade"] == g] for g in (BEST, WORST)}
    silos: dict[str, list[dict[str, Any]]] = {}
    for silo, wanted in SILOS.items():
        rows = [
            piles[g].pop() for g, n in zip((BEST, WORST), wanted, strict=True) for _ in range(n)
        ]
        rng.shuffle(rows)
        silos[silo] = rows
    rng.shuffle(public)
    return public[: VALIDATION + ANCHORS], silos


def write_inputs(folder: Path, data: Path, *, model: str, seed: int) -> dict[str, Any]:
    """Write one draw's silos and public sets; the settings of its run."""
    folder.mkdir(parents=True, exist_ok=True)
    public, silos = deal(graded_rows(data), seed=seed)
    for name, rows in (("validation", public[:VALIDATION]), ("anchor", public[VALIDATION:])):
        write_jsonl(folder / f"{name}.jsonl", [_without_grade(row) for row in rows])
    for silo, rows in silos.items():
        labelled = [
            {**_without_grade(row), LABELS: "grade 1" if row["grade"] == WORST else ""}
            for row in rows
        ]
        write_jsonl(folder / f"{silo}.jsonl", labelled)
    return {
        "name": f"grades-{seed}",
        "recipe": {
            "seed": seed,
            "model": {"name": model, "dtype": "float32"},
            "lora": adapter(["q_proj", "v_proj"]),
            "tokens": {"max_length": 384, "overlong": "truncate", "template": "chat"},
            # 0.6 epochs.
            "train": {
                "steps": 8,
                "rounds": 1,
                "checkpoints": 1,
                "learning_rate": 2e-4,
                "batch_size": 8,
            },
            "score": {"compare": SCORES},
            "public": {"medicine": {"validation": "validation.jsonl", "anchor": "anchor.jsonl"}},
        },
        "evaluate": {"arms": []},
        "silos": [
            {**labelled_silo(silo, domain="medicine"), "max_selections": 1000} for silo in SILOS
        ],
    }


def _without_grade(row: dict[str, Any]) -> dict[str, Any]:
    return {"instruction": row["instruction"], "output": row["output"]}


def main() -> None:
    """Run every draw."""
    options = parser(__doc__, model=PUBLISHED, seeds=[0, 1, 2], work="grades")
    options.add_argument("--data", type=Path, required=True)
    args = options.parse_args()

    def run(draw: Draw) -> Row:
        settings = write_inputs(draw.folder / "input", args.data, model=draw.model, seed=draw.seed)
        return run_variants(draw, settings, by_aim(f"grades-{draw.seed}"))

    run_draws(args, RESULTS, run)


if __name__ == "__main__":
    main()
