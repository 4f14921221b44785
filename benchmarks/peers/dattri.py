"""dattri-llm: inner products by its TracIn attributor, with a validation gradient that is given.

Its loader takes batches as they come and the loss is the user's, so it runs twice: with eight rows
per batch in the order of the file and a loss over all logits, as its own examples do, and with our
batches and our loss, which leaves the difference of the two ways to the same gradients alone.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.scene import Scene
from clues.data.batching import token_budget_batches, token_budget_of
from clues.data.tokens import EncodedRow
from clues.model.adapters import AdapterState
from clues.model.loss import IGNORED, Batch, make_batch, row_losses

PACKAGE = "dattri-llm"
ROWS_PER_BATCH = 8
Loss = Callable[[Any, Mapping[str, Tensor]], Tensor]


def as_it_comes(scene: Scene, rows: Sequence[EncodedRow], direction: AdapterState) -> np.ndarray:
    """Eight rows per batch in the order given, and a loss over all logits."""
    batches = [
        list(range(start, min(start + ROWS_PER_BATCH, len(rows))))
        for start in range(0, len(rows), ROWS_PER_BATCH)
    ]
    return _scores(scene, rows, direction, batches, _plain_loss)


def with_ours(scene: Scene, rows: Sequence[EncodedRow], direction: AdapterState) -> np.ndarray:
    """Our batches by length, and our loss at the response's positions alone."""
    budget = token_budget_of(scene.model.device)
    batches = token_budget_batches([len(row.ids) for row in rows], budget=budget)

    def loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        tensors = Batch(batch["input_ids"], batch["attention_mask"], batch["targets"])
        return row_losses(model, tensors, head=scene.model.head).sum()

    return _scores(scene, rows, direction, batches, loss)


def _plain_loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    tensors = Batch(batch["input_ids"], batch["attention_mask"], batch["targets"])
    logits_NTV = model(
        input_ids=tensors.ids_NT, attention_mask=tensors.attention_NT, use_cache=False
    ).logits
    targets_NT = tensors.targets_NT
    losses_NT = F.cross_entropy(
        logits_NTV.flatten(0, 1).float(),
        targets_NT.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    ).view_as(targets_NT)
    return (losses_NT.sum(dim=1) / (targets_NT != IGNORED).sum(dim=1)).sum()


class _Batches(Dataset[dict[str, Tensor]]):
    """One item per batch."""

    def __init__(self, rows: Sequence[EncodedRow], batches: Sequence[Sequence[int]]) -> None:
        tensors = [make_batch([rows[i] for i in batch]) for batch in batches]
        self.items = [
            {"input_ids": t.ids_NT, "attention_mask": t.attention_NT, "targets": t.targets_NT}
            for t in tensors
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self.items[i]


def _scores(
    scene: Scene,
    rows: Sequence[EncodedRow],
    direction: AdapterState,
    batches: Sequence[Sequence[int]],
    loss: Loss,
) -> np.ndarray:
    from dattri_llm import AttributionArguments, AttributionTask, TracInAttributor  # pyright: ignore
    from dattri_llm.gradient.gradient import Gradient  # pyright: ignore
    from dattri_llm.gradient.hooks import HookManagerConfig  # pyright: ignore
    from dattri_llm.gradient.streaming import GradientStreamer  # pyright: ignore

    model = scene.model
    model.set_state(scene.checkpoint.adapter)
    layers = {name.replace(".weight", "") + ".default": name for name in model.parameters()}
    query = Gradient(
        representation=dict.fromkeys(layers, "materialized"),
        data={layer: direction[name][None].float() for layer, name in layers.items()},
        layer_types=dict.fromkeys(layers, "nn.Linear"),
    )
    hooks = HookManagerConfig(invasive_linear_io=[r"\.lora_[AB]\.default$"], capture_style="auto")
    with tempfile.TemporaryDirectory() as out, model.evaluating() as peft, _quiet():
        arguments = AttributionArguments(
            output_dir=out, use_cpu=model.device.type == "cpu", dataloader_pin_memory=False
        )
        attributor = TracInAttributor(arguments, task=AttributionTask(loss, peft))
        stream = GradientStreamer(
            peft, _Batches(rows, batches), arguments, batch_size=None, loss_fn=loss, config=hooks
        )
        with stream:
            found, *_ = attributor.score_sources(stream, [(0, query, ["query"])])
        peft.zero_grad()
    products = np.zeros(len(rows))
    products[[i for batch in batches for i in batch]] = found[:, 0].double().cpu().numpy()
    return products


@contextmanager
def _quiet() -> Iterator[None]:
    """Its hooks are meant for layers whose inputs need no gradient, of which torch warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield
