"""Arms compared row by row and question by question on the held-out set."""

from collections.abc import Mapping

import numpy as np

from clues.config import derived_seed
from clues.evaluation.choice import Measured
from clues.evaluation.intervals import AGAINST, bootstrap_mean, paired_difference
from clues.results.arms import Against, Gap


def arms_on_heldout(
    measured: Mapping[str, Measured], *, seed: int
) -> dict[str, dict[str, Against]]:
    """How far every arm is from mixed and from random on the same rows.

    Args:
        measured: by arm; without held-out rows there are no losses, and nothing is compared.
        seed: of the bootstrap.

    Returns:
        By arm and other arm.
    """
    return {
        arm: {
            other: _differences(
                own, measured[other], seed=derived_seed(seed, "heldout", arm, other)
            )
            for other in AGAINST
            if other in measured and other != arm and own.losses and measured[other].losses
        }
        for arm, own in measured.items()
    }


def _differences(one: Measured, other: Measured, *, seed: int) -> Against:
    gaps_N = np.subtract(one.losses, other.losses)
    loss = Gap(value=float(gaps_N.mean()), interval=bootstrap_mean(gaps_N, seed=seed))
    if not one.right:
        return Against(heldout_loss=loss)
    knowledge = paired_difference(one.right, other.right, seed=seed)
    return Against(heldout_loss=loss, knowledge_accuracy=knowledge)
