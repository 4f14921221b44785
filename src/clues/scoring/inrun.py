"""In-run scores: a row's score at the step that trains on it, nearly free.

Training makes the gradients that scoring needs. A side branch in the training step itself gives
every row of the batch its inner product with the last known validation direction; anchors go
through the same weights in small batches between the steps, and are never trained on.

Rows are seen at different steps, when directions are long and when they are short. Each product
is divided by what the mean validation row scores with the same direction, so 1 means: as good as
validation data, whatever the step; each loss is compared with the validation loss in the same way.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from clues.atomic import atomic_write_bytes
from clues.config import LOSS
from clues.data.batching import token_budget_batches, token_budget_of
from clues.data.tokens import EncodedRow
from clues.errors import DataError, NumericsError
from clues.model.adapters import AdapterState, LoraModel
from clues.model.devices import random_forked, wide
from clues.model.loss import make_batch, row_losses
from clues.scoring.influence import side_branches

MIN_RIDERS = 8  # anchors wait until so many are due: small batches waste time


@dataclass(frozen=True)
class Reference:
    """What a visit is measured against: the validation data at the last refresh.

    Attributes:
        directions: by validation set.
        products: by validation set, its mean row's inner product with its direction; positive.
        loss: mean validation loss, in nats.
    """

    directions: Mapping[str, AdapterState]
    products: Mapping[str, float]
    loss: float


@dataclass(frozen=True)
class Visits:
    """Scores of rows, or of anchors, at the moments they were seen.

    Attributes:
        index: (visits,) position of the row.
        step: (visits,) optimiser steps taken before, counted over the whole training.
        scores: by validation set, and `loss`: minus the loss above the validation loss.
    """

    index: np.ndarray
    step: np.ndarray
    scores: dict[str, np.ndarray]

    def write(self, path: Path) -> None:
        """Write parquet beside and rename."""
        columns = {"index": self.index, "step": self.step}
        columns |= {f"score/{name}": values for name, values in self.scores.items()}
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer)
        atomic_write_bytes(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> "Visits":
        """Read what `write` wrote.

        Raises:
            DataError: the file is missing or is no table of visits.
        """
        try:
            table = pq.read_table(path)
            columns = {name: table[name].to_numpy() for name in table.column_names}
            scores = {n[6:]: v for n, v in columns.items() if n.startswith("score/")}
            return cls(columns["index"], columns["step"], scores)
        except (OSError, KeyError, ValueError, pa.ArrowException):
            raise DataError(f"{path.name}: no in-run scores of this round. Train again.") from None


def merge_visits(parts: Sequence[Visits]) -> Visits:
    """Visits of all rounds as one; those of the first only of rows that no later round saw.

    In the first round the optimiser has no state to precondition a direction with, and B is still
    zero, so that A has no gradient: its scores are of another kind, and noisier.
    """
    first, names = parts[0], parts[0].scores
    later = [part.index for part in parts[1:]]
    only = ~np.isin(first.index, np.concatenate(later)) if later else slice(None)
    early = Visits(first.index[only], first.step[only], {n: first.scores[n][only] for n in names})
    parts = [early, *parts[1:]]
    return Visits(
        np.concatenate([p.index for p in parts]),
        np.concatenate([p.step for p in parts]),
        {name: np.concatenate([p.scores[name] for p in parts]) for name in names},
    )


def mean_scores(visits: Visits, n_rows: int) -> dict[str, np.ndarray]:
    """Mean score of every row over its visits, by part.

    Raises:
        DataError: a row was never seen.
    """
    counts = np.bincount(visits.index, minlength=n_rows)
    if (counts == 0).any():
        raise DataError(
            f"in-run scores: {int((counts == 0).sum())} of {n_rows} rows were never trained on. "
            "Raise recipe.train.steps or epochs until every row is seen, or use trajectory: global."
        )
    return {
        name: np.bincount(visits.index, weights=values, minlength=n_rows) / counts
        for name, values in visits.scores.items()
    }


def visit_order(n_rows: int, n_steps: int, batch_size: int, *, seed: int) -> np.ndarray:
    """Rows of every step, (n_steps, batch_size): all rows are seen before any is seen again."""
    needed = n_steps * batch_size
    passes = [
        np.random.default_rng([seed, epoch]).permutation(n_rows)
        for epoch in range(-(-needed // n_rows))
    ]
    return np.concatenate(passes)[:needed].reshape(n_steps, batch_size)


class InRun:
    """Watches one round of training and keeps the scores of the rows and anchors that it sees."""

    def __init__(
        self,
        model: LoraModel,
        order: np.ndarray,
        reference: Reference,
        anchors: Sequence[EncodedRow],
        *,
        n_rows: int,
        first_step: int,
        every_visit: bool,
        seed: int,
    ) -> None:
        """Plan which visits count and where the anchors ride.

        Args:
            model: the one that trains.
            order: rows of every step of the whole training, from `visit_order`.
            reference: directions of this round.
            anchors: public anchors.
            n_rows: of the silo.
            first_step: steps of earlier rounds.
            every_visit: score every visit; else a row's first alone, before any step on it.
            seed: of the anchors' order.
        """
        self.model, self.reference, self.anchors = model, reference, anchors
        self.first_step, self.order, self.seed = first_step, order, seed
        self.n_rows, self.every_visit = n_rows, every_visit
        self._names = list(reference.directions)
        self._losses: Tensor | None = None
        self._pending: list[int] = []
        self._rows: list[tuple[int, int, np.ndarray]] = []
        self._anchors: list[tuple[int, int, np.ndarray]] = []

    @contextmanager
    def watching(self, step: int, *, last: bool) -> Iterator[None]:
        """Around forward and backward of a step, counted from the round's first."""
        number = self.first_step + step
        self._pending += self._due(number)
        if len(self._pending) >= MIN_RIDERS or (last and self._pending):
            self._ride(number)
        rows = self.order[number]
        if not self.every_visit and (number * len(rows)) >= self.n_rows:
            yield
            return
        with side_branches(self.model, self._directions(), n_rows=len(rows)) as alpha_NK:
            yield
        assert alpha_NK.grad is not None
        assert self._losses is not None
        # The step's loss is the mean over its rows.
        products_NK = len(rows) * alpha_NK.grad
        kept = list(range(len(rows)))
        if not self.every_visit:
            kept = [n for n in kept if number * len(rows) + n < self.n_rows]
        scores = self._scores(products_NK, self._losses)
        self._rows += [(int(rows[n]), number, scores[n]) for n in kept]

    def saw(self, losses_N: Tensor) -> None:
        """Take the losses of the step's rows from the forward pass."""
        self._losses = losses_N.detach()

    def visits(self) -> tuple[Visits, Visits]:
        """Visits of the round: of rows, of anchors."""
        return self._table(self._rows), self._table(self._anchors)

    def _due(self, number: int) -> list[int]:
        """Anchors ride as often as rows are scored, evenly spread over the steps."""
        n, batch = len(self.anchors), self.order.shape[1]
        start, stop = (number * batch * n) // self.n_rows, ((number + 1) * batch * n) // self.n_rows
        if not self.every_visit:
            start, stop = min(start, n), min(stop, n)
        found = []
        for i in range(start, stop):
            shuffled = np.random.default_rng([self.seed, i // n]).permutation(n)
            found.append(int(shuffled[i % n]))
        return found

    def _ride(self, number: int) -> None:
        """Score the anchors that are due with the weights as they are; training does not notice."""
        due, self._pending = self._pending, []
        lengths = [len(self.anchors[i].ids) for i in due]
        with random_forked(self.model.device):
            for batch in token_budget_batches(lengths, budget=token_budget_of(self.model.device)):
                rows = [self.anchors[due[i]] for i in batch]
                with side_branches(self.model, self._directions(), n_rows=len(rows)) as alpha_NK:
                    tensors = make_batch(rows, device=self.model.device)
                    losses_N = row_losses(self.model.peft, tensors, head=self.model.head)
                    (products_NK,) = torch.autograd.grad(losses_N.sum(), alpha_NK)
                scores = self._scores(products_NK, losses_N.detach())
                self._anchors += [
                    (due[i], number, one) for i, one in zip(batch, scores, strict=True)
                ]

    def _directions(self) -> list[AdapterState]:
        return [dict(self.reference.directions[name]) for name in self._names]

    def _scores(self, products_NK: Tensor, losses_N: Tensor) -> np.ndarray:
        """(N, K + 1): products in units of the validation data, and the loss below theirs."""
        units = np.array([self.reference.products[name] for name in self._names])
        products = wide(products_NK).cpu().numpy() / units
        losses = wide(losses_N).cpu().numpy() - self.reference.loss
        scores = np.concatenate([products, -losses[:, None]], axis=1)
        if not np.isfinite(scores).all():
            raise NumericsError("an in-run score is not finite. Lower recipe.train.learning_rate.")
        return scores

    def _table(self, visits: list[tuple[int, int, np.ndarray]]) -> Visits:
        names = [*self._names, LOSS]
        scores = np.array([v[2] for v in visits]).reshape(len(visits), len(names))
        return Visits(
            np.array([v[0] for v in visits], dtype=np.int64),
            np.array([v[1] for v in visits], dtype=np.int64),
            {name: scores[:, k] for k, name in enumerate(names)},
        )
