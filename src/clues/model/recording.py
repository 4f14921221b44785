"""What is kept of a training: its learning rates, and checkpoints with the optimiser's state."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback

from clues.errors import ConfigError
from clues.model.adapters import AdapterState, Checkpoint, LoraModel

# Of a step: its number over the whole training, its rows' mean loss in nats, its learning rate.
OnLoss = Callable[[int, float, float], None]


@dataclass(frozen=True)
class Schedule:
    """Learning rate over a whole training, of which one call may run a part.

    Attributes:
        peak: highest rate.
        warmup: share of `total_steps` in which the rate rises linearly.
        total_steps: after the warm-up the rate falls linearly, to reach zero here.
    """

    peak: float
    warmup: float
    total_steps: int

    def factor(self, step: int) -> float:
        """Share of the peak used by the zero-based step."""
        n_warmup = math.ceil(self.warmup * self.total_steps)
        if step < n_warmup:
            return (step + 1) / n_warmup
        return max(0.0, (self.total_steps - step) / max(1, self.total_steps - n_warmup))


class Recorder(TrainerCallback):
    """Keeps checkpoints in memory, optimiser state matched to weights by name."""

    def __init__(
        self,
        model: LoraModel,
        schedule: Schedule,
        first_step: int,
        checkpoint_at: frozenset[int],
        on_step: Callable[[], None] | None,
        on_loss: OnLoss | None = None,
    ) -> None:
        self.model, self.schedule, self.first_step = model, schedule, first_step
        self.checkpoint_at, self.on_step, self.on_loss = checkpoint_at, on_step, on_loss
        self.checkpoints: list[Checkpoint] = []
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save after the steps asked for."""
        step = self.first_step + state.global_step
        rate = self.schedule.peak * self.schedule.factor(step - 1)
        if self.on_step:
            self.on_step()
        if self.on_loss:
            self.on_loss(step, self.trainer.losses[-1], rate)
        if state.global_step in self.checkpoint_at:
            second, first = self._moment("exp_avg_sq", 1), self._moment("exp_avg", 0)
            self.checkpoints.append(
                Checkpoint(step, rate, self.model.state(), second, first, state.global_step)
            )

    def _moment(self, key: str, beta: int) -> AdapterState:
        assert self.trainer is not None
        return running_mean(self.trainer.optimizer, self.model.parameters(), key, beta=beta)


def running_mean(
    optimizer: Any, parameters: Mapping[str, torch.nn.Parameter], key: str, *, beta: int
) -> AdapterState:
    """A running mean of Adam, by weight name, corrected for its start at zero.

    Args:
        optimizer: Adam or AdamW after a step or more, as it is or wrapped.
        parameters: LoRA weights; those that do not train have no mean.
        key: `exp_avg` or `exp_avg_sq`.
        beta: which of the optimiser's two decay rates is the mean's.

    Raises:
        ConfigError: the optimiser keeps no such mean.
    """
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    moments: AdapterState = {}
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        state = optimizer.state[parameter]
        if key not in state:
            raise ConfigError(
                f"{type(optimizer).__name__} keeps no {key}. Use AdamW, or scores of form sgd."
            )
        correction = 1 - optimizer.param_groups[0]["betas"][beta] ** int(state["step"])
        moments[name] = (state[key].detach().cpu() / correction).contiguous()
    return moments
