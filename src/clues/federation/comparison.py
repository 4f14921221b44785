"""Other scores beside the one that decides; they decide nothing."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from clues.config import FORMS, LINEAR_FORMS, Recipe
from clues.data.tokens import EncodedRow
from clues.errors import DataError
from clues.model.adapters import AdapterState, Checkpoint, LoraModel
from clues.scoring.baselines import BASELINES, NEEDS_ROWS, Scene
from clues.scoring.direction import LinearForm, precondition
from clues.scoring.forms import explicit_scores, form_directions
from clues.scoring.influence import RowScores, influence_scores
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
    sent: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Compared]:
    """Score rows and anchors by baselines at one checkpoint.

    Args:
        baselines: which.
        model: is left with the adapter of the last score.
        rows: the group's rows.
        anchors: public anchors of the silo's domain.
        validation: public validation rows by set.
        checkpoint: the last one of the group's trajectory.
        recipe: settings.
        domain: of the silo.
        names: LoRA weights whose gradients count.
        sent: scores of the anchors that are there already, by baseline.
    """
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
        theirs = np.array(sent[name]) if sent and name in sent else score(anchors)
        found[name] = Compared(score(rows), theirs)
    return found


def form_parts(
    forms: Sequence[str],
    model: LoraModel,
    rows: Sequence[EncodedRow],
    validation: Mapping[str, Sequence[EncodedRow]],
    checkpoints: Sequence[Checkpoint],
    *,
    names: Sequence[str],
) -> dict[str, dict[str, np.ndarray]]:
    """Influence of every row by form and validation set along a trajectory, without the loss."""
    raw: dict[str, dict[str, np.ndarray]] = {form: {} for form in forms}
    linear: list[LinearForm] = [cast(LinearForm, f) for f in forms if f in LINEAR_FORMS]
    explicit = [form for form in forms if form not in LINEAR_FORMS]
    for checkpoint in checkpoints if forms else ():
        # All directions come from the plain validation gradients, all scores from one pass.
        plain = form_directions(model, validation, checkpoint, form="sgd", weights=names)
        own: dict[str, list[AdapterState]] = {
            form: [precondition(v, checkpoint, form=form) for v in plain.values()]
            for form in linear
        }
        if explicit:
            found = explicit_scores(
                model, rows, checkpoint, list(plain.values()), forms=explicit, linear=own
            )
        else:
            found = _by_side_branch(model, rows, checkpoint, own)
        for form, scores in found.items():
            for k, part in enumerate(validation):
                term = checkpoint.learning_rate * scores.products[:, k]
                raw[form][part] = raw[form].get(part, np.zeros(len(rows))) + term
    return raw


def _by_side_branch(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    checkpoint: Checkpoint,
    directions: Mapping[str, Sequence[AdapterState]],
) -> dict[str, RowScores]:
    """Linear forms alone: the gradients themselves need not be made."""
    flat = [d for own in directions.values() for d in own]
    scores = influence_scores(model, rows, adapter=checkpoint.adapter, directions=flat)
    found: dict[str, RowScores] = {}
    start = 0
    for form, own in directions.items():
        stop = start + len(own)
        found[form] = RowScores(scores.products[:, start:stop], scores.losses)
        start = stop
    return found


def compare_anchors(
    model: LoraModel,
    anchors: Sequence[EncodedRow],
    validation: Mapping[str, Sequence[EncodedRow]],
    checkpoints: Sequence[Checkpoint],
    *,
    recipe: Recipe,
    domain: str,
    names: Sequence[str],
) -> dict[str, list[float]]:
    """The anchors' compared scores, made once where all silos of a domain score alike.

    Returns:
        By `form/set` and by baseline, without what a silo has anyway (the form that decides), and
        without what depends on its rows (in-run scores, DataInf).
    """
    forms = _forms(recipe, known=_deciding_form(recipe))
    parts = form_parts(forms, model, anchors, validation, checkpoints, names=names)
    baselines = [n for n in recipe.score.compare if n in BASELINES and n not in NEEDS_ROWS]
    shared: dict[str, Any] = {"recipe": recipe, "domain": domain, "names": names}
    where = (model, anchors, anchors, validation, checkpoints[-1])
    found = score_by_baselines(baselines, *where, **shared)
    by_set = {f"{form}/{name}": v for form, sets in parts.items() for name, v in sets.items()}
    all_of_them = by_set | {name: scores.anchors for name, scores in found.items()}
    return {name: [float(x) for x in values] for name, values in all_of_them.items()}


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
    sent: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Compared]:
    """Score rows and anchors by influence forms along a trajectory, without the loss."""
    everyone = [*rows, *anchors] if sent is None else rows
    raw = form_parts(forms, model, everyone, validation, checkpoints, names=names)
    sets = recipe.public[domain].validation
    weights = {name: file.weight for name, file in sets.items()}
    n = len(rows)
    found: dict[str, Compared] = {}
    for form, parts in raw.items():
        ours = {name: parts[name][:n] for name in weights}
        theirs = {
            name: parts[name][n:] if sent is None else np.array(sent[f"{form}/{name}"])
            for name in weights
        }
        found[form] = one_number(ours, theirs, weights)
    return found


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
    sent: Mapping[str, Sequence[float]] | None = None,
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
        sent: what `compare_anchors` returned at the coordinator; None where the anchors' scores
            depend on the silo.

    Raises:
        DataError: what was sent does not fit the recipe or the anchors.
    """
    if sent is not None:
        _check_sent(sent, recipe, sets=validation, n_anchors=len(anchors))
    shared: dict[str, Any] = {"recipe": recipe, "domain": domain, "names": names, "sent": sent}
    where = (model, rows, anchors, validation)
    forms = _forms(recipe, known=known)
    found = score_by_forms(forms, *where, checkpoints, **shared) if forms else {}
    # In-run scores are made while training.
    baselines = [n for n in recipe.score.compare if n in BASELINES and n not in known]
    found |= score_by_baselines(baselines, *where, checkpoints[-1], **shared)
    return {n: {**found, **known}[n] for n in recipe.score.compare if n != "inrun"}


def _forms(recipe: Recipe, *, known: Collection[str]) -> list[str]:
    return [name for name in recipe.score.compare if name in FORMS and name not in known]


def _deciding_form(recipe: Recipe) -> set[str]:
    """The form whose scores are there anyway."""
    return {recipe.score.form} if recipe.score.method == "influence" else set()


def _check_sent(
    sent: Mapping[str, Sequence[float]], recipe: Recipe, *, sets: Collection[str], n_anchors: int
) -> None:
    forms = _forms(recipe, known=_deciding_form(recipe))
    baselines = set(recipe.score.compare) & set(BASELINES) - NEEDS_ROWS
    wanted = {f"{form}/{name}" for form in forms for name in sets} | baselines
    fits = set(sent) == wanted and all(len(values) == n_anchors for values in sent.values())
    if not fits or not np.isfinite([x for values in sent.values() for x in values]).all():
        raise DataError("the anchors' compared scores that came do not fit the recipe.")
