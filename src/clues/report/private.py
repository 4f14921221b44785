"""A silo's own page: every row with its score, what a threshold would change, what a person decides.

It shows rows, so it is written into the silo's private folder and nowhere else. One file, no
network: rows lie in it as packed data, and the page's own script puts them on the screen as text.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clues.report.cells import escaped
from clues.report.first import first_to_read
from clues.report.grouping import Grouping
from clues.report.histogram import Chart, score_histogram
from clues.report.outcome import LOW, UNSCORED, outcome
from clues.report.pack import pack, pack_texts
from clues.report.page import environment
from clues.report.words import TERMS

SCRIPTS = (
    *("terms", "data", "rows", "threshold", "list", "decide", "detail", "reading", "overrides"),
    *("whatif", "groups", "main"),
)
SIZES = {"wide": ((820.0, 330.0), 64), "narrow": ((420.0, 250.0), 30)}


class TurnMark(NamedTuple):
    """The score of one turn, in units of the anchors' turns; higher is better."""

    row: int
    turn: int
    score: float


class Mark(NamedTuple):
    """A place in a row's text that the page marks: from one character to another of one turn.

    `level` is 0 for a finding, 1 for an unlikely word and 2 for a very unlikely one.
    """

    row: int
    turn: int
    start: int
    end: int
    says: str
    level: int = 0


@dataclass(frozen=True)
class Review:
    """Everything that the page shows.

    Arrays have one entry for every row of the silo's file, in its order; rows that could not be
    scored have NaN.

    Attributes:
        silo: name.
        facts: name and value pairs about the run.
        recipe_hash: what exported overrides are for.
        cut: the threshold that rows of this silo are compared with.
        interval: its bootstrap interval, if there is one.
        ratio: the share kept, where the rule is `ratio`.
        min_kept: fewer kept rows are refused.
        anchors: scores of the public anchors in the same units.
        anchors_from: whose anchors these are, in words.
        ids: content ids.
        scores: in the threshold's units.
        terms: by name what a row's score is the sum of: its parts, or one array a checkpoint.
        traces: what each checkpoint adds, in units of the anchors; empty if there is none.
        losses: the row's loss in nats, before training and after.
        n_tokens: length, with the prompt.
        n_response_tokens: length of what carries loss.
        unscored: by row, why it has no score.
        usable: rows among these that a person may keep all the same.
        cleans: name of the file that `clues clean` has cleaned, whose command takes what a reader
            exports; None for a silo of a run.
        labels: kind of damage, None for a clean row; None where nobody knows.
        groupings: columns to look at keep rates by.
        texts: turns as (role, content).
        rulings: by id, what a person decided: (keep, reason).
        waiting: the same, decided under another recipe and not in force.
        reasons: of the decisions in force, one per row.
        aside: 1 for a row that is set aside for what its text shows, whatever it scores.
        marks: places in the texts that show why.
        summary: what became of the rows, in a sentence.
        turns: scores of the turns of rows that have several, in the order of rows and turns.
        masks_turns: whether a turn below the threshold is read and not trained.
        decides: what is compared with the threshold instead of the score, where turns decide.
        why: for each row why it is not kept, in a few words; empty for a kept row. `UNSCORED` for
            one that has no score. Without it, what the scores say.
        first: positions of the rows to read first; without it, as `first_to_read` finds them.
        again: positions of rows that repeat another one, and stay aside where it is kept.
        judged: ids that the files of checked and rejected rows decide about, and no reader.
    """

    silo: str
    facts: Sequence[tuple[str, str]]
    recipe_hash: str
    cut: float
    interval: tuple[float, float] | None
    ratio: float | None
    min_kept: int
    anchors: Sequence[float] = field(repr=False)
    anchors_from: str
    ids: Sequence[str] = field(repr=False)
    scores: NDArray[np.float64] = field(repr=False)
    terms: Mapping[str, NDArray[np.float64]] = field(repr=False)
    traces: Mapping[str, NDArray[np.float64]] = field(repr=False)
    losses: Mapping[str, NDArray[np.float64]] = field(repr=False)
    n_tokens: NDArray[np.int64] = field(repr=False)
    n_response_tokens: NDArray[np.int64] = field(repr=False)
    unscored: Mapping[int, str] = field(repr=False)
    labels: Sequence[str | None] | None = field(repr=False)
    groupings: Sequence[Grouping] = field(repr=False)
    texts: Sequence[Sequence[tuple[str, str]]] = field(repr=False)
    rulings: Mapping[str, tuple[bool, str]] = field(repr=False)
    waiting: Mapping[str, tuple[bool, str]] = field(repr=False)
    reasons: Sequence[str] = field(default=(), repr=False)
    aside: NDArray[np.uint8] | None = field(default=None, repr=False)
    marks: Sequence[Mark] = field(default=(), repr=False)
    summary: str = ""
    turns: Sequence[TurnMark] = field(default=(), repr=False)
    masks_turns: bool = False
    decides: NDArray[np.float64] | None = field(default=None, repr=False)
    why: Sequence[str] = field(default=(), repr=False)
    first: Sequence[int] = field(default=(), repr=False)
    usable: Collection[int] = field(default=(), repr=False)
    cleans: str | None = None
    again: Sequence[int] = field(default=(), repr=False)
    judged: Collection[str] = field(default=frozenset(), repr=False)


def with_defaults(review: Review) -> Review:
    """The review with a reason for every row and rows to read first, where it had none."""
    why = review.why or [
        UNSCORED if np.isnan(score) else LOW if score < review.cut else ""
        for score in (review.scores if review.decides is None else review.decides)
    ]
    first = review.first or first_to_read(review.scores, review.cut, why)
    return replace(review, why=why, first=first)


def render_private(review: Review) -> str:
    """The page as one HTML file."""
    review = with_defaults(review)
    scored = np.isfinite(review.scores)
    damaged = None
    if review.labels is not None:
        damaged = np.array([label is not None for label in review.labels])[scored]
    charts = {
        name: score_histogram(
            review.scores[scored],
            anchors=review.anchors,
            cut=review.cut,
            interval=review.interval,
            damaged=damaged,
            label="Histogram of this silo's rows by score, above the anchors' scores",
            size=size,
            n_bins=n_bins,
        )
        for name, (size, n_bins) in SIZES.items()
    }
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    texts, cut_after = pack_texts(review.texts)
    return (
        environment()
        .get_template("private.html.j2")
        .render(
            silo=review.silo,
            facts=review.facts,
            summary=review.summary,
            outcome=outcome(
                review.why,
                n_rulings=len(review.rulings.keys() - set(review.judged)),
                n_judged=len(review.rulings.keys() & set(review.judged)),
                n_first=len(review.first),
            ),
            terms=TERMS,
            charts=charts,
            anchors_from=review.anchors_from,
            n_anchors=len(review.anchors),
            labelled=review.labels is not None,
            n_rows=len(review.ids),
            ratio=review.ratio,
            cleans=review.cleans,
            data=pack(_header(review, charts["wide"], cut_after), {**_arrays(review), **texts}),
            script=script,
            digest=digest,
        )
    )


def _header(review: Review, chart: Chart, cut_after: int | None) -> dict[str, Any]:
    kinds = sorted({label for label in review.labels or () if label is not None})
    reasons = sorted(set(review.unscored.values()))
    return {
        "silo": review.silo,
        "recipe": review.recipe_hash,
        "cut": review.cut if np.isfinite(review.cut) else None,
        "minKept": review.min_kept,
        "low": chart.low,
        "high": chart.high,
        "terms": list(review.terms),
        "traces": list(review.traces),
        "losses": list(review.losses),
        "kinds": [escaped(kind) for kind in kinds] if review.labels is not None else None,
        "reasons": reasons,
        "groupings": [
            {
                "name": escaped(g.name),
                "values": [escaped(value) for value in g.values],
                "note": g.note,
            }
            for g in review.groupings
        ],
        "cutAfter": cut_after,
        "summary": review.summary,
        "cleans": None if review.cleans is None else escaped(review.cleans),
        "masksTurns": review.masks_turns,
        "first": list(review.first),
        "fates": _fates(review),
        "says": sorted({mark.says for mark in review.marks}),
        "again": list(review.again),
        "judged": sorted(review.judged),
        "rulings": [[id_, keep, why] for id_, (keep, why) in review.rulings.items()],
        "waiting": [[id_, keep, why] for id_, (keep, why) in review.waiting.items()],
    }


