"""Whether a base model can do what is asked of it: found out before anything heavy starts."""

import math
from typing import Any

import torch

from clues.config import BUILT_IN, ModelSettings, TokenSettings, context_of
from clues.errors import DataError
from clues.model.devices import fast_in_bfloat16
from clues.model.layers import Reading

# Of what is said about a text's beginning, the share that its end may move: rounding.
LOOKS_AHEAD = {torch.float64: 1e-3, torch.float32: 1e-3}
HALF, HALF_TYPES = 0.05, (torch.bfloat16, torch.float16)


def check_config(config: Any, where: str) -> None:
    """Refuse models that do not write a text from left to right.

    Raises:
        DataError: an encoder, or one with a decoder.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise DataError(
            f"{where}: {config.model_type} has an encoder for the prompt and a decoder for the "
            "answer. Take a causal model: one that reads prompt and answer as one text."
        )


def check_base(base: Any, reading: Reading) -> None:
    """Refuse a base model with which every number would be wrong.

    Raises:
        DataError: weights that are not finite, or answers that see what comes after them.
    """
    odd = [name for name, weight in base.named_parameters() if not _is_finite(weight)]
    if odd:
        raise DataError(
            f"the base model has {len(odd)} weights that are not finite, for example {odd[0]}. "
            "Fetch the model again; with recipe.model.dtype float16 use float32 or bfloat16."
        )
    most = LOOKS_AHEAD.get(base.dtype, HALF)
    if not reading.looks_ahead <= most:
        raise DataError(
            f"{type(base).__name__} sees later tokens when it predicts a token, so the loss of an "
            "answer tells nothing. Take a causal model, not an encoder."
        )


def _is_finite(weight: torch.Tensor) -> bool:
    if not weight.is_floating_point() or weight.element_size() == 1:
        return True
    # A sum needs no second tensor; one that overflows is looked at again.
    if math.isfinite(float(weight.detach().sum(dtype=torch.float32))):
        return True
    return all(bool(torch.isfinite(part).all()) for part in weight.detach().flatten().split(2**24))


def check_tokens(base: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer of another model.

    Raises:
        DataError: tokens that ordinary rows have are not in the model.
    """
    width = n_embeddings(base)
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= width}
    added = set(tokenizer.get_added_vocab())
    template = str(getattr(tokenizer, "chat_template", None) or "")
    ends = {tokenizer.bos_token, tokenizer.eos_token}
    used = [t for t in beyond if t not in added or t in template or t in ends]
    if used:
        raise DataError(
            f"the tokenizer has {len(beyond)} tokens that the model has no embedding for: it has "
            f"{width}, and {used[0]!r} is number {beyond[used[0]]}. Take the model's own tokenizer, "
            "or resize the model's embeddings (resize_token_embeddings) and save it."
        )


def n_embeddings(base: Any) -> int:
    """How many tokens a model knows."""
    return int(base.get_input_embeddings().weight.shape[0])


def notes_on_base(base: Any, tokenizer: Any, settings: TokenSettings) -> list[str]:
    """What is allowed about a model, but often not meant."""
    notes = []
    n, width = context_of(base.config), n_embeddings(base)
    if n is not None and settings.max_length > n:
        notes.append(
            f"recipe.tokens.max_length is {settings.max_length}, and the base model reads {n} tokens "
            f"at once: {n} counts."
        )
    beyond = [token for token, i in tokenizer.get_vocab().items() if i >= width]
    if beyond:
        notes.append(
            f"the tokenizer has {len(beyond)} tokens that the model has no embedding for, for "
            f"example {beyond[0]!r}: a row with one of them is refused."
        )
    return notes


def notes_on_numbers(settings: ModelSettings, device: torch.device) -> list[str]:
    """Where another number type would be faster on this machine."""
    if settings.name == BUILT_IN or settings.quantization or device.type == "mps":
        return []
    fast = fast_in_bfloat16(device)
    if settings.dtype == "float32" and fast:
        return [
            "this machine computes in bfloat16 about twice as fast as in float32, and rows rank the same "
            "to 0.99 (docs/models.md): recipe.model.dtype: bfloat16."
        ]
    if settings.dtype == "bfloat16" and device.type == "cpu" and not fast:
        return [
            "this processor has no units for bfloat16, and float32 is faster: recipe.model.dtype: float32, "
            "where its memory is there."
        ]
    return []
