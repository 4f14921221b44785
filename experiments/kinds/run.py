"""Sixteen kinds of damage, and weights that were found without the kind that they are tested on.

    python -m experiments.kinds.run --medquad FILE --spanish FILE

One silo, half of whose rows are damaged in sixteen ways. The weights of the parts are found on
damaged copies of public anchors: of all kinds, of all but one, of all but a family of kinds. Every seed
is kept as experiments/kinds/results/MODEL-SEED.json.
"""

import argparse
import gzip
import json
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from clues.collect import collect_results
from clues.config import derived_seed, load_config
from clues.coordinator.outcomes import Outcome
from clues.data.damage import ALL_KINDS, damage_rows
from clues.evaluation.detection import read_labels
from clues.pipeline import Run, open_run, run_until
from clues.progress import Progress, Terminal
from clues.rundir import write_json
from clues.scoring.trajectory import set_weights
from clues.selection.units import Units, anchor_units
from clues.selection.weighing import Controls, auc, replaced, weigh_parts
from experiments.medquad.run import unread_rows
from experiments.rows import LABELS, labelled_silo, write_config, write_jsonl
from experiments.run import name_of
from experiments.spec import merged

MODEL = "built-in"
# Kinds that spoil a row in a like manner.
FAMILIES = {
    "text spoilt": (
        *("cut", "delete", "mix", "page_remains", "misread", "wrong_encoding", "ends_early"),
    ),
    "another answer": ("swap", "shifted", "near_copy", "other_language"),
    "another fact": ("changed_number", "swapped_name"),
    "nothing said": ("refusal", "filler", "prompt_repeated"),
}
SHORTEST, LONGEST = 80, 400  # characters of an answer
DOMAIN, GROUP = "medicine", "domain medicine"
RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How many rows, by base model: what a core can do in an hour."""

    private: int
    validation: int
    anchors: int


SIZES = {"built-in": Sizes(320, 48, 96)}
LARGE = Sizes(160, 32, 64)


def write_inputs(folder: Path, medquad: Path, spanish: Path, *, model: str, seed: int) -> Row:
    """Write one seed's silo and public sets; the settings of its run."""
    sizes = SIZES.get(name_of(model), LARGE)
    rng = random.Random(derived_seed(seed, "kinds"))
    rows = [r for r in unread_rows(medquad) if SHORTEST < len(r["output"]) < LONGEST]
    rng.shuffle(rows)
    foreign = spanish_rows(spanish)
    rng.shuffle(foreign)
    cuts = np.cumsum([sizes.validation, sizes.anchors, sizes.private])
    write_jsonl(folder / "validation.jsonl", rows[: cuts[0]])
    write_jsonl(folder / "anchor.jsonl", rows[cuts[0] : cuts[1]])
    # A domain without a silo: copies of the anchors take its words.
    write_jsonl(folder / "spanish.validation.jsonl", foreign[:20])
    write_jsonl(folder / "spanish.anchor.jsonl", foreign[20:40])
    damaged, labels = damage_rows(
        rows[cuts[1] : cuts[2]],
        share=0.5,
        kinds=ALL_KINDS,
        seed=derived_seed(seed, "damage"),
        foreign=[row["output"] for row in foreign[40:]],
    )
    private = [{**r, LABELS: label or ""} for r, label in zip(damaged, labels, strict=True)]
    write_jsonl(folder / "clinic.jsonl", private)
    built_in = model == MODEL
    return {
        "recipe": {
            "seed": seed,
            "model": {"name": model, "dtype": "float32"},
            "lora": {
                "rank": 16,
                "alpha": 16,
                "dropout": 0.0,
                "target_modules": "all-linear" if built_in else ["q_proj", "v_proj"],
            },
            "tokens": {"max_length": 384, "overlong": "truncate"},
            "train": {"learning_rate": 2e-3 if built_in else 2e-4, "batch_size": 8},
            "score": {"copies": list(ALL_KINDS), "compare": ["base_perplexity"]},
            "public": {
                DOMAIN: {"validation": "validation.jsonl", "anchor": "anchor.jsonl"},
                "spanish": {
                    "validation": "spanish.validation.jsonl",
                    "anchor": "spanish.anchor.jsonl",
                },
            },
        },
        "evaluate": {"arms": [], "kinds": list(ALL_KINDS)},
        "silos": [{**labelled_silo("clinic", domain=DOMAIN), "max_selections": 1000}],
    }


