"""What the columns of a score table are, beside the score that decides.

A column is known by one of these values, never by a text that somebody takes apart.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clues.errors import DataError

OUTSIDE_BLOCKS = -1  # of a term: weights that belong to no block of the model


@dataclass(frozen=True, order=True)
class Term:
    """One term of the influence: learning rate times inner product.

    Attributes:
        checkpoint: number along the trajectory, from zero.
        set: validation set whose direction it is.
        block: transformer block, or `OUTSIDE_BLOCKS`; None for all weights together.
    """

    checkpoint: int
    set: str
    block: int | None = None


@dataclass(frozen=True, order=True)
class Loss:
    """The row's mean loss, in nats; positive.

    Attributes:
        checkpoint: number along the trajectory; None before the training.
    """

    checkpoint: int | None = None


@dataclass(frozen=True, order=True)
class Compared:
    """A score beside the one that decides.

    Attributes:
        method: name of the form, baseline or `inrun`.
    """

    method: str


@dataclass(frozen=True, order=True)
class InRunTerm:
    """Mean in-run influence over a row's visits.

    Attributes:
        set: validation set whose direction it is.
    """

    set: str


@dataclass(frozen=True, order=True)
class InRunLoss:
    """Mean loss of a row at its visits, in nats; positive."""


@dataclass(frozen=True, order=True)
class Turn:
    """Which turn of its row is scored, in a table of turns: its position, from 0 on."""


Part = Term | Loss | Compared | InRunTerm | InRunLoss | Turn
Parts = dict[Part, np.ndarray]
KINDS: dict[str, type[Part]] = {
    cls.__name__: cls for cls in (Term, Loss, Compared, InRunTerm, InRunLoss, Turn)
}
BEFORE = Loss()


def checkpoint_losses(parts: Mapping[Part, np.ndarray]) -> list[np.ndarray]:
    """The rows' losses at every checkpoint, in the order of training."""
    found = [p for p in parts if isinstance(p, Loss) and p.checkpoint is not None]
    return [parts[p] for p in sorted(found)]


def terms(parts: Mapping[Part, np.ndarray]) -> dict[Term, np.ndarray]:
    """The terms of the influence."""
    return {part: values for part, values in parts.items() if isinstance(part, Term)}


def block_label(block: int) -> str:
    """A block's name for people."""
    return "outside blocks" if block == OUTSIDE_BLOCKS else f"block {block}"


def part_to_json(part: Part) -> dict[str, Any]:
    """Plain values that `part_from_json` reads."""
    return {"kind": type(part).__name__, **asdict(part)}


def part_from_json(content: Mapping[str, Any]) -> Part:
    """Read what `part_to_json` made.

    Raises:
        DataError: there is no such kind of column, or it has other fields.
    """
    fields = {key: value for key, value in content.items() if key != "kind"}
    try:
        return KINDS[content["kind"]](**fields)
    except (KeyError, TypeError):
        raise DataError("a column of the score table is of an unknown kind. Score again.") from None
