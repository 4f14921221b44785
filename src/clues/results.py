"""What a run found: everything that results.json holds; aggregates, no row text, no row scores."""

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from clues.config import ALIGNMENT, LOSS, Recipe, SharedConfig
from clues.coordinator.coordinator import Coordinator
from clues.coordinator.judge import stored_figures
from clues.coordinator.outcomes import Fitted, Outcome, Scored
from clues.coordinator.public import portable_recipe
from clues.evaluation.paired import arms_on_heldout
from clues.evaluation.tasks import arms_on_tasks
from clues.selection.threshold import Threshold
from clues.selection.weighing import Controls

PACKAGES = ("clues", "torch", "transformers", "peft", "accelerate", "datasets")
WARM_UP = "warm-up"


def arms_of(config: SharedConfig) -> Sequence[str]:
    """Arms that can be run: oracle only where every silo knows its labels."""
    return [arm for arm in config.evaluate.arms if arm != "oracle" or config.labelled]


def collect_results(
    config: SharedConfig, coordinator: Coordinator, outcome: Outcome
) -> dict[str, Any]:
    """Aggregates of a finished run; no row text, no row scores."""
    recipe = config.recipe
    trained, scored, selected = outcome.trained, outcome.scored, outcome.selected
    assert trained is not None
    assert scored is not None
    assert selected is not None
    threshold = selected.threshold
    diagnostics = coordinator.diagnostics(selected)
    silos: dict[str, dict[str, Any]] = {}
    for name, silo in coordinator.silos.items():
        shared = {
            "rows": silo["n_rows"],
            "kept": selected.n_kept[name],
            **diagnostics.get(name, {}),
        }
        shared.setdefault("threshold", threshold.value)
        silos[name] = {"domain": silo["domain"], **shared}
    arms = {
        arm: _arm(fitted, outcome.measured[arm], silos) for arm, fitted in outcome.fitted.items()
    }
    for arm, against in arms_on_heldout(outcome.measured, seed=recipe.seed).items():
        arms[arm]["against"] = against
    heldout = coordinator.heldout() if config.evaluate.heldout else None
    # Every group has the same weights of its parts beside the influence.
    weights = next(iter(threshold.units.values())).weights
    return {
        "name": config.name,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "base_model": Path(recipe.model.name).name,
        "recipe_hash": recipe.hash,
        "recipe": _shown_recipe(recipe),
        "seeds": [recipe.seed],
        "versions": {name: version(name) for name in PACKAGES},
        "method": {
            "score": recipe.score.method,
            "form": recipe.score.form,
            "loss_weight": weights.get(LOSS, 0.0),
            "loss_under": recipe.score.loss_under,
            "alignment_weight": weights.get(ALIGNMENT, 0.0),
            "parts": recipe.threshold.combine,
            "trajectory": recipe.score.trajectory,
            "layers": recipe.score.layers,
            "rule": recipe.threshold.rule,
            "combine": config.combine.method,
            "aggregation": config.combine.aggregation,
        },
        "arms": arms,
        "silos": silos,
        "absences": coordinator.attendance.to_json(),
        "stops": coordinator.attendance.stops,
        "curves": _curves(outcome),
        "threshold": {
            "value": threshold.value,
            "rule": threshold.rule,
            "units": threshold.units_kind,
            "interval": list(threshold.interval) if threshold.interval else None,
            "confidence": threshold.confidence,
            "assurance": threshold.assurance,
            "quantile": recipe.threshold.quantile,
            "n_anchors": threshold.n_anchors,
            "anchor_quantiles": [list(pair) for pair in threshold.anchor_quantiles],
        },
        "controls": scored.controls,
        "controls_kept": kept_copies(threshold, scored),
        "questions": len(heldout.options) if heldout else None,
        "guessing": heldout.guessing if heldout else None,
        "tasks": arms_on_tasks(outcome.answers, seed=recipe.seed),
        "judge": stored_figures(config, coordinator),
        "seconds": {
            "train": trained.seconds,
            "score": scored.seconds,
            "select": selected.seconds,
        },
    }


def kept_copies(threshold: Threshold, scored: Scored) -> dict[str, dict[str, float]]:
    """By group and kind, the share of damaged copies of public anchors above the threshold.

    Empty where the coordinator made none, and under a rule without one threshold.
    """
    if threshold.value is None:
        return {}
    return {
        group: Controls.from_json(content).kept_by_kind(threshold.units[group], threshold.value)
        for group, content in scored.copies.items()
    }


def _shown_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe without any path of this machine."""
    content = portable_recipe(recipe)
    content["model"]["name"] = Path(recipe.model.name).name
    return content


def _curves(outcome: Outcome) -> dict[str, Any]:
    """Public rows' loss by rounds done: of the warm-up, and of every arm that has rounds."""
    assert outcome.trained
    curves = {WARM_UP: outcome.trained.curve, **{n: f.curve for n, f in outcome.fitted.items()}}
    # A warm-up inside the silos has no curve, and two points are none.
    return {name: curve for name, curve in curves.items() if len(curve) > 2}


def _arm(
    fitted: Fitted, measured: Mapping[str, Any], silos: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    arm = fitted.arm
    figures = {
        "kept": _arm_rows(arm, silos),
        "steps": fitted.steps,
        "silos": fitted.n_silos,
        "energy_lost": fitted.energy_lost,
        **{k: v for k, v in measured.items() if k not in ("seconds", "losses", "right")},
        "seconds": round(fitted.seconds, 1),
    }
    known = [s for s in silos.values() if "precision" in s]
    if arm not in ("mixed", "random", "oracle") and known:
        ours = known if arm == "clues" else [s["detection"][arm] for s in known]
        for figure in ("precision", "recall", "f1", "auc"):
            values = [s[figure] for s in ours if s[figure] is not None]
            # Mean over silos: a large silo must not hide a small one.
            figures[figure] = sum(values) / len(values) if values else None
    return figures


def _arm_rows(arm: str, silos: dict[str, dict[str, Any]]) -> int | None:
    if arm == "mixed":
        return sum(s["rows"] for s in silos.values())
    if arm in ("clues", "random"):
        return sum(s["kept"] for s in silos.values())
    if arm == "oracle":
        counts = [s.get("clean") for s in silos.values()]
    else:
        counts = [s.get("detection", {}).get(arm, {}).get("kept") for s in silos.values()]
    return sum(c for c in counts if c is not None) if None not in counts else None


def machine() -> str:
    """Say what this ran on, without the machine's name."""
    cores = torch.get_num_threads()
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {platform.system()} {platform.machine()}"
    return f"CPU, {cores} threads, {platform.system()} {platform.machine()}"
