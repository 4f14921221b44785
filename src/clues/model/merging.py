"""Several adapters into one: exact average, best low-rank average, task arithmetic, TIES, DARE.

K adapters, R rank, I and O features in and out. One module's update is s * B A; the scaling s is
the same everywhere, so it cancels out of everything below.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from peft.utils.merge_utils import dare_linear, ties
from scipy.optimize import minimize
from torch import Tensor

from clues.config import CombineSettings
from clues.errors import DataError, NumericsError
from clues.model.adapters import AdapterState, check_state


@dataclass(frozen=True)
class Merged:
    """A joint adapter.

    Attributes:
        adapter: its rank may differ from the silos' (see each function).
        energy_lost: share of the squared norm of the wanted update that re-compression to a
            lower rank threw away; 0 where the result is exact.
    """

    adapter: AdapterState
    energy_lost: float


def aggregate(
    adapters: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    *,
    method: Literal["ffa", "svd", "factors", "stack"],
) -> Merged:
    """Average adapters of one round, at the rank they have; stack at the sum of the ranks.

    ffa:     every A is the same, so averaging B averages the updates exactly.
    svd:     the exact average of B A, cut to the best approximation of the same rank.
    stack:   the exact average of B A, factors one beside the other: rank K R (FLoRA, 2409.05976).
    factors: A and B averaged apart. This is NOT the average of the updates; it is here because
             other federated LoRA systems do it.

    Args:
        adapters: K states of the same names and shapes.
        weights: one per silo, not negative; normalised here.
        method: see above.

    Raises:
        DataError: nothing to average, all weights zero, shapes differ, or A differs under ffa.
        NumericsError: a weight is not finite.
    """
    shares = normalised(weights, n_adapters=len(adapters))
    for state in adapters:
        check_state(state, like=adapters[0])
    if method == "ffa":
        for name in adapters[0]:
            same = all(torch.equal(state[name], adapters[0][name]) for state in adapters)
            if ".lora_A." in name and not same:
                raise DataError(f"aggregation ffa: {name} differs between silos. Use svd.")
    if method == "stack":
        return Merged(stack(adapters, shares), 0.0)
    # Generators: adapters may lie on disk, and then one weight of one silo is in memory.
    if method in ("ffa", "factors"):
        merged = {n: _weighted_sum((s[n] for s in adapters), shares) for n in adapters[0]}
        if method == "ffa":
            merged |= {n: t.clone() for n, t in adapters[0].items() if ".lora_A." in n}
        return Merged(merged, 0.0)
    wanted = {
        m: _weighted_sum((update(state, m) for state in adapters), shares)
        for m in modules(adapters[0])
    }
    rank = next(t.shape[0] for n, t in adapters[0].items() if ".lora_A." in n)
    return factorise(wanted, rank=rank)


def merge(
    adapters: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    settings: CombineSettings,
    *,
    seed: int,
) -> Merged:
    """Merge adapters once, after separate trainings.

    average:         sum_k w_k B_k A_k, exactly, by stacking the factors: rank K R.
    task_arithmetic: scale * sum_k B_k A_k, exactly, the same way.
    ties:            TIES on the updates B_k A_k (not on the factors), scale * K times the shares
                     as weights, re-factorised without loss: rank min(K R, I, O) or what it needs.
    dare:            DARE (drop and rescale, then weighted sum) on the updates, likewise.

    Raises:
        DataError: nothing to merge, all weights zero, or shapes differ.

    Source: Ilharco et al. 2023 (2212.04089), Yadav et al. 2023 (2306.01708), Yu et al. 2024
    (2311.03099); TIES and DARE are PEFT's.
    """
    shares = normalised(weights, n_adapters=len(adapters))
    for state in adapters:
        check_state(state, like=adapters[0])
    if settings.method == "average":
        return Merged(stack(adapters, shares), 0.0)
    if settings.method == "task_arithmetic":
        return Merged(stack(adapters, [settings.scale] * len(adapters)), 0.0)
    every = [updates(state) for state in adapters]
    merged: AdapterState = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in modules(adapters[0]):
            deltas = [u[module] for u in every]
            factors = torch.tensor(shares) * settings.scale
            if settings.method == "ties":
                # TIES averages what survives by sign; shares keep larger silos louder.
                merged[module] = ties(deltas, factors * len(deltas), settings.density)
            else:
                merged[module] = dare_linear(deltas, factors, settings.density)
    return factorise(merged, rank=None)


def stack(adapters: Sequence[Mapping[str, Tensor]], factors: Sequence[float]) -> AdapterState:
    """sum_k factor_k B_k A_k without any loss: A one above the other, B side by side."""
    stacked: AdapterState = {}
    for module in modules(adapters[0]):
        a, b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        stacked[a] = torch.cat([state[a] for state in adapters], dim=0)
        stacked[b] = torch.cat(
            [f * state[b] for f, state in zip(factors, adapters, strict=True)], dim=1
        )
    return stacked


def adaptive_shares(
    adapters: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    loss_and_gradient: Callable[[AdapterState], tuple[float, Mapping[str, Tensor]]],
) -> list[float]:
    """K scalars that make the weighted sum of the updates best on public validation rows.

    minimise L(sum_k w_k B_k A_k) over 0 <= w_k <= 1, starting from the shares of rows

    CLUES names adaptive weights and gives no rule; this one is ours. The scalars need not sum to
    one: less than one shrinks what all silos overdo. K numbers can hardly overfit the validation
    rows, but what is best for them is all that is claimed.

    Args:
        adapters: K states.
        weights: one per silo, the starting point; normalised here. A silo of weight 0 stays out.
        loss_and_gradient: mean validation loss in nats at a stacked adapter of rank K R, and its
            gradient for every weight.

    Returns:
        The scalars, after at most 20 steps of L-BFGS-B (scipy); deterministic.
    """
    start = normalised(weights, n_adapters=len(adapters))
    plain = stack(adapters, [1.0] * len(adapters))
    ranks = [next(t.shape[0] for n, t in s.items() if ".lora_A." in n) for s in adapters]

    def objective(scalars_K: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = loss_and_gradient(stack(adapters, scalars_K.tolist()))
        slope_K = np.zeros(len(adapters))
        for module in modules(plain):
            name = f"{module}.lora_B.weight"
            # B of the stack is w_k B_k in block k, so dL/dw_k is that block's inner product.
            product = (gradient[name].double() * plain[name].double()).sum(dim=0)
            slope_K += [float(block.sum()) for block in product.split(ranks)]
        return loss, slope_K

    limits = [(0.0, 1.0 if share > 0 else 0.0) for share in start]
    found = minimize(
        objective, start, jac=True, bounds=limits, method="L-BFGS-B", options={"maxiter": 20}
    )
    return [float(w) for w in found.x]


def modules(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the adapted modules, in order."""
    return sorted(n.removesuffix(".lora_A.weight") for n in state if n.endswith(".lora_A.weight"))


