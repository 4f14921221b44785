"""Training with per-example differential privacy: clipping, noise and accounting are Opacus'.

The loop is our own, because the Trainer draws batches of a fixed size, where the accounting needs
each row drawn by itself (Poisson), and clears gradients in a way that leaves the per-row ones.
"""

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from clues.config import TrainSettings
from clues.data.tokens import EncodedRow
from clues.model.adapters import AdapterState, Checkpoint, LoraModel
from clues.model.head import Head
from clues.model.loss import make_batch, row_losses
from clues.model.recording import Schedule
from clues.model.training import Trained

log = logging.getLogger("clues")
# One part of a training: noise multiplier, sample rate, steps.
Spent = tuple[float, float, int]


@cache
def noise_for(epsilon: float, delta: float, *, sample_rate: float, n_steps: int) -> float:
    """Noise multiplier with which `n_steps` steps cost at most `epsilon` (Opacus, RDP)."""
    from opacus.accountants.utils import get_noise_multiplier

    with warnings.catch_warnings():
        # Opacus says when the best order is the largest it tries; the bound still holds.
        warnings.simplefilter("ignore", UserWarning)
        return get_noise_multiplier(
            target_epsilon=epsilon, target_delta=delta, sample_rate=sample_rate, steps=n_steps
        )


def epsilon_of(history: Sequence[Spent], *, delta: float) -> float:
    """Epsilon of everything in a history together (Opacus, RDP)."""
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = list(history)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return float(accountant.get_epsilon(delta=delta)) if history else 0.0


def train_privately(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    *,
    start: AdapterState,
    settings: TrainSettings,
    schedule: Schedule,
    n_steps: int,
    seed: int,
    noise: float,
    max_grad_norm: float,
    n_told: int | None = None,
    first_step: int = 0,
    checkpoint_at: Sequence[int] = (),
    on_step: Callable[[], None] | None = None,
) -> Trained:
    """Run `n_steps` AdamW steps whose gradients are clipped row by row and noised.

    gradient = (sum over drawn rows of clip(g, max_grad_norm) + noise * max_grad_norm * N(0, 1)) / B

    Each row is drawn with probability B / rows in each step; B is `settings.batch_size`, or the
    number of rows if that is smaller.

    Args:
        model: is left with the trained adapter.
        rows: training rows.
        start: adapter to begin from.
        settings: batch size and weight decay.
        schedule: learning rate, counted from `first_step`.
        n_steps: optimiser steps to take now.
        seed: of rows drawn, dropout and noise; must be secret, who knows it can take the noise off.
            All of its bits count. A generator of torch takes 32, which can be tried one by one.
        noise: multiplier.
        max_grad_norm: to which a row's gradient over all trained weights is clipped.
        n_told: number of rows as others know it, from which the probability follows; None for the
            exact one.
        first_step: steps of the schedule that earlier calls have taken.
        checkpoint_at: one-based steps of this call after which to save.
        on_step: called after every step.

    A row whose gradient is not finite counts as zero: a training that failed for it, or an adapter
    that is not finite, would tell of that row without any noise.

    Source: Abadi et al. 2016 (1607.00133).
    """
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    model.set_state(start)
    n_rows = len(rows) if n_told is None else n_told
    parameters = {n: p for n, p in model.parameters().items() if p.requires_grad}
    drawing, noising = (
        np.random.Generator(np.random.Philox(part))
        for part in np.random.SeedSequence(seed).spawn(2)
    )
    inner = torch.optim.AdamW(
        list(parameters.values()), lr=schedule.peak, weight_decay=settings.weight_decay
    )
    batch = min(settings.batch_size, n_rows)
    # Opacus clips; its own noise would come from a generator of torch.
    optimizer: Any = DPOptimizer(
        inner, noise_multiplier=0.0, max_grad_norm=max_grad_norm, expected_batch_size=batch
    )

    def add_noise(_: Any) -> None:
        for parameter in parameters.values():
            normal = torch.from_numpy(noising.standard_normal(parameter.shape, dtype=np.float32))
            assert parameter.grad is not None
            parameter.grad += normal.to(parameter.grad) * (noise * max_grad_norm / batch)

    optimizer.attach_step_hook(add_noise)
    rate = min(1.0, settings.batch_size / n_rows)
    checkpoints: list[Checkpoint] = []
    losses: list[float] = []
    model.peft.train()
    wrapped = GradSampleModule(model.peft, strict=False)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**32)
            for step in range(n_steps):
                now = schedule.peak * schedule.factor(first_step + step)
                for group in inner.param_groups:
                    group["lr"] = now
                drawn = drawing.random(len(rows)) < rate
                chosen = [row for row, taken in zip(rows, drawn.tolist(), strict=True) if taken]
                optimizer.zero_grad()
                losses += _gradients(wrapped, chosen, model.device, parameters, head=model.head)
                optimizer.step()
                if step + 1 in checkpoint_at:
                    second, first = (
                        _moment(inner, parameters, key, beta, step + 1)
                        for key, beta in (("exp_avg_sq", 1), ("exp_avg", 0))
                    )
                    point = (first_step + step + 1, now, model.state(), second, first, step + 1)
                    checkpoints.append(Checkpoint(*point))
                if on_step:
                    on_step()
            optimizer.zero_grad()
    finally:
        wrapped.to_standard_module()
        model.peft.eval()
        for parameter in parameters.values():
            parameter.grad = None
    return Trained(model.state(), tuple(checkpoints), sum(losses) / max(1, len(losses)))


def _gradients(
    wrapped: Any,
    rows: Sequence[EncodedRow],
    device: torch.device,
    parameters: AdapterState | dict[str, torch.nn.Parameter],
    *,
    head: Head | None,
) -> list[float]:
    """Leave every row's gradient where the optimiser looks for it; return the batch's loss."""
    if not rows:
        # Nobody was drawn: the step is noise alone.
        for parameter in parameters.values():
            parameter.grad_sample = torch.zeros(0, *parameter.shape, device=device)  # pyright: ignore[reportAttributeAccessIssue]
        return []
    loss = row_losses(wrapped, make_batch(rows, device=device), head=head).mean()
    loss.backward()
    samples = {n: p.grad_sample for n, p in parameters.items()}  # pyright: ignore[reportAttributeAccessIssue]
    finite = [torch.isfinite(grad.flatten(1)).all(1) for grad in samples.values()]
    lost_B = ~torch.stack(finite).all(0)
    for grad in samples.values():
        grad[lost_B] = 0.0
    if lost_B.any():
        log.warning(
            "%d rows of a batch count as zero, because their gradients are not finite. Lower the "
            "learning rate, or use float32.",
            int(lost_B.sum()),
        )
    return [loss.item()] if math.isfinite(loss.item()) else []


def _moment(
    inner: torch.optim.AdamW, parameters: Any, key: str, beta: int, n_steps: int
) -> AdapterState:
    """A running mean of the optimiser, corrected for its start at zero; it is noised already."""
    correction = 1 - inner.param_groups[0]["betas"][beta] ** n_steps
    return {n: (inner.state[p][key].detach().cpu() / correction) for n, p in parameters.items()}
