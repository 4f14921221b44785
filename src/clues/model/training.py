"""Local fine-tuning: the Trainer of transformers, our loss, checkpoints with optimiser state."""

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from clues.config import TrainSettings
from clues.data.batching import token_budget_batches, token_budget_of
from clues.data.tokens import EncodedRow
from clues.errors import ConfigError, NumericsError
from clues.model.adapters import AdapterState, Checkpoint, LoraModel, check_state
from clues.model.head import Head
from clues.model.loss import make_batch, row_losses


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


class Observer(Protocol):
    """Looks at the rows of every step while they train, and changes nothing."""

    def watching(self, step: int, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a zero-based step of this call."""
        ...

    def saw(self, losses_N: Tensor) -> None:
        """Take the losses of the step's rows, from inside `watching`."""
        ...


@dataclass(frozen=True)
class Trained:
    """What a training leaves behind."""

    adapter: AdapterState
    checkpoints: tuple[Checkpoint, ...]
    mean_loss: float


def train(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    *,
    start: AdapterState,
    settings: TrainSettings,
    schedule: Schedule,
    n_steps: int,
    seed: int,
    scratch: str,
    first_step: int = 0,
    checkpoint_at: Sequence[int] = (),
    on_step: Callable[[], None] | None = None,
    order: Sequence[int] | None = None,
    observer: Observer | None = None,
    proximal: float = 0.0,
) -> Trained:
    """Run `n_steps` AdamW steps on `rows`, from the adapter `start` and a fresh optimiser.

    The loss of a batch is the mean over its rows of each row's mean response-token loss, so its
    gradient is the mean of the per-sample gradients that scoring works with. The rows of a step
    go through the model in parts of similar length, which pads less and bounds the memory; the
    gradient is the same. With an observer they go together.

    Args:
        model: is left with the trained adapter.
        rows: training rows; all of them are used before any is used again.
        start: adapter to begin from.
        settings: batch size and weight decay.
        schedule: learning rate, counted from `first_step`.
        n_steps: optimiser steps to take now.
        seed: fixes dropout and the order of rows.
        scratch: folder that the Trainer may use; nothing is kept there.
        first_step: steps of the schedule that earlier calls have taken.
        checkpoint_at: one-based steps of this call after which to save.
        on_step: called after every step, for a progress bar.
        order: positions of the rows to train on, step after step; drawn by the seed if None.
        observer: looks at every step.
        proximal: mu of FedProx (Li et al. 2020, 1812.06127): mu / 2 |w - start|^2 is added to
            the loss, over the weights that train.

    Raises:
        NumericsError: the loss of a step, or the adapter, is not finite; nothing is returned then.
    """
    model.set_state(start)
    set_seed(seed)
    chosen = list(rows) if order is None else [rows[i] for i in order]
    recorder = _Recorder(model, schedule, first_step, frozenset(checkpoint_at), on_step)
    args = TrainingArguments(
        output_dir=scratch,
        max_steps=n_steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=schedule.peak,
        weight_decay=settings.weight_decay,
        max_grad_norm=1.0,
        seed=seed,
        use_cpu=model.device.type == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    # With several GPUs in sight the Trainer would copy the model to all and multiply the batch.
    args._n_gpu = min(args.n_gpu, 1)
    trainer = _RowLossTrainer(
        model=model.peft,
        args=args,
        train_dataset=chosen,  # pyright: ignore[reportArgumentType]
        data_collator=list,
        callbacks=[recorder],
    )
    trainer.schedule, trainer.first_step = schedule, first_step
    trainer.in_order, trainer.observer = order is not None, observer
    trainer.proximal, trainer.origin = proximal, start if proximal else {}
    trainer.lora, trainer.head = model.parameters(), model.head
    trainer.pop_callback(_printer())
    recorder.trainer = trainer
    # The Trainer collects garbage when it starts; over all that torch has imported, 0.2 s a call.
    gc.freeze()
    try:
        trainer.train()
    finally:
        gc.unfreeze()
        model.peft.eval()
    trained = model.state()
    # A gradient can overflow where the loss does not.
    check_state(trained, like=model.initial)
    return Trained(trained, tuple(recorder.checkpoints), trainer.mean_loss())


def _printer() -> type[TrainerCallback]:
    from transformers import PrinterCallback

    return PrinterCallback


class _RowLossTrainer(Trainer):
    """The Trainer with our loss and our schedule."""

    schedule: Schedule
    first_step: int = 0
    in_order: bool = False
    observer: Observer | None = None
    proximal: float = 0.0
    head: Head | None = None

    def __init__(self, **kwargs: Any) -> None:
        """Tell the Trainer that our loss is a mean over the rows of a batch."""
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = False
        self.loss_sum, self.n_losses, self.n_in_step = 0.0, 0, 0
        self.origin: AdapterState = {}
        self.lora: dict[str, torch.nn.Parameter] = {}

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """What these rows give to the mean over the step's rows of the mean response-token loss."""
        assert not return_outputs
        losses_N = row_losses(model, make_batch(inputs, device=self.args.device), head=self.head)
        loss = losses_N.sum() / self.n_in_step
        if not torch.isfinite(loss):
            n_bad = int((~torch.isfinite(losses_N)).sum())
            raise NumericsError(
                f"step {self.first_step + self.state.global_step + 1}: the loss of {n_bad} of "
                f"{len(losses_N)} rows is not finite. Lower the learning rate, or use float32."
            )
        if self.observer:
            self.observer.saw(losses_N)
        self.loss_sum += float(loss.detach())
        # Once per step, whatever the number of its parts: this is its share.
        share = len(losses_N) / self.n_in_step
        return loss + share * self._pull() if self.proximal else loss

    def _pull(self) -> Tensor:
        """What FedProx adds to the loss."""
        moved = [
            (weight - self.origin[name].to(weight)).square().sum()
            for name, weight in self.lora.items()
            if weight.requires_grad
        ]
        return self.proximal / 2 * torch.stack(moved).sum()

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward, part after part, or at once under the observer's eyes."""
        self.n_in_step, self.n_losses = len(inputs), self.n_losses + 1
        step = self.state.global_step
        if self.observer:
            with self.observer.watching(step, last=step + 1 == self.state.max_steps):
                return super().training_step(model, inputs, *args, **kwargs)
        lengths = [len(row.ids) for row in inputs]
        parts = token_budget_batches(lengths, budget=token_budget_of(self.args.device))
        losses = [
            super(_RowLossTrainer, self).training_step(
                model, [inputs[i] for i in part], *args, **kwargs
            )
            for part in parts
        ]
        return torch.stack(losses).sum()

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        if self.in_order:
            return SequentialSampler(self.train_dataset)  # pyright: ignore[reportArgumentType]
        return super()._get_train_sampler(*args, **kwargs)

    def mean_loss(self) -> float:
        """Mean loss of the batches seen, in nats."""
        return self.loss_sum / max(1, self.n_losses)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Continue the schedule where earlier calls left it."""
        chosen: Any = optimizer or self.optimizer
        self.lr_scheduler = LambdaLR(
            chosen, lambda step: self.schedule.factor(self.first_step + step)
        )
        return self.lr_scheduler


class _Recorder(TrainerCallback):
    """Keeps checkpoints in memory, optimiser state matched to weights by name."""

    def __init__(
        self,
        model: LoraModel,
        schedule: Schedule,
        first_step: int,
        checkpoint_at: frozenset[int],
        on_step: Callable[[], None] | None,
    ) -> None:
        self.model, self.schedule, self.first_step = model, schedule, first_step
        self.checkpoint_at, self.on_step = checkpoint_at, on_step
        self.checkpoints: list[Checkpoint] = []
        self.trainer: Trainer | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save after the steps asked for."""
        if self.on_step:
            self.on_step()
        if state.global_step in self.checkpoint_at:
            step = self.first_step + state.global_step
            rate = self.schedule.peak * self.schedule.factor(step - 1)
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
