"""The ways that the comparison sets side by side: ours, the limit, and those of others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from benchmarks.peers import bergson, dattri
from benchmarks.scene import Scene
from benchmarks.speed import default_products, products, published_products
from benchmarks.ways import activation_pass, vmap_scores
from clues.data.tokens import EncodedRow
from clues.model.adapters import AdapterState

Scores = Callable[[Scene, Sequence[EncodedRow], AdapterState], np.ndarray]


@dataclass(frozen=True)
class Way:
    """One way to the scores of a file.

    Attributes:
        name: as the table says it.
        scores: of the rows, (N,).
        same_numbers: whether these are the inner products that the side branch gives.
        module: what it needs beside our own libraries; None where nothing.
    """

    name: str
    scores: Scores
    same_numbers: bool = True
    module: str | None = None

    @property
    def can_run(self) -> bool:
        """Whether what it needs is installed."""
        return self.module is None or find_spec(self.module) is not None


def _side_branch(scene: Scene, rows: Sequence[EncodedRow], direction: AdapterState) -> np.ndarray:
    return products(scene, rows, [direction])[:, 0]


def _default(scene: Scene, rows: Sequence[EncodedRow], direction: AdapterState) -> np.ndarray:
    return default_products(scene, rows, [direction])[:, 0]


def _limit(scene: Scene, rows: Sequence[EncodedRow], _: AdapterState) -> np.ndarray:
    return activation_pass(scene, rows)


OURS = Way("clues, side branch", _side_branch)
WAYS = (
    OURS,
    Way("limit: forward, and backward through activations", _limit, same_numbers=False),
    Way("clues, `less` (the default)", _default, same_numbers=False),
    Way("vmap(grad) in our batches", vmap_scores),
    Way("dattri-llm, 8 rows per batch", dattri.as_it_comes, module="dattri_llm"),
    Way("dattri-llm, our batches and loss", dattri.with_ours, module="dattri_llm"),
    Way("Bergson `score`", bergson.score, module="bergson"),
    Way("published loop, row by row", published_products),
)
