"""Why a row is not kept: of a low score, which part of it falls short of the checked rows."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from clues.config import ALIGNMENT, LOSS, REJECT
from clues.findings.base import NAMES
from clues.report.outcome import LOW, UNSCORED
from clues.scoring.table import ScoreTable
from clues.selection.decisions import EARLY, PERSON, SCORE, TURN, UNUSABLE, Decision, Selection
from clues.selection.threshold import Threshold
from clues.selection.units import INFLUENCE
from clues.silo.workspace import Workspace

MEANS = {
    ALIGNMENT: "seems to answer another question",
    INFLUENCE: "teaches something else than the checked rows",
    REJECT: "is like the rejected rows",
}

IN_WORDS = {**NAMES, SCORE: LOW, TURN: "a low turn", PERSON: "decided by a person"}
IN_WORDS |= {UNUSABLE: "null or empty", EARLY: "low by loss and alignment alone"}


def with_reasons(
    selection: Selection, space: Workspace, table: ScoreTable, threshold: Threshold
) -> Selection:
    """The selection, where what was dropped for its score has a reason in words before the number."""
    low = {d.row for d in selection.decisions if d.why in (SCORE, EARLY) and not d.kept}
    said = sentences(space, table, threshold, low)

    def told(decision: Decision) -> Decision:
        sentence = said.get(decision.row)
        return replace(decision, reason=f"{sentence}; {decision.reason}") if sentence else decision

    return replace(selection, decisions=tuple(map(told, selection.decisions)))


def sentences(
    space: Workspace, table: ScoreTable, threshold: Threshold, wanted: set[int]
) -> dict[int, str]:
    """For each of these rows what its weakest part says; nothing where the score has one name only.

    Args:
        space: of the silo.
        table: its scores.
        threshold: with the units of its groups.
        wanted: positions of rows.
    """
    found: dict[int, str] = {}
    anchors = space.anchor_scores()
    for number, group in enumerate(space.groups()):
        members = np.flatnonzero(table.fold == number)
        raw = {name: values[members] for name, values in table.raw.items()}
        units = threshold.units[group]
        # One part alone is the score; its name says what it looks at.
        parts = units.shortfalls(raw) or _only(space, raw)
        if not parts:
            continue
        names = list(parts)
        # A part that was not computed says nothing.
        weakest = np.argmin(np.nan_to_num([parts[name] for name in names], nan=0.0), axis=0)
        for place, member in enumerate(members.tolist()):
            row = int(table.row[member])
            if row in wanted:
                found[row] = _sentence(names[weakest[place]], raw, anchors[group], place)
    return found


def _only(space: Workspace, raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    if space.recipe().score.method != "influence":
        return {}
    return {INFLUENCE: np.zeros(len(next(iter(raw.values()))))}


def _sentence(
    part: str, raw: Mapping[str, np.ndarray], anchors: Mapping[str, list[float]], place: int
) -> str:
    if part != LOSS:
        return MEANS[part]
    usual = -float(np.median(anchors[LOSS]))
    return f"reads as unlikely text: loss {-raw[LOSS][place]:.1f}, checked rows {usual:.1f}"


def reason_in_words(decision: Mapping[str, str]) -> str:
    """Why a row is not kept, in the few words that rows of one reason share; empty if it is kept."""
    if decision["file"] == "kept":
        return ""
    if decision["file"] == "unscored":
        return UNSCORED
    if decision["why"] != SCORE:
        return IN_WORDS.get(decision["why"], decision["why"])
    sentence = decision["reason"].split(";")[0].split(":")[0]
    # Where the score has one part alone, its number is all there is to say.
    return LOW if sentence.startswith("score ") else sentence
