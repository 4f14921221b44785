"""The one loss: mean negative log-likelihood of a row's response tokens, in nats.

N rows in a batch, T tokens, V vocabulary.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clues.data.tokens import EncodedRow

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right.

    Attributes:
        ids_NT: token ids.
        attention_NT: 1 on tokens, 0 on padding.
        targets_NT: at position t the id that comes next if it carries loss, else -100.
    """

    ids_NT: Tensor
    attention_NT: Tensor
    targets_NT: Tensor


def make_batch(rows: Sequence[EncodedRow], *, device: torch.device | str = "cpu") -> Batch:
    """Pad rows on the right and shift their targets one position to the left."""
    width = max(len(row.ids) for row in rows)
    ids_NT = torch.zeros(len(rows), width, dtype=torch.long)
    attention_NT = torch.zeros_like(ids_NT)
    targets_NT = torch.full_like(ids_NT, IGNORED)
    for n, row in enumerate(rows):
        ids, mask = torch.tensor(row.ids), torch.tensor(row.mask)
        ids_NT[n, : len(ids)] = ids
        attention_NT[n, : len(ids)] = 1
        targets_NT[n, : len(ids) - 1] = torch.where(mask[1:], ids[1:], IGNORED)
    return Batch(ids_NT.to(device), attention_NT.to(device), targets_NT.to(device))


def row_losses(model: Any, batch: Batch) -> Tensor:
    """Mean response-token loss of every row, in nats.

    loss[n] = - sum_t log p(target[n, t]) / n_response_tokens[n]

    A row's loss does not depend on the other rows of its batch, nor on padding.

    Returns:
        losses_N in float32 (float64 for a float64 model).
    """
    # Logits are the largest tensor of a small model: make them only where some row has a target.
    positions_S = (batch.targets_NT != IGNORED).any(dim=0).nonzero().squeeze(1)
    wanted = _keeps_positions(model)
    logits = model(
        input_ids=batch.ids_NT,
        attention_mask=batch.attention_NT,
        use_cache=False,
        **({"logits_to_keep": positions_S} if wanted else {}),
    ).logits
    logits_NSV = logits if wanted else logits[:, positions_S]
    targets_NS = batch.targets_NT[:, positions_S]
    if logits_NSV.dtype != torch.float64:
        logits_NSV = logits_NSV.float()
    losses_NS = F.cross_entropy(
        logits_NSV.flatten(0, 1), targets_NS.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(targets_NS)
    return losses_NS.sum(dim=1) / (targets_NS != IGNORED).sum(dim=1)


def _keeps_positions(model: Any) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters
