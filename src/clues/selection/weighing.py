"""How much each part of a score counts, from damaged copies of the public anchors.

No torch here, no private row and no label of one: the coordinator damages rows that are public.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np

from clues.config import Recipe
from clues.errors import DataError
from clues.selection.units import MIN_ANCHORS, Array, Units, anchor_units

# Against an influence of 1. With a base model that reads well, a part can count for more than it.
GRID = (0.0, 0.25, 0.5, 1.0, 2.0)
# A part must earn its place: a smaller total weight wins unless it loses more than this in AUC.
MARGIN = 0.005
# Rejected rows that give a direction, and as many that show how much it should count.
FEWEST_REJECTED = 2 * MIN_ANCHORS


def check_rejected(n_rows: int, recipe: Recipe, *, where: str) -> None:
    """Refuse fewer rejected rows than give a direction, and show how much it should count.

    Raises:
        DataError: they are too few.
    """
    needed = FEWEST_REJECTED if recipe.weighs else MIN_ANCHORS
    if n_rows < needed:
        half = ": half of them show how much the others should count" if recipe.weighs else ""
        raise DataError(
            f"{where}: {n_rows} rejected rows can be used, and at least {needed} are needed{half}."
        )


@dataclass(frozen=True)
class Controls:
    """Raw scores of damaged copies of a group's anchors, and the kind of damage of each."""

    raw: Mapping[str, Array]
    kinds: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON that `from_json` reads."""
        raw = {name: [float(x) for x in values] for name, values in self.raw.items()}
        return {"kinds": list(self.kinds), "raw": raw}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Controls":
        """Read what `to_json` made."""
        raw = {name: np.array(values) for name, values in content["raw"].items()}
        return cls(raw, content["kinds"])

    def kept_by_kind(self, units: Units, value: float) -> dict[str, float]:
        """Share of the damaged copies that a threshold would keep, by kind of damage."""
        kept = units.apply(self.raw) >= value
        kinds = np.array(self.kinds)
        return {kind: float(kept[kinds == kind].mean()) for kind in sorted(set(self.kinds))}


@dataclass(frozen=True)
class Weighing:
    """Weights of the parts that were to be weighed, and what they give.

    Attributes:
        weights: by part, from `GRID`.
        auc: by group and kind of damage, how often an anchor scores above a damaged copy.
    """

    weights: dict[str, float]
    auc: dict[str, dict[str, float]]


def weigh_parts(
    anchors: Mapping[str, Mapping[str, Array]],
    controls: Mapping[str, Controls],
    weights: Mapping[str, Mapping[str, float]],
    parts: Sequence[str],
    *,
    combine: Literal["shortfall", "sum"],
) -> Weighing:
    """The weights, one set for all groups, that tell anchors from their damaged copies best.

    Every kind of damage has one vote in a group, every group one in the mean.

    Args:
        anchors: by group, raw anchor scores by name.
        controls: by group, the damaged copies.
        weights: by group, weights of all names; those of `parts` are replaced.
        parts: names whose weight is looked for; none gives what `weights` give.
        combine: how parts are joined.

    Raises:
        DataError: fewer than 5 anchors in a group.
        NumericsError: anchor scores are not finite, or all the same.
    """
    found: list[tuple[float, float, dict[str, float], dict[str, dict[str, float]]]] = []
    for values in product(GRID, repeat=len(parts)):
        chosen = dict(zip(parts, values, strict=True))
        auc = {
            group: _auc_by_kind(
                anchors[group], controls[group], replaced(weights[group], chosen), combine=combine
            )
            for group in sorted(controls)
        }
        mean = float(np.mean([np.mean(list(kinds.values())) for kinds in auc.values()]))
        found.append((mean, sum(values), chosen, auc))
    best = max(mean for mean, *_ in found)
    near = [entry for entry in found if entry[0] >= best - MARGIN]
    _, _, chosen, auc = min(near, key=lambda entry: (entry[1], -entry[0]))
    return Weighing(chosen, auc)


def replaced(weights: Mapping[str, float], chosen: Mapping[str, float]) -> dict[str, float]:
    """Weights with the chosen ones in place; a name of weight zero is left out.

    A part that a group does not have (rejected rows, of one domain alone) stays away from it.
    """
    return {n: chosen.get(n, w) for n, w in weights.items() if chosen.get(n, w) > 0}


def _auc_by_kind(
    raw: Mapping[str, Array],
    controls: Controls,
    weights: Mapping[str, float],
    *,
    combine: Literal["shortfall", "sum"],
) -> dict[str, float]:
    units = anchor_units(raw, weights, kind="anchor", combine=combine)
    good, bad = units.apply(raw), units.apply(controls.raw)
    kinds = np.array(controls.kinds)
    return {kind: auc(good, bad[kinds == kind]) for kind in sorted(set(controls.kinds))}


def auc(good: Array, bad: Array) -> float:
    """Probability that a score of the first is higher than one of the second; ties count half.

    Args:
        good: at least one score, none of them NaN.
        bad: likewise.
    """
    from scipy.stats import rankdata  # half a second to import

    n_good, n_bad = len(good), len(bad)
    # Of the rank sum, which is exact: the same in any order of the rows.
    ranks = rankdata(np.r_[good, bad])[:n_good]
    return float((ranks.sum() - n_good * (n_good + 1) / 2) / (n_good * n_bad))
