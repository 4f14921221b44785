"""From the threshold to a decision per row. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from clues.config import short
from clues.errors import (
    ConfigError,
    DataError,
    DegenerateSelectionError,
    NumericsError,
    RecipeMismatchError,
)
from clues.findings.base import REPEATED
from clues.selection.threshold import Threshold
from clues.selection.turns import Turns, TurnScore
from clues.selection.units import Array


@dataclass(frozen=True)
class Ruling:
    """What a person decided about a row, whatever it scores."""

    keep: bool
    reason: str = field(repr=False)


# Why a row is kept or not, in a word; a finding about its text is one more.
SCORE, PERSON, UNSCORED, UNUSABLE = "score", "person", "not scored", "not usable"
TURN = "turn"
# Below the threshold by loss and alignment alone, with a cascade.
EARLY = "early"


class Apart(NamedTuple):
    """A row that no score decides about: its content id, why in a word, and the reason."""

    id: str
    why: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one row, and why; `by_hand` if a person has decided it.

    Attributes:
        row: zero-based position in the file.
        id: content id.
        score: in the threshold's units; None where there is none.
        kept: whether it is kept.
        reason: a sentence.
        by_hand: whether a person has decided it.
        why: in a word: `score`, `early` (with a cascade: by its loss and alignment alone), `turn`,
            `person`, `not scored`, `not usable`, or the kind of a finding.
        turns: scores of the turns of a row that has several, with `score.turns`.
        untrained: positions of turns that are below the threshold, in a kept row of which they are
            read and not trained.
    """

    row: int
    id: str
    score: float | None
    kept: bool
    reason: str = field(repr=False)
    by_hand: bool = False
    why: str = SCORE
    turns: tuple[TurnScore, ...] = ()
    untrained: tuple[int, ...] = ()

    @property
    def worst(self) -> TurnScore | None:
        """The turn with the lowest score, where turns have scores."""
        return min(self.turns, default=None)

    @property
    def file(self) -> str:
        """Where the row goes: `kept`, `dropped`, or `unscored` where nothing speaks against it."""
        return "kept" if self.kept else "unscored" if self.why == UNSCORED else "dropped"


@dataclass(frozen=True)
class Selection:
    """A decision for every row of a silo, in the order of the file."""

    recipe_hash: str
    decisions: tuple[Decision, ...]

    @property
    def kept(self) -> tuple[int, ...]:
        """Positions of the kept rows."""
        return tuple(d.row for d in self.decisions if d.kept)

    @property
    def dropped(self) -> tuple[int, ...]:
        """Positions of the dropped rows."""
        return self.of("dropped")

    @property
    def unscored(self) -> tuple[int, ...]:
        """Positions of the rows that are neither: they have no score."""
        return self.of("unscored")

    def of(self, file: str) -> tuple[int, ...]:
        """Positions of the rows that go to one file."""
        return tuple(d.row for d in self.decisions if d.file == file)

    @property
    def untrained(self) -> dict[int, tuple[int, ...]]:
        """By position of a kept row, the turns of it that are not trained."""
        return {d.row: d.untrained for d in self.decisions if d.untrained}