def spanish_rows(path: Path) -> list[Row]:
    """Questions and answers in Spanish, of moderate length."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [
        {"instruction": row["instruction"], "output": row["output"]}
        for row in rows
        if row["language"] == "es" and SHORTEST < len(row["output"]) < LONGEST
    ]


@dataclass(frozen=True)
class Scene:
    """One finished run: raw scores of anchors, copies and labelled private rows."""

    anchors: Mapping[str, np.ndarray]
    copies: Controls
    rows: Mapping[str, np.ndarray]
    labels: np.ndarray
    weights: Mapping[str, float]
    parts: tuple[str, ...]

    @classmethod
    def of(cls, run: Run, outcome: Outcome) -> "Scene":
        """From a run that has selected."""
        assert outcome.scored is not None
        recipe = run.config.recipe
        (silo,) = run.silos.values()
        table = silo.space.scores()
        labels = read_labels(silo.space.rows(), silo.settings.labels)
        assert labels is not None
        return cls(
            {n: np.array(v) for n, v in outcome.scored.anchors[GROUP].items()},
            Controls.from_json(outcome.scored.copies[GROUP]),
            table.raw,
            np.array([labels[row] or "" for row in table.row]),
            set_weights(recipe.score, recipe.public[DOMAIN]),
            tuple(name for name, weighed in recipe.weighed.items() if weighed),
        )

    def units(self, without: Collection[str]) -> Units:
        """Units with the weights that the copies of all other kinds give."""
        kept = [n for n, kind in enumerate(self.copies.kinds) if kind not in without]
        copies = Controls(
            {name: values[kept] for name, values in self.copies.raw.items()},
            [self.copies.kinds[n] for n in kept],
        )
        found = weigh_parts(
            {GROUP: self.anchors},
            {GROUP: copies},
            {GROUP: self.weights},
            self.parts,
            combine="shortfall",
        )
        return self.of_weights(replaced(self.weights, found.weights))

    def of_weights(self, weights: Mapping[str, float]) -> Units:
        """Units with given weights."""
        return anchor_units(self.anchors, weights, kind="anchor", combine="shortfall")

    def auc(self, units: Units, kind: str) -> float:
        """How often a clean private row scores above one of a kind of damage."""
        scores = units.apply(self.rows)
        return auc(scores[self.labels == ""], scores[self.labels == kind])


def left_out(scene: Scene) -> Row:
    """By kind of damage: AUC with all kinds, without it, without its family, by influence alone."""
    family = {kind: kinds for kinds in FAMILIES.values() for kind in kinds}
    everything = scene.units(())
    alone = scene.of_weights({n: w for n, w in scene.weights.items() if n not in scene.parts})
    found: Row = {}
    for kind in sorted(set(scene.labels) - {""}):
        ways = {
            "all kinds": everything,
            "without it": scene.units((kind,)),
            "without its family": scene.units(family[kind]),
            "influence alone": alone,
        }
        found[kind] = {
            "rows": int((scene.labels == kind).sum()),
            "auc": {name: round(scene.auc(units, kind), 4) for name, units in ways.items()},
            "weights": {
                name: {part: units.weights.get(part, 0.0) for part in scene.parts}
                for name, units in ways.items()
            },
        }
    return found


def run_seed(settings: Row, folder: Path, *, model: str, to: Progress) -> Row:
    """Results by aim, and what leaving kinds out costs."""
    found: Row = {}
    for aim in ("keep", "model"):
        changes = {"name": f"kinds-{aim}", "recipe": {"threshold": {"aim": aim}}}
        path = write_config(merged(settings, changes), folder / "input" / f"{aim}.yaml")
        run = open_run(load_config(path), folder / "run", progress=to, allow_degenerate=True)
        outcome = run_until(run, "select")
        results = collect_results(run.config, run.coordinator, outcome)
        found[aim] = {**results.to_json(), "base_model": name_of(model)}
        found["left out"] = left_out(Scene.of(run, outcome))
    return found


def main() -> None:
    """Run every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--medquad", type=Path, required=True)
    parser.add_argument("--spanish", type=Path, required=True, help="rows with language es")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/kinds"))
    args = parser.parse_args()
    for seed in args.seeds:
        stored = RESULTS / f"{name_of(args.model)}-{seed}.json"
        if stored.exists():
            continue
        folder = args.work / f"{name_of(args.model)}-{seed}"
        model = args.model if args.model == MODEL else str(Path(args.model).resolve())
        settings = write_inputs(
            folder / "input", args.medquad, args.spanish, model=model, seed=seed
        )
        to = Terminal(Console(stderr=True))
        write_json(stored, run_seed(settings, folder, model=model, to=to))


if __name__ == "__main__":
    main()
