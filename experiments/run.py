"""Run an experiment: seeds times variants, resumable, one stored file a seed."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from clues.collect import arms_of
from clues.config import BUILT_IN, load_config, short
from clues.errors import DataError
from clues.pipeline import Run, open_run, run_until
from clues.progress import Progress
from clues.rundir import Stages, hash_of, write_json
from clues.scoring.perplexity import mean_losses
from experiments.analysis import Finished, agreement, analyse
from experiments.rows import write_config, write_inputs
from experiments.spec import Scale, merged

DIGITS = 4  # of stored held-out losses


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        name: of the experiment.
        scale: its size, with rows and settings.
        scale_name: small, laptop or real.
        model: base model instead of the one that the settings name; None for that one.
        data: folder of the sources.
        work: folder of the runs, kept so that they can go on; two experiments may share one.
        results: folder of the stored results.
    """

    name: str
    scale: Scale
    scale_name: str
    model: str | None
    data: Path
    work: Path
    results: Path


def run_seed(plan: Plan, seed: int, *, progress: Progress) -> Path:
    """Run all variants with one seed, and store the figures; a stored seed is not run again.

    Variants share one folder: what a change of settings leaves valid (data, training, scores,
    arms) is not done again.

    Raises:
        DataError: the seed is stored, and of other settings.
        CluesError: a run cannot be finished; what is finished stays.
    """
    stored = stored_file(plan, seed)
    if is_stored(plan, seed):
        return stored
    folder = plan.work / f"{plan.scale_name}-{_base_name(plan)}-{seed}"
    # A variant's results say their own seconds, by stage.
    done = Stages(folder / "done")
    content = {
        "experiment": plan.name,
        "scale": plan.scale_name,
        "seed": seed,
        "base_model": _base_name(plan),
        "settings": settings_hash(plan),
        "variants": {
            name: done.run(
                f"{plan.name}-{name}",
                {"settings": settings_hash(plan, name)},
                lambda name=name: _run_variant(plan, folder, name, seed, progress),
            )
            for name in plan.scale.variants
        },
    }
    write_json(stored, content)
    return stored


def require_model(plan: Plan) -> None:
    """Refuse before the first run where the scale's own base model is not there yet.

    Raises:
        DataError: its folder is missing; the message says how to make it.
    """
    name = _model_name(plan)
    if plan.model is None and plan.scale.model_from and not Path(name).is_dir():
        raise DataError(
            f"{name}: there is no such model folder. {plan.scale.model_from} Or name another base "
            "model: --model"
        )


def is_stored(plan: Plan, seed: int) -> bool:
    """Whether a seed's figures are there.

    Raises:
        DataError: they are of other settings of this experiment.
    """
    stored = stored_file(plan, seed)
    if not stored.exists():
        return False
    # Figures from before settings were stored are taken as they are.
    found = json.loads(stored.read_text(encoding="utf-8")).get("settings")
    if found not in (None, settings_hash(plan)):
        raise DataError(
            f"{stored}: was made with other settings of experiment {plan.name}. "
            "Move it away, and the seed runs again."
        )
    return True


def settings_hash(plan: Plan, variant: str | None = None) -> str:
    """What stored figures depend on, hashed: rows, sizes, settings, base model; of one or all."""
    names = list(plan.scale.variants)
    # Every variant is compared with the first.
    mine = {names[0], variant} if variant else set(names)
    # What to fetch and what it costs are words; a new setting at its default changes nothing.
    content = plan.scale.model_dump(
        mode="json",
        exclude_defaults=True,
        exclude={
            "cost": True,
            "model_from": True,
            "sources": {"__all__": {"fetch"}},
            "questions": {"__all__": {"fetch"}},
            "variants": set(names) - mine,
        },
    )
    return hash_of([content, [n for n in names if n in mine], _base_name(plan)])[:16]


def _run_variant(
    plan: Plan, folder: Path, name: str, seed: int, progress: Progress
) -> dict[str, Any]:
    """One variant's results, with what is known beyond a run's own."""
    first_name = next(iter(plan.scale.variants))
    started = time.perf_counter()
    run = _open(plan, folder, name, seed, progress)
    outcome = run_until(run)
    assert outcome.results is not None
    ours = Finished.of(run, outcome)
    analysis = analyse(ours)
    first = _open(plan, folder, first_name, seed, progress) if name != first_name else run
    if _asks_agreement(run, first):
        theirs = Finished.of(first, run_until(first, "threshold"))
        analysis["agreement with first"] = agreement(theirs, ours)
    return {
        **outcome.results.to_json(),
        "analysis": analysis,
        "heldout_losses": heldout_losses(run),
        "wall_seconds": round(time.perf_counter() - started),
    }


def stored_file(plan: Plan, seed: int) -> Path:
    """Where a seed's figures are kept."""
    return plan.results / f"{plan.scale_name}-{_base_name(plan)}-{seed}.json"


def heldout_losses(run: Run) -> dict[str, list[float]]:
    """Loss of every held-out row under every arm's adapter, for paired intervals."""
    if run.config.evaluate.heldout is None:
        return {}
    coordinator = run.coordinator
    rows = coordinator.heldout().rows
    found: dict[str, list[float]] = {}
    for arm in arms_of(run.config):
        state = load_file(coordinator.folder / "arms" / arm / "adapter_model.safetensors")
        losses = mean_losses(coordinator.desk.at_rank(state), rows, adapter=state)
        found[arm] = [round(float(x), DIGITS) for x in losses]
    return found


def _open(plan: Plan, folder: Path, name: str, seed: int, progress: Progress) -> Run:
    """One variant's run; variants that score alike share a folder, and so all but what differs."""
    variant = plan.scale.variants[name]
    share = variant.damage
    place = folder / ("input" if share is None else f"input-{share}")
    base = write_inputs(plan.scale, place, data=plan.data, seed=seed, damage=share)
    if plan.model:
        base = merged(base, {"recipe": {"model": {"name": plan.model}}})
    settings = {**merged(base, variant.config), "name": f"{plan.name}-{name}"[:60]}
    config = load_config(write_config(settings, place / f"{name}.yaml"))
    # Under rule mixture silos answer a score request otherwise: its run would undo the others'.
    rule = "-mixture" if config.recipe.threshold.rule == "mixture" else ""
    root = (
        folder
        / f"run-{short(config.recipe.scoring_hash)}{'' if share is None else f'-{share}'}{rule}"
    )
    return open_run(config, root, progress=progress, allow_degenerate=True)


def _asks_agreement(run: Run, first: Run) -> bool:
    """Whether the same rows were scored in another way."""
    rows = [{n: s.settings.data for n, s in r.silos.items()} for r in (run, first)]
    return rows[0] == rows[1] and (
        run.config.recipe.scoring_hash != first.config.recipe.scoring_hash
    )


def name_of(model: str) -> str:
    """What a base model is called in names of files; a folder `NAME/model` is known by NAME."""
    path = Path(model)
    return path.parent.name if path.name == "model" else path.name


def _base_name(plan: Plan) -> str:
    return name_of(_model_name(plan))


def _model_name(plan: Plan) -> str:
    model = plan.scale.config.get("recipe", {}).get("model", {})
    return plan.model or model.get("name", BUILT_IN)
