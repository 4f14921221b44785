"""Collects what a run found into its results; aggregates, no row text, no row scores."""

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import JsonValue

from clues.config import ALIGNMENT, LOSS, REJECT, Recipe, RunConfig, SharedConfig
from clues.coordinator.coordinator import Coordinator
from clues.coordinator.judge import stored_figures
from clues.coordinator.outcomes import Outcome, Scored
from clues.coordinator.public import portable_recipe
from clues.evaluation.paired import arms_on_heldout
from clues.evaluation.tasks import arms_on_tasks
from clues.model.devices import device_of
from clues.results.arms import ArmResult
from clues.results.run import VERSION, Absence, Curve, Method, Passes, Results, Seconds
from clues.results.silos import SiloResult
from clues.scoring.cost import PublicRows, SiloRows, Size, score_work, warm_up_work
from clues.selection.threshold import Threshold, by_aim

PACKAGES = ("clues", "torch", "transformers", "peft", "accelerate", "datasets")
WARM_UP = "warm-up"


def arms_of(config: SharedConfig) -> Sequence[str]:
    """Arms that can be run: oracle only where every silo knows its labels."""
    return [arm for arm in config.evaluate.arms if arm != "oracle" or config.labelled]


def collect_results(config: SharedConfig, coordinator: Coordinator, outcome: Outcome) -> Results:
    """Aggregates of a finished run; no row text, no row scores."""
    recipe = config.recipe
    trained, scored, selected = outcome.trained, outcome.scored, outcome.selected
    assert trained is not None
    assert scored is not None
    assert selected is not None
    threshold = selected.threshold
    # First: a silo that does not answer is left out of all that follows.
    silos = coordinator.silo_results(selected)
    where = config.compute.device if isinstance(config, RunConfig) else None
    heldout = coordinator.heldout() if config.evaluate.heldout else None
    return Results(
        results_version=VERSION,
        name=config.name,
        date=datetime.now(UTC).date().isoformat(),
        machine=machine(device_of(where)),
        base_model=Path(recipe.model.name).name,
        recipe_hash=recipe.hash,
        recipe=_shown_recipe(recipe),
        seeds=(recipe.seed,),
        versions={name: version(name) for name in PACKAGES},
        method=_method(config, threshold),
        arms=_arms(outcome, silos, seed=recipe.seed),
        silos=silos,
        absences=tuple(Absence(**absence) for absence in coordinator.attendance.to_json()),
        stops=tuple(Absence(**stop) for stop in coordinator.attendance.stops),
        curves=_curves(outcome),
        threshold=threshold.as_result(
            recipe.threshold, by_aim(threshold, scored.raw, scored.damaged, recipe.threshold)
        ),
        controls=scored.controls,
        controls_kept=kept_copies(threshold, scored),
        questions=len(heldout.options) if heldout else None,
        guessing=heldout.guessing if heldout else None,
        tasks=arms_on_tasks(outcome.answers, seed=recipe.seed),
        judge=stored_figures(config, coordinator),
        seconds=Seconds(
            train=trained.seconds,
            score=scored.seconds,
            select=selected.seconds,
        ),
        passes=_passes(recipe, coordinator, silos),
    )


def _passes(
    recipe: Recipe, coordinator: Coordinator, silos: Mapping[str, SiloResult]
) -> Passes | None:
    """Forward passes per private row; the coordinator does not know how long a silo's rows are."""
    n_rows = sum(silo.rows for silo in silos.values())
    if not n_rows:
        return None
    desk = coordinator.desk
    private = [SiloRows(silo.domain, _as_if_alike(silo.rows)) for silo in silos.values()]
    public = {
        domain: PublicRows(
            _as_if_alike(sum(len(rows) for rows in desk.validation(domain).values())),
            _as_if_alike(len(desk.anchors(domain))),
            _as_if_alike(sum(len(rows) for rows in desk.rejected(domain))),
        )
        for domain in desk.domains
    }
    return Passes(
        train=round(warm_up_work(recipe, private).equivalents / n_rows, 2),
        score=round(score_work(recipe, private, public).equivalents / n_rows, 2),
    )


def _as_if_alike(n_rows: int) -> Size:
    """So many rows of one length, whose answers count as long as they are."""
    return Size(n_rows, n_rows, n_rows)


