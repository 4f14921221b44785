"""What each stage of the coordinator found: the input of the next one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from clues.evaluation.choice import Measured
from clues.evaluation.tasks import Answers
from clues.results.run import Curve, Results
from clues.selection.threshold import Threshold
from clues.selection.units import Array
from clues.selection.weighing import Controls


class Found(BaseModel):
    """A stage's result as its marker holds it.

    Attributes:
        seconds: that the stage took when it really ran.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float = 0.0

    def content(self) -> dict[str, Any]:
        """What later stages depend on: everything but the time it took."""
        return self.model_dump(mode="json", exclude={"seconds"})


class LeftOut(Found):
    """Rows that are left out because another silo keeps the question.

    Attributes:
        token: changes with the rows.
        n_rows: how many, by silo, rounded to tens.
    """

    token: str
    n_rows: dict[str, int]


class Trained(Found):
    """The warm-up.

    Attributes:
        folder: name of the joint trajectory's folder; empty where every silo keeps its own.
        checkpoints: names of the checkpoints to score, in the order of training.
        energy_lost: share of the silos' updates that joining them lost, the worst round.
        curve: (rounds done, loss of public rows) pairs.
    """

    folder: str = ""
    checkpoints: tuple[str, ...] = ()
    energy_lost: float = 0.0
    curve: Curve = ()


class Scored(Found):
    """The anchors' scores.

    Attributes:
        anchors: raw scores by group and part.
        weights: of the parts that were weighed.
        controls: by group and kind of damage, how often an anchor scores above a damaged copy.
        copies: the damaged copies' raw scores by group.
        proposals: by silo, the cut that its own scores propose; for rule `mixture` alone.
    """

    anchors: dict[str, dict[str, list[float]]]
    weights: dict[str, float]
    controls: dict[str, dict[str, float]]
    copies: dict[str, dict[str, Any]]
    proposals: dict[str, float | None]

    @property
    def raw(self) -> dict[str, dict[str, Array]]:
        """The anchors' raw scores by group and part, as arrays."""
        return {g: {k: np.array(v) for k, v in raw.items()} for g, raw in self.anchors.items()}

    @property
    def damaged(self) -> dict[str, Controls]:
        """The damaged copies by group."""
        return {group: Controls.from_json(content) for group, content in self.copies.items()}


@dataclass(frozen=True)
class Selected:
    """The threshold, and what it keeps.

    Attributes:
        threshold: the one for all silos.
        n_kept: rows kept by silo, rounded to tens.
        token: changes with the threshold and with persons' decisions.
        seconds: that the silos took to decide.
    """

    threshold: Threshold
    n_kept: dict[str, int]
    token: str
    seconds: float


class Fitted(Found):
    """One arm's joint adapter.

    Attributes:
        arm: whose rows were trained on.
        token: of the selection, for arms that depend on it.
        steps: optimiser steps of a silo.
        n_silos: that took part in the last round.
        energy_lost: share of the silos' updates that joining them lost, the worst round.
        curve: (rounds done, loss of public rows) pairs.
        weights: shares that the merge found by itself.
    """

    arm: str
    token: str
    steps: int
    n_silos: int
    energy_lost: float
    curve: Curve = ()
    weights: dict[str, float] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a run has found so far; what was not reached is None or empty.

    Attributes:
        trained: the warm-up.
        scored: the anchors' scores.
        threshold: the one for all silos.
        selected: what it keeps.
        fitted: joint adapters by arm.
        measured: held-out figures by arm.
        answers: to the questions of tasks, by arm and task.
        results: everything that results.json holds.
    """

    trained: Trained | None = None
    scored: Scored | None = None
    threshold: Threshold | None = None
    selected: Selected | None = None
    fitted: Mapping[str, Fitted] = field(default_factory=dict)
    measured: Mapping[str, Measured] = field(default_factory=dict)
    answers: Mapping[str, Mapping[str, Answers]] = field(default_factory=dict)
    results: Results | None = None
