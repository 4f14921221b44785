"""Preference pairs: both answers of each are scored alike, and a pair whose answers may be swapped shows.

Who has labelled a pair is not believed: chosen and rejected answers are rows of one set, trained on
and scored in the same way, and only then compared.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from clues.api.found import Floats, Found
from clues.api.rows import take_rows
from clues.api.scoring import score
from clues.data.samples import Message
from clues.errors import UsageError


@dataclass(frozen=True)
class Pairs:
    """Both scores of every pair.

    Attributes:
        chosen: score of each row's chosen answer; NaN where it could not be scored.
        rejected: of the other answer, likewise; NaN also where a row has none.
        found: what scoring found about all answers: first the chosen ones, then the others.
    """

    chosen: Floats = field(repr=False)
    rejected: Floats = field(repr=False)
    found: Found = field(repr=False)

    @property
    def flipped(self) -> tuple[int, ...]:
        """Positions of the pairs whose rejected answer scores higher, the clearest first."""
        ahead = self.rejected - self.chosen
        order = np.argsort(-ahead, kind="stable")
        return tuple(int(i) for i in order if ahead[i] > 0)

    @property
    def n_pairs(self) -> int:
        """Rows both of whose answers have a score."""
        return int(np.isfinite(self.chosen - self.rejected).sum())


def compare_pairs(
    rows: Any,
    *,
    schema: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    **how: Any,
) -> Pairs:
    """Score both answers of every preference pair.

    Args:
        rows: pairs, in any type and shape that `clues.score` takes.
        schema: as of `clues.score`.
        columns: as of `clues.score`.
        how: everything else that `clues.score` takes, `validation` and `anchors` or `checked` first.

    Raises:
        UsageError: no row is a pair.
        CluesError: as `clues.score`; positions behind the last row are those of rejected answers.
    """
    with TemporaryDirectory(prefix="clues-") as made:
        given = take_rows(rows, "rows", Path(made).resolve(), schema=schema, columns=columns)
    samples = given.rows.samples
    both = [n for n, sample in enumerate(samples) if sample.rejected]
    if not both:
        raise UsageError("rows: none is a pair, with a chosen and a rejected answer.")
    sides = [(sample.messages, sample.tools) for sample in samples]
    sides += [(samples[n].rejected, samples[n].tools) for n in both]
    found = score([_record(turns, tools) for turns, tools in sides], **how)
    rejected = np.full(len(samples), np.nan)
    rejected[both] = found.scores[len(samples) :]
    return Pairs(found.scores[: len(samples)], rejected, found)


def _record(turns: Sequence[Message], tools: str) -> dict[str, Any]:
    """A conversation as a row that is read as the same one."""
    messages = []
    for turn in turns:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        message |= {"reasoning_content": turn.thought} if turn.thought else {}
        message |= {"tool_calls": json.loads(turn.calls)} if turn.calls else {}
        message |= {"name": turn.name} if turn.name else {}
        message |= {"tool_call_id": turn.call_id} if turn.call_id else {}
        message |= {} if turn.trained else {"weight": 0}
        messages.append(message)
    return {"messages": messages} | ({"tools": json.loads(tools)} if tools else {})
