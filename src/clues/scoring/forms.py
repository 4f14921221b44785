"""Which form of the influence score is computed in which way.

| form           | score of row n at a checkpoint, g its gradient, v the validation gradient |
| -------------- | -------------------------------------------------------------------------- |
| sgd            | < g, v >                                                                   |
| adam           | < g, v / (sqrt(v_hat) + eps) >                                             |
| adam_two_sided | < g, v / (sqrt(v_hat) + eps)^2 >                                           |
| adam_exact     | < u(g), v >, u Adam's whole update with momentum and the row's own g^2     |
| cosine         | < g, v > / (|g| |v|)                                                       |
| less           | < u(g), v > / (|u(g)| |v|)                                                 |

The first three are linear in g: the side branch or a finite difference gives them without g. The
others need the gradients themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np

from clues.config import LINEAR_FORMS, ScoreSettings
from clues.data.tokens import EncodedRow
from clues.model.adapters import AdapterState, Checkpoint, LoraModel
from clues.scoring.direction import BLOCK, LinearForm, validation_direction
from clues.scoring.finite import difference_scores
from clues.scoring.gradients import adam_update, transformed_products
from clues.scoring.influence import RowScores, influence_scores
from clues.scoring.parts import OUTSIDE_BLOCKS


def way_of(settings: ScoreSettings, form: str) -> str:
    """How scores of a form are computed: as the settings say, or the cheapest exact way."""
    if form not in LINEAR_FORMS:
        return "gradients"
    return "side_branch" if settings.way == "auto" else settings.way


def form_directions(
    model: LoraModel,
    validation: Mapping[str, Sequence[EncodedRow]],
    checkpoint: Checkpoint,
    *,
    form: str,
    weights: Sequence[str],
    on_rows: Callable[[int], None] | None = None,
) -> dict[str, AdapterState]:
    """Direction of every validation set at one checkpoint, as the form wants it.

    Raises:
        DataError: the form needs optimiser state that the checkpoint does not have.
        NumericsError: a gradient is not finite.
    """
    kind = cast(LinearForm, form if form in LINEAR_FORMS else "sgd")
    return {
        name: validation_direction(
            model, rows, checkpoint, form=kind, weights=weights, on_rows=on_rows
        )
        for name, rows in validation.items()
    }


def form_scores(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    checkpoint: Checkpoint,
    directions: Sequence[AdapterState],
    *,
    form: str,
    way: str,
    token_budget: int | None = None,
    on_rows: Callable[[int], None] | None = None,
    skip_nonfinite: bool = False,
) -> RowScores:
    """Scores of rows at one checkpoint in any form, before the learning rate.

    Raises:
        DataError: the form needs optimiser state that the checkpoint does not have.
        NumericsError: a score is not finite.
    """
    adapter = checkpoint.adapter
    if way == "side_branch":
        return influence_scores(
            model,
            rows,
            adapter=adapter,
            directions=directions,
            token_budget=token_budget,
            on_rows=on_rows,
            skip_nonfinite=skip_nonfinite,
        )
    if way == "finite_difference":
        return difference_scores(
            model,
            rows,
            adapter=adapter,
            directions=directions,
            token_budget=token_budget,
            on_rows=on_rows,
            skip_nonfinite=skip_nonfinite,
        )
    found = explicit_scores(
        model,
        rows,
        checkpoint,
        directions,
        forms=[form],
        token_budget=token_budget,
        on_rows=on_rows,
        skip_nonfinite=skip_nonfinite,
    )
    return found[form]


def explicit_scores(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    checkpoint: Checkpoint,
    directions: Sequence[AdapterState],
    *,
    forms: Sequence[str],
    linear: Mapping[str, Sequence[AdapterState]] | None = None,
    token_budget: int | None = None,
    on_rows: Callable[[int], None] | None = None,
    skip_nonfinite: bool = False,
) -> dict[str, RowScores]:
    """Scores in several forms from one pass that makes the gradients.

    Args:
        model: its adapter is set to the checkpoint's.
        rows: the rows.
        checkpoint: adapter and optimiser state.
        directions: plain validation gradients.
        forms: whose direction is the plain gradient: sgd, adam_exact, cosine, less.
        linear: other forms that are linear in a row's gradient, with their own directions.
        token_budget: padded tokens per batch to begin with; by the device if None.
        on_rows: called with the number of rows finished.
        skip_nonfinite: whether rows without a finite score are let through.

    Raises:
        DataError: a form needs optimiser state that the checkpoint does not have.
        NumericsError: a score is not finite.
    """
    linear = linear or {}
    adam = {form: form in ("adam_exact", "less") for form in forms}
    kinds = set(adam.values()) | ({False} if linear else set())
    found = transformed_products(
        model,
        rows,
        adapter=checkpoint.adapter,
        directions=[*directions, *(d for own in linear.values() for d in own)],
        transforms={str(x): adam_update(checkpoint) if x else None for x in kinds},
        token_budget=token_budget,
        on_rows=on_rows,
        skip_nonfinite=skip_nonfinite,
    )
    scores: dict[str, RowScores] = {}
    n = len(directions)
    for form in forms:
        products = found[str(adam[form])]
        cosine = form in ("cosine", "less")
        values = products.cosines if cosine else products.products
        scores[form] = RowScores(values[:, :n], products.losses)
    if linear:
        plain = found[str(False)]
        scores |= _by_form(RowScores(plain.products[:, n:], plain.losses), linear)
    return scores


def linear_scores(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    checkpoint: Checkpoint,
    directions: Mapping[str, Sequence[AdapterState]],
    *,
    on_rows: Callable[[int], None] | None = None,
    skip_nonfinite: bool = False,
) -> dict[str, RowScores]:
    """Scores in several linear forms from one pass by the side branch, which makes no gradients.

    Args:
        model: its adapter is set to the checkpoint's.
        rows: the rows.
        checkpoint: its adapter is what counts.
        directions: of every form.
        on_rows: called with the number of rows finished.
        skip_nonfinite: whether rows without a finite score are let through.

    Raises:
        NumericsError: a score is not finite.
    """
    flat = [direction for own in directions.values() for direction in own]
    found = influence_scores(
        model,
        rows,
        adapter=checkpoint.adapter,
        directions=flat,
        on_rows=on_rows,
        skip_nonfinite=skip_nonfinite,
    )
    return _by_form(found, directions)


def _by_form(
    scores: RowScores, directions: Mapping[str, Sequence[AdapterState]]
) -> dict[str, RowScores]:
    """Scores for the directions of all forms, one after the other, dealt out to the forms."""
    ends = np.cumsum([len(own) for own in directions.values()])[:-1]
    columns = np.split(scores.products, ends, axis=1)
    return {
        form: RowScores(products, scores.losses)
        for form, products in zip(directions, columns, strict=True)
    }


def by_block(direction: AdapterState) -> dict[int, AdapterState]:
    """The parts of a direction by number of the model's block; they add up to it."""
    pieces: dict[int, AdapterState] = {}
    for name, tensor in direction.items():
        found = BLOCK.search(name)
        pieces.setdefault(int(found[1]) if found else OUTSIDE_BLOCKS, {})[name] = tensor
    return pieces
