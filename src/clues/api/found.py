"""What scoring found: a score and a decision for every row, and the rows that are kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clues.api.rows import Given
from clues.atomic import atomic_write_bytes, make_folder
from clues.config import Recipe
from clues.errors import UsageError
from clues.scoring.table import ScoreTable
from clues.selection.decisions import Decision
from clues.selection.threshold import Threshold

Floats = NDArray[np.float64]
WITH_QUANTILE = ("anchor_tolerance", "anchor_quantile")


@dataclass(frozen=True)
class Evidence:
    """What another threshold needs, so that nothing is trained again.

    Attributes:
        table: raw scores of the rows.
        groups: that they fall into, by fold.
        anchors: raw scores of the anchors, by group and part.
        turns: raw scores of turns, where the recipe asks for them.
        turn_anchors: those of one turn of every anchor.
        aside: by position, kind and reason of the rows that are set aside for their text.
    """

    table: ScoreTable
    groups: tuple[str, ...]
    anchors: Mapping[str, Mapping[str, Floats]]
    turns: ScoreTable | None = None
    turn_anchors: Mapping[str, Mapping[str, Floats]] = field(default_factory=dict)
    aside: Mapping[int, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, repr=False, eq=False)
class Found:
    """A scored set of rows. What `clues.score` and `clues.select` return.

    Attributes:
        scores: one per row, in the units of the threshold; higher is better. NaN where a row could
            not be scored, or was dropped before its gradients (`score.cascade`); its decision says
            why.
        threshold: the number that scores are compared with, and how it came about.
        decisions: one per row, in order: `row` (its position, from 0 on), `id`, `score`, `kept` and
            `reason`. With `score.turns`, `turns` are the scores of the turns of a row that has several
            (`turn`, its position from 0 on, and `score`), `worst` the lowest of them, and
            `untrained` the turns that are not trained.
        recipe: all settings that made the scores and the threshold.
    """

    scores: Floats
    threshold: Threshold
    decisions: tuple[Decision, ...]
    recipe: Recipe
    given: Given
    evidence: Evidence
    page: str | None

    def __repr__(self) -> str:
        cut = self.threshold.value
        rule = f"the best {self.threshold.ratio:.0%}" if cut is None else f"threshold {cut:.4g}"
        # The cut alone may be the same number under two quantiles, in other units.
        if self.threshold.rule in WITH_QUANTILE and self.threshold.interval:
            rule += f" at quantile {self.recipe.threshold.quantile:g}"
        kept = f"{len(self.positions)} of {len(self.decisions)} rows kept"
        unread = f"; not read: {', '.join(self.unread)}" if self.unread else ""
        return f"Found({kept}, {rule}{unread})"

    @property
    def unread(self) -> Mapping[str, int]:
        """Columns and keys of the rows that were not read, and in how many rows they say something."""
        return self.given.rows.unused

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions of the kept rows, from 0 on."""
        return tuple(d.row for d in self.decisions if d.kept)

    def kept(self) -> Any:
        """The kept rows, in the type that went in, in their order, every column untouched.

        A list gives a list of the same dicts, a Dataset a Dataset, a DataFrame a DataFrame with its
        index. A path gives a list of dicts; `clues.write_rows(clues.read_rows(path),
        found.positions, Path("kept.jsonl"))` writes them in the file's own format. With
        `threshold.low_turn: mask`, turns below the threshold say `train: false`, in a copy of the row.
        """
        return self.given.at(
            self.positions, {d.row: d.untrained for d in self.decisions if d.untrained}
        )

    def dropped(self) -> Any:
        """The other rows, likewise."""
        return self.given.at([d.row for d in self.decisions if not d.kept], {})

    def to_pandas(self) -> Any:
        """A DataFrame with one line per row: row, id, score, kept, reason. No row's text.

        With `score.turns` also worst_turn (a position, from 0 on) and worst_turn_score.
        """
        import pandas as pd  # half a second, for one method

        names = ("row", "id", "score", "kept", "reason")
        table: dict[str, Any] = {name: [getattr(d, name) for d in self.decisions] for name in names}
        table |= {"score": self.scores}
        if self.recipe.score.turns:
            worst = [d.worst for d in self.decisions]
            table["worst_turn"] = pd.array([w.turn if w else None for w in worst], "Int64")
            table["worst_turn_score"] = [w.score if w else np.nan for w in worst]
        return pd.DataFrame(table)

    def report(self, path: str | Path) -> Path:
        """Write the page that shows every row with its score, and a slider for the threshold.

        It is one HTML file that needs no network. It holds the rows' text: keep it where the rows
        may lie.

        Raises:
            UsageError: this is what another threshold would keep; the page is the first one's.
        """
        if self.page is None:
            raise UsageError(
                "the page belongs to what clues.score returned; its slider shows other thresholds."
            )
        make_folder(Path(path).parent)
        atomic_write_bytes(Path(path), self.page.encode())
        return Path(path)
