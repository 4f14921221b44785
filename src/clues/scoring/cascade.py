"""Scores in two stages: what takes forward passes alone for all rows, gradients for those left open.

A part of a score can only take away (`Part.shortfall` is at most 0). So a row that its loss and its
alignment alone put below the threshold stays there whatever its influence is, and needs no gradient.
No other row is decided here. The slow way is `score_rows`: under the same threshold it keeps the
same rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clues.config import ALIGNMENT, LOSS, ScoreSettings
from clues.data.tokens import EncodedRow
from clues.data.views import View
from clues.model.adapters import AdapterState, Checkpoint, LoraModel
from clues.scoring.parts import Loss, Parts
from clues.scoring.perplexity import aligned, answer_losses, mean_losses
from clues.scoring.shards import Sharing
from clues.scoring.trajectory import TrajectoryScores, score_rows
from clues.selection.units import Units


@dataclass(frozen=True)
class Gate:
    """What a row must reach: the threshold, and the units in which scores compare with it."""

    units: Units
    cut: float

    def leaves_open(self, raw: Mapping[str, np.ndarray]) -> np.ndarray:
        """Rows that may still reach the threshold, whatever the numbers not in `raw` are."""
        return ~(self.units.ceiling(raw) < self.cut)


def score_in_stages(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    checkpoints: Sequence[Checkpoint],
    directions: Sequence[Mapping[str, AdapterState]],
    *,
    settings: ScoreSettings,
    gate: Gate,
    before: np.ndarray,
    on_rows: Callable[[int], None] | None = None,
    shards: Sharing | None = None,
    skip_nonfinite: bool = False,
) -> TrajectoryScores:
    """As `score_rows`, without gradients of rows that are below the threshold without them.

    1. The loss before the training is there for every row.
    2. Rows still open get the loss of their answer without the question, which they need anyway.
    3. A pass with the question is saved for rows that get gradients, where it comes for nothing. So
       it is made for those rows alone whose loss before the training, in its place, would put them
       below the threshold: a guess at which rows it will decide, and never a decision.
    4. Rows still open get gradients, at all checkpoints.

    Args:
        model: this and what is not explained here, as `score_rows`.
        rows: likewise.
        checkpoints: likewise.
        directions: likewise.
        settings: likewise.
        gate: the threshold.
        before: the rows' losses before the training.
        on_rows: called with the number of rows finished at each pass.
        shards: likewise.
        skip_nonfinite: give NaN instead of raising; such a row is never decided early.

    Returns:
        Scores; `early` are the rows decided before step 4. What was not computed of them is NaN.

    Raises:
        NumericsError: a score is not finite.
    """
    last = checkpoints[-1].adapter
    how: dict[str, Any] = {"skip_nonfinite": skip_nonfinite, "on_rows": on_rows}

    def losses(some: Sequence[EncodedRow], adapter: AdapterState) -> np.ndarray:
        if shards:
            return shards.losses(model, some, adapter, **how)
        return mean_losses(model, some, adapter=adapter, **how)

    parts, base_loss = gate.units.parts, settings.loss_under == "base"
    known: dict[str, np.ndarray] = {}
    if LOSS in parts and base_loss:
        known[LOSS] = -before
    is_open = np.ones(len(rows), bool)
    if known:
        is_open = gate.leaves_open(known)
    asked, alone = np.zeros(len(rows), bool), np.zeros(len(rows))
    if ALIGNMENT in parts:
        asked, alone = answer_losses(
            rows, np.flatnonzero(is_open), lambda answers: losses(answers, last)
        )
    guess = {**known, **({} if base_loss or LOSS not in parts else {LOSS: -before})}
    if ALIGNMENT in parts:
        guess[ALIGNMENT] = aligned(asked, alone, before)
    likely = np.flatnonzero(is_open & ~gate.leaves_open(guess)) if guess else np.zeros(0, int)
    found: Parts = {}
    if len(likely):
        needed = range(len(checkpoints)) if LOSS in parts and not base_loss else ()
        for index in sorted({*needed, len(checkpoints) - 1}):
            found[Loss(index)] = _spread(
                losses(View(rows, likely.tolist()), checkpoints[index].adapter), likely, len(rows)
            )
        at = found[Loss(len(checkpoints) - 1)][likely]
        if ALIGNMENT in parts:
            with_question = aligned(asked[likely], alone[likely], at)
            known[ALIGNMENT] = _spread(with_question, likely, len(rows))
        if needed:
            known[LOSS] = -np.mean(list(found.values()), axis=0)
        is_open[likely] = gate.leaves_open({k: v[likely] for k, v in known.items()})
    # A loss that is not finite is named, as without a cascade.
    is_open |= ~np.isfinite(before)
    rest = np.flatnonzero(is_open)
    whole = score_rows(
        model,
        View(rows, rest.tolist()),
        checkpoints,
        directions,
        settings=settings,
        shards=shards,
        before=before[rest],
        alone=alone[rest] if ALIGNMENT in parts else None,
        **how,
    )
    raw = {name: _spread(values, rest, len(rows)) for name, values in whole.raw.items()}
    for name, values in known.items():
        raw[name] = np.where(is_open, raw[name], values)
    terms = {part: _spread(values, rest, len(rows)) for part, values in whole.parts.items()}
    for part, values in found.items():
        terms[part] = np.where(is_open, terms[part], values)
    return TrajectoryScores(raw, terms, early=~is_open)


def _spread(values: np.ndarray, at: np.ndarray, n: int) -> np.ndarray:
    """Values at their places among n rows; NaN, for not computed, elsewhere."""
    spread = np.full(n, np.nan)
    spread[at] = values
    return spread