def update(state: Mapping[str, Tensor], module: str) -> Tensor:
    """B A of one module: what the adapter adds to the weight, before the scaling."""
    return state[f"{module}.lora_B.weight"].double() @ state[f"{module}.lora_A.weight"].double()


def updates(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """B A of every module."""
    return {m: update(state, m) for m in modules(state)}


def factorise(wanted: dict[str, Tensor], *, rank: int | None) -> Merged:
    """Split updates into factors of one rank; `None` takes the smallest that loses nothing."""
    parts = {
        m: torch.linalg.svd(update.double(), full_matrices=False) for m, update in wanted.items()
    }
    if rank is None:
        needed = [int((s > s.max().clamp_min(1e-30) * 1e-7).sum()) for _, s, _ in parts.values()]
        rank = max(1, *needed)
    state: AdapterState = {}
    kept = total = 0.0
    for module, (u_OR, s_R, v_RI) in parts.items():
        root_R = s_R[:rank].sqrt()
        b_OR, a_RI = u_OR[:, :rank] * root_R, root_R[:, None] * v_RI[:rank]
        # A module smaller than the rank gets rows and columns of zeros: all share one rank.
        pad = rank - len(root_R)
        state[f"{module}.lora_A.weight"] = torch.nn.functional.pad(a_RI, (0, 0, 0, pad)).float()
        state[f"{module}.lora_B.weight"] = torch.nn.functional.pad(b_OR, (0, pad)).float()
        kept += float((s_R[:rank] ** 2).sum())
        total += float((s_R**2).sum())
    return Merged(state, max(0.0, 1 - kept / total) if total else 0.0)


def normalised(weights: Sequence[float], *, n_adapters: int) -> list[float]:
    """Weights that sum to one.

    Raises:
        DataError: none, another number than adapters, a negative one, or all zero.
        NumericsError: one is not finite.
    """
    if not weights or len(weights) != n_adapters:
        raise DataError(f"{n_adapters} adapters and {len(weights)} weights: cannot be combined.")
    tensor = torch.tensor(list(weights), dtype=torch.float64)
    if not torch.isfinite(tensor).all():
        raise NumericsError("a silo's weight is not finite.")
    if (tensor < 0).any() or tensor.sum() == 0:
        raise DataError("the silos' weights must not be negative, and one must be above zero.")
    return (tensor / tensor.sum()).tolist()


def _weighted_sum(tensors: Iterable[Tensor], shares: Sequence[float]) -> Tensor:
    # float64: the order of the silos must not show in the last digits of float32.
    total, dtype = torch.zeros((), dtype=torch.float64), torch.float64
    for share, tensor in zip(shares, tensors, strict=True):
        total, dtype = total + share * tensor.double(), tensor.dtype
    return total.to(dtype)
