"""Settings that suit the base model and the machine at hand: length and number type."""

import math
import os
from dataclasses import dataclass
from typing import Any

import torch

from clues.config import BUILT_IN, ModelSettings, context_of
from clues.config.loading import local_folder
from clues.model.devices import device_of, fast_in_bfloat16
from clues.model.place import fetch, model_folder, read_object, stored_shapes

MOST_TOKENS = 2048  # longer rows say little more, and cost far more
ROOM = 0.7  # of the free memory
ADAPTER_SHARE = 0.02  # of the weights; with both means of the optimiser, in float32


@dataclass(frozen=True)
class AtHand:
    """What a model and a machine allow.

    Attributes:
        max_length: tokens of a row.
        dtype: of the base weights.
        tight: whether not even one row at a time seems to fit into the free memory.
    """

    max_length: int
    dtype: str
    tight: bool


def at_hand(name: str) -> AtHand:
    """Look at a base model's files and at the free memory.

    Raises:
        DataError: the model cannot be had.
    """
    settings = ModelSettings(name=name)
    if local_folder(name) is None:
        fetch(settings)
    folder = model_folder(settings)
    shape = read_object(folder / "config.json")
    context = context_of(shape)
    max_length = min(context or MOST_TOKENS, MOST_TOKENS)
    if name == BUILT_IN:
        # Its tokens are short, and rows beyond these hardly gain by more of them.
        return AtHand(max_length, "float32", tight=False)
    n_weights = sum(math.prod(s) for s in stored_shapes(folder).values())
    device = device_of()
    dtype, n_bytes = ("bfloat16", 2) if fast_in_bfloat16(device) else ("float32", 4)
    free = _free_bytes(on_card=device.type == "cuda")
    if n_weights * n_bytes > ROOM * free:
        dtype, n_bytes = "bfloat16", 2
    left = ROOM * free - n_weights * (n_bytes + 16 * ADAPTER_SHARE)
    a_row = max_length * _bytes_a_token(shape, n_bytes)
    return AtHand(max_length, dtype, tight=a_row > left)


def _bytes_a_token(shape: dict[str, Any], n_bytes: int) -> float:
    """What the backward pass keeps of one token: activations of all blocks, and the logits."""
    inner = shape.get("text_config") or shape
    width = int(inner.get("hidden_size") or inner.get("n_embd") or 1024)
    blocks = int(inner.get("num_hidden_layers") or inner.get("n_layer") or 24)
    vocabulary = int(inner.get("vocab_size") or 50_000)
    return n_bytes * (17 * width * blocks) + 3 * 4 * vocabulary


def _free_bytes(*, on_card: bool) -> int:
    if on_card:
        return int(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
