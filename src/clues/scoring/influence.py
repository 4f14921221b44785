"""The CLUES score of rows at one checkpoint, by a side branch.

N rows in a batch, T tokens, K directions, R rank, I and O features in and out of a linear layer.

A row's gradient is never formed. For a direction v = (vA, vB) and a LoRA layer
y = W x + s B A x, the layer's output is given a side branch

    y_n + alpha_n * s * (B vA x_n + vB A x_n),    alpha = 0

Then d loss_n / d alpha_n = < gradient of loss_n, v >, one number per row, from one backward pass
through activations. alpha is zero, so the branch itself, as wide as the output, is never made: with
g the gradient by the output of B,

    d loss_n / d alpha_nk = sum_t < B' g, vA_k x > + < vB_k' g, A x >

in the R-dimensional space between the factors. A and vA share one matrix product on the way
forward, B and vB one on the way back, so a direction costs little more than width. Not where the
weights train: a wider product may round its first columns otherwise, and watching must not change
the training by a single bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clues.data.batching import token_budget_of
from clues.data.tokens import EncodedRow
from clues.model.adapters import AdapterState, LoraModel
from clues.model.devices import wide
from clues.model.loss import make_batch, row_losses
from clues.scoring.batches import each_batch, refuse_nonfinite
from clues.scoring.direction import trainable
from clues.scoring.layout import Layout, watched


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
        directions: one per validation set, by weight name; absent weights count as zero.
        token_budget: padded tokens per batch to begin with; by the device if None.
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
            tensors = make_batch(batch_rows, device=model.device)
            losses_N = row_losses(model.peft, tensors, head=model.head)
            # The rows' losses are independent, so the gradient of their sum is per row.
            (gradient_NK,) = torch.autograd.grad(losses_N.sum(), alpha_NK)
        products[batch] = wide(gradient_NK).cpu().numpy()
        losses[batch] = wide(losses_N.detach()).cpu().numpy()

    budget = token_budget or token_budget_of(model.device)
    with model.evaluating(), trainable(model.parameters().values(), only=()):
        each_batch(rows, compute, token_budget=budget, on_rows=on_rows)
    refuse_nonfinite(rows, products, losses, skip=skip_nonfinite)
    return RowScores(products, losses)


@contextmanager
def side_branches(
    model: LoraModel, directions: Sequence[AdapterState], *, n_rows: int
) -> Iterator[Tensor]:
    """Hang a side branch on every LoRA layer that a direction touches.

    Yields:
        alpha, (n_rows, K) zeros, whose gradient are the rows' inner products. Training goes on
        through the same layers: outputs and weight gradients are what they are without branches.
    """
    parameters = model.parameters()
    dtype = next(iter(parameters.values())).dtype
    alpha_NK = torch.zeros(
        n_rows, len(directions), dtype=dtype, device=model.device, requires_grad=True
    )
    touched = {name.rsplit(".lora_", 1)[0] for d in directions for name in d}
    fused = not any(p.requires_grad for p in parameters.values())
    patched: list[torch.nn.Module] = []
    layout = Layout(n_rows)
    with ExitStack() as stack:
        stack.callback(_unpatch, patched)
        stack.enter_context(watched(model.peft.get_base_model(), layout))
        for name in sorted(touched):
            layer: Any = model.peft.get_submodule(name)
            (adapter,) = layer.active_adapters
            factors = (layer.lora_A[adapter], layer.lora_B[adapter])
            branch = _Branch(
                alpha_NK,
                *(
                    _stack(directions, f"{name}.lora_{ab}.weight", like=f.weight)
                    for ab, f in zip("AB", factors, strict=True)
                ),
                fused=fused,
                layout=layout,
            )
            for factor, forward in zip(factors, (branch.down, branch.up), strict=True):
                # An instance's own forward goes before its class'; deleting it brings that back.
                factor.forward = partial(forward, factor)
                patched.append(factor)
        yield alpha_NK


def _unpatch(factors: list[torch.nn.Module]) -> None:
    for factor in factors:
        del factor.forward


def _stack(directions: Sequence[Mapping[str, Tensor]], name: str, *, like: Tensor) -> Tensor | None:
    if not any(name in d for d in directions):
        return None
    zero = torch.zeros_like(like)
    return torch.stack([d[name].to(like) if name in d else zero for d in directions])


class _Branch:
    """What stands in for the forward passes of one layer's A and B.

    Args:
        alpha_NK: where the gradient goes.
        va_KRI: directions of A, None where none touches it.
        vb_KOR: directions of B, likewise.
        fused: weights and directions share matrix products.
        layout: which positions are whose.
    """

    def __init__(
        self,
        alpha_NK: Tensor,
        va_KRI: Tensor | None,
        vb_KOR: Tensor | None,
        *,
        fused: bool,
        layout: Layout,
    ) -> None:
        self.alpha_NK, self.fused, self.by_row = alpha_NK, fused, layout.by_row
        self.va = None if va_KRI is None else va_KRI.flatten(0, 1)
        self.vb = None if vb_KOR is None else vb_KOR.movedim(0, 1).flatten(1)
        self.va_down: Tensor | None = None

    def down(self, factor: torch.nn.Linear, x_NTI: Tensor) -> Tensor:
        down_NTR, self.va_down = _Down.apply(x_NTI, factor.weight, self)  # pyright: ignore
        return down_NTR

    def up(self, factor: torch.nn.Linear, down_NTR: Tensor) -> Tensor:
        return _Up.apply(down_NTR, factor.weight, self.alpha_NK, self.va_down, self)  # pyright: ignore


class _Down(torch.autograd.Function):
    """A x, and beside it vA x, which has no gradient."""

    @staticmethod
    def forward(ctx: Any, x_NTI: Tensor, a_RI: Tensor, branch: _Branch):
        ctx.save_for_backward(x_NTI if ctx.needs_input_grad[1] else None, a_RI)
        if branch.va is None:
            return F.linear(x_NTI, a_RI), None
        if branch.fused:
            both = F.linear(x_NTI, torch.cat([a_RI, branch.va]))
            down_NTR, va_down = both.split([len(a_RI), len(branch.va)], dim=-1)
        else:
            down_NTR, va_down = F.linear(x_NTI, a_RI), F.linear(x_NTI, branch.va)
        ctx.mark_non_differentiable(va_down)
        return down_NTR, va_down

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        x_NTI, a_RI = ctx.saved_tensors
        g_NTR = gradients[0]
        needs_x, needs_a, _ = ctx.needs_input_grad
        # Under autocast the passes run in bfloat16 while weights and inputs are float32.
        g_a = g_NTR.flatten(0, -2).T @ x_NTI.to(g_NTR).flatten(0, -2) if needs_a else None
        return g_NTR @ a_RI.to(g_NTR) if needs_x else None, g_a, None


class _Up(torch.autograd.Function):
    """B h for h = A x; its gradient by alpha is that of the branch."""

    @staticmethod
    def forward(
        ctx: Any,
        down_NTR: Tensor,
        b_OR: Tensor,
        alpha_NK: Tensor,
        va_down: Tensor | None,
        branch: _Branch,
    ):
        ctx.branch = branch
        ctx.save_for_backward(down_NTR, b_OR, va_down)
        return F.linear(down_NTR, b_OR)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        (g_NTO,) = gradients
        down_NTR, b_OR, va_down = ctx.saved_tensors
        branch, rank = ctx.branch, b_OR.shape[1]
        b_OR = b_OR.to(g_NTO)
        vb = None if branch.vb is None else branch.vb.to(g_NTO)
        split = (branch.alpha_NK.shape[1], rank)
        if vb is not None and branch.fused:
            back = g_NTO @ torch.cat([b_OR, vb], dim=1)
            g_NTR, up = back[..., :rank], back[..., rank:]
        else:
            g_NTR, up = g_NTO @ b_OR, None if vb is None else g_NTO @ vb
        total_NK = torch.zeros_like(branch.alpha_NK)
        if va_down is not None:
            va_down_NTKR = branch.by_row(va_down).unflatten(-1, split)
            total_NK += torch.einsum("ntr,ntkr->nk", branch.by_row(g_NTR), va_down_NTKR)
        if up is not None:
            up_NTKR = branch.by_row(up).unflatten(-1, split)
            total_NK += torch.einsum("ntkr,ntr->nk", up_NTKR, branch.by_row(down_NTR))
        needs_down, needs_b = ctx.needs_input_grad[:2]
        g_b = g_NTO.flatten(0, -2).T @ down_NTR.flatten(0, -2) if needs_b else None
        return g_NTR if needs_down else None, g_b, total_NK, None, None
