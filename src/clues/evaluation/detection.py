"""How well a selection finds clean rows. The only place, with the oracle, where labels are read."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clues.data.formats import RowFile
from clues.selection.weighing import auc


def read_labels(rows: RowFile, column: str | None) -> list[str | None] | None:
    """Kind of damage of every row, None for a clean one; None if the silo names no column.

    Raises:
        DataError: the file has no such column.
    """
    if column is None:
        return None
    return [str(v) if v not in (None, "", "clean") else None for v in rows.column(column)]


def detection(labels: Sequence[str | None], kept: NDArray[np.bool_]) -> dict[str, float | None]:
    """Precision, recall, F1 and accuracy of keeping; positive = clean.

    A figure that is not defined, such as the precision of keeping nothing, is None.
    """
    clean = np.array([label is None for label in labels])
    hits = int((kept & clean).sum())
    precision = hits / int(kept.sum()) if kept.any() else None
    recall = hits / int(clean.sum()) if clean.any() else None
    both = precision is not None and recall is not None
    f1 = 2 * hits / (int(kept.sum()) + int(clean.sum())) if both else None
    return {
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "accuracy": float((kept == clean).mean()),
    }


def ranking(labels: Sequence[str | None], scores: NDArray[np.float64]) -> dict[str, Any]:
    """AUC of clean against damaged, in all and by kind of damage.

    The probability that a clean row scores higher than a damaged one; None if one side is empty.
    """
    clean = np.array([label is None for label in labels])

    def against(damaged: NDArray[np.bool_]) -> float | None:
        return auc(scores[clean], scores[damaged]) if clean.any() and damaged.any() else None

    kinds = sorted({label for label in labels if label})
    by_kind = {k: against(np.array([label == k for label in labels])) for k in kinds}
    return {"auc": against(~clean), "auc_by_kind": by_kind}
