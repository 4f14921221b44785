"""Public rows on the coordinator's side: checked, and made ready to travel."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clues.atomic import read_bytes
from clues.config import EvaluateSettings, Recipe, public_entries
from clues.config.loading import local_folder
from clues.data.formats import read_file
from clues.data.packing import ENDINGS
from clues.data.samples import Sample
from clues.errors import ConfigError
from clues.evaluation.harness import check_harness
from clues.evaluation.questions import asked_rows, read_tasks
from clues.printable import rows_are, rows_in_words


def check_public_rows(recipe: Recipe, evaluate: EvaluateSettings) -> None:
    """Anchors and validation rows must not be test rows.

    Raises:
        ConfigError: they overlap with the held-out set, a task or each other.
        DataError: a task file holds no question.
    """
    # A file without a question stops the run here, and not after the training.
    read_tasks(evaluate.tasks)
    check_harness(evaluate.lm_eval)
    heldout = evaluate.heldout
    tests: dict[str, Sequence[Sample]]
    tests = {"the held-out set": read_file(heldout).samples} if heldout else {}
    tests |= {f"task file {task.path.name}": asked_rows(task) for task in evaluate.tasks}
    test = {name: {s.id for s in rows} for name, rows in tests.items()}
    for domain, public in recipe.public.items():
        anchors = read_file(public.anchor).samples
        anchor_ids = {sample.id for sample in anchors}
        _check_untested(f"anchors of {domain}", anchors, test)
        good = set(anchor_ids)
        for name, file in public.validation.items():
            samples = read_file(file).samples
            _check_untested(f"validation set {name} of {domain}", samples, test)
            ids = {sample.id for sample in samples}
            good |= ids
            both = len(anchor_ids & ids)
            if both:
                raise ConfigError(
                    f"public sets of {domain}: {rows_are(both)} both anchors and rows of validation "
                    f"set {name}, which lifts the threshold. Remove them from one of the two."
                )
        if public.reject:
            samples = read_file(public.reject).samples
            _check_untested(f"rejected rows of {domain}", samples, test)
            if both := len({sample.id for sample in samples} & good):
                raise ConfigError(
                    f"public sets of {domain}: {both} rows are rejected rows and also anchors or "
                    "validation rows. Remove them from one of the two."
                )


def _check_untested(what: str, samples: Sequence[Sample], test: Mapping[str, set[str]]) -> None:
    """Refuse public rows that models are tested on."""
    for where, ids in test.items():
        both = len(ids & {sample.id for sample in samples})
        if both:
            raise ConfigError(
                f"{what}: {rows_in_words(both)} also stand{'s' if both == 1 else ''} in {where}, so its "
                "figures would be too good. "
                "Remove them from one of the two."
            )


def public_files(recipe: Recipe) -> dict[str, torch.Tensor]:
    """Public files by hash and ending, as bytes."""
    found: dict[str, torch.Tensor] = {}
    for public in recipe.public.values():
        for file in public.files:
            content = np.frombuffer(read_bytes(file.path), dtype=np.uint8)
            found[_travel_name(file.path, str(file.sha256))] = torch.from_numpy(content.copy())
    return found


def portable_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it travels: no path of this machine in it.

    Of the base model travel a name to show, what its files are, and how it computes. Where a silo
    finds it and what it may do there is the silo's own affair.
    """
    content = recipe.model_dump(mode="json")
    model = recipe.model
    name = model.name if local_folder(model.name) is None else Path(model.name).name
    content["model"] = {"name": name, "files": model.files, **model.counted}
    for file in public_entries(content):
        file["path"] = _travel_name(Path(file["path"]), file["sha256"])
    return content


def counted_recipe(recipe: Recipe) -> dict[str, Any]:
    """What a stage depends on of the recipe: the bytes of the base model and not where it lies."""
    content = portable_recipe(recipe)
    del content["model"]["name"]
    return content


def _travel_name(path: Path, sha256: str) -> str:
    return sha256 + "".join(path.suffixes[-2:] if path.suffix in ENDINGS else path.suffixes[-1:])
