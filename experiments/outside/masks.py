"""One row's loss under three masks, its gradient, and an adapter that is trained under one of them.

| mask     | what counts                                                                       |
| -------- | --------------------------------------------------------------------------------- |
| response | the tokens of the response                                                        |
| text     | every token                                                                       |
| padded   | every token, and every position of the padding in front, up to a fixed width      |

The last one is that of "Do Influence Functions Work on Large Language Models?" (arXiv 2409.19998):
the row is filled up with end tokens on the left, and labels are all of its ids. Padding does not read
the text, which comes after it, and the text does not read the padding, which the attention hides. So a
row of T tokens in a width of W has

    loss = (sum of its T - 1 token losses + loss of W - T end tokens that the text follows) / (W - 1)

and the second sum is the same for all rows of a length: it is computed once for them.

N rows, T tokens of a row, K end tokens, P weights of a LoRA matrix, flattened.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clues.config import derived_seed
from clues.data.tokens import EncodedRow
from clues.errors import NumericsError
from clues.model.adapters import AdapterState, Checkpoint, LoraModel
from clues.model.loss import make_batch, row_losses
from clues.model.recording import Schedule, running_mean
from clues.scoring.direction import trainable
from clues.scoring.gradients import each_gradient

Gradients = dict[str, Tensor]  # by weight, gradients_NP in float32
Loss = Callable[[LoraModel, Sequence[EncodedRow]], Tensor]


@dataclass(frozen=True)
class Tuning:
    """How an adapter is trained.

    They take 375 steps with a rate that falls from 5e-5 to 0. There are fewer rows here, so fewer
    steps: the rates of all steps add up to as much.

    Attributes:
        epochs: passes over the rows.
        batch_size: rows of a step.
        path: sum of the rates of all steps.
    """

    epochs: int = 2
    batch_size: int = 5
    path: float = 375 * 5e-5 / 2


def whole(row: EncodedRow) -> EncodedRow:
    """The row with every token counted; the first has nothing before it."""
    return replace(row, mask=(False, *[True] * (len(row.ids) - 1)))


def filled(row: EncodedRow, *, end: int, width: int) -> EncodedRow:
    """The row with end tokens behind it up to a width, all of them counted: DataInf's padding."""
    return whole(replace(row, ids=(*row.ids, *[end] * (width - len(row.ids)))))


def prompt_of(row: EncodedRow) -> EncodedRow:
    """What stands before the response, every token counted."""
    first = row.mask.index(True)
    return whole(replace(row, ids=row.ids[:first], mask=row.mask[:first]))


def mean_loss(model: LoraModel, rows: Sequence[EncodedRow]) -> Tensor:
    """Mean over rows of each row's mean loss, under the rows' own masks."""
    return row_losses(model.peft, make_batch(rows, device=model.device), head=model.head).mean()


def padded_loss(*, end: int, width: int) -> Loss:
    """Mean over rows of each row's loss under mask `padded`."""

    def loss(model: LoraModel, rows: Sequence[EncodedRow]) -> Tensor:
        texts = [whole(row) for row in rows]
        batch = make_batch(texts, device=model.device)
        sizes_N = torch.tensor([len(row.ids) - 1 for row in rows], device=model.device)
        total = (row_losses(model.peft, batch, head=model.head) * sizes_N).sum()
        for first in sorted({row.ids[0] for row in rows}):
            counts = [width - len(r.ids) for r in rows if r.ids[0] == first and len(r.ids) < width]
            if counts:
                losses_K = pad_losses(model, end=end, first=first, n=max(counts))
                total = total + losses_K[[n - 1 for n in counts]].sum()
        return total / (len(rows) * (width - 1))

    return loss


def pad_losses(model: LoraModel, *, end: int, first: int, n: int) -> Tensor:
    """Loss of k end tokens in front of a text, for k of 1 to n.

    loss[k] = - sum of log p(end | j end tokens) over j < k  -  log p(first | k end tokens)

    Args:
        model: as its adapter stands.
        end: the token that pads.
        first: the token that the text begins with.
        n: the longest padding.
    """
    ids_1K = torch.full((1, n), end, device=model.device)
    logits_KV = model.peft(input_ids=ids_1K, use_cache=False).logits[0].float()
    total_K = torch.logsumexp(logits_KV, dim=1)
    stay_K, go_K = total_K - logits_KV[:, end], total_K - logits_KV[:, first]
    return go_K + torch.cumsum(stay_K, dim=0) - stay_K


