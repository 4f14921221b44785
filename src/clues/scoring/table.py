"""Scores of a silo's rows, in one parquet file that names its recipe."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clues.atomic import atomic_write_bytes
from clues.config import ALIGNMENT, LOSS
from clues.errors import DataError, RecipeMismatchError
from clues.scoring.parts import Parts, part_from_json, part_to_json
from clues.selection.threshold import Threshold

VERSION = 1
FIXED = ("row", "id", "fold", "n_tokens", "n_response_tokens")


@dataclass(frozen=True)
class ScoreTable:
    """What is known of every scored row.

    Attributes:
        recipe_hash: `scoring_hash` of the recipe the rows were scored under.
        row: zero-based positions in the silo's file.
        id: content ids.
        fold: which fold's checkpoints scored the row; 0 unless cross-fitted.
        n_tokens: length with the prompt.
        n_response_tokens: length of what carries loss.
        raw: by validation set, the sum over checkpoints of learning rate times inner product.
        parts: the terms of that sum, losses, and scores beside it.
        early: rows that a cascade dropped before their gradients; what was not computed of them is
            NaN. Empty without a cascade.
        cut: the threshold that dropped them; None without a cascade.
    """

    recipe_hash: str
    row: np.ndarray
    id: tuple[str, ...]
    fold: np.ndarray
    n_tokens: np.ndarray
    n_response_tokens: np.ndarray
    raw: dict[str, np.ndarray]
    parts: Parts
    early: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    cut: float | None = None

    @property
    def is_early(self) -> np.ndarray:
        """By row, whether it was decided before its gradients."""
        return self.early if self.cut is not None else np.zeros(len(self.row), bool)

    @property
    def whole(self) -> "ScoreTable":
        """The rows of which everything was computed; the table itself without a cascade."""
        return self if self.cut is None else self.of(~self.is_early)

    def of(self, chosen: np.ndarray) -> "ScoreTable":
        """The table of some of its rows."""
        columns = {name: getattr(self, name)[chosen] for name in FIXED if name != "id"}
        return ScoreTable(
            recipe_hash=self.recipe_hash,
            id=tuple(np.array(self.id, object)[chosen]),
            **columns,
            raw={name: values[chosen] for name, values in self.raw.items()},
            parts={part: values[chosen] for part, values in self.parts.items()},
            early=self.is_early[chosen],
            cut=self.cut,
        )

    def in_units(self, threshold: Threshold, groups: Sequence[str], *, where: str) -> np.ndarray:
        """Scores in the units that make the threshold's one number mean the same everywhere.

        A row that was decided early has the most that it could have scored.

        Args:
            threshold: with the units of every group.
            groups: that the rows fall into, by fold.
            where: whose table it is, for messages.

        Raises:
            RecipeMismatchError: the threshold has no units for one of the groups.
        """
        scores = np.zeros(len(self.row))
        for number, group in enumerate(groups):
            if group not in threshold.units:
                raise RecipeMismatchError(f"{where}: the threshold has no units for group {group}.")
            members = self.fold == number
            raw = {k: v[members] for k, v in self.raw.items()}
            units, early = threshold.units[group], self.is_early[members]
            scores[members] = units.apply(raw)
            if early.any():
                cheap = {k: raw[k] for k in (LOSS, ALIGNMENT) if k in units.parts}
                scores[members] = np.where(early, units.ceiling(cheap), scores[members])
        return scores

    def write(self, path: Path) -> None:
        """Write parquet beside and rename."""
        columns = {name: getattr(self, name) for name in FIXED}
        columns["id"] = list(self.id)
        # What a column holds stands in the metadata; nobody reads it out of the column's name.
        raw = {f"raw {name}": name for name in self.raw}
        parts = {f"part {number}": part for number, part in enumerate(self.parts)}
        columns |= {column: self.raw[name] for column, name in raw.items()}
        columns |= {column: self.parts[part] for column, part in parts.items()}
        said: dict[str, Any] = {
            "recipe_hash": self.recipe_hash,
            "version": VERSION,
            "raw": raw,
            "parts": {column: part_to_json(part) for column, part in parts.items()},
        }
        if self.cut is not None:
            columns["early"], said["cut"] = self.early, self.cut
            # What was not computed is missing for other programs, too.
            columns = {
                k: v if k == "id" else pa.array(v, from_pandas=True) for k, v in columns.items()
            }
        table, meta = pa.table(columns), json.dumps(said)
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({"clues": meta}), buffer)
        atomic_write_bytes(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> "ScoreTable":
        """Read what `write` wrote.

        Raises:
            DataError: the file is missing or is no score table.
        """
        try:
            table = pq.read_table(path)
            meta = json.loads((table.schema.metadata or {})[b"clues"])
            columns = {n: table[n].to_numpy() for n in table.column_names if n != "id"}
            return cls(
                recipe_hash=meta["recipe_hash"],
                id=tuple(table["id"].to_pylist()),
                **{n: columns[n] for n in FIXED if n != "id"},
                raw={name: columns[column] for column, name in meta["raw"].items()},
                parts={part_from_json(p): columns[column] for column, p in meta["parts"].items()},
                **({"early": columns["early"], "cut": meta["cut"]} if "cut" in meta else {}),
            )
        except FileNotFoundError:
            raise DataError(
                f"{path.name}: there are no scores yet. Score the silo first."
            ) from None
        except (OSError, KeyError, ValueError, pa.ArrowException):
            raise DataError(f"{path.name}: not a score table. Score the silo again.") from None
