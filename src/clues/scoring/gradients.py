"""Per-sample LoRA gradients, layer by layer, for scores that are not linear in the gradient.

N rows in a batch, T tokens, K directions, R rank, I and O features in and out of a linear layer.

For a LoRA layer y = W x + s B A x and g the gradient of the row's loss by y,

    d loss_n / dA = s * sum_t (B' g_nt) x_nt',    d loss_n / dB = s * sum_t g_nt (A x_nt)'

One backward pass through activations gives g for all rows of a batch at once. A layer's gradients
are handed on and forgotten before the next layer's exist.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clues.data.batching import token_budget_of
from clues.data.tokens import EncodedRow
from clues.errors import DataError
from clues.model.adapters import AdapterState, Checkpoint, LoraModel
from clues.model.devices import wide
from clues.model.loss import make_batch, row_losses
from clues.scoring.batches import each_batch, refuse_nonfinite
from clues.scoring.direction import ADAM_EPS, trainable
from clues.scoring.layout import Layout, watched

# (positions of the batch's rows, weight name, gradient of shape (N, *weight))
OnGradient = Callable[[Sequence[int], str, Tensor], None]
Transform = Callable[[str, Tensor], Tensor]


def each_gradient(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    *,
    adapter: AdapterState,
    weights: Sequence[str],
    on_gradient: OnGradient,
    on_rows: Callable[[int], None] | None = None,
    on_retry: Callable[[list[int]], None] | None = None,
    token_budget: int | None = None,
    skip_nonfinite: bool = False,
) -> np.ndarray:
    """Hand every row's gradient in every weight to `on_gradient`, a batch and a weight at a time.

    Args:
        model: its adapter is set to `adapter`.
        rows: batch size, padding and order change nothing.
        adapter: the checkpoint's weights.
        weights: names of the LoRA weights asked for.
        on_gradient: called once a batch and weight; must not keep the tensor.
        on_rows: called with the number of rows finished.
        on_retry: called with a batch that ran out of memory and is done again in parts: what
            `on_gradient` made of it must be forgotten.
        token_budget: padded tokens per batch to begin with; by the device if None.
        skip_nonfinite: return NaN instead of raising.

    Returns:
        losses_N: mean response-token loss of every row, in nats.

    Raises:
        NumericsError: a loss is not finite.
    """
    model.set_state(adapter)
    losses = np.zeros(len(rows))

    def compute(batch: list[int]) -> None:
        with _taps(model, weights, batch, on_gradient) as root:
            tensors = make_batch([rows[i] for i in batch], device=model.device)
            losses_N = row_losses(model.peft, tensors, head=model.head)
            # The rows' losses are independent, so what reaches a layer is per row.
            torch.autograd.grad(losses_N.sum(), root)
        losses[batch] = wide(losses_N.detach()).cpu().numpy()

    budget = token_budget or token_budget_of(model.device)
    with model.evaluating(), trainable(model.parameters().values(), only=()):
        each_batch(rows, compute, token_budget=budget, on_rows=on_rows, on_retry=on_retry)
    refuse_nonfinite(rows, losses, skip=skip_nonfinite, what="loss")
    return losses


@dataclass(frozen=True)
class Products:
    """What rows' gradients have to do with directions, at one checkpoint.

    Attributes:
        products: (rows, K) inner products of each row's (transformed) gradient and each direction.
        norms: (rows,) Euclidean norms of the rows' (transformed) gradients.
        direction_norms: (K,) norms of the directions over the same weights.
        losses: (rows,) mean response-token loss in nats.
    """

    products: np.ndarray
    norms: np.ndarray
    direction_norms: np.ndarray
    losses: np.ndarray

    @property
    def cosines(self) -> np.ndarray:
        """(rows, K) cosines; 0 where a gradient is zero."""
        lengths = self.norms[:, None] * self.direction_norms[None, :]
        return np.divide(
            self.products, lengths, out=np.zeros_like(self.products), where=lengths > 0
        )


def transformed_products(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    *,
    adapter: AdapterState,
    directions: Sequence[AdapterState],
    transforms: Mapping[str, Transform | None],
    on_rows: Callable[[int], None] | None = None,
    token_budget: int | None = None,
    skip_nonfinite: bool = False,
) -> dict[str, Products]:
    """Inner products and norms from explicit per-sample gradients, under several transforms.

    products[n, k] = < u(g_n), directions[k] >,    norms[n] = | u(g_n) |

    with u one of `transforms`, the identity for None; one backward pass serves them all. Where u is
    the identity, the side branch of `influence.py` gives the same products for less.

    Raises:
        NumericsError: a product or a loss is not finite.
    """
    weights = sorted({name for d in directions for name in d})
    stacked = {
        name: torch.stack(
            [d[name] if name in d else torch.zeros_like(adapter[name]) for d in directions]
        ).to(model.device)
        for name in weights
    }
    products = {key: np.zeros((len(rows), len(directions))) for key in transforms}
    squares = {key: np.zeros(len(rows)) for key in transforms}

    def add(batch: Sequence[int], name: str, gradient: Tensor) -> None:
        d_KP = stacked[name].to(gradient).flatten(1)
        for key, transform in transforms.items():
            flat_NP = (transform(name, gradient) if transform else gradient).flatten(1)
            products[key][batch] += wide(flat_NP @ d_KP.T).cpu().numpy()
            squares[key][batch] += wide(flat_NP.square().sum(dim=1)).cpu().numpy()

    def forget(batch: list[int]) -> None:
        for key in transforms:
            products[key][batch] = 0.0
            squares[key][batch] = 0.0

    losses = each_gradient(
        model,
        rows,
        adapter=adapter,
        weights=weights,
        on_gradient=add,
        on_rows=on_rows,
        on_retry=forget,
        token_budget=token_budget,
        skip_nonfinite=skip_nonfinite,
    )
    refuse_nonfinite(rows, *products.values(), *squares.values(), skip=skip_nonfinite)
    direction_squares = sum(wide(d).flatten(1).square().sum(dim=1) for d in stacked.values())
    assert isinstance(direction_squares, Tensor)
    lengths = direction_squares.sqrt().cpu().numpy()
    return {
        key: Products(products[key], np.sqrt(squares[key]), lengths, losses) for key in transforms
    }


def adam_update(checkpoint: Checkpoint) -> Transform:
    """What Adam would make of a row's gradient: the transform of the published scores.

    u(g) = (0.9 m + 0.1 g) / sqrt(0.999 v + 0.001 g^2 + 1e-8)

    with m and v the running means as the optimiser keeps them, not corrected for their bias.

    Raises:
        DataError: the checkpoint has no first or second moment of a weight, when it is called.

    Source: the published code of CLUES, after LESS (Xia et al. 2024, arXiv 2402.04333).
    """
    n_steps = checkpoint.optimizer_steps

    def update(name: str, gradient: Tensor) -> Tensor:
        if name not in checkpoint.first_moment or name not in checkpoint.second_moment:
            raise DataError(
                f"checkpoint at step {checkpoint.step}: no optimiser state for {name}. Train "
                "again, or set recipe.score.form: adam."
            )
        m = checkpoint.first_moment[name].to(gradient) * (1 - 0.9**n_steps)
        v = checkpoint.second_moment[name].to(gradient) * (1 - 0.999**n_steps)
        return (0.9 * m + 0.1 * gradient) / (
            0.999 * v + 0.001 * gradient.square() + ADAM_EPS
        ).sqrt()

    return update


@contextmanager
def _taps(
    model: LoraModel, weights: Sequence[str], batch: Sequence[int], on_gradient: OnGradient
) -> Iterator[Tensor]:
    """Tap every LoRA layer that holds one of the weights; yields the root of the graph."""
    parameters = model.parameters()
    root = torch.zeros((), dtype=next(iter(parameters.values())).dtype, device=model.device)
    root.requires_grad_()
    layout, taps = Layout(len(batch)), []
    with ExitStack() as stack:
        stack.enter_context(watched(model.peft.get_base_model(), layout))
        for name in sorted({weight.rsplit(".lora_", 1)[0] for weight in weights}):
            names = (f"{name}.lora_A.weight", f"{name}.lora_B.weight")
            tap = _Tap(
                batch,
                names,
                tuple(n in weights for n in names),
                parameters[names[0]].detach(),
                parameters[names[1]].detach(),
                model.scaling,
                on_gradient,
                root,
                layout,
            )
            taps.append(tap)
            stack.callback(model.peft.get_submodule(name).register_forward_hook(tap).remove)
        yield root
        for tap in taps:
            tap.finish()


@dataclass
class _Tap:
    """One layer of a batch.

    A layer that a model uses several times has one gradient: the sum over its uses.
    """

    batch: Sequence[int]
    names: tuple[str, str]
    wanted: tuple[bool, ...]
    a_RI: Tensor
    b_OR: Tensor
    scaling: float
    on_gradient: OnGradient
    root: Tensor
    layout: Layout
    n_open: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, _: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self.n_open += 1
        return _Listen.apply(output, self.root, self, inputs[0].detach())  # pyright: ignore

    def hear(self, g_NTO: Tensor, x_NTI: Tensor) -> None:
        g = self.layout.by_row(g_NTO.to(self.a_RI.dtype))
        x = self.layout.by_row(x_NTI.to(self.a_RI.dtype))
        if self.wanted[0]:
            a_NRI = torch.einsum("ntr,nti->nri", g @ self.b_OR, x)
            self._add(self.names[0], self.scaling * a_NRI)
        if self.wanted[1]:
            b_NOR = torch.einsum("nto,ntr->nor", g, x @ self.a_RI.T)
            self._add(self.names[1], self.scaling * b_NOR)
        self.n_open -= 1
        if self.n_open == 0:
            self.finish()

    def _add(self, name: str, gradient: Tensor) -> None:
        self.sums[name] = self.sums[name] + gradient if name in self.sums else gradient

    def finish(self) -> None:
        """Hand on what was heard; some uses may have no part in the loss."""
        sums, self.sums = self.sums, {}
        for name, gradient in sums.items():
            self.on_gradient(self.batch, name, gradient)


class _Listen(torch.autograd.Function):
    """The identity; on the way back it shows the gradient by the output to a tap."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, root: Tensor, tap: _Tap, x_NTI: Tensor) -> Tensor:
        ctx.tap = tap
        ctx.save_for_backward(x_NTI)
        # Not a view: Falcon changes what a layer gives in place.
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.tap.hear(gradients[0], *ctx.saved_tensors)
        return gradients[0], torch.zeros_like(ctx.tap.root), None, None
