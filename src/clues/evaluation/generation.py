"""Answers of a joint model, word by word the likeliest (greedy), in batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from clues.data.batching import token_budget_batches
from clues.model.adapters import AdapterState, LoraModel

_BATCH_TOKENS = 16384
_BATCH_ROWS = 32


@torch.inference_mode()
def generate(
    model: LoraModel,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    adapter: AdapterState,
    *,
    max_tokens: int,
    on_rows: Callable[[int], None] | None = None,
) -> list[str]:
    """Answer every prompt.

    Args:
        model: carries the adapter.
        tokenizer: of the base model.
        prompts: token ids, up to where the answer begins.
        adapter: the weights to answer with.
        max_tokens: of an answer; a longer one is cut.
        on_rows: told how many are done.

    Returns:
        The answers in the order of the prompts, without special tokens.
    """
    model.set_state(adapter)
    answers = [""] * len(prompts)
    lengths = [len(ids) + max_tokens for ids in prompts]
    with model.evaluating() as peft:
        ends = _ends(peft, tokenizer)
        pad = tokenizer.pad_token_id
        pad = pad if pad is not None else ends[0] if ends else 0
        for batch in token_budget_batches(lengths, budget=_BATCH_TOKENS, max_rows=_BATCH_ROWS):
            width = max(len(prompts[i]) for i in batch)
            # Padding stands in front, so that every answer begins at the same place.
            rows = [[pad] * (width - len(prompts[i])) + list(prompts[i]) for i in batch]
            seen = [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in batch]
            written = peft.generate(
                input_ids=torch.tensor(rows, device=model.device),
                attention_mask=torch.tensor(seen, device=model.device),
                do_sample=False,
                num_beams=1,
                # A base may bring settings for sampling, which greedy decoding warns about.
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=max_tokens,
                pad_token_id=pad,
                eos_token_id=ends or None,
            )
            for i, ids in zip(batch, written[:, width:].tolist(), strict=True):
                answers[i] = tokenizer.decode(ids, skip_special_tokens=True).strip()
            if on_rows:
                on_rows(len(batch))
    return answers


def _ends(peft: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and those that the base's own settings name."""
    own = peft.generation_config.eos_token_id if hasattr(peft, "generation_config") else None
    listed = own if isinstance(own, list) else [own]
    return [t for t in dict.fromkeys([tokenizer.eos_token_id, *listed]) if t is not None]
