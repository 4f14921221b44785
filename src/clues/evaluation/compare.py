"""How one score does alone under the run's own threshold rule, and how well where labels are known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clues.config import Recipe, derived_seed
from clues.errors import DataError, NumericsError
from clues.evaluation.detection import detection, ranking
from clues.selection.rules import mixture_cut
from clues.selection.threshold import fit_threshold


@dataclass(frozen=True)
class Alone:
    """One score of a silo's rows, with its own anchors' units and threshold.

    Attributes:
        scores: (rows,) in units of the anchors, raw where the rule finds no threshold.
        kept: (rows,) whether the score is not below its threshold; None where there is none.
    """

    scores: np.ndarray
    kept: NDArray[np.bool_] | None


def select_alone(
    name: str,
    scores: np.ndarray,
    groups: np.ndarray,
    anchors: Mapping[str, np.ndarray],
    *,
    recipe: Recipe,
) -> Alone:
    """What one score would keep; no label is looked at.

    Args:
        name: of the score.
        scores: (rows,) raw scores.
        groups: (rows,) index of each row's group, in the order of `anchors`.
        anchors: anchor scores by group.
        recipe: its threshold rule is used as it is.
    """
    settings = recipe.threshold
    try:
        own = fit_threshold(
            {group: {name: values} for group, values in anchors.items()},
            {group: {name: 1.0} for group in anchors},
            # Damaged copies of anchors have the deciding score alone, so others keep the rule's cut.
            settings.model_copy(
                update={"bootstrap": 1, "rule": _local_rule(settings.rule), "aim": "keep"}
            ),
            recipe_hash=recipe.hash,
            seed=recipe.seed,
        )
    except (DataError, NumericsError):
        # Anchors that all score the same, as lengths may: there is a ranking and no threshold.
        return Alone(scores, None)
    in_units = np.zeros(len(scores))
    for number, group in enumerate(anchors):
        members = groups == number
        in_units[members] = own.units[group].apply({name: scores[members]})
    cut = own.value
    if settings.rule == "mixture":
        cut = mixture_cut(in_units, seed=derived_seed(recipe.seed, "mixture", name))
    if own.ratio is not None:
        cut = float(np.quantile(in_units, 1 - own.ratio))
    return Alone(in_units, None if cut is None else in_units >= cut)


def figures(alone: Alone, labels: Sequence[str | None]) -> dict[str, Any]:
    """How well one score tells clean rows from damaged ones, and what its own threshold keeps.

    Args:
        alone: the score.
        labels: kind of damage by row, None where clean.

    Returns:
        AUC over all rows and by kind, and precision, recall, F1, number and share kept; those are
        None where the rule finds no threshold for this score.
    """
    ranked = ranking(labels, alone.scores)
    if alone.kept is None:
        return {**ranked, **dict.fromkeys(("precision", "recall", "f1", "kept", "share"))}
    found = detection(labels, alone.kept)
    kept = {"kept": int(alone.kept.sum()), "share": float(alone.kept.mean())}
    return {**ranked, **found, **kept}


def _local_rule(rule: str) -> str:
    # A mixture's cut is found in the scores themselves; its units are the anchors' all the same.
    return "anchor_quantile" if rule == "mixture" else rule
