"""Losses as scores: how well a model predicts a row's response, with and without its question."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from clues.data.batching import token_budget_of
from clues.data.tokens import EncodedRow
from clues.data.views import View
from clues.model.adapters import AdapterState, LoraModel
from clues.model.devices import wide
from clues.model.loss import IGNORED, make_batch, row_losses, token_losses
from clues.scoring.batches import each_batch, refuse_nonfinite


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
        losses[batch] = wide(row_losses(model.peft, tensors, head=model.head)).cpu().numpy()

    # Without a backward pass twice as much fits.
    budget = token_budget or 2 * token_budget_of(model.device)
    with model.evaluating():
        each_batch(rows, compute, token_budget=budget, on_rows=on_rows)
    refuse_nonfinite(rows, losses, skip=skip_nonfinite, what="loss")
    return losses


@torch.no_grad()
def response_losses(
    model: LoraModel, rows: Sequence[EncodedRow], *, adapter: AdapterState
) -> list[np.ndarray]:
    """The loss of each response token of every row, in nats, in the order of the text.

    Their mean is the row's loss (`mean_losses`).

    Args:
        model: is left with the adapter.
        rows: rows to look at.
        adapter: LoRA weights.
    """
    model.set_state(adapter)
    found: dict[int, np.ndarray] = {}

    def compute(batch: list[int]) -> None:
        tensors = make_batch([rows[i] for i in batch], device=model.device)
        losses_NT = wide(token_losses(model.peft, tensors, head=model.head)).cpu().numpy()
        counts_NT = (tensors.targets_NT != IGNORED).cpu().numpy()
        for place, row in enumerate(batch):
            found[row] = losses_NT[place][counts_NT[place]]

    with model.evaluating():
        each_batch(rows, compute, token_budget=2 * token_budget_of(model.device))
    return [found[n] for n in range(len(rows))]


def losses_before(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    *,
    skip_nonfinite: bool = False,
    on_rows: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Mean loss of every row under the base model: the initial adapter changes nothing of it.

    Raises:
        NumericsError: a loss is NaN or infinite.
    """
    return mean_losses(
        model, rows, adapter=model.initial, skip_nonfinite=skip_nonfinite, on_rows=on_rows
    )


def answer_alone(row: EncodedRow) -> EncodedRow:
    """The row's response tokens after one token of context: the one that stood before them.

    There must be one: without it there is no question to leave out.
    """
    trained = [i for i, carries_loss in enumerate(row.mask) if carries_loss]
    kept = [trained[0] - 1, *trained]
    ids = type(row.ids)(row.ids[i] for i in kept)
    return replace(row, ids=ids, mask=type(row.mask)(row.mask[i] for i in kept))


def alignments(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    losses: np.ndarray,
    *,
    adapter: AdapterState,
    skip_nonfinite: bool = False,
    on_rows: Callable[[int], None] | None = None,
    losses_of: Callable[[Sequence[EncodedRow]], np.ndarray] | None = None,
    alone: np.ndarray | None = None,
) -> np.ndarray:
    """How much its question lowers the loss of every row's response, in nats a token.

    alignment[n] = loss(answer) - loss(answer | question)

    Above zero where the question helps, zero where there is none.

    Args:
        model: is left with the adapter.
        rows: rows to score.
        losses: loss(answer | question) of each, under the same adapter.
        adapter: LoRA weights.
        skip_nonfinite: give NaN instead of raising.
        on_rows: called with the number of rows finished.
        losses_of: gives rows' mean losses under the adapter, in place of this model.
        alone: loss(answer) of each, where it is known.

    Raises:
        NumericsError: a loss is NaN or infinite.

    Source: FedDQC, Du et al. 2024, arXiv 2410.11540.
    """
    if alone is not None:
        return aligned(np.array([not row.mask[0] for row in rows], bool), alone, losses)

    def compute(answers: Sequence[EncodedRow]) -> np.ndarray:
        return mean_losses(
            model, answers, adapter=adapter, skip_nonfinite=skip_nonfinite, on_rows=on_rows
        )

    asked, alone = answer_losses(rows, np.arange(len(rows)), losses_of or compute)
    return aligned(asked, alone, losses)


def answer_losses(
    rows: Sequence[EncodedRow],
    places: np.ndarray,
    losses_of: Callable[[Sequence[EncodedRow]], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Which of these rows have a question, and the loss of their responses without it.

    Args:
        rows: all rows.
        places: positions of those to look at.
        losses_of: gives rows' mean losses.

    Returns:
        (has a question, loss), an entry for each of `rows`; False and 0 where neither was looked at.
    """
    asked, alone = np.zeros(len(rows), bool), np.zeros(len(rows))
    # Where the first token is trained, there is no question to leave out.
    asked[[n for n in places.tolist() if not rows[n].mask[0]]] = True
    # As a view: a silo may have more rows than fit into memory.
    alone[asked] = losses_of(View(rows, np.flatnonzero(asked).tolist(), answer_alone))
    return asked, alone


def aligned(asked: np.ndarray, alone: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """The alignment, from the losses without the question and with it; 0 where there is none."""
    found = np.zeros(len(losses))
    found[asked] = alone[asked] - losses[asked]
    return found
