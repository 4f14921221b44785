"""How well one score does under the run's own threshold rule, where labels are known."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clues.config import Recipe, derived_seed
from clues.errors import DataError, NumericsError
from clues.evaluation.detection import detection, ranking
from clues.selection import fit_threshold, mixture_cut


def figures(
    name: str,
    scores: np.ndarray,
    groups: np.ndarray,
    anchors: Mapping[str, np.ndarray],
    labels: Sequence[str | None],
    *,
    recipe: Recipe,
) -> dict[str, Any]:
    """How well one score tells clean rows from damaged ones, and what its own threshold keeps.

    Args:
        name: of the score.
        scores: (rows,) raw scores.
        groups: (rows,) index of each row's group, in the order of `anchors`.
        anchors: anchor scores by group.
        labels: kind of damage by row, None where clean.
        recipe: its threshold rule is used as it is.

    Returns:
        AUC over all rows and by kind, and precision, recall, F1 and share kept; those are None
        where the rule finds no threshold for this score.
    """
    settings = recipe.threshold
    try:
        own = fit_threshold(
            {group: {name: values} for group, values in anchors.items()},
            {group: {name: 1.0} for group in anchors},
            settings.model_copy(update={"bootstrap": 1, "rule": _local_rule(settings.rule)}),
            recipe_hash=recipe.hash,
            seed=recipe.seed,
        )
    except (DataError, NumericsError):
        # Anchors that all score the same, as lengths may: there is a ranking and no threshold.
        return {**ranking(labels, scores), **dict.fromkeys(("precision", "recall", "f1", "share"))}
    in_units = np.zeros(len(scores))
    for number, group in enumerate(anchors):
        members = groups == number
        in_units[members] = own.units[group].apply({name: scores[members]})
    cut = own.value
    if settings.rule == "mixture":
        cut = mixture_cut(in_units, seed=derived_seed(recipe.seed, "mixture", name))
    if own.ratio is not None:
        cut = float(np.quantile(in_units, 1 - own.ratio))
    if cut is None:
        return {
            **ranking(labels, in_units),
            **dict.fromkeys(("precision", "recall", "f1", "share")),
        }
    kept = in_units >= cut
    return {
        **ranking(labels, in_units),
        **detection(labels, kept),
        "share": float(kept.mean()),
    }


def _local_rule(rule: str) -> str:
    # A mixture's cut is found in the scores themselves; its units are the anchors' all the same.
    return "anchor_quantile" if rule == "mixture" else rule
