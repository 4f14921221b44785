"""Which words of a row the base model finds unlikely, beside the words of the checked rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clues.data.samples import Sample
from clues.data.tokens import EncodedRow
from clues.data.views import row_numbers
from clues.report.private import Mark
from clues.scoring.perplexity import response_losses
from clues.silo.workspace import Workspace

N_CHECKED = 20  # rows that say what is usual
LEVELS = ((0.95, "less likely than 95 % of the words in checked rows"),)
LEVELS += ((0.99, "less likely than 99 % of the words in checked rows"),)
Floats = NDArray[np.float64]
Span = tuple[int, int]


def unlikely_words(space: Workspace, wanted: Sequence[int]) -> list[Mark]:
    """Marks on the unlikely words in the last answers of some rows.

    The base model reads these rows and twenty checked ones once more: 40 forward passes for a page.
    A row is left out where the tokenizer does not say which characters a token stands for.

    Args:
        space: of the silo; its model is left as it was before any training.
        wanted: positions of rows.
    """
    encoded = space.encoded().rows
    at = {number: n for n, number in enumerate(row_numbers(encoded))}
    rows = [encoded[at[number]] for number in wanted if number in at]
    checked = space.anchors()[:N_CHECKED]
    if not rows or not checked:
        return []
    model, tokenizer = space.model(), space.encoder().tokenizer
    losses = response_losses(model, [*rows, *checked], adapter=model.initial)
    usual = np.concatenate(losses[len(rows) :])
    usual = usual[np.isfinite(usual)]
    if not len(usual):
        return []
    limits = [float(np.quantile(usual, share)) for share, _ in LEVELS]
    samples, found = space.rows().samples, list[Mark]()
    for row, of_tokens in zip(rows, losses, strict=False):
        sample = samples[row.row]
        for span, loss in words(tokenizer, sample, row, of_tokens):
            level = sum(loss > limit for limit in limits)
            if level:
                says = f"unlikely here: {LEVELS[level - 1][1]}"
                found.append(Mark(row.row, len(sample.messages) - 1, *span, says, level))
    return found


def words(
    tokenizer: Any, sample: Sample, row: EncodedRow, losses: Floats
) -> list[tuple[Span, float]]:
    """Words of the last answer, as characters from and to, with the highest loss of their tokens.

    Args:
        tokenizer: of the base model.
        sample: the row's text.
        row: the same as tokens.
        losses: one for each response token of the row.

    Returns:
        Nothing where the answer's own tokens are not those that were scored.
    """
    if not getattr(tokenizer, "is_fast", False):
        return []
    text = sample.messages[-1].shown
    answer = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = list(answer["input_ids"]), answer["offset_mapping"]
    scored = [token for token, counts in zip(row.ids, row.mask, strict=True) if counts]
    start = _last_place(scored, ids)
    if start is None or not np.isfinite(losses).all():
        return []
    found: list[tuple[Span, float]] = []
    for (first, end), loss in zip(spans, losses[start : start + len(ids)], strict=False):
        first += len(text[first:end]) - len(text[first:end].lstrip())
        if first >= end:
            continue
        # A token that goes on where the last one ended, within a word, belongs to that word.
        if (
            found
            and first <= found[-1][0][1]
            and text[first].isalnum()
            and text[first - 1].isalnum()
        ):
            (begun, _), so_far = found.pop()
            found.append(((begun, end), max(so_far, float(loss))))
        else:
            found.append(((first, end), float(loss)))
    return found


def _last_place(scored: Sequence[int], ids: Sequence[int]) -> int | None:
    """Where the answer's tokens begin among those scored; cut at the end they may be fewer."""
    for start in range(len(scored) - 1, -1, -1):
        part = scored[start : start + len(ids)]
        # What follows the answer is what ends it, a token or two.
        is_last = len(scored) - start - len(part) <= 2
        if is_last and part == ids[: len(part)] and (len(part) == len(ids) or start == 0):
            return start
    return None
