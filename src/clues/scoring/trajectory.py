"""Whose checkpoints a row is scored on, and the sum of its scores along them.

Both sides of the wall use this: the silo for its rows, the coordinator for the public anchors.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from clues.config import (
    ALIGNMENT,
    FORMS,
    LINEAR_FORMS,
    LOSS,
    NEEDS_FIRST_MOMENT,
    NEEDS_SECOND_MOMENT,
    REJECT,
    PublicSet,
    Recipe,
    ScoreSettings,
    TrainSettings,
)
from clues.data.tokens import EncodedRow
from clues.errors import RecipeMismatchError
from clues.model.adapters import AdapterState, Checkpoint, LoraModel
from clues.scoring.forms import by_block, form_scores, way_of
from clues.scoring.installed import is_baseline
from clues.scoring.job import Job
from clues.scoring.parts import Loss, Parts, Term, checkpoint_losses
from clues.scoring.perplexity import alignments, losses_before, mean_losses
from clues.scoring.shards import Sharing

N_FOLDS = 2
N_PROBES = 4
# Half precision rounds differently on different hardware.
PROBE_TOLERANCE = {"bfloat16": 0.05, "float16": 0.05, "nf4": 0.05, "int8": 0.05}


@dataclass(frozen=True)
class TrajectoryScores:
    """Scores of rows along a trajectory.

    Attributes:
        raw: by validation set, sum over checkpoints of learning rate times inner product; and
            `loss` and `alignment` where they count.
        parts: the terms of that sum (by block where asked for), and the losses at checkpoints.
        early: rows that were decided before all of this was computed, with a cascade; None without.
    """

    raw: dict[str, np.ndarray]
    parts: Parts
    early: np.ndarray | None = None


def score_rows(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    checkpoints: Sequence[Checkpoint],
    directions: Sequence[Mapping[str, AdapterState]],
    *,
    settings: ScoreSettings,
    on_rows: Callable[[int], None] | None = None,
    shards: Sharing | None = None,
    skip_nonfinite: bool = False,
    before: np.ndarray | None = None,
    alone: np.ndarray | None = None,
) -> TrajectoryScores:
    """Score rows along a trajectory.

    raw[set][n] = sum_t learning_rate[t] * < gradient of row n at t, direction[t][set] >
    raw["loss"][n] = - loss of row n before the training, or - mean_t loss of row n at t
    raw["alignment"][n] = loss of row n's response without its question - with it, at the last t
    raw["reject"][n] = as raw[set], with the direction of the rejected rows

    The second is there for method perplexity, and where `loss_weight` is not zero; the third
    where `alignment_weight` is not.

    Args:
        model: is left with the last checkpoint's adapter.
        rows: rows to score.
        checkpoints: the trajectory.
        directions: by checkpoint and validation set.
        settings: form, way, parts.
        on_rows: called with the number of rows finished; they add up to `n_passes`, or to a little
            less where a row has no question.
        shards: where finished scores wait for a rerun, and who computes them; nothing is kept and
            all is computed here if None.
        skip_nonfinite: give NaN instead of raising.
        before: the rows' losses before the training, where they are known.
        alone: the losses of their responses without the question at the last checkpoint, likewise.

    Raises:
        NumericsError: a score is not finite.

    Source: CLUES, arXiv 2507.03004; the trace of its accumulated inner products is this sum.
    """
    if settings.method == "perplexity":
        return _losses_alone(
            model,
            rows,
            checkpoints,
            shards=shards,
            on_rows=on_rows,
            skip_nonfinite=skip_nonfinite,
        )
    raw: dict[str, np.ndarray] = {}
    parts: Parts = {}
    form = settings.form
    for index, (checkpoint, sets) in enumerate(zip(checkpoints, directions, strict=True)):
        pieces = {Term(index, name): direction for name, direction in sets.items()}
        if settings.per_block:
            pieces = {
                Term(index, n, b): d
                for n, whole in sets.items()
                for b, d in by_block(whole).items()
            }
        given = list(pieces.values())
        job = Job(rows, checkpoint, given, form, way_of(settings, form), skip_nonfinite)
        if shards:
            found = shards.scores(model, job, on_rows=on_rows)
        else:
            found = form_scores(
                model,
                rows,
                checkpoint,
                given,
                form=job.form,
                way=job.way,
                on_rows=on_rows,
                skip_nonfinite=skip_nonfinite,
            )
        parts[Loss(index)] = found.losses
        for k, piece in enumerate(pieces):
            term = checkpoint.learning_rate * found.products[:, k]
            parts[piece] = term
            raw[piece.set] = raw.get(piece.set, np.zeros(len(rows))) + term
    wanted = settings.weighed
    losses = checkpoint_losses(parts)
    if LOSS in wanted and settings.loss_under == "checkpoints":
        raw[LOSS] = -np.mean(losses, axis=0)
    elif LOSS in wanted:
        raw[LOSS] = -(
            losses_before(model, rows, skip_nonfinite=skip_nonfinite, on_rows=on_rows)
            if before is None
            else before
        )
    if ALIGNMENT in wanted:
        adapter = checkpoints[-1].adapter
        raw[ALIGNMENT] = alignments(
            model,
            rows,
            losses[-1],
            adapter=adapter,
            skip_nonfinite=skip_nonfinite,
            on_rows=on_rows,
            alone=alone,
            losses_of=shards
            and partial(
                shards.losses,
                model,
                adapter=adapter,
                skip_nonfinite=skip_nonfinite,
                on_rows=on_rows,
            ),
        )
    return TrajectoryScores(raw, parts)


def n_passes(settings: ScoreSettings, n_checkpoints: int, *, knows_before: bool) -> int:
    """How often `score_rows` looks at every row.

    Args:
        settings: form and parts.
        n_checkpoints: along the trajectory.
        knows_before: whether the losses before the training are given.
    """
    if settings.method == "perplexity":
        return n_checkpoints
    wanted = settings.weighed
    makes_before = LOSS in wanted and settings.loss_under == "base" and not knows_before
    return n_checkpoints + makes_before + (ALIGNMENT in wanted)


def _losses_alone(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    checkpoints: Sequence[Checkpoint],
    *,
    shards: Sharing | None,
    on_rows: Callable[[int], None] | None,
    skip_nonfinite: bool,
) -> TrajectoryScores:
    """Score by the loss along the trajectory: forward passes only."""
    parts: Parts = {}
    for index, checkpoint in enumerate(checkpoints):
        how: Any = {"skip_nonfinite": skip_nonfinite, "on_rows": on_rows}
        adapter = checkpoint.adapter
        if shards:
            parts[Loss(index)] = shards.losses(model, rows, adapter, **how)
        else:
            parts[Loss(index)] = mean_losses(model, rows, adapter=adapter, **how)
    return TrajectoryScores({LOSS: -np.mean(list(parts.values()), axis=0)}, parts)


def probe_loss(
    model: LoraModel, validation: Mapping[str, Sequence[EncodedRow]], checkpoint: Checkpoint
) -> float:
    """Mean loss of a few public rows: equal on both sides if base model and adapter are."""
    rows = [row for name in sorted(validation) for row in validation[name]][:N_PROBES]
    return float(mean_losses(model, rows, adapter=checkpoint.adapter).mean())


def check_probe(found: float, expected: float, *, recipe: Recipe, where: str) -> None:
    """Compare a probe with the coordinator's.

    Raises:
        RecipeMismatchError: they differ by more than rounding.
    """
    tolerance = PROBE_TOLERANCE.get(recipe.model.quantization or recipe.model.dtype, 1e-3)
    if abs(found - expected) > tolerance * max(1.0, abs(expected)):
        raise RecipeMismatchError(
            f"{where}: public rows have a mean loss of {found:.4f} here and {expected:.4f} at the "
            "coordinator, with the same adapter. The base models differ: fetch the same weights "
            "and revision on both sides."
        )


def set_weights(settings: ScoreSettings, public: PublicSet) -> dict[str, float]:
    """Weight of every name in a group's score: validation sets, loss, alignment, rejected rows.

    A part that is yet to be weighed has weight 1.
    """
    if settings.method == "perplexity":
        return {LOSS: 1.0}
    if is_baseline(settings.method):
        return {settings.method: 1.0}
    weights = {name: file.weight for name, file in public.validation.items()}
    given = {LOSS: settings.loss_weight, ALIGNMENT: settings.alignment_weight}
    for name, is_weighed in settings.weighed.items():
        weights[name] = 1.0 if is_weighed else float(given[name])
    if public.reject and (weight := settings.reject_weight) != 0:
        weights[REJECT] = 1.0 if weight == "auto" else weight
    return weights


def anchors_at_coordinator(recipe: Recipe) -> bool:
    """Whether the coordinator can score the anchors: no silo's rows take part in their scores."""
    return recipe.score.anchors_are_public


