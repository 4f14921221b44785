"""A silo's answers to train and fit requests: its rows, the sent adapter, and what comes out."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from clues.atomic import atomic_write_bytes
from clues.config import (
    NEEDS_FIRST_MOMENT,
    NEEDS_SECOND_MOMENT,
    derived_seed,
)
from clues.data.tokens import EncodedRow
from clues.errors import ConfigError, DataError
from clues.model.adapters import save_checkpoint
from clues.model.recording import Schedule
from clues.model.training import Trained
from clues.scoring.inrun import Reference
from clues.scoring.rounds import checked_reference, replaced_visits, watch_round, write_round
from clues.scoring.trajectory import checkpoint_steps, fold_of, n_train_steps
from clues.silo.budget import Budget, Phase
from clues.silo.counts import told_of_all, told_of_arm
from clues.silo.crowd import gather, secret_seed
from clues.silo.curves import WARM_UP, Piece
from clues.silo.questions import combine_of
from clues.silo.workspace import Workspace
from clues.wall.container import checksum_of
from clues.wall.messages import (
    ROUNDED_OFF,
    FitReply,
    FitRequest,
    TrainReply,
    TrainRequest,
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
    n_rows, forms, inrun = told_of_all(space), recipe.score.forms, recipe.score.inrun
    # The rate of the last step leaves, and tells the number of steps. Rounded down, the announced
    # rows may be too few, and scoring in the run must see every row.
    rounded_off = 5 if space.order_seed() is not None else ROUNDED_OFF
    n_steps = n_train_steps(recipe.train, n_rows + rounded_off if inrun else n_rows)
    per_round = max(1, n_steps // recipe.train.rounds)
    first, n_steps = request.round * per_round, per_round * recipe.train.rounds
    sends_first = bool(forms & set(NEEDS_FIRST_MOMENT))
    schedule = Schedule(recipe.train.learning_rate, recipe.train.warmup, n_steps)
    crowd = gather(
        space,
        rows,
        request,
        n_steps=per_round,
        what="a round of the warm-up",
        schedule=schedule,
        every_step=inrun,
        with_moments=sends_first,
    )
    order, seen = crowd.order, None
    if inrun:
        seen = watch_round(
            model,
            checked_reference(
                Reference(request.directions, request.validation, request.validation_loss)
            ),
            # Rows that are set aside are scored like anchors, and never trained on.
            [*space.anchors(), *(rows[i] for i in crowd.aside)],
            n_rows=len(crowd.rows),
            first_step=first,
            n_steps=n_steps,
            recipe=recipe,
            seed=_visits_seed(space),
        )
        order = seen.order[first : first + per_round].ravel().tolist()
    trained = _run(
        space,
        crowd.rows,
        Piece(WARM_UP, request.round + 1, recipe.train.rounds),
        order=order,
        observer=seen,
        start=request.adapter,
        booked=_Booked(Phase(kind="train"), checksum_of(request.to_bytes()), n_rows),
        schedule=schedule,
        n_steps=per_round,
        first_step=first,
        seed=crowd.seed,
        checkpoint_at=(per_round,),
    )
    if seen:
        found = replaced_visits(seen.visits(), crowd.taken, crowd.aside, len(space.anchors()))
        write_round(space.inrun_folder(), request.round, *found)
    last = trained.checkpoints[-1]
    return TrainReply(
        recipe_hash=recipe.hash,
        weight=n_rows,
        learning_rate=last.learning_rate,
        adapter=last.adapter,
        second_moment=last.second_moment if forms & set(NEEDS_SECOND_MOMENT) else {},
        first_moment=last.first_moment if sends_first else {},
    )


def fit(space: Workspace, request: FitRequest, rows: Sequence[EncodedRow]) -> FitReply:
    """One federated round on an arm's rows, or the whole one-shot training.

    Raises:
        DataError: no such round, or an update of too few rows.
    """
    recipe = space.recipe()
    settings = combine_of(request)
    if request.arm == "random" and space.settings.privacy is not None:
        raise ConfigError(
            f"silo {space.name}: one row more changes the whole of arm random, and privacy does not "
            "account for that. Leave it out of evaluate.arms."
        )
    if not rows:
        return FitReply(recipe_hash=recipe.hash, weight=0, adapter={})
    once = settings.once
    n_steps = settings.local_steps * (settings.rounds if once else 1)
    peak = settings.learning_rate or recipe.train.learning_rate
    schedule = Schedule(peak, recipe.train.warmup, settings.local_steps * settings.rounds)
    crowd = gather(
        space,
        rows,
        request,
        n_steps=n_steps,
        what=f"arm {request.arm}",
        schedule=schedule,
        every_step=settings.proximal > 0,
    )
    n_rows = told_of_arm(space, request.arm, rows)
    model = space.model()
    model.freeze_a(frozen=not once and settings.aggregation == "ffa")
    # With stack, what all have learnt so far is the base, and a new adapter learns the rest.
    stacks = settings.aggregation == "stack" and not once
    with model.on_top_of(request.adapter) if stacks else nullcontext():
        trained = _run(
            space,
            crowd.rows,
            Piece(request.arm, request.round + 1, 1 if once else settings.rounds),
            start=model.initial if stacks else request.adapter,
            booked=_Booked(
                Phase(kind="fit", arm=request.arm), checksum_of(request.to_bytes()), n_rows
            ),
            schedule=schedule,
            n_steps=n_steps,
            first_step=request.round * n_steps,
            order=crowd.order,
            seed=crowd.seed,
            proximal=settings.proximal,
        )
    return FitReply(recipe_hash=recipe.hash, weight=n_rows, adapter=trained.adapter)


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
        schedule = Schedule(recipe.train.learning_rate, recipe.train.warmup, n_steps)
        saved = checkpoint_steps(n_steps, recipe.train.checkpoints)
        what = f"fold {fold + 1}" if recipe.score.trajectory == "crossfit" else "own trajectory"
        # No adapter leaves, but what public rows score under these does, and that tells of them.
        crowd = gather(
            space,
            chosen,
            replace(request, round=fold),
            n_steps=n_steps,
            what=what,
            schedule=schedule,
            shown_after=saved[0],
        )
        trained = _run(
            space,
            crowd.rows,
            Piece(what),
            start=request.adapter,
            booked=None,
            schedule=schedule,
            n_steps=n_steps,
            first_step=0,
            order=crowd.order,
            seed=crowd.seed,
            checkpoint_at=saved,
        )
        for number, checkpoint in enumerate(trained.checkpoints):
            save_checkpoint(checkpoint, folder / f"checkpoint-{number}")
        atomic_write_bytes(folder / "done", b"")


@dataclass(frozen=True)
class _Booked:
    """What a training is booked as, where the silo has a privacy budget."""

    phase: Phase
    request: str
    n_told: int


def _run(
    space: Workspace, rows: Sequence[EncodedRow], what: Piece, *, booked: _Booked | None, **how: Any
) -> Trained:
    """Train, with noise where the silo's settings say so."""
    if space.settings.privacy is None:
        return space.train(rows, what, **how)
    if booked is None:
        raise ConfigError(
            f"silo {space.name}: privacy works with score.trajectory global; trainings that stay "
            "inside are not accounted for."
        )
    return Budget(space).train(rows, what, **vars(booked), **how)


def _visits_seed(space: Workspace) -> int:
    """Seed of the order in which in-run scoring visits rows: one for all rounds of a recipe."""
    seed = space.order_seed()
    if seed is None:
        return secret_seed(space, "visits", space.recipe().hash, space.data_token())
    return derived_seed(seed, "inrun", space.name)
