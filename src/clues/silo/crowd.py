"""Which rows a training takes, in what order, and whether they are enough to hide one of them.

A coordinator that gets two updates can subtract them. Where both come from nearly the same rows in
the same order, what is left is one row's gradient, and text can be read from that. So the order
follows from the silo's own key, and every training sets `min_kept` rows aside, drawn by the same
key: whatever is subtracted, rows of that number are mixed in it. Other rows, another recipe, arm or
number of steps is another draw.

Of many updates more can be made than of two: if each took rows at random, some would differ by one
row, and a few hundred would give away all. So the rounds of one training take the same few groups
of rows, in the same order, whatever adapter comes: a thousand answers tell of these groups alone.

Nor is the number of rows that a training takes what counts. AdamW makes its first steps count more
than its last, and weight decay or a fast fall of the learning rate can leave one step alone. So
rows are counted by their weights in the update. And the rounds of one training weigh the same steps
in different ways, so that a few answers can be solved for one step. So every step takes several
rows itself.

Where one person owns both sides, or the silo's file gives an `order_seed`, the order follows from
that seed and no row is set aside, so that a run can be repeated.
"""

import hmac
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clues.config import derived_seed
from clues.data.tokens import EncodedRow
from clues.data.views import View
from clues.errors import DataError
from clues.model.recording import Schedule
from clues.printable import rows_in_words
from clues.rundir import hash_of
from clues.silo.workspace import Workspace
from clues.wall.container import checksum_of
from clues.wall.messages import FitRequest, TrainRequest

# Decay of AdamW's running mean of gradients, as the Trainer sets it.
FIRST_DECAY = 0.9
# A step of this many rows is enough whatever min_kept is: a GPU holds no batch of a hundred.
ENOUGH_IN_STEP = 16
# Of what a round has learnt; with more, the rounds of one training would weigh steps in many ways.
MOST_FORGOTTEN = 0.1


@dataclass(frozen=True)
class Crowd:
    """The rows of one training.

    Attributes:
        rows: those that it may take.
        order: positions in `rows`, step after step; None for the order that `seed` draws.
        seed: of dropout and, without `order`, of the order.
        taken: position of each of `rows` among those that could be trained on.
        aside: positions of the others.
    """

    rows: Sequence[EncodedRow]
    order: list[int] | None
    seed: int
    taken: Sequence[int]
    aside: Sequence[int]


def gather(
    space: Workspace,
    rows: Sequence[EncodedRow],
    request: TrainRequest | FitRequest,
    *,
    n_steps: int,
    what: str,
    schedule: Schedule,
    shown_after: int | None = None,
    every_step: bool = False,
    with_moments: bool = False,
) -> Crowd:
    """Choose the rows of a training and their order.

    Args:
        space: the silo.
        rows: that could be trained on.
        request: that asks for the training.
        n_steps: training steps until the update leaves the silo.
        what: name of the training, for errors.
        schedule: learning rates of all rounds of the training.
        shown_after: steps after which an adapter can first be seen, if only by what public rows
            score under it; None for all of them.
        every_step: whether one step alone can be seen: public rows are scored between steps, or
            FedProx pulls back to the start, so that what is left may be the first step's.
        with_moments: whether the running means of the rows' gradients leave with the update.

    Raises:
        DataError: there are too few rows or steps, or the batches are too small.
    """
    batch, seed = space.recipe().train.batch_size, space.order_seed()
    aside = space.n_aside()
    n_rows = max(0, len(rows) - aside)
    n_shown = n_steps if shown_after is None else shown_after
    _check(space, n_rows, n_steps=n_shown, what=what, aside=aside, with_moments=with_moments)
    _check_weights(
        space, n_rows, n_steps=n_shown, what=what, schedule=schedule, every_step=every_step
    )
    if seed is not None:
        # The same seed for every arm: arms differ by their rows alone.
        drawn = derived_seed(seed, request.kind, space.name, request.round)
        return Crowd(rows, None, drawn, range(len(rows)), ())
    arm = request.arm if isinstance(request, FitRequest) else ""
    these = identity(space, [row.row for row in rows])
    draw = (request.recipe_hash, request.kind, arm, str(n_steps), these)
    # For all rounds the same rows: what differs from round to round would say which they are.
    mixed = _generator(space, "aside", *draw).permutation(len(rows))
    taken = sorted(mixed[aside:].tolist())
    order = round_order(
        _generator(space, "order", *draw).permutation(n_rows).tolist(),
        n_steps * batch,
        number=request.round,
        fewest=space.settings.min_kept,
    )
    dropout = secret_seed(space, "dropout", checksum_of(request.to_bytes())) % 2**32
    return Crowd(View(rows, taken), order, dropout, taken, sorted(mixed[:aside].tolist()))


def identity(space: Workspace, rows: Sequence[int]) -> str:
    """Hash of rows by position: their text and their places. Others get other random numbers."""
    return hash_of([space.data_token(), sorted(rows)])


