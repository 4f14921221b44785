"""How fast this machine is with the model at hand, and how much memory a batch takes."""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clues.data.batching import token_budget_of
from clues.data.tokens import EncodedRow
from clues.model.adapters import LoraModel
from clues.model.devices import wait_for
from clues.scoring.cost import Work
from clues.scoring.influence import influence_scores
from clues.scoring.perplexity import mean_losses


@dataclass(frozen=True)
class Pace:
    """What this machine does.

    Attributes:
        forward: seconds per token of a forward pass.
        gradient: seconds per token of a pass with gradients.
        memory_gb: peak of this process so far, a batch of the longest rows included.
    """

    forward: float
    gradient: float
    memory_gb: float

    def minutes(self, work: Work) -> float:
        """How long it takes."""
        return (work.forward * self.forward + work.gradient * self.gradient) / 60


def measured_pace(model: LoraModel, rows: Sequence[EncodedRow]) -> Pace:
    """Time both kinds of passes over one batch: the longest row, and others of all lengths.

    Args:
        model: is left with its initial adapter.
        rows: a silo's; at least one.
    """
    by_length = sorted(rows, key=lambda row: len(row.ids))
    budget = token_budget_of(model.device)
    longest = len(by_length[-1].ids)
    mean = sum(len(row.ids) for row in rows) / len(rows)
    n = max(1, min(len(by_length), int(budget / 2 / mean)))
    spread = [by_length[round(i * (len(by_length) - 1) / n)] for i in range(n)]
    # As many of the longest as one batch holds, for the peak of the memory.
    sample = [*spread, *by_length[-max(1, budget // longest) :]]
    tokens = sum(len(row.ids) for row in sample)
    few = by_length[:1]
    state, times = model.initial, list[float]()
    for compute in (
        lambda some: mean_losses(model, some, adapter=state),
        lambda some: influence_scores(model, some, adapter=state, directions=[state]),
    ):
        compute(few)  # what only the first call does
        started = time.perf_counter()
        compute(sample)
        wait_for(model.device)
        times.append((time.perf_counter() - started) / tokens)
    return Pace(times[0], times[1], _peak_gb())


def _peak_gb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
