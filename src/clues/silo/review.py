"""What a silo shows its own people: the private report and the card beside the kept rows.

Everything is read from the silo's disk, so that it can be written again at any time.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from clues.atomic import atomic_write_bytes
from clues.config import ALIGNMENT, LOSS, REJECT, Recipe, short
from clues.data.samples import Sample
from clues.evaluation.detection import read_labels
from clues.findings.base import NAMES, REPEATED, SAYS
from clues.printable import rows_in_words
from clues.report.cards import DataFacts, data_card
from clues.report.first import first_to_read
from clues.report.grouping import Grouping, grouping
from clues.report.pairs import rule_in_words, threshold_pairs
from clues.report.private import Mark, Review, TurnMark, render_private
from clues.scoring.parts import BEFORE, Loss, checkpoint_losses, terms
from clues.scoring.table import ScoreTable
from clues.selection.decisions import EARLY, PERSON, SCORE, TURN, cut_of
from clues.selection.threshold import Threshold
from clues.selection.units import INFLUENCE, Units, part_of
from clues.silo.overrides import CHECKED, REJECTED, in_force, waiting
from clues.silo.reasons import IN_WORDS, reason_in_words
from clues.silo.select import each_decision, in_units
from clues.silo.turns import judged_turns
from clues.silo.unlikely import unlikely_words
from clues.silo.whole import REVIEW, note
from clues.silo.workspace import ELSEWHERE, Workspace

Floats = NDArray[np.float64]


def write_review(space: Workspace) -> None:
    """Write `private/report.html` and `private/card.md` for the last selection.

    Raises:
        DataError: nothing is selected or scored yet.
    """
    page = render_private(review(space))
    atomic_write_bytes(space.private / "report.html", page.encode())
    atomic_write_bytes(space.private / "card.md", data_card(_card(space)).encode())
    note(space, "review", REVIEW)


def _card(space: Workspace) -> DataFacts:
    threshold = space.threshold()
    recipe, rows = space.recipe(), space.rows()
    return DataFacts(
        silo=space.name,
        domain=space.settings.domain,
        license=space.settings.license,
        file=f"kept{rows.suffix}",
        n_rows=len(rows.samples),
        n_kept=len(space.kept()),
        others=_others(space),
        n_by_hand=len(in_force(space, recipe.hash)),
        base_model=Path(recipe.model.name).name,
        score=_score(recipe, threshold),
        threshold=threshold_pairs(
            # The assurance is about all groups, and the card about this silo's rows.
            threshold.as_result(recipe.threshold).model_copy(update={"assurance": None})
        ),
        recipe_hash=recipe.hash,
    )


def _others(space: Workspace) -> dict[str, int]:
    """How many rows are not kept, by why."""
    why = Counter(d["why"] for d in each_decision(space) if d["kept"] == "0")
    named = {
        SCORE: "score below the threshold",
        EARLY: "below the threshold by loss and alignment alone",
        TURN: "a turn below the threshold",
        PERSON: "decided by a person",
    }
    return {named.get(name, name): n for name, n in why.most_common()}


def review(space: Workspace) -> Review:
    """Gather what the page shows."""
    threshold = space.threshold()
    table, recipe, rows = space.scores(), space.recipe(), space.rows()
    samples = rows.samples
    n, at = len(samples), table.row
    scored = np.where(table.is_early, np.nan, in_units(space, table, threshold))
    # No score, and yet no row that nothing can be trained on: a person may keep it.
    early = dict.fromkeys(table.row[table.is_early].tolist(), IN_WORDS[EARLY])
    labels = read_labels(rows, space.settings.labels)
    rulings, others = (f(space, recipe.hash) for f in (in_force, waiting))
    cut = cut_of(threshold, scored, where=f"silo {space.name}")
    scores, why, reasons = _spread(scored, at, n), list[str](), list[str]()
    aside, words = np.zeros(n, np.uint8), dict[str, str]()
    repeated: list[int] = []
    once: set[str] = set()
    for row, decision in enumerate(each_decision(space)):
        said = reason_in_words(decision)
        # One text for all rows that share it.
        why.append(words.setdefault(said, said))
        reasons.append(decision["reason"])
        aside[row] = decision["why"] in SAYS
        if decision["why"] == REPEATED:
            repeated.append(row)
        else:
            once.add(samples[row].id)
    # Whoever has decided about a row has read it.
    known = np.array([sample.id in rulings for sample in samples], bool)
    unread = [("" if done else said) for said, done in zip(why, known, strict=True)]
    first = first_to_read(np.where(known, np.nan, scores), cut, unread)
    marks_words = space.settings.mark_words
    judged = {
        i for i, r in rulings.items() if space.settings.cleans and r.reason in (CHECKED, REJECTED)
    }
    return Review(
        silo=space.name,
        facts=_facts(space, threshold, n_rows=n),
        recipe_hash=recipe.hash,
        cut=cut,
        interval=threshold.interval,
        ratio=threshold.ratio,
        min_kept=space.settings.min_kept,
        cleans=space.settings.cleans,
        anchors=_anchors(space, threshold),
        anchors_from="checked rows"
        if space.settings.cleans
        else f"public anchors of {space.settings.domain}",
        ids=[sample.id for sample in samples],
        scores=scores,
        terms={k: _spread(v, at, n) for k, v in _terms(space, table, threshold, scored).items()},
        traces={k: _spread(v, at, n) for k, v in _traces(space, table, threshold).items()},
        losses={k: _spread(v, at, n) for k, v in _losses(table).items()},
        n_tokens=_spread(table.n_tokens, at, n, fill=0).astype(np.int64),
        n_response_tokens=_spread(table.n_response_tokens, at, n, fill=0).astype(np.int64),
        unscored={**space.unscored(), **early},
        usable=frozenset(early),
        labels=labels,
        groupings=_groupings(space, table, labels, n),
        texts=_Texts(samples),
        rulings={id_: (r.keep, r.reason) for id_, r in rulings.items()},
        waiting={id_: (r.keep, r.reason) for id_, r in others.items()},
        reasons=reasons,
        aside=aside,
        marks=[*_marks_of(space), *(unlikely_words(space, first) if marks_words else ())],
        summary=summary(space),
        why=why,
        first=first,
        again=[row for row in repeated if samples[row].id in once],
        judged=judged,
        **_turns(space, _spread(scored, at, n)),
    )


def _turns(space: Workspace, scores: Floats) -> dict[str, Any]:
    """What the page shows of turns; nothing where they have no scores.

    `scores` are those of all rows of the file.
    """
    turns = judged_turns(space)
    if turns is None:
        return {}
    marks = [
        TurnMark(row, t.turn, t.score) for row in sorted(turns.by_row) for t in turns.by_row[row]
    ]
    decides = np.array([turns.deciding(row, score) for row, score in enumerate(scores)])
    masks = turns.low_turn == "mask"
    return {"turns": marks, "masks_turns": masks, "decides": decides}


def _marks_of(space: Workspace) -> list[Mark]:
    """Places of what was found, where they are less than a whole answer."""
    samples, found = space.rows().samples, space.findings().by_row
    return [
        Mark(f.row, f.turn, f.start, f.end, f.says)
        for seen in found.values()
        for f in seen
        if f.end - f.start < len(samples[f.row].messages[f.turn].content)
    ]


class _Texts(Sequence[list[tuple[str, str]]]):
    """Turns of every row as (role, content), made when they are asked for."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, where: int) -> list[tuple[str, str]]: ...
    @overload
    def __getitem__(self, where: slice) -> list[list[tuple[str, str]]]: ...
    def __getitem__(self, where: Any) -> Any:
        if isinstance(where, slice):
            return [self[n] for n in range(*where.indices(len(self)))]
        return [(message.role, message.shown) for message in self.samples[where].messages]


