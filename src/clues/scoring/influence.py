"""The CLUES score of rows at one checkpoint, by a side branch.

N rows in a batch, T tokens, K directions, R rank, I and O features in and out of a linear layer.

A row's gradient is never formed. For a direction v = (vA, vB) and a LoRA layer
y = W x + s B A x, the layer's output is given a side branch

    y_n + alpha_n * s * (B vA x_n + vB A x_n),    alpha = 0

Then d loss_n / d alpha_n = < gradient of loss_n, v >, one number a row, from one backward pass
through activations. alpha is zero, so the forward pass is unchanged.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clues.data.tokens import EncodedRow
from clues.model.adapters import AdapterState, LoraModel
from clues.model.loss import make_batch, row_losses
from clues.scoring.batches import each_batch, refuse_nonfinite, token_budget_of
from clues.scoring.direction import trainable


@dataclass(frozen=True)
class RowScores:
    """Scores at one checkpoint, before the learning rate.

    Attributes:
        products: (rows, K) inner products of each row's gradient with each direction.
        losses: (rows,) mean response-token loss in nats.
    """

    products: np.ndarray
    losses: np.ndarray


def influence_scores(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    *,
    adapter: AdapterState,
    directions: Sequence[AdapterState],
    token_budget: int | None = None,
    on_rows: Callable[[int], None] | None = None,
    skip_nonfinite: bool = False,
) -> RowScores:
    """Inner product of every row's gradient with every direction.

    products[n, k] = < d loss_n / d adapter, directions[k] >

    To first order, learning_rate * products[n, k] is the drop in mean validation loss, in nats,
    from one step on row n alone. Positive helps, negative hurts.

    Args:
        model: its adapter is set to `adapter`.
        rows: rows to score; batch size, padding and order change nothing.
        adapter: the checkpoint's weights.
        directions: one a validation set, by weight name; absent weights count as zero.
        token_budget: padded tokens a batch to begin with; by the device if None.
        on_rows: called with the number of rows finished, for a progress bar.
        skip_nonfinite: return NaN instead of raising.

    Raises:
        NumericsError: a score or a loss is not finite.
        DataError: one row alone does not fit into memory.

    Source: Pruthi et al. 2020, arXiv 2002.08484 (TracInCP); CLUES, arXiv 2507.03004.
    """
    model.set_state(adapter)
    products = np.zeros((len(rows), len(directions)))
    losses = np.zeros(len(rows))

    def compute(batch: list[int]) -> None:
        with side_branches(model, directions, n_rows=len(batch)) as alpha_NK:
            batch_rows = [rows[i] for i in batch]
            losses_N = row_losses(model.peft, make_batch(batch_rows, device=model.device))
            # The rows' losses are independent, so the gradient of their sum is per row.
            (gradient_NK,) = torch.autograd.grad(losses_N.sum(), alpha_NK)
        products[batch] = gradient_NK.double().cpu().numpy()
        losses[batch] = losses_N.detach().double().cpu().numpy()

    budget = token_budget or token_budget_of(model.device)
    with model.evaluating(), trainable(model.parameters().values(), only=()):
        each_batch(rows, compute, token_budget=budget, on_rows=on_rows)
    refuse_nonfinite(rows, products, losses, skip=skip_nonfinite)
    return RowScores(products, losses)


@contextmanager
def side_branches(
    model: LoraModel, directions: Sequence[AdapterState], *, n_rows: int
) -> Iterator[Tensor]:
    """Hang a side branch on every LoRA layer that a direction touches."""
    parameters = model.parameters()
    modules = dict(model.peft.named_modules())
    dtype = next(iter(parameters.values())).dtype
    alpha_NK = torch.zeros(
        n_rows, len(directions), dtype=dtype, device=model.device, requires_grad=True
    )
    touched = {name.rsplit(".lora_", 1)[0] for d in directions for name in d}
    hooks = []
    try:
        for name in sorted(touched):
            names = (f"{name}.lora_A.weight", f"{name}.lora_B.weight")
            branch = _Branch(
                alpha_NK,
                parameters[names[0]].detach(),
                parameters[names[1]].detach(),
                _stack(directions, names[0], like=parameters[names[0]]),
                _stack(directions, names[1], like=parameters[names[1]]),
                model.scaling,
            )
            hooks.append(modules[name].register_forward_hook(branch))
        yield alpha_NK
    finally:
        for hook in hooks:
            hook.remove()


def _stack(directions: Sequence[Mapping[str, Tensor]], name: str, *, like: Tensor) -> Tensor | None:
    if not any(name in d for d in directions):
        return None
    zero = torch.zeros_like(like)
    return torch.stack([d[name].to(like) if name in d else zero for d in directions])


@dataclass(frozen=True)
class _Branch:
    alpha_NK: Tensor
    a_RI: Tensor
    b_OR: Tensor
    va_KRI: Tensor | None
    vb_KOR: Tensor | None
    scaling: float

    def __call__(self, _: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x_NTI = inputs[0].detach().to(self.a_RI.dtype)
        down_NTR = x_NTI @ self.a_RI.T if self.vb_KOR is not None else None
        va_down = (
            torch.einsum("nti,kri->ntkr", x_NTI, self.va_KRI) if self.va_KRI is not None else None
        )
        return _SideBranch.apply(output, self.alpha_NK, self, down_NTR, va_down)  # pyright: ignore


class _SideBranch(torch.autograd.Function):
    """output + the branch at alpha = 0, of which only the gradient by alpha is not trivial.

    The branch itself, as wide as the output, is never made: with g the gradient by the output,

        d loss_n / d alpha_nk = s * sum_t < B' g, vA_k x > + < vB_k' g, A x >

    in the R-dimensional space between the factors.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, alpha_NK: Tensor, branch: _Branch, *downs: Tensor | None):
        ctx.branch = branch
        ctx.save_for_backward(*downs)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        (g_NTO,), branch = gradients, ctx.branch
        down_NTR, va_down_NTKR = ctx.saved_tensors
        g = g_NTO.to(branch.a_RI.dtype)
        total_NK = torch.zeros_like(branch.alpha_NK)
        if va_down_NTKR is not None:
            total_NK = total_NK + torch.einsum("ntr,ntkr->nk", g @ branch.b_OR, va_down_NTKR)
        if down_NTR is not None:
            up_NTKR = torch.einsum("nto,kor->ntkr", g, branch.vb_KOR)
            total_NK = total_NK + torch.einsum("ntkr,ntr->nk", up_NTKR, down_NTR)
        return g_NTO, branch.scaling * total_NK, None, None, None