def select(
    rows: Sequence[tuple[int, str]],
    scores: Array,
    threshold: Threshold,
    *,
    recipe_hash: str,
    dropped: Mapping[int, Apart],
    where: str,
    min_kept: int = 1,
    allow_degenerate: bool = False,
    rulings: Mapping[str, Ruling] | None = None,
    aside: Mapping[int, tuple[str, str]] | None = None,
    turns: Turns | None = None,
) -> Selection:
    """Decide about every row; a row at the threshold is kept.

    Args:
        rows: (position, content id) of the scored rows.
        scores: their scores in the threshold's units, in the same order.
        threshold: the global rule.
        recipe_hash: recipe under which the rows were scored.
        dropped: by position, the rows that no score decides about.
        where: name of the silo, for errors.
        min_kept: fewer kept rows than this would single people out.
        allow_degenerate: accept a selection that keeps nothing or everything.
        rulings: by content id, what a person decided; it wins over the score, and the limits
            above hold for what comes out.
        aside: by position, kind and reason of the rows that a finding sets aside whatever they
            score.
        turns: scores of the turns of rows that have several, in units of the anchors' turns.

    Raises:
        RecipeMismatchError: scores and threshold come from different recipes.
        NumericsError: a score is not finite.
        DataError: a person keeps a row that has no score.
        DegenerateSelectionError: nothing, everything, or fewer than `min_kept` rows are kept.
    """
    if recipe_hash != threshold.recipe_hash:
        raise RecipeMismatchError(
            f"{where} scored under recipe {short(recipe_hash)}; the threshold is for "
            f"{short(threshold.recipe_hash)}. Send {where} the current recipe and score again."
        )
    if not np.isfinite(scores).all():
        n_bad = int((~np.isfinite(scores)).sum())
        raise NumericsError(f"{where}: {n_bad} of {len(scores)} scores are not finite.")
    cut = cut_of(threshold, scores, where=where)
    decisions = [
        Decision(row, id_, float(score), bool(score >= cut), _reason(float(score), cut))
        for (row, id_), score in zip(rows, scores, strict=True)
    ]
    decisions = [_by_turns(d, turns, cut) for d in decisions] if turns else decisions
    decisions += [
        Decision(row, apart.id, None, False, apart.reason, why=apart.why)
        for row, apart in dropped.items()
    ]
    decisions = [_set_aside(d, (aside or {}).get(d.row)) for d in decisions]
    if rulings:
        # To keep a text is to keep it once: its repetitions stay aside.
        keeps = {id_ for id_, ruling in rulings.items() if ruling.keep}
        once = keeps & {d.id for d in decisions if d.why != REPEATED}
        decisions = [
            d if d.why == REPEATED and d.id in once else _ruled(d, rulings, where)
            for d in decisions
        ]
    selection = Selection(recipe_hash, tuple(sorted(decisions, key=lambda d: d.row)))
    n_kept = len(selection.kept)
    n_rows = len(rows) + sum(apart.why == EARLY for apart in dropped.values())
    # Where turns are left out, keeping every row is a choice.
    if not allow_degenerate and n_kept in (0, n_rows) and not selection.untrained:
        what = "every row" if n_kept else "no row"
        span = f" (scores run from {scores.min():.4g} to {scores.max():.4g})" if len(scores) else ""
        raise DegenerateSelectionError(
            f"{where}: the threshold {cut:.4g} keeps {what} of {n_rows}{span}. Check that the anchors are of this "
            "silo's domain, or choose another rule; --allow-degenerate accepts it."
        )
    if 0 < n_kept < min_kept:
        raise DegenerateSelectionError(
            f"{where}: only {n_kept} rows would be kept and the silo asks for at least {min_kept}. "
            "A model trained on so few can give them away."
        )
    return selection


def cut_of(threshold: Threshold, scores: Array, *, where: str) -> float:
    """The number that these scores are compared with; under rule `ratio` it is the silo's own.

    Raises:
        ConfigError: the threshold has neither a value nor a ratio.
    """
    if threshold.ratio is not None:
        n_kept = round(threshold.ratio * len(scores))
        return float(np.sort(scores)[::-1][n_kept - 1]) if n_kept else float("inf")
    if threshold.value is None:
        raise ConfigError(f"{where}: the threshold has neither a value nor a ratio.")
    return threshold.value


def _by_turns(decision: Decision, turns: Turns, cut: float) -> Decision:
    found = turns.verdict(decision.row, cut=cut, kept=decision.kept)
    if found is None:
        return decision
    return replace(
        decision,
        kept=found.kept,
        reason=f"{found.says}; {decision.reason}" if found.says else decision.reason,
        # Whatever the turns say, a row that is dropped by its own score is dropped for it.
        why=TURN if decision.kept and not found.kept else decision.why,
        turns=found.turns,
        untrained=found.untrained,
    )


def _set_aside(decision: Decision, found: tuple[str, str] | None) -> Decision:
    if found is None or decision.why == UNUSABLE:
        return decision
    kind, reason = found
    reason = f"{reason}; {decision.reason}"
    return replace(decision, kept=False, reason=reason, why=kind, untrained=())


def _ruled(decision: Decision, rulings: Mapping[str, Ruling], where: str) -> Decision:
    """The decision with a person's ruling over it, if there is one for this text."""
    ruling = rulings.get(decision.id)
    if ruling is None:
        return decision
    if ruling.keep and decision.score is None and decision.why != EARLY:
        raise DataError(
            f"{where}: row {decision.row + 1} (id {decision.id}) cannot be kept by hand, because "
            f"nothing can be trained on it: {decision.reason}. Mend the row, or take it out of "
            "the overrides."
        )
    what = "kept" if ruling.keep else "dropped"
    reason = f"{what} by a person: {ruling.reason}; {decision.reason}"
    # A person has read the whole row.
    by_hand = {"kept": ruling.keep, "by_hand": True, "why": PERSON, "untrained": ()}
    return replace(decision, reason=reason, **by_hand)


def _reason(score: float, cut: float) -> str:
    if score >= cut:
        return f"score {score:.4g} is not below {cut:.4g}"
    return f"score {score:.4g} is below {cut:.4g}"
