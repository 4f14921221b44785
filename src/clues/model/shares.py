"""A training step dealt out to several processes, so that together they take the step of one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clues.data.tokens import EncodedRow


@dataclass(frozen=True)
class Part:
    """One of several processes that train together, each on a part of every step's rows.

    torch.distributed must stand already.

    Attributes:
        rank: number of this process.
        size: how many there are.
        steps: positions of every step's rows, of all processes together.
    """

    rank: int
    size: int
    steps: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Share:
    """One process's rows of a step.

    Attributes:
        rows: its own.
        n_all: rows of all processes together.
        counts: whether its rows do.
    """

    rows: tuple[EncodedRow, ...]
    n_all: int
    counts: bool


def shares(rows: Sequence[EncodedRow], part: Part) -> list[Share]:
    """This process's rows of every step."""
    found: list[Share] = []
    for step in part.steps:
        own = tuple(rows[i] for i in step[part.rank :: part.size])
        # All must take part in every step: who has no row takes one that does not count.
        found.append(Share(own or (rows[step[0]],), len(step), counts=bool(own)))
    return found


def check_together(state: Mapping[str, Tensor]) -> None:
    """See that all processes have trained the same adapter; alone, each would have its own.

    Raises:
        RuntimeError: they have not, so that none of them is the answer.
    """
    sums = torch.stack([tensor.double().sum() for _, tensor in sorted(state.items())])
    least, most = sums.clone(), sums.clone()
    torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    if not torch.equal(least, most):
        raise RuntimeError("the processes of one training did not train together")
