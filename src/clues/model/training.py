"""Local fine-tuning: the Trainer of transformers, our loss, checkpoints with optimiser state."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainingArguments, set_seed

from clues.config import TrainSettings
from clues.data.tokens import EncodedRow
from clues.model.adapters import AdapterState, Checkpoint, LoraModel, check_state
from clues.model.recomputing import recomputing
from clues.model.recording import OnLoss, Recorder, Schedule
from clues.model.shares import Part, check_together, shares
from clues.model.steps import Observer, RowLossTrainer


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
    gradient_checkpointing: bool = False,
    on_loss: OnLoss | None = None,
) -> Trained:
    """Run `n_steps` AdamW steps on `rows`, from the adapter `start` and a fresh optimiser.

    The loss of a batch is the mean over its rows of each row's mean response-token loss, so its
    gradient is the mean of the per-sample gradients that scoring works with. The rows of a step
    go through the model in parts of similar length, which pads less and bounds the memory; the
    gradient is the same. A part that runs out of memory is halved, and the step begun anew. With an
    observer they go together.

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
        gradient_checkpointing: compute blocks again on the way back: less memory, the same gradients.
        on_loss: called after every step with its number, mean loss in nats, and learning rate.

    Raises:
        ConfigError: gradient checkpointing is asked for, and transformers has none for the model.
        DataError: a part of a step that cannot be made smaller does not fit into memory.
        NumericsError: the loss of a step, or the adapter, is not finite; nothing is returned then.
    """
    model.set_state(start)
    chosen: Sequence[Any] = rows if order is None else [rows[i] for i in order]
    if part is not None:
        chosen = shares(rows, part)
    recorder = Recorder(model, schedule, first_step, frozenset(checkpoint_at), on_step, on_loss)
    # Other rows want other dropout.
    drawn = seed if part is None else (seed + part.rank) % 2**32
    how = {"settings": settings, "n_steps": n_steps, "seed": drawn, "scratch": scratch}
    trainer = _trainer(model, chosen, recorder, schedule, part=part, **how)
    trainer.first_step = first_step
    trainer.in_order, trainer.observer = order is not None, observer
    trainer.proximal, trainer.origin = proximal, start if proximal else {}
    # The Trainer collects garbage when it starts; over all that torch has imported, 0.2 s per call.
    gc.freeze()
    try:
        with recomputing(model.peft.get_base_model(), on=gradient_checkpointing):
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
) -> "RowLossTrainer":
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
    trainer = RowLossTrainer(
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