def _arrays(review: Review) -> dict[str, np.ndarray]:
    n = len(review.ids)
    reasons = sorted(set(review.unscored.values()))
    why = np.zeros(n, np.uint16)
    for row, reason in review.unscored.items():
        why[row] = reasons.index(reason) + 1
    arrays: dict[str, np.ndarray] = {
        "id": np.frombuffer(bytes.fromhex("".join(review.ids)), np.uint8),
        "score": review.scores,
        "tokens": review.n_tokens.astype(np.uint32),
        "response": review.n_response_tokens.astype(np.uint32),
        "why": why,
    }
    fates = _fates(review)
    places = {fate: n + 1 for n, fate in enumerate(fates)} | {"": 0}
    arrays["fate"] = np.array([places[why] for why in review.why], np.uint16)
    arrays["aside"] = np.zeros(n, np.uint8) if review.aside is None else review.aside
    arrays |= _reasons(review) | _marks(review)
    arrays |= {
        "turnRow": np.array([turn.row for turn in review.turns], np.uint32),
        "turnPlace": np.array([turn.turn for turn in review.turns], np.uint16),
        "turnScore": np.array([turn.score for turn in review.turns], np.float64),
    }
    if review.decides is not None:
        arrays["decides"] = review.decides
    if review.usable:
        arrays["usable"] = np.zeros(n, np.uint8)
        arrays["usable"][sorted(review.usable)] = 1
    arrays |= {f"term{k}": v.astype(np.float32) for k, v in enumerate(review.terms.values())}
    arrays |= {f"trace{k}": v.astype(np.float32) for k, v in enumerate(review.traces.values())}
    arrays |= {f"loss{k}": v.astype(np.float32) for k, v in enumerate(review.losses.values())}
    arrays |= {f"group{k}": g.codes for k, g in enumerate(review.groupings)}
    if review.labels is not None:
        kinds = sorted({label for label in review.labels if label is not None})
        codes = {kind: k + 1 for k, kind in enumerate(kinds)} | {None: 0}
        arrays["label"] = np.array([codes[label] for label in review.labels], np.uint16)
    return arrays


def _fates(review: Review) -> list[str]:
    """Every reason for not keeping a row, the commonest first."""
    return [why for why, _ in Counter(w for w in review.why if w).most_common()]


def _reasons(review: Review) -> dict[str, np.ndarray]:
    texts = [escaped(reason).encode("utf-8", "replace") for reason in review.reasons]
    ends = np.cumsum([len(text) for text in texts], dtype=np.uint64).astype(np.uint32)
    return {
        "reason": np.frombuffer(b"".join(texts) or b"\0", np.uint8),
        "reasonEnd": ends if len(ends) else np.zeros(0, np.uint32),
    }


def _marks(review: Review) -> dict[str, np.ndarray]:
    """Places as the page shows the text: escapes are longer than what they stand for."""
    says = sorted({mark.says for mark in review.marks})
    lines: list[tuple[int, ...]] = []
    for mark in review.marks:
        text = review.texts[mark.row][mark.turn][1]
        start, end = (_shown_length(text[:place]) for place in (mark.start, mark.end))
        lines.append((mark.row, mark.turn, start, end, says.index(mark.says), mark.level))
    table = np.array(lines, np.uint32).reshape(-1, 6)
    names = ("markRow", "markTurn", "markStart", "markEnd", "markSays", "markLevel")
    return {name: table[:, n].copy() for n, name in enumerate(names)}


def _shown_length(text: str) -> int:
    """Characters as JavaScript counts them."""
    return len(escaped(text).encode("utf-16-le", "replace")) // 2


def _script() -> str:
    """The page's script: its parts, one after the other, with one scope."""
    folder = files("clues") / "report" / "templates" / "private"
    return "\n".join((folder / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
