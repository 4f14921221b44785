"""What experiments that are no recipe share: seeds one after the other, and runs that differ in settings."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from clues.collect import collect_results
from clues.config import BUILT_IN, load_config, short
from clues.coordinator.outcomes import Outcome
from clues.pipeline import Run, open_run, run_until
from clues.progress import Progress, Terminal
from clues.rundir import write_json
from experiments.rows import write_config
from experiments.run import name_of
from experiments.spec import merged

Row = dict[str, Any]
PUBLISHED = "runs/base/smollm2-135m-instruct"


@dataclass(frozen=True)
class Draw:
    """One seed of one base model.

    Attributes:
        folder: of its files and runs, kept so that they can go on.
        model: base model, as a run names it.
        label: of the base model, as results name it.
        seed: of everything.
        progress: where long steps report to.
    """

    folder: Path
    model: str
    label: str
    seed: int
    progress: Progress


def parser(text: str | None, *, model: str, seeds: list[int], work: str) -> argparse.ArgumentParser:
    """Options that all of them have."""
    found = argparse.ArgumentParser(description=text)
    found.add_argument("--model", default=model)
    found.add_argument("--seeds", type=int, nargs="+", default=seeds)
    found.add_argument("--work", type=Path, default=Path("runs", work))
    return found


def run_draws(
    args: argparse.Namespace, results: Path, run: Callable[[Draw], Row], *, part: str = ""
) -> None:
    """Run every seed that is not stored yet, and store what it gives.

    Args:
        args: as `parser` reads them.
        results: folder of the stored files.
        run: gives the content of one.
        part: of the experiment, where it has several; in the files' names.
    """
    label = name_of(args.model)
    model = args.model if args.model == BUILT_IN else str(Path(args.model).resolve())
    for seed in args.seeds:
        name = "-".join(filter(None, (label, part, str(seed))))
        stored = results / f"{name}.json"
        if not stored.exists():
            terminal = Terminal(Console(stderr=True))
            write_json(stored, run(Draw(args.work / name, model, label, seed, terminal)))


def run_variants(
    draw: Draw,
    settings: Row,
    variants: Mapping[str, Row],
    *,
    until: str = "select",
    look: Callable[[Run, Outcome], None] | None = None,
) -> Row:
    """Results by variant; what variants share is trained and scored once.

    Args:
        draw: the seed; its files lie in `folder/input`.
        settings: of a run.
        variants: changes of these settings, by name.
        until: stage to stop after.
        look: called with every run.
    """
    found: Row = {}
    for name, changes in variants.items():
        path = write_config(merged(settings, changes), draw.folder / "input" / f"{name}.yaml")
        config = load_config(path)
        root = draw.folder / f"run-{short(config.recipe.scoring_hash)}"
        run = open_run(config, root, progress=draw.progress, allow_degenerate=True)
        outcome = run_until(run, until)
        results = outcome.results or collect_results(config, run.coordinator, outcome)
        found[name] = {**results.to_json(), "base_model": draw.label}
        if look:
            look(run, outcome)
    return found


def by_aim(name: str, **changes: Row) -> dict[str, Row]:
    """Variants that differ in the aim of the threshold.

    Args:
        name: of the runs, before the aim.
        changes: of one aim's run, by the aim.
    """
    return {
        aim: {
            "name": f"{name}-{aim}",
            "recipe": {"threshold": {"aim": aim}},
            **changes.get(aim, {}),
        }
        for aim in ("keep", "model")
    }


def adapter(layers: str | list[str]) -> Row:
    """The adapter of all of them, on these layers."""
    return {"rank": 16, "alpha": 16, "dropout": 0.0, "target_modules": layers}
