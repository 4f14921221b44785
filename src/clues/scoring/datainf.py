"""DataInf: the validation gradient times a closed-form inverse Hessian of the training rows."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from clues.data.tokens import EncodedRow
from clues.model.adapters import AdapterState, LoraModel
from clues.model.devices import wide
from clues.scoring.gradients import each_gradient


def datainf_direction(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    *,
    adapter: AdapterState,
    gradient: AdapterState,
    damping: float = 0.1,
    on_rows: Callable[[int], None] | None = None,
) -> AdapterState:
    """Validation gradient, multiplied by DataInf's inverse Hessian of the training rows.

    Weight by weight l, with g_i the rows' gradients, n rows of d_l numbers:

        lambda_l    = damping * mean_i |g_i|^2 / d_l
        direction_l = (1 / lambda_l) * mean_i ( v - <g_i, v> / (lambda_l + |g_i|^2) g_i )

    A row's score is then its inner product with this direction: linear, so the side branch does
    it. Positive helps.

    Args:
        model: its adapter is set to `adapter`.
        rows: the rows whose gradients make the Hessian.
        adapter: the checkpoint's weights.
        gradient: v, the mean validation gradient by weight.
        damping: factor of lambda; the paper's 0.1.
        on_rows: called with the number of rows finished; two passes are made.

    Rows whose gradients are not finite do not count.

    Source: Kwon et al. 2024, DataInf, arXiv 2310.00902, equation 5.
    """
    weights = sorted(gradient)
    v = {name: t.to(model.device) for name, t in gradient.items()}
    squares = {name: torch.zeros(len(rows), dtype=torch.float64) for name in weights}

    def measure(batch: Sequence[int], name: str, g: Tensor) -> None:
        squares[name][list(batch)] = wide(g.flatten(1).square().sum(dim=1)).cpu()

    options: dict[str, Any] = {"adapter": adapter, "weights": weights, "on_rows": on_rows}
    each_gradient(model, rows, on_gradient=measure, **options)
    # A row whose gradient overflows has no say in the Hessian; with it, no score would be finite.
    counts = torch.stack([torch.isfinite(s) for s in squares.values()]).all(dim=0)
    n_rows = max(1, int(counts.sum()))
    squares = {name: torch.where(counts, s, 0.0) for name, s in squares.items()}
    ridge = {n: damping * float(s.sum()) / n_rows / v[n].numel() for n, s in squares.items()}
    correction = {name: torch.zeros_like(t) for name, t in v.items()}

    def add(batch: Sequence[int], name: str, g: Tensor) -> None:
        kept_N1 = counts[list(batch)].to(g.device)[:, None]
        flat_NP = torch.where(kept_N1, g.flatten(1), 0.0)
        product_N = flat_NP @ v[name].to(g).flatten()
        share_N = product_N / (ridge[name] + squares[name][list(batch)].to(g))
        correction[name] += (share_N @ flat_NP).view_as(correction[name])

    each_gradient(model, rows, on_gradient=add, **options)
    silent = {name for name, value in ridge.items() if value == 0}
    return {
        # A weight that no row's gradient touches has no curvature and no say.
        name: torch.zeros_like(gradient[name])
        if name in silent
        else ((v[name] - correction[name] / n_rows) / ridge[name]).cpu()
        for name in weights
    }
