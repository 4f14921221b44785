"""Rows as vectors: weighted means of the hidden states that the last layer gives their tokens.

N rows in a batch, T tokens, E size of a hidden state.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from clues.data.batching import token_budget_of
from clues.data.tokens import EncodedRow
from clues.errors import DataError
from clues.model.adapters import AdapterState, LoraModel
from clues.model.devices import wide
from clues.model.loss import make_batch
from clues.scoring.batches import each_batch, refuse_nonfinite

Weigh = Callable[[EncodedRow], Sequence[float]]


def every_token(row: EncodedRow) -> Sequence[float]:
    """All tokens alike."""
    return [1.0] * len(row.ids)


def response_tokens(row: EncodedRow) -> Sequence[float]:
    """The tokens of the response alike, the others not at all."""
    return [float(carries_loss) for carries_loss in row.mask]


def later_tokens(row: EncodedRow) -> Sequence[float]:
    """Token t of 1 to T weighs t: a later one has read more of the text."""
    return [float(t) for t in range(1, len(row.ids) + 1)]


def refuse_without_response(rows: Sequence[EncodedRow]) -> None:
    """Stop at a row of which no token is trained and scored.

    Raises:
        DataError: there is one.
    """
    for row in rows:
        if not row.n_response_tokens:
            raise DataError(
                f"row {row.id}: none of its {len(row.ids)} tokens belongs to a response. Raise "
                "recipe.tokens.max_length, or leave the row out."
            )


def unit_vectors(
    model: LoraModel, rows: Sequence[EncodedRow], *, adapter: AdapterState, weigh: Weigh
) -> np.ndarray:
    """Every row's weighted mean hidden state, divided by its length, in float64.

    vector[n] = sum_t w[n, t] h[n, t] / |sum_t w[n, t] h[n, t]|

    Args:
        model: is left with the adapter.
        rows: at least one; all their vectors are kept.
        adapter: LoRA weights.
        weigh: the weights w of a row's tokens.

    Raises:
        NumericsError: a hidden state is NaN or infinite.
    """
    found: dict[int, np.ndarray] = {}

    def keep(batch: list[int], units_NE: np.ndarray) -> None:
        found.update(zip(batch, units_NE, strict=True))

    _each_units(model, rows, keep, adapter=adapter, weigh=weigh)
    vectors_NE = np.stack([found[i] for i in range(len(rows))])
    refuse_nonfinite(rows, vectors_NE, what="mean hidden state")
    return vectors_NE


def score_vectors(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    score: Callable[[np.ndarray], np.ndarray],
    *,
    adapter: AdapterState,
    weigh: Weigh,
    skip_nonfinite: bool = False,
) -> np.ndarray:
    """A number for every row from its vector, as in `unit_vectors`; no vector outlives its batch.

    Args:
        model: is left with the adapter.
        rows: rows to score.
        score: gives N numbers for N vectors, each from its own vector alone.
        adapter: LoRA weights.
        weigh: the weights of a row's tokens.
        skip_nonfinite: give NaN instead of raising.

    Raises:
        NumericsError: a hidden state is NaN or infinite.
    """
    scores = np.zeros(len(rows))

    def keep(batch: list[int], units_NE: np.ndarray) -> None:
        scores[batch] = score(units_NE)

    _each_units(model, rows, keep, adapter=adapter, weigh=weigh)
    refuse_nonfinite(rows, scores, skip=skip_nonfinite, what="mean hidden state")
    return scores


@torch.no_grad()
def _each_units(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    keep: Callable[[list[int], np.ndarray], None],
    *,
    adapter: AdapterState,
    weigh: Weigh,
) -> None:
    model.set_state(adapter)
    # Without its head the model makes no logits, which are larger than all else where the
    # vocabulary is; and it keeps the states of one layer, not of all.
    body: Any = model.peft.get_base_model().base_model

    def compute(batch: list[int]) -> None:
        chosen = [rows[i] for i in batch]
        tensors = make_batch(chosen, device=model.device)
        states_NTE = body(
            input_ids=tensors.ids_NT, attention_mask=tensors.attention_NT, use_cache=False
        ).last_hidden_state
        weights_NT = torch.zeros(tensors.ids_NT.shape, dtype=torch.float64)
        for n, row in enumerate(chosen):
            weights_NT[n, : len(row.ids)] = torch.tensor(weigh(row), dtype=torch.float64)
        # A sum, not a mean: the length is divided out anyway.
        wide_NTE = wide(states_NTE)
        sums_NE = torch.einsum("nt,nte->ne", weights_NT.to(wide_NTE.device), wide_NTE)
        vectors_NE = sums_NE.cpu().numpy()
        norms_N1 = np.linalg.norm(vectors_NE, axis=1, keepdims=True)
        # What is not finite becomes NaN here, and its row is named once all are done.
        with np.errstate(invalid="ignore"):
            keep(batch, vectors_NE / np.maximum(norms_N1, 1e-12))

    with model.evaluating():
        # Without a backward pass twice as much fits.
        each_batch(rows, compute, token_budget=2 * token_budget_of(model.device))