def moments_at_rows(recipe: Recipe) -> tuple[bool, bool]:
    """Whether a silo needs the optimiser's first and second moments beside the directions.

    A linear form carries the moments in its direction; the others need them at the rows, and a
    silo makes the directions of compared forms itself.
    """
    settings = recipe.score
    forms = {name for name in settings.compare if name in FORMS}
    decides = anchors_at_coordinator(recipe) and settings.method == "influence"
    if decides and settings.form not in LINEAR_FORMS:
        forms.add(settings.form)
    return bool(forms & set(NEEDS_FIRST_MOMENT)), bool(forms & set(NEEDS_SECOND_MOMENT))


def group_names(recipe: Recipe, silo: str, domain: str) -> list[str]:
    """Groups that a silo's rows fall into: same checkpoints, same anchors, same units."""
    if anchors_at_coordinator(recipe):
        return [f"domain {domain}"]
    if recipe.score.trajectory != "crossfit":
        return [f"silo {silo}"]
    return [f"silo {silo}, fold {n + 1}" for n in range(N_FOLDS)]


def fold_of(row: EncodedRow, recipe: Recipe) -> int:
    """Fold whose checkpoints have not seen the row; equal text always falls into one fold."""
    return (int(row.id, 16) + recipe.seed) % N_FOLDS


def n_train_steps(settings: TrainSettings, n_rows: int) -> int:
    """Optimiser steps of one silo."""
    if settings.steps is not None:
        return settings.steps
    return max(1, math.ceil(settings.epochs * n_rows / settings.batch_size))


def checkpoint_steps(n_steps: int, n_checkpoints: int) -> tuple[int, ...]:
    """One-based steps after which to save, evenly spread, the last one included."""
    return tuple(
        sorted({max(1, round(n_steps * (i + 1) / n_checkpoints)) for i in range(n_checkpoints)})
    )
