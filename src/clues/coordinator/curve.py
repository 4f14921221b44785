"""The loss of public validation rows along the rounds of a joint training.

The coordinator measures it with the joint adapter that it has anyway: no silo is asked, and nothing
is learnt about private rows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from clues.data.tokens import EncodedRow
from clues.model.adapters import AdapterState, LoraModel
from clues.scoring.perplexity import mean_losses

N_ROWS = 32  # a curve needs few: each point costs a forward pass over them
N_POINTS = 24
Curve = list[list[float]]  # (rounds done, loss) pairs


@dataclass(frozen=True)
class Watch:
    """Says after which rounds to look, and what is seen."""

    loss: Callable[[AdapterState], float]

    def look(self, curve: Curve, number: int, n_rounds: int, adapter: AdapterState) -> Curve:
        """The curve up to `number` rounds, with a new point where one is due.

        Args:
            curve: so far; later points are of a process that was killed before it had finished.
            number: of rounds done, from zero.
            n_rounds: of the whole training.
            adapter: after that many rounds.
        """
        before = [point for point in curve if point[0] < number]
        every = math.ceil(n_rounds / N_POINTS)
        due = number % every == 0 or number == n_rounds
        return [*before, [number, round(self.loss(adapter), 6)]] if due else before


def watched_rows(sets: Mapping[str, Sequence[EncodedRow]]) -> list[EncodedRow]:
    """A few rows, in turn from every public validation set."""
    longest = max(map(len, sets.values()), default=0)
    turns = [rows[n] for n in range(longest) for rows in sets.values() if n < len(rows)]
    return turns[:N_ROWS]


def watched_loss(model: LoraModel, rows: Sequence[EncodedRow], adapter: AdapterState) -> float:
    """Mean loss of the rows under an adapter, in nats."""
    return float(mean_losses(model, rows, adapter=adapter).mean())
