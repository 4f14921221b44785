"""Rows that a cascade decides by loss and alignment alone: what they must reach, and their reason."""

from collections.abc import Mapping

import numpy as np

from clues.config import short
from clues.errors import DataError, RecipeMismatchError
from clues.scoring.cascade import Gate
from clues.scoring.table import ScoreTable
from clues.scoring.trajectory import set_weights
from clues.selection.decisions import EARLY, Apart
from clues.selection.threshold import Threshold, group_units
from clues.selection.weighing import replaced
from clues.silo.workspace import Workspace
from clues.wall.messages import ScoreRequest


def gate_of(
    space: Workspace, request: ScoreRequest, anchors: Mapping[str, np.ndarray]
) -> Gate | None:
    """The threshold that came with a score request, in units of the anchors; None without a cascade.

    The units are made here, of the public anchors' scores alone: those that `check_threshold` makes
    when the threshold decides.

    Raises:
        DataError: the recipe has a cascade and no threshold came, or the other way round.
    """
    recipe = space.recipe()
    if (request.cut is None) == bool(recipe.score.cascade):
        what = "no threshold came" if recipe.score.cascade else "a threshold came"
        says = "has" if recipe.score.cascade else "has no"
        raise DataError(
            f"silo {space.name}: the recipe {says} cascade, and {what} with the score request. The "
            "coordinator runs another program."
        )
    if request.cut is None:
        return None
    (group,) = space.groups()
    weights = replaced(
        set_weights(recipe.score, recipe.public[space.settings.domain]), request.weights
    )
    units, _ = group_units({group: anchors}, {group: weights}, recipe.threshold)
    return Gate(units[group], request.cut)


def early_rows(space: Workspace, table: ScoreTable, threshold: Threshold) -> dict[int, Apart]:
    """The rows that have no whole score because they were below the threshold without it.

    Raises:
        RecipeMismatchError: they were dropped under another threshold.
    """
    if table.cut is None:
        return {}
    if threshold.value != table.cut:
        raise RecipeMismatchError(
            f"silo {space.name}: the rows were scored for another threshold than the one that came, "
            f"and some have no gradients under it (recipe {short(space.recipe().hash)}). Score again."
        )
    early = table.of(table.is_early)
    most = early.in_units(threshold, space.groups(), where=f"silo {space.name}")
    rows = zip(early.row.tolist(), early.id, most.tolist(), strict=True)
    return {row: Apart(id_, EARLY, early_reason(score, table.cut)) for row, id_, score in rows}


def early_reason(most: float, cut: float) -> str:
    """Why a row has no gradients: the most that it could have scored with them."""
    return (
        f"at most {most:.4g} by its loss and alignment alone, below {cut:.4g}; its gradients were "
        "not computed"
    )