def summary(space: Workspace) -> str:
    """What became of the rows in one sentence, with the numbers of `decisions.csv`."""
    files: Counter[str] = Counter()
    why: Counter[str] = Counter()
    n_turns = n_masked = 0
    for decision in each_decision(space):
        files[decision["file"]] += 1
        if decision["file"] == "dropped":
            why[decision["why"]] += 1
        untrained = len(decision.get("untrained_turns", "").split())
        n_turns, n_masked = n_turns + untrained, n_masked + bool(untrained)
    reasons = ", ".join(f"{n:,} {IN_WORDS.get(name, name)}" for name, n in why.most_common())
    text = f"{rows_in_words(files.total())}: {files['kept']:,} kept, {files['dropped']:,} set aside"
    text += f" ({reasons})" if reasons else ""
    if files["unscored"]:
        text += f", {files['unscored']:,} without a score"
    if n_masked:
        text += f"; {n_turns:,} turns of {n_masked:,} kept rows are not trained"
    by_hand = len(in_force(space, space.recipe().hash))
    return f"{text}; {by_hand:,} decided by hand." if by_hand else f"{text}."


def _facts(space: Workspace, threshold: Threshold, *, n_rows: int) -> list[tuple[str, str]]:
    recipe = space.recipe()
    facts = [
        ("Rows", f"{n_rows:,}, {space.rows().description}"),
        ("Domain", space.settings.domain),
        ("Score", _score(recipe, threshold)),
        ("Rule", rule_in_words(threshold.rule, recipe.threshold.aim)),
        ("Recipe", short(recipe.hash)),
    ]
    if recipe.duplicates:
        facts.insert(1, ("Left out", f"{rows_in_words(len(space.left_out()))}: {ELSEWHERE}"))
    if threshold.interval:
        low, high = threshold.interval
        text = f"{low:.3f} to {high:.3f} ({threshold.confidence:.0%}, bootstrap over anchors)"
        facts.insert(len(facts) - 1, ("Interval", text.replace("-", "\N{MINUS SIGN}")))
    return facts


