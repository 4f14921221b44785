"""Perplexity as a score: how well a model already predicts a row's response."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from clues.data.tokens import EncodedRow
from clues.model.adapters import AdapterState, LoraModel
from clues.model.loss import make_batch, row_losses
from clues.scoring.batches import each_batch, refuse_nonfinite, token_budget_of


@torch.no_grad()
def mean_losses(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    *,
    adapter: AdapterState,
    token_budget: int | None = None,
    skip_nonfinite: bool = False,
    on_rows: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Mean response-token loss of every row, in nats; its negative is the perplexity score.

    The score is minus the log of the perplexity, so that higher is better, as everywhere.

    Raises:
        NumericsError: a loss is NaN or infinite.
    """
    model.set_state(adapter)
    losses = np.zeros(len(rows))

    def compute(batch: list[int]) -> None:
        tensors = make_batch([rows[i] for i in batch], device=model.device)
        losses[batch] = row_losses(model.peft, tensors).double().cpu().numpy()

    # Without a backward pass twice as much fits.
    budget = token_budget or 2 * token_budget_of(model.device)
    with model.evaluating():
        each_batch(rows, compute, token_budget=budget, on_rows=on_rows)
    refuse_nonfinite(rows, losses, skip=skip_nonfinite, what="loss")
    return losses
