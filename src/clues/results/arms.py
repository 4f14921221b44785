"""What the arms of a run reached, and how far they are from each other."""

from collections.abc import Mapping

from clues.results.base import Figures


class Gap(Figures):
    """One arm's figure less another's, on the same rows or questions.

    Attributes:
        value: the difference; positive where the first arm's figure is higher.
        interval: 95 % interval of the difference, by a bootstrap over rows or questions.
        p_value: of McNemar's exact test. It says how likely so uneven a split of the questions
            that only one arm answers right is, if both arms are equally good.
    """

    value: float
    interval: tuple[float, float]
    p_value: float | None = None


class Against(Figures):
    """An arm compared with another one on the held-out set.

    Attributes:
        heldout_loss: difference of the mean losses, in nats; negative is better.
        knowledge_accuracy: difference of the shares of questions answered right; absent where the
            held-out set has no questions.
    """

    heldout_loss: Gap
    knowledge_accuracy: Gap | None = None


class ArmResult(Figures):
    """One arm: a joint model trained on some of the rows.

    Attributes:
        kept: number of rows that it was trained on; null where a silo did not tell.
        steps: number of optimiser steps in each silo.
        silos: number of silos that took part in its last round.
        energy_lost: share of the silos' updates that joining them lost, in the worst round.
        heldout_loss: mean loss of the held-out rows in nats; lower is better. Null without a
            held-out set.
        knowledge_accuracy: share of the held-out questions answered right; null without questions.
        knowledge_stderr: standard error of that share.
        seconds: that the training of the arm took.
        precision: share of the kept rows that are clean, mean over the silos with labels. The four
            figures are there for the selection and for scores compared with it, where a silo
            shares diagnostics and has labels.
        recall: share of the clean rows that are kept, mean over these silos.
        f1: harmonic mean of precision and recall, mean over these silos.
        auc: how often a clean row scores above a damaged one, mean over these silos.
        against: comparisons with `mixed` and `random`, by the other arm's name; empty without a
            held-out set.
    """

    kept: int | None
    steps: int
    silos: int
    energy_lost: float
    heldout_loss: float | None
    knowledge_accuracy: float | None
    knowledge_stderr: float | None
    seconds: float
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    auc: float | None = None
    against: Mapping[str, Against]
