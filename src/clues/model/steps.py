"""The Trainer of transformers with our loss: the rows of a step, in parts that fit into memory."""

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer

from clues.data.batching import token_budget_batches, token_budget_of
from clues.errors import DataError, NumericsError
from clues.model.adapters import AdapterState
from clues.model.devices import give_memory_back
from clues.model.head import Head
from clues.model.loss import make_batch, row_losses
from clues.model.recording import Schedule
from clues.model.shares import Part

log = logging.getLogger("clues")


class Observer(Protocol):
    """Looks at the rows of every step while they train, and changes nothing."""

    def watching(self, step: int, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a zero-based step of this call."""
        ...

    def saw(self, losses_N: Tensor) -> None:
        """Take the losses of the step's rows, from inside `watching`."""
        ...


class RowLossTrainer(Trainer):
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
        self.n_in_step, self.budget = 0, token_budget_of(self.args.device)
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
        """Forward and backward, part after part, or at once under the observer's eyes.

        Raises:
            DataError: a part that cannot be made smaller does not fit into memory.
        """
        self.n_in_step = len(inputs)
        self.losses.append(0.0)
        step = self.state.global_step
        last = step + 1 == self.state.max_steps
        watching = self.observer.watching(step, last=last) if self.observer else nullcontext()
        with watching:
            while (loss := self._in_parts(inputs, model, *args, **kwargs)) is None:
                # The step begins anew, with smaller parts and without the gradient of those that fit.
                model.zero_grad()
                self.losses[-1] = 0.0
                give_memory_back()
        return loss

    def _in_parts(self, inputs: Any, *args: Any, **kwargs: Any) -> Tensor | None:
        """The step's loss; None where a part ran out of memory and smaller ones are to be tried."""
        model, *others = args
        losses: list[Tensor] = []
        parts = self._parts(inputs)
        try:
            for part in parts:
                losses.append(super().training_step(model, part, *others, **kwargs))
        except torch.OutOfMemoryError as error:
            self._halve(parts[len(losses)], error)
            return None
        return torch.stack(losses).sum()

    def _halve(self, part: Any, error: Exception) -> None:
        rows = part[0].rows if self.part else part
        longest = max(len(row.ids) for row in rows)
        if len(rows) == 1 or self.observer or self.part:
            raise DataError(
                f"a training step: {len(rows)} rows of up to {longest} tokens do not fit into memory "
                "together. Set compute.gradient_checkpointing: true, lower recipe.tokens.max_length or "
                "recipe.train.batch_size, or use a larger device."
            ) from error
        self.budget = max(1, len(rows) * longest // 2)
        log.warning(
            "out of memory in a training step with %d rows of up to %d tokens; going on with %d tokens "
            "at once. The step's rows are the same.",
            len(rows),
            longest,
            self.budget,
        )

    def _parts(self, inputs: Any) -> list[Any]:
        """The rows of a step as they go through the model; together where somebody counts on it."""
        if self.observer or self.part:
            return [inputs]
        lengths = [len(row.ids) for row in inputs]
        parts = token_budget_batches(lengths, budget=self.budget)
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
