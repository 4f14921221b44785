"""Local fine-tuning: the Trainer of transformers, our loss, checkpoints with optimiser state."""

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from clues.config import TrainSettings
from clues.data.batching import token_budget_batches, token_budget_of
from clues.data.tokens import EncodedRow
from clues.errors import NumericsError
from clues.model.adapters import AdapterState, Checkpoint, LoraModel, check_state
from clues.model.head import Head
from clues.model.loss import make_batch, row_losses
from clues.model.recording import Recorder, Schedule
from clues.model.shares import Part, check_together, shares


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
    """What a training leaves behind.

    Attributes:
        adapter: the trained weights.
        checkpoints: those asked for.
        mean_loss: of all steps, in nats.
        losses: mean loss of every step's rows, in nats.
    """

    adapter: AdapterState
    checkpoints: tuple[Checkpoint, ...]
    mean_loss: float
    losses: tuple[float, ...] = ()


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
    part: Part | None = None,
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
        part: which part of every step's rows this process takes, where several train together;
            then `order` does not count.

    Raises:
        NumericsError: the loss of a step, or the adapter, is not finite; nothing is returned then.
    """
    model.set_state(start)
    chosen: Sequence[Any] = rows if order is None else [rows[i] for i in order]
    if part is not None:
        chosen = shares(rows, part)
    recorder = Recorder(model, schedule, first_step, frozenset(checkpoint_at), on_step)
    # Other rows want other dropout.
    drawn = seed if part is None else (seed + part.rank) % 2**32
    how = {"settings": settings, "n_steps": n_steps, "seed": drawn, "scratch": scratch}
    trainer = _trainer(model, chosen, recorder, schedule, part=part, **how)
    trainer.first_step = first_step
    trainer.in_order, trainer.observer = order is not None, observer
    trainer.proximal, trainer.origin = proximal, start if proximal else {}
    # The Trainer collects garbage when it starts; over all that torch has imported, 0.2 s a call.
    gc.freeze()
    try:
        trainer.train()
    finally:
        gc.unfreeze()
        model.peft.eval()
    trained = model.state()
    if part is not None:
        check_together(trained)
    # A gradient can overflow where the loss does not.
    check_state(trained, like=model.initial)
    losses = tuple(trainer.losses)
    return Trained(trained, tuple(recorder.checkpoints), sum(losses) / max(1, len(losses)), losses)


def step_batches(
    model: LoraModel,
    n_rows: int,
    *,
    settings: TrainSettings,
    n_steps: int,
    seed: int,
    scratch: str,
    order: Sequence[int] | None = None,
) -> list[list[int]]:
    """Positions of the rows that `train` takes in every step, with the same arguments.

    Whoever shares a training among processes must know them before.
    """
    positions = list(range(n_rows)) if order is None else list(order)
    recorder = Recorder(model, Schedule(1.0, 0.0, n_steps), 0, frozenset(), None)
    how: Any = {"settings": settings, "n_steps": n_steps, "seed": seed, "scratch": scratch}
    trainer = _trainer(model, positions, recorder, recorder.schedule, **how)
    trainer.in_order = order is not None
    loader: Any = trainer.get_train_dataloader()
    found: list[list[int]] = []
    for epoch in range(-(-n_steps // len(loader))):
        loader.set_epoch(epoch)
        found += loader
    return found[:n_steps]


def _trainer(
    model: LoraModel,
    chosen: Sequence[Any],
    recorder: Recorder,
    schedule: Schedule,
    *,
    settings: TrainSettings,
    n_steps: int,
    seed: int,
    scratch: str,
    part: Part | None = None,
) -> "_RowLossTrainer":
    set_seed(seed)
    together: dict[str, Any] = {}
    if part is not None:
        on_cpu = model.device.type == "cpu"
        # Experts that no row of a part meets have no gradient there.
        together = {"ddp_backend": "gloo" if on_cpu else None, "ddp_find_unused_parameters": True}
    args = TrainingArguments(
        output_dir=scratch,
        max_steps=n_steps,
        per_device_train_batch_size=1 if part else settings.batch_size,
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
        **together,
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
    trainer.schedule, trainer.part = schedule, part
    trainer.lora, trainer.head = model.parameters(), model.head
    trainer.pop_callback(_printer())
    recorder.trainer = trainer
    return trainer


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
    part: Part | None = None

    def __init__(self, **kwargs: Any) -> None:
        """Tell the Trainer that our loss is a mean over the rows of a batch."""
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = False
        self.losses: list[float] = []
        self.n_in_step = 0
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
        share = inputs[0] if self.part else None
        batch = make_batch(share.rows if share else inputs, device=self.args.device)
        losses_N = row_losses(model, batch, head=self.head)
        # Gradients are averaged over the processes, so a part of n of N rows counts for n / N.
        counted = self.part.size * share.counts / share.n_all if self.part and share else None
        loss = losses_N.sum() * (1 / self.n_in_step if counted is None else counted)
        if not torch.isfinite(loss):
            n_bad = int((~torch.isfinite(losses_N)).sum())
            raise NumericsError(
                f"step {self.first_step + self.state.global_step + 1}: the loss of {n_bad} of "
                f"{len(losses_N)} rows is not finite. Lower the learning rate, or use float32."
            )
        if self.observer:
            self.observer.saw(losses_N)
        self.losses[-1] += self._of_all(loss.detach())
        # Once per step, whatever the number of its parts: this is its share.
        pull = 1.0 if share else len(losses_N) / self.n_in_step
        return loss + pull * self._pull() if self.proximal else loss

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
        self.n_in_step = len(inputs)
        self.losses.append(0.0)
        step = self.state.global_step
        last = step + 1 == self.state.max_steps
        watching = self.observer.watching(step, last=last) if self.observer else nullcontext()
        with watching:
            losses = [
                super(_RowLossTrainer, self).training_step(model, part, *args, **kwargs)
                for part in self._parts(inputs)
            ]
        return torch.stack(losses).sum()

    def _parts(self, inputs: Any) -> list[Any]:
        """The rows of a step as they go through the model; together where somebody counts on it."""
        if self.observer or self.part:
            return [inputs]
        lengths = [len(row.ids) for row in inputs]
        parts = token_budget_batches(lengths, budget=token_budget_of(self.args.device))
        return [[inputs[i] for i in part] for part in parts]

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        if self.in_order:
            return SequentialSampler(self.train_dataset)  # pyright: ignore[reportArgumentType]
        return super()._get_train_sampler(*args, **kwargs)

    def get_train_dataloader(self) -> Any:
        """The steps' shares as they are; libraries would deal them out once more."""
        if self.part is None:
            return super().get_train_dataloader()
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=list)  # pyright: ignore[reportArgumentType]

    def _of_all(self, loss: Tensor) -> float:
        """Mean loss of a step's rows over all processes, in nats."""
        if self.part is None:
            return float(loss)
        total = loss.clone()
        torch.distributed.all_reduce(total)
        return float(total) / self.part.size

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Continue the schedule where earlier calls left it."""
        chosen: Any = optimizer or self.optimizer
        self.lr_scheduler = LambdaLR(
            chosen, lambda step: self.schedule.factor(self.first_step + step)
        )
        return self.lr_scheduler
