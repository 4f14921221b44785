"""The one loss: mean negative log-likelihood of a row's response tokens, in nats.

N rows in a batch, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clues.data.tokens import EncodedRow
from clues.model.head import Head

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


def row_losses(model: Any, batch: Batch, *, head: Head | None = None) -> Tensor:
    """Mean response-token loss of every row, in nats.

    loss[n] = - sum_t log p(target[n, t]) / n_response_tokens[n]

    A row's loss does not depend on the other rows of its batch, nor on padding.

    Args:
        model: a causal model, as it is or wrapped.
        batch: rows, each with a target.
        head: how the model ends, as `find_head` found; then no logits are kept. Without it the
            model makes all of them: the same losses, slower and larger.

    Returns:
        losses_N in float32 (float64 for a float64 model).
    """
    losses_NT = token_losses(model, batch, head=head)
    return losses_NT.sum(dim=1) / (batch.targets_NT != IGNORED).sum(dim=1)


def token_losses(model: Any, batch: Batch, *, head: Head | None = None) -> Tensor:
    """Loss of every token that carries one, in nats: losses_NT, zero where `targets_NT` is IGNORED.

    Args:
        model: as `row_losses`.
        batch: likewise.
        head: likewise.
    """
    return _all_at_once(model, batch) if head is None else _by_head(model, batch, head)


def _all_at_once(model: Any, batch: Batch) -> Tensor:
    logits_NTV = model(
        input_ids=batch.ids_NT, attention_mask=batch.attention_NT, use_cache=False
    ).logits
    if logits_NTV.dtype != torch.float64:
        logits_NTV = logits_NTV.float()
    return F.cross_entropy(
        logits_NTV.transpose(1, 2), batch.targets_NT, ignore_index=IGNORED, reduction="none"
    )


def _by_head(model: Any, batch: Batch, head: Head) -> Tensor:
    mask = {"attention_mask": batch.attention_NT} if head.needs_mask else {}
    with head.caught() as states:
        model(input_ids=batch.ids_NT, use_cache=False, **mask)
    (states_NTE,) = states
    wanted_NT = batch.targets_NT != IGNORED
    losses_P = head.losses(states_NTE[wanted_NT], batch.targets_NT[wanted_NT])
    # One place each, so the sum of a row's losses has one order on every device.
    losses_NT = losses_P.new_zeros(wanted_NT.shape)
    losses_NT[wanted_NT] = losses_P
    return losses_NT