def _score(recipe: Recipe, threshold: Threshold) -> str:
    """How rows were scored, in words."""
    score = recipe.score.method
    if score == "influence":
        score += f", form {recipe.score.form}"
        weights = next(iter(threshold.units.values())).weights
        others = [f"{n} {weights[n]:g}" for n in (LOSS, ALIGNMENT, REJECT) if n in weights]
        score += f", with {' and '.join(others)}" if others else ""
    if recipe.score.cascade:
        score += f", gradients where loss and alignment leave a row open (cascade: {recipe.score.cascade})"
    if recipe.score.turns:
        score += f", turns of chats too (low_turn: {recipe.threshold.low_turn})"
    return f"{score}, trajectory {recipe.score.trajectory}"


def _anchors(space: Workspace, threshold: Threshold) -> list[float]:
    """Anchor scores of the silo's groups, in units."""
    found: list[float] = []
    for group, sets in space.anchor_scores().items():
        raw = {name: np.array(values) for name, values in sets.items()}
        found += threshold.units[group].apply(raw).tolist()
    return found


def _terms(
    space: Workspace, table: ScoreTable, threshold: Threshold, scored: Floats
) -> dict[str, Floats]:
    """What a row's score is the sum of: its parts, or what every checkpoint adds."""
    found: dict[str, Floats] = {}
    for members, units in _groups(space, table, threshold):
        raw = {name: values[members] for name, values in table.raw.items()}
        parts = units.shortfalls(raw)
        for name in [part for part in (INFLUENCE, LOSS, ALIGNMENT, REJECT) if part in parts]:
            share = units.location / len(parts)
            found.setdefault(name, np.zeros(len(table.row)))[members] = (
                parts[name] - share
            ) / units.spread
    if found:
        return found
    terms = _traces(space, table, threshold)
    total = np.sum(list(terms.values()), axis=0) if terms else np.zeros(0)
    # Where a score is no sum over checkpoints (in-run, baselines) there is one term: the score.
    if not terms or not np.allclose(total, scored, rtol=1e-6, atol=1e-6):
        return {"score": scored}
    return terms


