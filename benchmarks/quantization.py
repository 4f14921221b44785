"""Scores on a packed base model against those on the whole one.

    python -m benchmarks.quantization --model runs/base/smollm2-135m-instruct --data rows.jsonl.gz

Every form runs in a process of its own, so that the peak memory is its own. The adapter is trained
once, on the whole model; validation gradient and rows' gradients are those of each form.
"""

import argparse
import gzip
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from clues.config import (
    LINEAR_FORMS,
    LoraSettings,
    ModelSettings,
    TokenSettings,
    TrainSettings,
)
from clues.data.samples import Message, Sample
from clues.data.tokens import EncodedRow
from clues.model.adapters import (
    Checkpoint,
    LoraModel,
    load_checkpoint,
    load_tokenizer,
    save_checkpoint,
)
from clues.model.cache import encoder_for
from clues.model.training import Schedule, train
from clues.scoring.forms import form_directions, form_scores

FORMS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "float32", "quantization": "int8"},
    "nf4": {"dtype": "float32", "quantization": "nf4"},
}
STEPS, BATCH, VALIDATION = 6, 8, 16
SCORES = ("sgd", "adam", "adam_two_sided", "adam_exact", "cosine", "less")


def rows_of(
    path: Path, model: LoraModel, settings: ModelSettings, *, n: int, max_length: int
) -> list[EncodedRow]:
    """Rows of a file, in an order of their own."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    random.Random(0).shuffle(rows)
    tokens = TokenSettings(max_length=max_length, overlong="truncate")
    encoder = encoder_for(model, load_tokenizer(settings), tokens)
    return [
        encoder.encode(
            Sample(i, (Message("user", row["instruction"]), Message("assistant", row["output"])))
        )
        for i, row in enumerate(rows[:n])
    ]


def one_form(args: argparse.Namespace) -> None:
    """Score with one form, and print scores, losses, seconds and memory as JSON."""
    settings = ModelSettings.model_validate({"name": args.model, **FORMS[args.form]})
    lora = LoraSettings(rank=16, dropout=0.0, target_modules=("q_proj", "v_proj"))
    model = LoraModel.load(settings, lora, seed=0)
    n = args.rows + VALIDATION
    rows = rows_of(args.data, model, settings, n=n, max_length=args.max_length)
    validation, rows = rows[:VALIDATION], rows[VALIDATION:]
    folder = args.work / "checkpoint"
    if not folder.exists():
        trained = train(
            model,
            rows[: STEPS * BATCH],
            start=model.initial,
            settings=TrainSettings(batch_size=BATCH),
            schedule=Schedule(2e-4, 0.0, 2 * STEPS),
            n_steps=STEPS,
            seed=0,
            scratch=str(args.work / "scratch"),
            checkpoint_at=(STEPS,),
        )
        save_checkpoint(trained.checkpoints[-1], folder)
    checkpoint: Checkpoint = load_checkpoint(folder)
    weights = list(model.parameters())
    found: dict[str, list[float]] = {}
    started = time.process_time()
    for form in SCORES:
        directions = form_directions(
            model, {"v": validation}, checkpoint, form=form, weights=weights
        )
        way = "side_branch" if form in LINEAR_FORMS else "gradients"
        scores = form_scores(model, rows, checkpoint, [directions["v"]], form=form, way=way)
        found[form] = scores.products[:, 0].tolist()
        found["loss"] = scores.losses.tolist()
    seconds = time.process_time() - started
    weights_mb = sum(p.numel() * p.element_size() for p in model.peft.parameters()) / 1e6
    answer = {
        "scores": found,
        "seconds": seconds,
        "weights": weights_mb,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }
    print(json.dumps(answer))


def main() -> None:
    """Run every form and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--form", choices=list(FORMS), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.form:
        one_form(args)
        return
    answers = {}
    with tempfile.TemporaryDirectory() as work:
        for form in args.forms:
            command = [sys.executable, "-m", "benchmarks.quantization", "--model", args.model]
            command += ["--data", str(args.data), "--rows", str(args.rows)]
            command += ["--max-length", str(args.max_length), "--form", form, "--work", work]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            answers[form] = json.loads(done.stdout.splitlines()[-1])
            print(form, f"{answers[form]['seconds']:.0f} s", file=sys.stderr, flush=True)
    first = answers[args.forms[0]]
    print("| base weights | MB | peak MB | processor seconds | " + " | ".join([*SCORES, "loss"]))
    for form, answer in answers.items():
        ranks = [
            float(np.asarray(spearmanr(first["scores"][name], answer["scores"][name]))[0])
            for name in (*SCORES, "loss")
        ]
        print(
            f"| {form} | {answer['weights']:.0f} | {answer['peak']:.0f} | {answer['seconds']:.0f} | "
            + " | ".join(f"{rank:.4f}" for rank in ranks)
            + " |"
        )


if __name__ == "__main__":
    main()
