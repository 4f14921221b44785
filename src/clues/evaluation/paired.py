"""Arms compared row by row and question by question on the held-out set."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from clues.config import derived_seed
from clues.evaluation.intervals import AGAINST, bootstrap_mean, paired_difference


def arms_on_heldout(measured: Mapping[str, Mapping[str, Any]], *, seed: int) -> dict[str, Any]:
    """How far every arm is from mixed and from random on the same rows.

    Args:
        measured: by arm, what `choice.measure` returned; without held-out rows there are no
            `losses`, and nothing is compared.
        seed: of the bootstrap.

    Returns:
        By arm and other arm: `heldout_loss` and `knowledge_accuracy`, the arm's figure less the
        other's with its 95 % interval; the second also with the p-value of McNemar's exact test.
    """
    return {
        arm: {
            other: _differences(
                own, measured[other], seed=derived_seed(seed, "heldout", arm, other)
            )
            for other in AGAINST
            if other in measured and other != arm and _comparable(own, measured[other])
        }
        for arm, own in measured.items()
    }


def _comparable(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return bool(one.get("losses")) and bool(other.get("losses"))


def _differences(one: Mapping[str, Any], other: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    gaps_N = np.subtract(one["losses"], other["losses"])
    loss = {"value": float(gaps_N.mean()), "interval": list(bootstrap_mean(gaps_N, seed=seed))}
    found: dict[str, Any] = {"heldout_loss": loss}
    if one["right"]:
        gap = paired_difference(one["right"], other["right"], seed=seed)
        found["knowledge_accuracy"] = {**asdict(gap), "interval": list(gap.interval)}
    return found