def _traces(space: Workspace, table: ScoreTable, threshold: Threshold) -> dict[str, Floats]:
    """What every checkpoint adds, in units of the anchors: to the influence, or to a plain sum."""
    numbers = _checkpoints(table)
    traces = {number: np.zeros(len(table.row)) for number in numbers}
    score = space.recipe().score
    base_loss = score.method == "influence" and score.loss_under == "base"
    for members, units in _groups(space, table, threshold):
        part = units.parts.get(INFLUENCE)
        centre, width = (part.centre, part.width) if part else (units.location, units.spread)
        for number in numbers:
            found = _checkpoint_term(table, units, number, len(numbers), base_loss=base_loss)
            traces[number][members] = (found[members] - centre / len(numbers)) / width
    return {f"checkpoint {number + 1}": trace for number, trace in traces.items()}


def _checkpoints(table: ScoreTable) -> list[int]:
    """Numbers of the checkpoints that the rows were scored on, in the order of training."""
    of_losses = [p.checkpoint for p in table.parts if isinstance(p, Loss)]
    of_terms = [term.checkpoint for term in terms(table.parts)]
    return sorted({n for n in (*of_losses, *of_terms) if n is not None})


def _groups(
    space: Workspace, table: ScoreTable, threshold: Threshold
) -> Iterator[tuple[NDArray[np.int64], Units]]:
    """Positions and units of every group's rows."""
    for number, group in enumerate(space.groups()):
        yield np.flatnonzero(table.fold == number), threshold.units[group]


def _checkpoint_term(
    table: ScoreTable, units: Units, checkpoint: int, n_checkpoints: int, *, base_loss: bool
) -> Floats:
    """A checkpoint's part of the weighted sum, before location and spread.

    With `base_loss` every checkpoint has an equal share of the loss before the training.
    """
    total = np.zeros(len(table.row))
    for name, weight in units.signed_weights.items():
        if units.parts and part_of(name) != INFLUENCE:
            continue
        if name == LOSS:
            shares = [-table.parts[BEFORE if base_loss else Loss(checkpoint)] / n_checkpoints]
        else:
            found = terms(table.parts).items()
            shares = [v for t, v in found if t.checkpoint == checkpoint and t.set == name]
        total += weight * np.sum(shares, axis=0) / units.scales[name] if shares else 0.0
    return total


def _losses(table: ScoreTable) -> dict[str, Floats]:
    losses = checkpoint_losses(table.parts)
    last = {"at the last checkpoint": losses[-1]} if losses else {}
    return {"before training": table.parts[BEFORE], **last}


def _groupings(
    space: Workspace, table: ScoreTable, labels: Sequence[str | None] | None, n: int
) -> list[Grouping]:
    """Length, damage where it is known, and every column of the user's."""
    rows = space.rows()
    lengths: list[Any] = [None] * n
    for row, length in zip(table.row.tolist(), table.n_response_tokens.tolist(), strict=True):
        lengths[row] = length
    found = [grouping("response length, tokens", lengths)]
    if space.settings.findings.looked_for:
        first = [space.findings().of(row) for row in range(n)]
        names = [NAMES[seen[0].kind] if seen else "nothing found" for seen in first]
        found.insert(0, grouping("what its text shows", names))
    if labels is not None:
        found.append(
            grouping(f"{space.settings.labels} (known damage)", [x or "clean" for x in labels])
        )
    for name in rows.columns:
        if name != space.settings.labels:
            found.append(grouping(name, rows.column(name)))
    return found


def _spread(values: NDArray[Any], at: NDArray[Any], n: int, *, fill: float = np.nan) -> Floats:
    """Values of the scored rows at their places in the file."""
    spread = np.full(n, fill)
    spread[at] = values
    return spread
