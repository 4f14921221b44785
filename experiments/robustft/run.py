"""Wrong labels made by others: multiple choice whose answers are wrong in 30, 50 and 70 % of the rows.

    make base
    python -m experiments.robustft.run --data FOLDER

Four silos, of which one is clean. Which rows are wrong is known from the clean file, line by line.
Every draw resumes; finished ones are kept as experiments/robustft/results/MODEL-SET-SEED.json, with one
entry for each aim of the threshold.
"""

import gzip
import json
import random
from pathlib import Path

from clues.config import BUILT_IN, derived_seed
from clues.errors import DataError
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

# Percent of wrong answers, by silo: the files of the source.
SILOS = {"bank-a": 30, "bank-b": 50, "bank-c": 70, "bank-d": 0}
ROWS, VALIDATION, ANCHORS, HELD_OUT = 60, 48, 60, 100
LETTERS = "ABCDEFGH"
WRONG = "wrong answer"
# The rows that no silo has are public or left over; what is asked afterwards is another file.
ARMS = ["mixed", "random", "clues", "oracle"]
RESULTS = Path(__file__).parent / "results"


def read_rows(path: Path) -> list[Row]:
    """Questions with their choices; the answer is the text of the choice that the file names."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    found: list[Row] = []
    for row in rows:
        choices = json.loads(row["options"])
        answer = LETTERS.index(row["answer"])
        listed = "\n".join(f"- {choice}" for choice in choices)
        found.append(
            {
                "instruction": f"{row['question'].strip()}\nOne of:\n{listed}",
                "output": choices[answer],
                "choices": choices,
                "answer": answer,
            }
        )
    return found


def deal(data: Path, name: str, *, seed: int) -> tuple[list[Row], list[Row], dict[str, list[Row]]]:
    """Validation rows and anchors, both clean, and the silos' rows with what is wrong with them."""
    clean = read_rows(data / f"{name}.clean.jsonl.gz")
    order = list(range(len(clean)))
    # The noise was drawn with random.seed(0): a generator of our own, with another seed.
    random.Random(derived_seed(seed, "robustft", name)).shuffle(order)
    taken = iter(order)
    validation = [clean[next(taken)] for _ in range(VALIDATION)]
    anchors = [clean[next(taken)] for _ in range(ANCHORS)]
    silos: dict[str, list[Row]] = {}
    for silo, share in SILOS.items():
        noisy = read_rows(data / f"{name}.noisy{share}.jsonl.gz") if share else clean
        if [row["instruction"] for row in noisy] != [row["instruction"] for row in clean]:
            raise DataError(
                f"{name}.noisy{share}: other questions than the clean file, or in another order, so "
                "which answers are wrong is not known. Take both files of one release."
            )
        own = [next(taken) for _ in range(ROWS)]
        silos[silo] = [
            {**_plain(noisy[n]), LABELS: WRONG if noisy[n]["answer"] != clean[n]["answer"] else ""}
            for n in own
        ]
    return validation, anchors, silos


def write_inputs(folder: Path, data: Path, name: str, *, model: str, seed: int) -> Row:
    """Write one draw's silos and public sets; the settings of its runs."""
    validation, anchors, silos = deal(data, name, seed=seed)
    for part, rows in (("validation", validation), ("anchor", anchors)):
        write_jsonl(folder / f"{part}.jsonl", [_plain(row) for row in rows])
    for silo, rows in silos.items():
        write_jsonl(folder / f"{silo}.jsonl", rows)
    test = read_rows(data / f"{name}.test.jsonl.gz")
    random.Random(derived_seed(seed, "robustft", "test")).shuffle(test)
    write_jsonl(folder / "heldout.jsonl", test[:HELD_OUT])
    return {
        "recipe": {
            "seed": seed,
            "model": {"name": model, "dtype": "float32" if model == BUILT_IN else "bfloat16"},
            "lora": adapter(["q_proj", "v_proj"]),
            "tokens": {"max_length": 384, "overlong": "drop"},
            # 1.1 epochs: an answer is a word or two, and the base model has to learn which.
            "train": {
                "steps": 8,
                "rounds": 2,
                "checkpoints": 1,
                "learning_rate": 1e-3,
                "batch_size": 8,
            },
            "score": {
                "loss_under": "checkpoints",
                # What is feared: an answer that belongs to another question.
                "copies": ["swap"],
                "compare": ["less", "base_perplexity", "alignment", "repsim"],
            },
            "public": {"finance": {"validation": "validation.jsonl", "anchor": "anchor.jsonl"}},
        },
        # Two epochs over all rows.
        "combine": {"method": "fedavg", "rounds": 5, "local_steps": 3},
        "evaluate": {"heldout": "heldout.jsonl", "arms": ARMS},
        "silos": [
            {**labelled_silo(silo, domain="finance"), "max_selections": 1000} for silo in SILOS
        ],
    }


def _plain(row: Row) -> Row:
    return {"instruction": row["instruction"], "output": row["output"]}


def main() -> None:
    """Run every draw."""
    options = parser(__doc__, model=PUBLISHED, seeds=[0, 1, 2], work="robustft")
    options.add_argument(
        "--data", type=Path, required=True, help="folder with SET.noisy50.jsonl.gz"
    )
    options.add_argument("--set", default="fpb", choices=("fpb", "arc", "pubmedqa"))
    args = options.parse_args()

    def run(draw: Draw) -> Row:
        where = (draw.folder / "input", args.data, args.set)
        settings = write_inputs(*where, model=draw.model, seed=draw.seed)
        # What does not depend on the cut was trained under the first aim.
        variants = by_aim(f"robustft-{args.set}", model={"evaluate": {"arms": ["clues"]}})
        return run_variants(draw, settings, variants, until="report")

    run_draws(args, RESULTS, run, part=args.set)


if __name__ == "__main__":
    main()
