"""Other scores beside the one that decides, computed inside a silo; they decide nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clues.config import FORMS, Recipe
from clues.data.tokens import EncodedRow
from clues.model.adapters import Checkpoint, LoraModel
from clues.scoring.baselines import BASELINES, Scene
from clues.scoring.forms import EXPLICIT, explicit_scores, form_directions, form_scores
from clues.scoring.influence import RowScores
from clues.units import combine


@dataclass(frozen=True)
class Compared:
    """One score of a group's rows and of its anchors."""

    rows: np.ndarray
    anchors: np.ndarray


def score_by_baselines(
    baselines: Sequence[str],
    model: LoraModel,
    rows: Sequence[EncodedRow],
    anchors: Sequence[EncodedRow],
    validation: Mapping[str, Sequence[EncodedRow]],
    checkpoint: Checkpoint,
    *,
    recipe: Recipe,
    domain: str,
    names: Sequence[str],
) -> dict[str, Compared]:
    """Score rows and anchors by baselines at one checkpoint."""
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
    found: dict[str, Compared] = {}
    for name in baselines:
        score = BASELINES[name](scene)
        found[name] = Compared(score(rows), score(anchors))
    return found


def score_by_forms(
    forms: Sequence[str],
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
    """Score rows and anchors by influence forms along a trajectory, without the loss."""
    everyone = [*rows, *anchors]
    raw: dict[str, dict[str, np.ndarray]] = {form: {} for form in forms}
    # All of these come out of one pass; alone, sgd is cheaper by the side branch.
    together = [form for form in forms if form in EXPLICIT]
    alone = [form for form in forms if form not in together or together == ["sgd"]]
    together = [form for form in together if form not in alone]
    for checkpoint in checkpoints:
        found: dict[str, RowScores] = {}
        if together:
            # Their directions are one: the plain validation gradient.
            sets = form_directions(model, validation, checkpoint, form="sgd", weights=names)
            directions = list(sets.values())
            found = explicit_scores(model, everyone, checkpoint, directions, forms=together)
        for form in alone:
            sets = form_directions(model, validation, checkpoint, form=form, weights=names)
            found[form] = form_scores(
                model, everyone, checkpoint, list(sets.values()), form=form, way="side_branch"
            )
        for form, scores in found.items():
            for k, part in enumerate(validation):
                term = checkpoint.learning_rate * scores.products[:, k]
                raw[form][part] = raw[form].get(part, np.zeros(len(everyone))) + term
    sets = recipe.public[domain].validation
    weights = {name: file.weight for name, file in sets.items()}
    n = len(rows)
    return {
        form: one_number(
            {name: parts[name][:n] for name in weights},
            {name: parts[name][n:] for name in weights},
            weights,
        )
        for form, parts in raw.items()
    }


def one_number(
    rows: Mapping[str, np.ndarray], anchors: Mapping[str, np.ndarray], weights: Mapping[str, float]
) -> Compared:
    """One number a row: sets are made comparable by the spread of their anchor scores."""
    scales = {name: float(np.std(anchors[name])) or 1.0 for name in weights}
    return Compared(combine(rows, weights, scales), combine(anchors, weights, scales))


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
    known: Mapping[str, Compared],
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
        known: scores among them that are there already.
    """
    shared: dict[str, Any] = {"recipe": recipe, "domain": domain, "names": names}
    where = (model, rows, anchors, validation)
    forms = [name for name in recipe.score.compare if name in FORMS and name not in known]
    found = score_by_forms(forms, *where, checkpoints, **shared) if forms else {}
    # In-run scores are made while training.
    baselines = [n for n in recipe.score.compare if n in BASELINES and n not in known]
    found |= score_by_baselines(baselines, *where, checkpoints[-1], **shared)
    return {n: {**found, **known}[n] for n in recipe.score.compare if n != "inrun"}
