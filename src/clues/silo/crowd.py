"""Which rows a training takes, in what order, and whether they are enough to hide one of them.

A coordinator that gets two updates can subtract them. Where both come from nearly the same rows in
the same order, what is left is one row's gradient, and text can be read from that. So the order
follows from the silo's own key and from the whole request, and every training sets `min_kept` rows
aside, drawn by the same key: whatever is subtracted, rows of that number are mixed in it.

Where one person owns both sides, or the silo's file gives an `order_seed`, the order follows from
that seed and no row is set aside, so that a run can be repeated.
"""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clues.config import derived_seed
from clues.data.tokens import EncodedRow
from clues.errors import DataError
from clues.silo.workspace import Workspace
from clues.wall.container import checksum_of
from clues.wall.messages import FitRequest, TrainRequest

# Decay of AdamW's running mean of gradients, as the Trainer sets it.
FIRST_DECAY = 0.9


@dataclass(frozen=True)
class Crowd:
    """The rows of one training.

    Attributes:
        rows: those that it may take.
        order: positions in `rows`, step after step; None for the order that `seed` draws.
        seed: of dropout and, without `order`, of the order.
    """

    rows: Sequence[EncodedRow]
    order: list[int] | None
    seed: int


def gather(
    space: Workspace,
    rows: Sequence[EncodedRow],
    request: TrainRequest | FitRequest,
    *,
    n_steps: int,
    what: str,
    with_moments: bool = False,
    all_of_them: bool = False,
) -> Crowd:
    """Choose the rows of a training and their order.

    Args:
        space: the silo.
        rows: that could be trained on.
        request: that asks for the training.
        n_steps: training steps until the update leaves the silo.
        what: name of the training, for errors.
        with_moments: whether the running means of the rows' gradients leave with the update.
        all_of_them: set no row aside, because every one must be seen.

    Raises:
        DataError: there are too few rows or steps, or the batches are too small.
    """
    batch, seed = space.recipe().train.batch_size, space.order_seed()
    aside = 0 if all_of_them else space.n_aside()
    n_rows = max(0, len(rows) - aside)
    _check(space, n_rows, n_steps=n_steps, what=what, aside=aside, with_moments=with_moments)
    if seed is not None:
        # The same seed for every arm: arms differ by their rows alone.
        return Crowd(rows, None, derived_seed(seed, request.kind, space.name, request.round))
    arm = request.arm if isinstance(request, FitRequest) else ""
    # For all rounds the same rows: what differs from round to round would say which they are.
    # With other rows left out, other rows are set aside: else two lists would differ by one row.
    left_out = [left] if (left := space.left_token()) else []
    chosen = _generator(space, "aside", request.recipe_hash, request.kind, arm, *left_out)
    places = sorted(chosen.permutation(len(rows))[aside:].tolist())
    drawn = _generator(space, "order", checksum_of(request.to_bytes()))
    order: list[int] = []
    while len(order) < n_steps * batch:
        order += drawn.permutation(len(places)).tolist()
    taken = [rows[i] for i in places]
    return Crowd(taken, order[: n_steps * batch], int(drawn.integers(2**32)))


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
            f"silo {space.name}: {what} would train on {n_seen} rows{spared} before its update "
            f"leaves, and min_kept is {fewest}. An update of so few rows can give them away. More "
            "local steps or larger batches make it more."
        )
    in_mean = rows_in_mean(min(batch, n_rows), n_steps)
    if with_moments and in_mean < fewest:
        raise DataError(
            f"silo {space.name}: {what} sends a mean of gradients in which {in_mean:.1f} rows "
            f"count, and min_kept is {fewest}. More local steps or larger batches make it more."
        )


def rows_in_mean(batch_size: int, n_steps: int) -> float:
    """How many rows count in Adam's running mean of gradients: 1 / sum of their squared weights.

    A row of the k-th last step has weight (1 - b) b^k / (1 - b^n) / batch_size; rows of equal
    weight count in full.
    """
    b, last = FIRST_DECAY, FIRST_DECAY**n_steps
    return batch_size * (1 + b) * (1 - last) / ((1 - b) * (1 + last))