def tune(
    model: LoraModel, rows: Sequence[EncodedRow], loss: Loss, settings: Tuning, *, seed: int
) -> Checkpoint:
    """Train a new adapter with AdamW, linear decay and dropout, and keep the optimiser's means.

    Raises:
        NumericsError: a loss is not finite.
    """
    model.set_state(model.initial)
    parameters = model.parameters()
    n_steps = settings.epochs * math.ceil(len(rows) / settings.batch_size)
    schedule = Schedule(1.0, 0.0, n_steps)
    peak = settings.path / sum(schedule.factor(step) for step in range(n_steps))
    optimizer = torch.optim.AdamW(parameters.values(), weight_decay=0.0)
    order = torch.Generator().manual_seed(derived_seed(seed, "order"))
    step, rate = 0, 0.0
    with torch.random.fork_rng(), trainable(parameters.values(), only=[*parameters.values()]):
        torch.manual_seed(derived_seed(seed, "dropout"))
        model.peft.train()
        try:
            for _ in range(settings.epochs):
                places = torch.randperm(len(rows), generator=order).tolist()
                for start in range(0, len(rows), settings.batch_size):
                    chosen = [rows[i] for i in places[start : start + settings.batch_size]]
                    rate = peak * schedule.factor(step)
                    _step(model, optimizer, loss, chosen, rate)
                    step += 1
        finally:
            model.peft.eval()
        second = running_mean(optimizer, parameters, "exp_avg_sq", beta=1)
        first = running_mean(optimizer, parameters, "exp_avg", beta=0)
    return Checkpoint(step, rate, model.state(), second, first, step)


def _step(
    model: LoraModel, optimizer: Any, loss: Loss, rows: Sequence[EncodedRow], rate: float
) -> None:
    optimizer.zero_grad()
    value = loss(model, rows)
    if not torch.isfinite(value):
        raise NumericsError("a training loss is not finite. Lower the learning rate.")
    value.backward()
    torch.nn.utils.clip_grad_norm_([*model.parameters().values()], 1.0)
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()


def row_gradients(
    model: LoraModel, rows: Sequence[EncodedRow], adapter: AdapterState
) -> tuple[Gradients, np.ndarray]:
    """Every row's gradient of its mean loss under its own mask, all of them kept, and that loss."""
    found = {name: torch.zeros(len(rows), t.numel()) for name, t in adapter.items()}

    def keep(batch: Sequence[int], name: str, gradient: Tensor) -> None:
        found[name][list(batch)] = gradient.flatten(1).float().cpu()

    losses = each_gradient(model, rows, adapter=adapter, weights=[*adapter], on_gradient=keep)
    return found, losses


def padded_gradients(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    adapter: AdapterState,
    *,
    texts: Gradients,
    end: int,
    width: int,
) -> Gradients:
    """Every row's gradient under mask `padded`, from its gradient under mask `text`.

    gradient = ((T - 1) * gradient of the text + gradient of K = W - T end tokens) / (W - 1)
    """
    sizes_N1 = torch.tensor([[len(row.ids) - 1.0] for row in rows])
    found = {name: g * sizes_N1 / (width - 1) for name, g in texts.items()}
    for first in sorted({row.ids[0] for row in rows}):
        for n, gradient in _pad_gradients(model, rows, adapter, end, first, width).items():
            places = [i for i, r in enumerate(rows) if (r.ids[0], width - len(r.ids)) == (first, n)]
            for name, flat_P in gradient.items():
                found[name][places] += flat_P / (width - 1)
    return found


def _pad_gradients(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    adapter: AdapterState,
    end: int,
    first: int,
    width: int,
) -> dict[int, AdapterState]:
    """By length of the padding, the gradient of its loss."""
    counts = sorted({width - len(r.ids) for r in rows if r.ids[0] == first and len(r.ids) < width})
    if not counts:
        return {}
    model.set_state(adapter)
    parameters = model.parameters()
    wanted = [*parameters.values()]
    with model.evaluating(), trainable(parameters.values(), only=wanted):
        losses_K = pad_losses(model, end=end, first=first, n=max(counts))
        return {
            n: {
                name: g.detach().flatten().float().cpu()
                for name, g in zip(
                    parameters,
                    torch.autograd.grad(losses_K[n - 1], wanted, retain_graph=True),
                    strict=True,
                )
            }
            for n in counts
        }
