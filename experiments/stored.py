"""Stored figures of runs and experiments, read as types. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from clues.results.arms import ArmResult
from clues.results.run import VERSION, Results

# What a file lacks that was stored before its key was written, and what was so at the time.
_BEFORE = {
    "recipe": {},
    "absences": [],
    "stops": [],
    "curves": {},
    "controls": {},
    "controls_kept": {},
    "tasks": {},
    "judge": None,
}
# The loss was added along the checkpoints, and there were no other parts.
_BEFORE_METHOD = {
    "loss_weight": 1.0,
    "loss_under": "checkpoints",
    "alignment_weight": 0.0,
    "parts": "sum",
}


@dataclass(frozen=True)
class StoredRun:
    """One run.

    Attributes:
        results: what the run itself found.
        analysis: what `experiments.analysis` found beyond it; empty where it did not look.
        heldout_losses: by arm, the loss of every held-out row.
    """

    results: Results
    analysis: Mapping[str, Any]
    heldout_losses: Mapping[str, Sequence[float]]

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, where: str) -> Self:
        """Read a run's figures, with or without what is known beyond them.

        Raises:
            DataError: they are not results that this version reads.
        """
        own = {k: v for k, v in content.items() if k in Results.model_fields}
        if "results_version" not in own:
            own = {"results_version": VERSION, **_BEFORE, **own}
            own["method"] = {**_BEFORE_METHOD, **own["method"]}
            own["arms"] = {name: {"against": {}, **arm} for name, arm in own["arms"].items()}
        found = Results.from_bytes(json.dumps(own).encode(), where=where)
        return cls(found, content.get("analysis", {}), content.get("heldout_losses", {}))

    @property
    def arms(self) -> Mapping[str, ArmResult]:
        """The run's arms."""
        return self.results.arms


@dataclass(frozen=True)
class StoredSeed:
    """One seed of one experiment, as `run_seed` writes it."""

    experiment: str
    scale: str
    seed: int
    base_model: str
    variants: Mapping[str, StoredRun]

    @property
    def first(self) -> StoredRun:
        """The variant that the others are compared with."""
        return next(iter(self.variants.values()))


def read_run(path: Path) -> StoredRun:
    """Read the stored results of one run.

    Raises:
        DataError: they are not results that this version reads.
    """
    return StoredRun.from_json(json.loads(path.read_text(encoding="utf-8")), where=str(path))


def read_seed(path: Path) -> StoredSeed:
    """Read a stored seed.

    Raises:
        DataError: a variant's figures are not results that this version reads.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    keys = ("experiment", "scale", "seed", "base_model")
    return StoredSeed(
        **{key: content[key] for key in keys},
        variants={
            name: StoredRun.from_json(run, where=f"{path}, variant {name}")
            for name, run in content["variants"].items()
        },
    )
