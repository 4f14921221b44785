"""Other scores beside the one that decides, computed inside a silo; they decide nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clues.config import FORMS, Recipe
from clues.data.tokens import EncodedRow
from clues.federation.trajectory import score_rows, set_weights
from clues.model.adapters import Checkpoint, LoraModel
from clues.scoring.baselines import BASELINES, Scene
from clues.scoring.forms import form_directions
from clues.selection import combine


@dataclass(frozen=True)
class Compared:
    """One score of a group's rows and of its anchors."""

    rows: np.ndarray
    anchors: np.ndarray


def score_by_baseline(
    name: str,
    model: LoraModel,
    rows: Sequence[EncodedRow],
    anchors: Sequence[EncodedRow],
    validation: Mapping[str, Sequence[EncodedRow]],
    checkpoint: Checkpoint,
    *,
    recipe: Recipe,
    domain: str,
    names: Sequence[str],
) -> Compared:
    """Score rows and anchors by one baseline at one checkpoint."""
    sets = recipe.public[domain].validation
    scene = Scene(
        model=model,
        checkpoint=checkpoint,
        rows=rows,
        validation=validation,
        weights={part: file.weight for part, file in sets.items()},
        names=names,
        seed=recipe.seed,
    )
    score = BASELINES[name](scene)
    return Compared(score(rows), score(anchors))


def score_by_form(
    form: str,
    model: LoraModel,
    rows: Sequence[EncodedRow],
    anchors: Sequence[EncodedRow],
    validation: Mapping[str, Sequence[EncodedRow]],
    checkpoints: Sequence[Checkpoint],
    *,
    recipe: Recipe,
    domain: str,
    names: Sequence[str],
) -> Compared:
    """Score rows and anchors by one influence form along a trajectory, without the loss."""
    changes = {"method": "influence", "form": form, "way": "auto", "loss_weight": 0.0}
    settings = recipe.score.model_copy(update={**changes, "per_block": False})
    directions = [
        form_directions(model, validation, c, form=form, weights=names) for c in checkpoints
    ]
    weights = set_weights(settings, recipe.public[domain].validation)
    found = [
        score_rows(model, part, checkpoints, directions, settings=settings).raw
        for part in (rows, anchors)
    ]
    # One number a row: sets are made comparable by the spread of their anchor scores.
    scales = {name: float(np.std(found[1][name])) or 1.0 for name in weights}
    return Compared(*(combine(raw, weights, scales) for raw in found))


def compare(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    anchors: Sequence[EncodedRow],
    validation: Mapping[str, Sequence[EncodedRow]],
    checkpoints: Sequence[Checkpoint],
    *,
    recipe: Recipe,
    domain: str,
    names: Sequence[str],
) -> dict[str, Compared]:
    """Every score that `recipe.score.compare` lists, for one group of rows.

    Args:
        model: is left with the adapter of the last score.
        rows: the group's rows.
        anchors: public anchors of the silo's domain.
        validation: public validation rows by set.
        checkpoints: the group's trajectory.
        recipe: settings.
        domain: of the silo.
        names: LoRA weights whose gradients count.
    """
    found: dict[str, Compared] = {}
    for name in recipe.score.compare:
        shared: dict[str, Any] = {"recipe": recipe, "domain": domain, "names": names}
        where = (model, rows, anchors, validation)
        if name in FORMS:
            found[name] = score_by_form(name, *where, checkpoints, **shared)
        else:
            found[name] = score_by_baseline(name, *where, checkpoints[-1], **shared)
    return found