def round_order(mixed: Sequence[int], n_seen: int, *, number: int, fewest: int) -> list[int]:
    """Rows of one round: all of them as often as they fit, then one of a few fixed parts.

    No two parts differ by fewer than `fewest` rows.

    Args:
        mixed: all rows in their secret order.
        n_seen: how many rows a round takes, repeated ones counted again.
        number: of the round, from zero; the parts take turns.
        fewest: rows that no answer, and no difference of two, may single out.
    """
    whole, n_part = divmod(n_seen, len(mixed))
    order = list(mixed) * whole
    if not n_part:
        return order
    if n_part < fewest:
        # Taking turns would part single rows from the rest.
        return order + list(mixed[:n_part])
    starts = list(range(0, len(mixed) - n_part + 1, n_part))
    last = len(mixed) - n_part
    if last - starts[-1] >= fewest:
        # The rows that would be left over, filled up with some that had their turn.
        starts.append(last)
    start = starts[number % len(starts)]
    return order + list(mixed[start : start + n_part])


def secret_seed(space: Workspace, *purpose: str) -> int:
    """A seed of 256 bits for one purpose, from the silo's own key."""
    # Each part ends where it ends: no two purposes make the same text.
    text = "".join(f"{len(part)}:{part}" for part in purpose)
    return int.from_bytes(hmac.new(space.secret(), text.encode(), "sha256").digest(), "big")


def _generator(space: Workspace, *purpose: str) -> np.random.Generator:
    return np.random.default_rng(secret_seed(space, *purpose))


def _check(
    space: Workspace, n_rows: int, *, n_steps: int, what: str, aside: int, with_moments: bool
) -> None:
    """Refuse an update that would be made of fewer rows than `min_kept`."""
    batch, fewest = space.recipe().train.batch_size, space.settings.min_kept
    n_seen = min(n_rows, n_steps * batch)
    if n_seen < fewest:
        spared = f" ({aside} are set aside)" if aside else ""
        raise DataError(
            f"silo {space.name}: {what} would train on {rows_in_words(n_seen)}{spared} before its update "
            f"leaves, and min_kept is {fewest}. An update of so few rows can give them away. More "
            "local steps or larger batches make it more."
        )
    in_mean = rows_in_mean(min(batch, n_rows), n_steps)
    if with_moments and in_mean < fewest:
        raise DataError(
            f"silo {space.name}: {what} sends a mean of gradients in which {in_mean:.1f} rows "
            f"count, and min_kept is {fewest}. More local steps or larger batches make it more."
        )


def _check_weights(
    space: Workspace,
    n_rows: int,
    *,
    n_steps: int,
    what: str,
    schedule: Schedule,
    every_step: bool,
) -> None:
    """Refuse a training whose updates, or what can be made of several, show few rows.

    All rounds are looked at before the first.
    """
    settings, fewest = space.recipe().train, space.settings.min_kept
    batch = min(settings.batch_size, n_rows)
    if space.one_owner:
        return
    if batch < min(fewest, ENOUGH_IN_STEP):
        raise DataError(
            f"silo {space.name}: {what} takes {batch} rows per step, and a few answers can be solved "
            f"for one step. With min_kept {fewest} a step must have "
            f"{min(fewest, ENOUGH_IN_STEP)} rows (recipe.train.batch_size)."
        )
    if schedule.peak * settings.weight_decay * n_steps > MOST_FORGOTTEN:
        raise DataError(
            f"silo {space.name}: {what} has so much weight decay that it would forget more than a "
            "tenth of what it has learnt before its update leaves. What is left may be one step. "
            "Lower recipe.train.weight_decay."
        )
    if batch >= fewest:
        return
    found: float = batch
    if not every_step:
        last = schedule.total_steps // n_steps - 1
        found = min(
            rows_in_update(
                batch,
                [schedule.peak * schedule.factor(number * n_steps + k) for k in range(n_steps)],
                weight_decay=settings.weight_decay,
            )
            # The rate rises, then falls to zero in the last round.
            for number in {0, last // 2, last}
        )
    if found < fewest:
        raise DataError(
            f"silo {space.name}: {what} makes an update in which {found:.1f} rows count, because "
            f"some weigh more than others in it, and min_kept is {fewest}. More local steps or "
            "larger batches make it more; batches of that many rows always do."
        )


def rows_in_update(batch_size: int, rates: Sequence[float], *, weight_decay: float = 0.0) -> float:
    """How many rows count in an update by AdamW: one divided by the largest share of a row in it.

    Step k moves the weights by rate_k m_k, and m_k is the mean of the gradients so far, of weights
    (1 - b) b^(k-j) / (1 - b^k). Later steps shrink what was moved by 1 - rate * decay each. So step
    j weighs

    W_j = sum over k >= j of rate_k * keep_k * (1 - b) b^(k-j) / (1 - b^k)
    keep_k = product over i > k of (1 - rate_i * decay)

    That every m_k is divided by a mean of squares is left out: it depends on the rows.
    """
    b, keep, reach = FIRST_DECAY, 1.0, 0.0
    total = largest = 0.0
    for k in range(len(rates), 0, -1):
        reach = rates[k - 1] * keep / (1 - b**k) + b * reach
        total, largest = total + abs(reach), max(largest, abs(reach))
        keep *= 1 - rates[k - 1] * weight_decay
    # Weights that overflow are those of a decay that makes one step outgrow all others.
    return batch_size * total / largest if 0.0 < total < math.inf else 0.0


def rows_in_mean(batch_size: int, n_steps: int) -> float:
    """How many rows count in Adam's running mean of gradients: 1 / sum of their squared weights.

    A row of the k-th last step has weight (1 - b) b^k / (1 - b^n) / batch_size; rows of equal
    weight count in full.
    """
    b, last = FIRST_DECAY, FIRST_DECAY**n_steps
    return batch_size * (1 + b) * (1 - last) / ((1 - b) * (1 + last))
