"""Sixteen kinds of damage, and weights that were found without the kind that they are tested on.

    python -m experiments.kinds.run --medquad FILE --spanish FILE

One silo, half of whose rows are damaged in sixteen ways. The weights of the parts are found on
damaged copies of public anchors: of all kinds, of all but one, of all but a family of kinds. Every seed
is kept as experiments/kinds/results/MODEL-SEED.json.
"""

import gzip
import json
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clues.config import BUILT_IN, derived_seed
from clues.coordinator.outcomes import Outcome
from clues.data.damage import ALL_KINDS, damage_rows
from clues.evaluation.detection import read_labels
from clues.pipeline import Run
from clues.scoring.trajectory import set_weights
from clues.selection.units import Units, anchor_units
from clues.selection.weighing import Controls, auc, replaced, weigh_parts
from experiments.draws import Draw, Row, adapter, by_aim, parser, run_draws, run_variants
from experiments.medquad.run import unread_rows
from experiments.rows import LABELS, labelled_silo, write_jsonl
from experiments.run import name_of

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


@dataclass(frozen=True)
class Sizes:
    """How many rows, by base model: what a core can do in an hour."""

    private: int
    validation: int
    anchors: int


SIZES = {BUILT_IN: Sizes(320, 48, 96)}
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
    built_in = model == BUILT_IN
    return {
        "recipe": {
            "seed": seed,
            "model": {"name": model, "dtype": "float32"},
            "lora": adapter("all-linear" if built_in else ["q_proj", "v_proj"]),
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
            outcome.scored.raw[GROUP],
            outcome.scored.damaged[GROUP],
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


def main() -> None:
    """Run every seed."""
    options = parser(__doc__, model=BUILT_IN, seeds=[0, 1, 2], work="kinds")
    options.add_argument("--medquad", type=Path, required=True)
    options.add_argument("--spanish", type=Path, required=True, help="rows with language es")
    args = options.parse_args()

    def run(draw: Draw) -> Row:
        where = (draw.folder / "input", args.medquad, args.spanish)
        settings = write_inputs(*where, model=draw.model, seed=draw.seed)
        without: Row = {}

        def look(finished: Run, outcome: Outcome) -> None:
            # The aims have their scores in common: the first run says it all.
            if not without:
                without.update(left_out(Scene.of(finished, outcome)))

        found = run_variants(draw, settings, by_aim("kinds"), look=look)
        return {**found, "left out": without}

    run_draws(args, RESULTS, run)


if __name__ == "__main__":
    main()
