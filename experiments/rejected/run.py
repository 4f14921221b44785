"""Advertising in true answers: what rows that were rejected add to a score.

    python -m experiments.rejected.run --data medical_medquad_en.jsonl.gz

Every seed is kept as experiments/rejected/results/MODEL-SEED.json, with one entry without and one with
the rejected rows.
"""

import random
from pathlib import Path

from clues.config import BUILT_IN, derived_seed
from experiments.draws import Draw, Row, adapter, parser, run_draws, run_variants
from experiments.medquad.run import unread_rows
from experiments.rows import LABELS, labelled_silo, write_jsonl

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
            "lora": adapter("all-linear"),
            "tokens": {"max_length": 384, "overlong": "truncate"},
            "train": {"learning_rate": 0.002, "batch_size": 8},
            "score": {"compare": ["base_perplexity", "repsim", "length"]},
            "public": {"medicine": public},
        },
        "evaluate": {"arms": []},
        "silos": [{**labelled_silo("clinic", domain="medicine"), "max_selections": 1000}],
    }


def _advertising(row: Row, sentences: tuple[str, ...], rng: random.Random) -> Row:
    return {**row, "output": f"{row['output'].rstrip()} {rng.choice(sentences)}"}


def main() -> None:
    """Run every seed."""
    options = parser(__doc__, model=BUILT_IN, seeds=[1, 2, 3], work="rejected")
    options.add_argument("--data", type=Path, required=True)
    args = options.parse_args()

    def run(draw: Draw) -> Row:
        settings = write_inputs(draw.folder / "input", args.data, model=draw.model, seed=draw.seed)
        public = {"without": {}, "with": {"reject": "reject.jsonl"}}
        variants = {
            name: {"name": f"rejected-{name}", "recipe": {"public": {"medicine": files}}}
            for name, files in public.items()
        }
        return run_variants(draw, settings, variants)

    run_draws(args, RESULTS, run)


if __name__ == "__main__":
    main()
