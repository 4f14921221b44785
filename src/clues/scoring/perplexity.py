"""Perplexity as a score: how well a model already predicts a row's response."""

from collections.abc import Sequence

import numpy as np
import torch

from clues.data.tokens import EncodedRow, token_budget_batches
from clues.errors import NumericsError
from clues.model.adapters import AdapterState, LoraModel
from clues.model.loss import make_batch, row_losses
from clues.scoring.direction import TOKEN_BUDGET


@torch.no_grad()
def mean_losses(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    *,
    adapter: AdapterState,
    token_budget: int = 2 * TOKEN_BUDGET,
) -> np.ndarray:
    """Mean response-token loss of every row, in nats; its negative is the perplexity score.

    The score is minus the log of the perplexity, so that higher is better, as everywhere.

    Raises:
        NumericsError: a loss is NaN or infinite.
    """
    model.set_state(adapter)
    losses = np.zeros(len(rows))
    with model.evaluating() as peft:
        for batch in token_budget_batches([len(r.ids) for r in rows], budget=token_budget):
            tensors = make_batch([rows[i] for i in batch], device=model.device)
            losses[batch] = row_losses(peft, tensors).double().cpu().numpy()
    if not np.isfinite(losses).all():
        n_bad = int((~np.isfinite(losses)).sum())
        raise NumericsError(
            f"the loss of {n_bad} of {len(rows)} rows is not finite. Score in float32."
        )
    return losses
