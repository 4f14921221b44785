"""The end of a model: logits only where a row has a target, and never all of them at once.

P positions with a target, E size of a hidden state, V vocabulary.

Logits are the largest tensors there are: a batch of 2,048 tokens with Gemma's 262,144 words has
2 GB of them, and as much again on the way back. So a model's last layer is passed by: its input is
caught, the positions that carry loss are taken out of it, and loss and gradient are made of some
positions at a time. What a model does with its logits afterwards (a scale, a soft cap) is looked
for once, by a try; a model that does anything else keeps its own way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Logits that exist at a time. On a CPU they should stay in reach of the caches.
CPU_LOGITS, GPU_LOGITS = 2**23, 2**27
PROBE_IDS = (1, 2, 3)
PROBE_LOGITS = 1e4  # far beyond a soft cap, which is 30 in Gemma 2


@dataclass(frozen=True)
class Head:
    """What a model makes of its last hidden states.

    z = scale (W h + b), then cap * tanh(z / cap) where there is a cap

    Attributes:
        linear: the last layer, W and b; they do not train.
        scale: see above.
        cap: see above.
        needs_mask: padding on the right changes the states of the tokens before it.
    """

    linear: nn.Linear
    scale: float = 1.0
    cap: float | None = None
    needs_mask: bool = False

    def losses(self, states_PE: Tensor, targets_P: Tensor) -> Tensor:
        """Negative log-likelihood of every target, in nats; float32, or float64 for such states.

        Raises:
            RuntimeError: second derivatives are asked for; the gradient is made on the way forward.
        """
        return _Losses.apply(states_PE, targets_P, self)  # pyright: ignore[reportReturnType]

    @contextmanager
    def caught(self) -> Iterator[list[Tensor]]:
        """Inside, a forward pass makes no logits; yields where it puts the last hidden states."""
        states: list[Tensor] = []

        def catch(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            states.append(inputs[0])
            return (inputs[0][:, :0], *inputs[1:])

        hook = self.linear.register_forward_pre_hook(catch)
        try:
            yield states
        finally:
            hook.remove()

    def logits(self, states_PE: Tensor) -> Tensor:
        """Logits as the model itself would give them, in float32 or better."""
        logits_PV = F.linear(states_PE, self.linear.weight, self.linear.bias)
        if logits_PV.dtype != torch.float64:
            logits_PV = logits_PV.float()
        if self.scale != 1:
            logits_PV = logits_PV * self.scale
        if self.cap is not None:
            logits_PV = torch.tanh(logits_PV / self.cap) * self.cap
        return logits_PV


class _Losses(torch.autograd.Function):
    """Losses of some positions at a time, and with them their gradient by the hidden states."""

    @staticmethod
    def forward(ctx: Any, states_PE: Tensor, targets_P: Tensor, head: Head) -> Tensor:
        dtype = torch.float64 if states_PE.dtype == torch.float64 else torch.float32
        losses_P = torch.empty(len(targets_P), dtype=dtype, device=states_PE.device)
        g_PE = torch.empty_like(states_PE) if ctx.needs_input_grad[0] else None
        weight = head.linear.weight
        most = CPU_LOGITS if states_PE.device.type == "cpu" else GPU_LOGITS
        n_at_a_time = max(1, most // len(weight))
        for start in range(0, len(targets_P), n_at_a_time):
            here = slice(start, start + n_at_a_time)
            targets_C1 = targets_P[here, None]
            logits_CV = head.logits(states_PE[here])
            logs_CV = torch.log_softmax(logits_CV, dim=-1)
            losses_P[here] = -logs_CV.gather(1, targets_C1).squeeze(1)
            if g_PE is None:
                continue
            # d loss / d logits = softmax - one at the target; in place, it is as large as logits.
            g_CV = logs_CV.exp_()
            g_CV.scatter_add_(1, targets_C1, torch.full_like(targets_C1, -1, dtype=dtype))
            if head.cap is not None:
                g_CV *= 1 - (logits_CV / head.cap).square_()
            if head.scale != 1:
                g_CV *= head.scale
            g_PE[here] = g_CV.to(weight.dtype) @ weight
        ctx.save_for_backward(g_PE)
        return losses_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (g_PE,) = ctx.saved_tensors
        return g_PE * gradients[0][:, None].to(g_PE.dtype), None, None


@torch.no_grad()
def find_head(model: Any) -> Head | None:
    """How a model ends, by a try with three tokens; None where it is not as in `Head`.

    Args:
        model: a causal model of transformers, or one of PEFT around it; is not changed.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    linear = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    # A subclass may do anything, and an adapter on the last layer may train.
    if type(linear) is not nn.Linear or linear.weight.requires_grad or linear.weight.is_meta:
        return None
    was_training = model.training
    model.eval()
    try:
        return _tried(model, linear)
    finally:
        model.train(was_training)


def _tried(model: Any, linear: nn.Linear) -> Head | None:
    ids_1T = torch.tensor([PROBE_IDS], device=linear.weight.device)
    ramp_V = _ramp(linear)
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append((inputs[0], output))
        return ramp_V.expand_as(output)

    hook = linear.register_forward_hook(watch)
    try:
        logits = model(input_ids=ids_1T, use_cache=False).logits
    finally:
        hook.remove()
    if len(seen) != 1 or seen[0][0].shape[:2] != ids_1T.shape or logits.shape != seen[0][1].shape:
        return None
    states_1TE, output_1TV = seen[0]
    if not _close(F.linear(states_1TE, linear.weight, linear.bias), output_1TV):
        return None
    found = _scale_and_cap(logits[0, -1].to(ramp_V), ramp_V)
    if found is None:
        return None
    head = Head(linear, *found)
    # The same three tokens, and behind them what stands for padding, with no mask.
    padded_1T = torch.cat([ids_1T, torch.zeros_like(ids_1T)], dim=1)
    try:
        with head.caught() as states:
            model(input_ids=padded_1T, use_cache=False)
    except (RuntimeError, IndexError, ValueError):
        return None  # it cannot do without logits
    return replace(head, needs_mask=not _close(states[0][:, : len(PROBE_IDS)], states_1TE))


def _ramp(linear: nn.Linear) -> Tensor:
    """Known numbers in place of the last layer's output show what is done with it afterwards.

    From far below any soft cap to far above it, and dense in between. In float32 whatever the
    model's precision: a scale that is read off in bfloat16 would have three digits.
    """
    dtype = torch.float64 if linear.weight.dtype == torch.float64 else torch.float32
    steps_V = torch.linspace(-1, 1, len(linear.weight), dtype=dtype, device=linear.weight.device)
    return PROBE_LOGITS * steps_V**3


def _scale_and_cap(given_V: Tensor, ramp_V: Tensor) -> tuple[float, float | None] | None:
    """By which a model's logits follow from a ramp; None if they follow in another way."""
    last = float(given_V[-1])
    scale = last / float(ramp_V[-1])
    if torch.allclose(given_V, scale * ramp_V):
        return scale, None
    if last > 0 and torch.allclose(given_V, torch.tanh(ramp_V / last) * last, atol=1e-5):
        return 1.0, last
    return None


def _close(ours: Tensor, theirs: Tensor) -> bool:
    tolerance = 100 * torch.finfo(theirs.dtype).eps
    size = float(theirs.abs().max())
    return torch.allclose(ours.to(theirs), theirs, rtol=tolerance, atol=tolerance * size)
