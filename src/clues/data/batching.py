"""Batches of rows of similar length: little padding, and few batches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

# Padded tokens per batch. On a CPU larger ones fall out of the cache; a GPU wants them large, and
# Apple's shares its memory with everything else.
CPU_TOKENS, GPU_TOKENS, MPS_TOKENS = 1024, 32768, 8192
# What a batch costs beside its tokens, as a part of a full one: every layer starts anew for it. That
# is 83 tokens for forward and backward of the built-in model on a CPU core.
START = 1 / 12


def token_budget_of(device: "torch.device") -> int:
    """Padded tokens of a batch with a backward pass; without one twice as much fits."""
    return {"cuda": GPU_TOKENS, "mps": MPS_TOKENS}.get(device.type, CPU_TOKENS)


def token_budget_batches(
    lengths: Sequence[int], *, budget: int, max_rows: int = 256
) -> list[list[int]]:
    """Cut rows, longest first, into the batches that cost least.

    cost(batch) = rows * length of the longest + budget / 12

    Rows of one length share a batch while it holds them; a batch is cut short where the rows that
    follow are so much shorter that their padding costs more than another batch.

    Args:
        lengths: N numbers of tokens.
        budget: padded tokens per batch, at most; one row alone may have more.
        max_rows: rows per batch, at most.

    Returns:
        Positions, batch after batch; each once. Equal lengths give equal batches, wherever.
    """
    n = len(lengths)
    order = sorted(range(n), key=lambda i: (-lengths[i], i))
    sorted_N = np.array([lengths[i] for i in order], dtype=np.int64)
    # Of the rows before j: what their batches cost at least, and where the last of them begins.
    cost_N, start_N = np.zeros(n + 1), np.zeros(n + 1, dtype=np.int64)
    first = 0
    for j in range(1, n + 1):
        # A row comes in front of its batch's shorter ones: once it is too far away, it stays so.
        while j - first > 1 and (j - first > max_rows or (j - first) * sorted_N[first] > budget):
            first += 1
        starts = np.arange(first, j)
        found = cost_N[first:j] + (j - starts) * sorted_N[first:j] + budget * START
        best = int(found.argmin())
        cost_N[j], start_N[j] = found[best], first + best
    batches: list[list[int]] = []
    end = n
    while end:
        batches.append(order[start_N[end] : end])
        end = int(start_N[end])
    return batches[::-1]
