"""In-run scores across the rounds of a joint trajectory: one file a round, inside the silo."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from clues.atomic import make_folder
from clues.config import Recipe
from clues.data.tokens import EncodedRow
from clues.errors import DataError
from clues.model.adapters import AdapterState, Checkpoint, LoraModel
from clues.model.devices import wide
from clues.scoring.direction import LinearForm, mean_gradient, precondition
from clues.scoring.inrun import (
    InRun,
    Reference,
    Visits,
    mean_scores,
    merge_visits,
    visit_order,
)


def make_reference(
    model: LoraModel,
    validation: Mapping[str, Sequence[EncodedRow]],
    checkpoint: Checkpoint,
    *,
    form: LinearForm,
    weights: Sequence[str],
) -> Reference:
    """Directions at a round's start, and what a mean validation row scores with them.

    The first round has no optimiser state yet; its direction is the plain gradient.
    """
    form = form if checkpoint.second_moment else "sgd"
    directions: dict[str, AdapterState] = {}
    products: dict[str, float] = {}
    losses: list[float] = []
    for name, rows in validation.items():
        gradient, loss = mean_gradient(model, rows, checkpoint.adapter, weights=weights)
        direction = precondition(gradient, checkpoint, form=form)
        products[name] = sum(
            float((wide(gradient[n]) * wide(direction[n])).sum()) for n in direction
        )
        directions[name] = direction
        losses.append(loss)
    return Reference(directions, products, float(np.mean(losses)))


def checked_reference(reference: Reference) -> Reference:
    """A reference that was sent, if every direction has its unit.

    Raises:
        DataError: a direction has no unit, or none is there.
    """
    products = reference.products
    if not products or set(products) != set(reference.directions) or min(products.values()) <= 0:
        raise DataError("the train request's directions and their units do not fit together.")
    return reference


def is_refreshed(number: int, per_round: int, recipe: Recipe, n_rows: Sequence[int]) -> bool:
    """Whether a round brings a new direction; those that score nobody bring none."""
    every = recipe.score.refresh or per_round
    due = number == 0 or number * per_round // every > (number - 1) * per_round // every
    # Row counts travel rounded to tens: one step more than needed costs less than a lost row.
    seen = number * per_round * recipe.train.batch_size
    over = recipe.score.visits == "first" and seen >= max(n_rows) + 10
    return due and not over


def watch_round(
    model: LoraModel,
    reference: Reference,
    anchors: Sequence[EncodedRow],
    *,
    n_rows: int,
    first_step: int,
    n_steps: int,
    recipe: Recipe,
    seed: int,
) -> InRun:
    """Look at a silo's round that starts after `first_step` of `n_steps`; `seed` orders visits."""
    return InRun(
        model,
        visit_order(n_rows, n_steps, recipe.train.batch_size, seed=seed),
        reference,
        anchors,
        n_rows=n_rows,
        first_step=first_step,
        every_visit=recipe.score.visits == "every",
        seed=seed,
    )


def replaced_visits(
    visits: tuple[Visits, Visits], taken: Sequence[int], aside: Sequence[int], n_anchors: int
) -> tuple[Visits, Visits]:
    """Visits of all rows and of the anchors, where some rows rode with the anchors.

    Args:
        visits: of the rows that trained, and of what rode: the anchors, then the rows set aside.
        taken: position of each row that trained, among all rows.
        aside: positions of the others.
        n_anchors: how many of the riders are anchors.
    """
    trained, rode = visits
    is_row = rode.index >= n_anchors
    places = np.array([*taken, *aside], dtype=np.int64)
    index = np.concatenate([trained.index, len(taken) + rode.index[is_row] - n_anchors])
    rows = Visits(
        places[index],
        np.concatenate([trained.step, rode.step[is_row]]),
        {n: np.concatenate([v, rode.scores[n][is_row]]) for n, v in trained.scores.items()},
    )
    anchors = Visits(
        rode.index[~is_row],
        rode.step[~is_row],
        {name: values[~is_row] for name, values in rode.scores.items()},
    )
    return rows, anchors


def write_round(folder: Path, number: int, rows: Visits, anchors: Visits) -> None:
    """Keep what a round saw."""
    make_folder(folder)
    rows.write(folder / f"round-{number}-rows.parquet")
    anchors.write(folder / f"round-{number}-anchors.parquet")


def read_scores(
    folder: Path, n_rounds: int, *, n_rows: int, n_anchors: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Mean in-run scores of rows and of anchors over all rounds.

    Raises:
        DataError: a round is missing, or a row was never seen.
    """
    found = []
    for kind, n in (("rows", n_rows), ("anchors", n_anchors)):
        parts = [Visits.read(folder / f"round-{k}-{kind}.parquet") for k in range(n_rounds)]
        found.append(mean_scores(merge_visits(parts), n))
    return found[0], found[1]
