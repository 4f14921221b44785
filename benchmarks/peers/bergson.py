"""Bergson: what its `score` command does once model and rows are loaded, with a given direction."""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from benchmarks.scene import Scene
from clues.data.tokens import EncodedRow
from clues.model.adapters import AdapterState
from clues.model.loss import IGNORED
from clues.scoring.direction import trainable

PACKAGE = "bergson"
TOKENS_PER_BATCH = 2048  # its default


def score(scene: Scene, rows: Sequence[EncodedRow], direction: AdapterState) -> np.ndarray:
    """Its batches, its loss (mean over a row's response), its collector of gradients."""
    from bergson import GradientProcessor, IndexConfig, Scorer, collect_gradients  # pyright: ignore
    from bergson.data import allocate_batches  # pyright: ignore
    from bergson.score.score_writer import InMemorySequenceScoreWriter  # pyright: ignore
    from datasets import Dataset

    model = scene.model
    model.set_state(scene.checkpoint.adapter)
    layers = {
        name.removeprefix("base_model.").replace(".weight", "") + ".default": name
        for name in model.parameters()
    }
    lengths = [len(row.ids) for row in rows]
    labels = [
        [t if counts else IGNORED for t, counts in zip(row.ids, row.mask, strict=True)]
        for row in rows
    ]
    data = Dataset.from_dict(
        {"input_ids": [list(row.ids) for row in rows], "labels": labels, "length": lengths}
    )
    queries = {layer: direction[name].reshape(1, -1) for layer, name in layers.items()}
    with tempfile.TemporaryDirectory() as out, _quiet(), model.evaluating() as peft:
        config = IndexConfig(
            run_path=f"{out}/run", loss_reduction="mean", token_batch_size=TOKENS_PER_BATCH
        )
        config.partial_run_path.mkdir(parents=True)
        writer = InMemorySequenceScoreWriter(len(rows), 1)
        scorer = Scorer(queries, list(layers), writer, model.device, torch.float32)
        # Its own set-up asks for gradients of the embedding, so that a backward pass has a root.
        root = peft.get_input_embeddings().weight
        everything = list(peft.parameters())
        with trainable(everything, only=[root]):
            collect_gradients(
                peft,
                data,
                GradientProcessor(),
                config,
                batches=allocate_batches(lengths, TOKENS_PER_BATCH),
                target_modules=set(layers),
                scorer=scorer,
            )
        peft.zero_grad(set_to_none=True)
    return writer.scores[:, 0].double().numpy()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without its lines and bars: one per layer and call."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
