"""A silo's answers to train and fit requests: its rows, the sent adapter, and what comes out."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from clues.atomic import atomic_write_bytes
from clues.config import (
    NEEDS_FIRST_MOMENT,
    NEEDS_SECOND_MOMENT,
    CombineSettings,
    derived_seed,
    validate,
)
from clues.data.tokens import EncodedRow
from clues.errors import DataError
from clues.model.adapters import save_checkpoint
from clues.model.training import Schedule, Trained
from clues.scoring.inrun import Reference
from clues.scoring.rounds import checked_reference, watch_round, write_round
from clues.scoring.trajectory import checkpoint_steps, fold_of, n_train_steps
from clues.silo.budget import Budget
from clues.silo.permission import check_crowd
from clues.silo.workspace import Workspace
from clues.wall.container import checksum_of
from clues.wall.messages import (
    FitReply,
    FitRequest,
    TrainReply,
    TrainRequest,
    round_count,
)


def train(space: Workspace, request: TrainRequest) -> TrainReply:
    """One round of the joint trajectory on all rows, or the silo's own trajectory.

    Raises:
        DataError: no such round, or an update of too few rows.
    """
    recipe, rows = space.recipe(), space.encoded().rows
    if not recipe.score.shared:
        _train_inside(space, request)
        return TrainReply(
            recipe_hash=recipe.hash,
            weight=0,
            learning_rate=0.0,
            adapter={},
            second_moment={},
            first_moment={},
        )
    model = space.model()
    model.freeze_a(frozen=recipe.train.aggregation == "ffa")
    n_steps = n_train_steps(recipe.train, len(rows))
    per_round = max(1, n_steps // recipe.train.rounds)
    first = request.round * per_round
    _check_round(space, request.round, recipe.train.rounds)
    check_crowd(space, len(rows), n_steps=per_round, what="a round of the warm-up")
    seen = None
    if recipe.score.inrun:
        seen = watch_round(
            model,
            checked_reference(
                Reference(request.directions, request.validation, request.validation_loss)
            ),
            space.anchors(),
            n_rows=len(rows),
            first_step=first,
            n_steps=per_round * recipe.train.rounds,
            recipe=recipe,
            silo=space.name,
        )
    trained = _run(
        space,
        rows,
        f"round {request.round + 1}",
        order=seen.order[first : first + per_round].ravel().tolist() if seen else None,
        observer=seen,
        start=request.adapter,
        budget=_booked(space, "train", request),
        schedule=Schedule(
            recipe.train.learning_rate, recipe.train.warmup, per_round * recipe.train.rounds
        ),
        n_steps=per_round,
        first_step=first,
        seed=derived_seed(recipe.seed, "train", space.name, request.round),
        checkpoint_at=(per_round,),
    )
    if seen:
        write_round(space.inrun_folder(), request.round, seen)
    last, forms = trained.checkpoints[-1], recipe.score.forms
    return TrainReply(
        recipe_hash=recipe.hash,
        weight=round_count(len(rows)),
        learning_rate=last.learning_rate,
        adapter=last.adapter,
        second_moment=last.second_moment if forms & set(NEEDS_SECOND_MOMENT) else {},
        first_moment=last.first_moment if forms & set(NEEDS_FIRST_MOMENT) else {},
    )


def fit(space: Workspace, request: FitRequest, rows: Sequence[EncodedRow]) -> FitReply:
    """One federated round on an arm's rows, or the whole one-shot training.

    Raises:
        DataError: no such round, or an update of too few rows.
    """
    recipe = space.recipe()
    settings = validate(CombineSettings, request.combine, where="the fit request")
    if not rows:
        return FitReply(recipe_hash=recipe.hash, weight=0, adapter={})
    once = settings.method != "fedavg"
    n_steps = settings.local_steps * (settings.rounds if once else 1)
    _check_round(space, request.round, 1 if once else settings.rounds)
    check_crowd(space, len(rows), n_steps=n_steps, what=f"arm {request.arm}")
    model = space.model()
    model.freeze_a(frozen=not once and settings.aggregation == "ffa")
    peak = settings.learning_rate or recipe.train.learning_rate
    # With stack, what all have learnt so far is the base, and a new adapter learns the rest.
    stacks = settings.aggregation == "stack" and not once
    with model.on_top_of(request.adapter) if stacks else nullcontext():
        trained = _run(
            space,
            rows,
            f"{request.arm}, round {request.round + 1}",
            start=model.initial if stacks else request.adapter,
            budget=_booked(space, f"fit-{request.arm}", request),
            schedule=Schedule(peak, recipe.train.warmup, settings.local_steps * settings.rounds),
            n_steps=n_steps,
            first_step=request.round * n_steps,
            # The same seed for every arm: arms differ by their rows alone.
            seed=derived_seed(recipe.seed, "fit", space.name, request.round),
            proximal=settings.proximal,
        )
    return FitReply(recipe_hash=recipe.hash, weight=round_count(len(rows)), adapter=trained.adapter)


def _train_inside(space: Workspace, request: TrainRequest) -> None:
    """Train the silo's own trajectory, one for every fold; checkpoints stay here."""
    recipe, rows = space.recipe(), space.encoded().rows
    space.model().freeze_a(frozen=False)
    for fold in range(len(space.groups())):
        folder = space.trajectory_folder(recipe, fold)
        if (folder / "done").exists():
            continue
        chosen = [
            r for r in rows if recipe.score.trajectory == "local" or fold_of(r, recipe) != fold
        ]
        if not chosen:
            raise DataError(f"silo {space.name}: too few rows to cross-fit.")
        n_steps = n_train_steps(recipe.train, len(chosen))
        trained = _run(
            space,
            chosen,
            f"fold {fold + 1}" if recipe.score.trajectory == "crossfit" else "own trajectory",
            start=request.adapter,
            budget="",
            schedule=Schedule(recipe.train.learning_rate, recipe.train.warmup, n_steps),
            n_steps=n_steps,
            first_step=0,
            seed=derived_seed(recipe.seed, "train", space.name, fold),
            checkpoint_at=checkpoint_steps(n_steps, recipe.train.checkpoints),
        )
        for number, checkpoint in enumerate(trained.checkpoints):
            save_checkpoint(checkpoint, folder / f"checkpoint-{number}")
        atomic_write_bytes(folder / "done", b"")


def _run(
    space: Workspace, rows: Sequence[EncodedRow], what: str, *, budget: str, **how: Any
) -> Trained:
    """Train, with noise where the silo's settings say so; `budget` is what it is booked as."""
    if space.settings.privacy is None:
        return space.train(list(rows), what, **how)
    return Budget(space).train(rows, what, booked=budget, **how)


def _booked(space: Workspace, phase: str, request: TrainRequest | FitRequest) -> str:
    """What a training is booked as, where the silo has a privacy budget."""
    if space.settings.privacy is None:
        return ""
    return f"{phase} {request.round} {checksum_of(request.to_bytes())}"


def _check_round(space: Workspace, number: int, n_rounds: int) -> None:
    if not 0 <= number < n_rounds:
        raise DataError(
            f"silo {space.name}: round {number + 1} was asked for, and there are {n_rounds}."
        )
