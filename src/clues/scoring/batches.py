"""Batches of rows for scoring: as large as memory allows, and no number depends on their size."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch

from clues.data.batching import token_budget_batches
from clues.data.tokens import EncodedRow
from clues.errors import DataError, NumericsError
from clues.model.devices import give_memory_back

SHOWN_IDS = 5

log = logging.getLogger(__name__)


def each_batch(
    rows: Sequence[EncodedRow],
    compute: Callable[[list[int]], None],
    *,
    token_budget: int,
    on_rows: Callable[[int], None] | None = None,
    on_retry: Callable[[list[int]], None] | None = None,
) -> None:
    """Call `compute` with batches of positions until all rows are done.

    A batch that runs out of memory is halved and tried again, and so are all later ones of its
    size; a line in the log says so. Scores do not depend on the batch, only their last digits do.

    Args:
        rows: batched by length, longest first.
        compute: must leave nothing behind where it raises, or `on_retry` must remove it.
        token_budget: padded tokens per batch to begin with.
        on_rows: called with the number of rows finished.
        on_retry: called with the positions of a batch that failed.

    Raises:
        DataError: one row alone does not fit into memory.
    """
    lengths = [len(row.ids) for row in rows]
    waiting = list(token_budget_batches(lengths, budget=token_budget))[::-1]
    while waiting:
        batch = waiting.pop()
        try:
            compute(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise DataError(
                    f"row {rows[batch[0]].id}: its {lengths[batch[0]]} tokens do not fit into "
                    "memory. Lower recipe.tokens.max_length, or use a larger device."
                ) from error
            if on_retry:
                on_retry(batch)
            give_memory_back()
            # Rows come longest first: the first one sets the padded width.
            token_budget = max(1, len(batch) * lengths[batch[0]] // 2)
            left = [i for later in (batch, *reversed(waiting)) for i in later]
            parts = token_budget_batches([lengths[i] for i in left], budget=token_budget)
            waiting = [[left[i] for i in part] for part in parts][::-1]
            log.warning(
                "out of memory with %d rows of up to %d tokens; going on with %d tokens a batch",
                len(batch),
                lengths[batch[0]],
                token_budget,
            )
            continue
        if on_rows:
            on_rows(len(batch))


def refuse_nonfinite(
    rows: Sequence[EncodedRow], *values: np.ndarray, skip: bool = False, what: str = "score"
) -> None:
    """Stop at numbers that are not finite, and name their rows.

    Args:
        rows: what the values belong to, in order.
        values: arrays whose first axis is the rows.
        skip: let them pass: the caller drops these rows with that reason.
        what: kind of number, for the message.

    Raises:
        NumericsError: a value is NaN or infinite.
    """
    bad = np.zeros(len(rows), dtype=bool)
    for array in values:
        bad |= ~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    if skip or not bad.any():
        return
    ids = [rows[i].id for i in np.flatnonzero(bad)[:SHOWN_IDS]]
    more = f" and {int(bad.sum()) - len(ids)} more" if bad.sum() > len(ids) else ""
    raise NumericsError(
        f"the {what} of {int(bad.sum())} of {len(rows)} rows is not finite: {', '.join(ids)}{more} "
        "(content ids, as in decisions.csv). Score in float32, lower recipe.train.learning_rate, "
        "or drop these rows with --skip-nonfinite."
    )
