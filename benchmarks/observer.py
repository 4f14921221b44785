"""What in-run scores add to training: the observer, its riders, and a new direction each round."""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.clock import ratio, take_turns
from benchmarks.scene import Owner, Scene
from benchmarks.table import Row
from clues.config import derived_seed
from clues.data.tokens import EncodedRow
from clues.model.training import Schedule, train
from clues.scoring.direction import scored_weights
from clues.scoring.inrun import Reference, visit_order
from clues.scoring.rounds import make_reference, watch_round

TARGET = 1.10
PARTS = {
    "observer": "observer alone",
    "riders": "observer and anchors, one round's direction given",
    "refresh": "observer, anchors, and the direction made anew each round (default)",
}


def observer_rows(scene: Scene, owner: Owner, *, n_rounds: int, n_turns: int) -> list[Row]:
    """Extra time of some rounds of a silo's training.

    Args:
        scene: model and checkpoint to train on from.
        owner: its rows, public rows and recipe.
        n_rounds: rounds a call, from the second on: the first has no optimiser state.
        n_turns: turns that every kind of training takes.
    """
    frozen = owner.recipe.train.aggregation == "ffa"
    weights = scored_weights(scene.model, owner.recipe.score, frozen_a=frozen)
    scene.model.freeze_a(frozen=frozen)

    def reference() -> Reference:
        return make_reference(
            scene.model,
            owner.validation,
            scene.checkpoint,
            form=owner.recipe.score.inrun_form,
            weights=weights,
        )

    given = reference()
    run = partial(_train_rounds, scene, owner, n_rounds)
    calls: dict[str, Callable[[], object]] = {
        "plain": partial(run, None, ()),
        "observer": partial(run, lambda: given, ()),
        "riders": partial(run, lambda: given, owner.anchors),
        "refresh": partial(run, reference, owner.anchors),
    }
    try:
        calls["refresh"]()
        seconds = take_turns(calls, n_turns, device=scene.model.device)
    finally:
        scene.model.freeze_a(frozen=False)
    proportion = (
        f"{len(owner.rows)} rows, {len(owner.anchors)} anchors, "
        f"{sum(map(len, owner.validation.values()))} validation rows"
    )
    found = []
    for part, what in PARTS.items():
        extra = ratio(seconds[part], seconds["plain"])
        found.append(
            Row(
                f"in-run scores, extra training time: {what} ({proportion})",
                "at most 10 %",
                f"{_percent(extra.median)} ({_percent(extra.low)} to {_percent(extra.high)})",
                extra.median <= TARGET,
            )
        )
    return found


def _train_rounds(
    scene: Scene,
    owner: Owner,
    n_rounds: int,
    reference: Callable[[], Reference] | None,
    anchors: Sequence[EncodedRow],
) -> int:
    """Train rounds 1 to `n_rounds`, counted from 0, as a silo does; returns visits of rows."""
    settings = owner.recipe.train
    n_steps = settings.steps or settings.rounds
    per_round = max(1, n_steps // settings.rounds)
    total = per_round * settings.rounds
    seed = derived_seed(owner.recipe.seed, "inrun", owner.name)
    order = visit_order(len(owner.rows), total, settings.batch_size, seed=seed)
    n_visits = 0
    for number in range(1, n_rounds + 1):
        first = number * per_round
        watch = partial(
            watch_round,
            scene.model,
            n_rows=len(owner.rows),
            first_step=first,
            n_steps=total,
            recipe=owner.recipe,
            seed=derived_seed(owner.recipe.seed, "inrun", owner.name),
        )
        seen = watch(reference(), anchors) if reference else None
        with tempfile.TemporaryDirectory() as scratch:
            train(
                scene.model,
                owner.rows,
                start=scene.checkpoint.adapter,
                settings=settings,
                schedule=Schedule(settings.learning_rate, settings.warmup, total),
                n_steps=per_round,
                seed=derived_seed(owner.recipe.seed, "train", owner.name, number),
                scratch=scratch,
                first_step=first,
                order=order[first : first + per_round].ravel().tolist(),
                observer=seen,
            )
        n_visits += len(seen.visits()[0].index) if seen else 0
    return n_visits


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.0f} %"
