"""Every score beside every other on one run: train, score, select; no arm is trained."""

import json
from pathlib import Path

import yaml
from rich.console import Console

from clues.config import load_config
from clues.pipeline import open_run, run_until
from clues.progress import Terminal
from clues.results import collect_results

ALL_SCORES = [
    *("inrun", "sgd", "adam_exact", "cosine", "less"),
    *("ifd", "alignment", "datainf", "embedding", "length", "random"),
]


def write_scores(config: Path, folder: Path, stored: Path, *, base_model: str) -> None:
    """Run a configuration up to the selection with every score beside its own; keep the figures.

    Args:
        config: the experiment's configuration; rewritten with all scores and no arms.
        folder: of the run; continued if it exists.
        stored: where the results go.
        base_model: name to show.
    """
    content = yaml.safe_load(config.read_text())
    content["recipe"].setdefault("score", {})["compare"] = ALL_SCORES
    content["evaluate"]["arms"] = []
    config.write_text(yaml.safe_dump(content, sort_keys=False))
    run = open_run(load_config(config), folder, progress=Terminal(Console(stderr=True)))
    run_until(run, "select")
    results = collect_results(run.config, run.coordinator)
    results["base_model"] = base_model
    stored.parent.mkdir(exist_ok=True)
    stored.write_text(json.dumps(results, indent=2) + "\n")
