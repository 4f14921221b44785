"""Every score beside every other on one run: train, score, select; no arm is trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from clues.collect import collect_results
from clues.config import load_config
from clues.pipeline import open_run, run_until
from clues.progress import Terminal

ALL_SCORES = [
    *("inrun", "sgd", "adam_exact", "cosine", "less"),
    *("ifd", "alignment", "datainf", "embedding", "repsim", "rds", "length", "random"),
]


def compare_all(config: Path, *, train: Mapping[str, Any] | None = None) -> None:
    """Rewrite a configuration with every score and no arms.

    Args:
        config: the experiment's configuration.
        train: settings laid over its training; in-run scores need one on every row.
    """
    content = yaml.safe_load(config.read_text())
    content["recipe"].setdefault("score", {})["compare"] = ALL_SCORES
    content["recipe"]["train"] = {**content["recipe"]["train"], **(train or {})}
    content["evaluate"]["arms"] = []
    config.write_text(yaml.safe_dump(content, sort_keys=False))


def write_scores(config: Path, folder: Path, stored: Path, *, base_model: str) -> None:
    """Run a configuration of `compare_all` up to the selection; keep the figures.

    Args:
        config: the experiment's configuration.
        folder: of the run; continued if it exists.
        stored: where the results go.
        base_model: name to show.
    """
    run = open_run(load_config(config), folder, progress=Terminal(Console(stderr=True)))
    results = collect_results(run.config, run.coordinator, run_until(run, "select"))
    results.model_copy(update={"base_model": base_model}).write(stored)