def kept_copies(threshold: Threshold, scored: Scored) -> dict[str, dict[str, float]]:
    """By group and kind, the share of damaged copies of public anchors above the threshold.

    Empty where the coordinator made none, and under a rule without one threshold.
    """
    if threshold.value is None:
        return {}
    return {
        group: controls.kept_by_kind(threshold.units[group], threshold.value)
        for group, controls in scored.damaged.items()
    }


def _method(config: SharedConfig, threshold: Threshold) -> Method:
    recipe = config.recipe
    # Every group has the same weights of its parts beside the influence; not every domain has
    # rejected rows.
    weights = next(iter(threshold.units.values())).weights
    return Method(
        score=recipe.score.method,
        form=recipe.score.form,
        loss_weight=weights.get(LOSS, 0.0),
        loss_under=recipe.score.loss_under,
        alignment_weight=weights.get(ALIGNMENT, 0.0),
        reject_weight=(
            max(u.weights.get(REJECT, 0.0) for u in threshold.units.values())
            if any(public.reject for public in recipe.public.values())
            else None
        ),
        parts=recipe.threshold.combine,
        trajectory=recipe.score.trajectory,
        layers=recipe.score.layers,
        rule=recipe.threshold.rule,
        combine=config.combine.method,
        aggregation=config.combine.aggregation,
    )


def _shown_recipe(recipe: Recipe) -> dict[str, JsonValue]:
    """The recipe without any path of this machine."""
    content = portable_recipe(recipe)
    content["model"]["name"] = Path(recipe.model.name).name
    return content


def _curves(outcome: Outcome) -> dict[str, Curve]:
    """Public rows' loss by rounds done: of the warm-up, and of every arm that has rounds."""
    assert outcome.trained
    curves = {WARM_UP: outcome.trained.curve, **{n: f.curve for n, f in outcome.fitted.items()}}
    # A warm-up inside the silos has no curve, and two points are none.
    return {name: curve for name, curve in curves.items() if len(curve) > 2}


def _arms(outcome: Outcome, silos: Mapping[str, SiloResult], *, seed: int) -> dict[str, ArmResult]:
    against = arms_on_heldout(outcome.measured, seed=seed)
    return {
        arm: ArmResult(
            kept=_arm_rows(arm, silos),
            steps=fitted.steps,
            silos=fitted.n_silos,
            energy_lost=fitted.energy_lost,
            heldout_loss=outcome.measured[arm].heldout_loss,
            knowledge_accuracy=outcome.measured[arm].knowledge_accuracy,
            knowledge_stderr=outcome.measured[arm].knowledge_stderr,
            seconds=round(fitted.seconds, 1),
            **_detection(arm, silos),
            against=against[arm],
        )
        for arm, fitted in outcome.fitted.items()
    }


def _detection(arm: str, silos: Mapping[str, SiloResult]) -> dict[str, float | None]:
    """How well an arm's score finds clean rows, mean over the silos that say it."""
    known = [silo for silo in silos.values() if silo.labelled]
    if arm in ("mixed", "random", "oracle") or not known:
        return {}
    ours = known if arm == "clues" else [s.detection[arm] for s in known if arm in s.detection]
    # Mean over silos: a large silo must not hide a small one.
    return {
        "precision": _mean([found.precision for found in ours]),
        "recall": _mean([found.recall for found in ours]),
        "f1": _mean([found.f1 for found in ours]),
        "auc": _mean([found.auc for found in ours]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _arm_rows(arm: str, silos: Mapping[str, SiloResult]) -> int | None:
    if arm == "mixed":
        counts = [silo.rows for silo in silos.values()]
    elif arm in ("clues", "random"):
        counts = [silo.kept for silo in silos.values()]
    elif arm == "oracle":
        counts = [silo.clean for silo in silos.values()]
    else:
        counts = [
            silo.detection[arm].kept if arm in silo.detection else None for silo in silos.values()
        ]
    known = [n for n in counts if n is not None]
    return sum(known) if len(known) == len(counts) else None


def machine(device: torch.device) -> str:
    """Say what this ran on, without the machine's name."""
    what = {"cuda": lambda: torch.cuda.get_device_name(), "mps": lambda: "Apple GPU"}
    cores = f"CPU, {torch.get_num_threads()} threads"
    found = what.get(device.type, lambda: cores)()
    return f"{found}, {platform.system()} {platform.machine()}"
