"""Known, labelled dirt: answers that are cut, thinned, swapped or mixed.

Experiments put it into silos' rows. Anchors have damaged copies: what a score is held against
where nobody knows what is bad.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from clues.config import USUAL_DAMAGE
from clues.data.accidents import ACCIDENTS, Accident, Sources
from clues.data.samples import Sample
from clues.errors import ConfigError, DataError

# What anchors' copies get by default, and experiments' rows.
DAMAGE_KINDS: tuple[str, ...] = USUAL_DAMAGE
ALL_KINDS = (*DAMAGE_KINDS, *ACCIDENTS)
ANSWER, QUESTION = "output", "instruction"
_LEND_FOREIGN = ("mix", "other_language")
N_COPIES = 2  # of every anchor, each damaged in one way

MAX_KEPT_BY_CUT = 0.2  # of the characters
SHARE_OF_WORDS = 0.5  # that `delete` takes away and `mix` replaces

# Thai, Lao, Burmese, Khmer, kana and Han have no space between words: each character is a piece.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_PIECE = re.compile(rf"([{_UNSPACED}]|[^\s{_UNSPACED}]+)(\s*)")


def damage_rows(
    records: list[dict[str, Any]],
    *,
    share: float,
    kinds: Sequence[str],
    seed: int,
    response_key: str = ANSWER,
    prompt_key: str = QUESTION,
    foreign: Sequence[str] = (),
) -> tuple[list[dict[str, Any]], list[str | None]]:
    """Damage the answers of exactly `round(share * n)` rows and say which and how.

    cut keeps the first few characters, at most a fifth; delete takes away about half of the
    words; swap gives the answer of another row; mix puts foreign words in the place of about
    half of the words; `accidents.py` has the other kinds. Every other key of a damaged row,
    `choices` and `answer` too, stays. Where a kind cannot change an answer (nothing to cut in one character), the row gets the
    kind used least so far that can.

    Args:
        records: rows; they are not modified.
        share: of the rows, 0 to 1.
        kinds: from `ALL_KINDS`; each falls on the same number of rows, give or take one.
        seed: fixes rows, kinds and texts.
        response_key: where the answer is.
        prompt_key: where the question is, for kinds that repeat it.
        foreign: answers in another language or domain; `mix` needs them.

    Returns:
        The rows in order, and for each its kind of damage, None where it is clean.

    Raises:
        ConfigError: the share or a kind is unknown, or there are no foreign words to mix in.
        DataError: a row has no answer, or no kind can change it.
    """
    _check(share, kinds, foreign)
    sources = Sources(
        _answers(records, response_key),
        [str(record.get(prompt_key) or "") for record in records],
        [text for text in foreign if _PIECE.search(text)],
    )
    rng = np.random.default_rng(seed)
    rows: list[int] = rng.permutation(len(records))[: round(share * len(records))].tolist()
    kinds = rng.permutation(list(dict.fromkeys(kinds))).tolist()
    n_used = dict.fromkeys(kinds, 0)
    damaged = [dict(record) for record in records]
    labels: list[str | None] = [None] * len(records)
    for position, row in enumerate(rows):
        planned = kinds[position % len(kinds)]
        others = sorted((kind for kind in kinds if kind != planned), key=lambda kind: n_used[kind])
        for kind in (planned, *others):
            # Its own generator: what one row draws cannot change another row. The 1 keeps
            # row 0 apart from `rng`, because numpy pads seeds with zeros.
            text = _DAMAGE[kind](row, sources, np.random.default_rng((seed, row, 1)))
            if text is not None and text.strip() != sources.answers[row].strip():
                damaged[row][response_key], labels[row] = text, kind
                n_used[kind] += 1
                break
        else:
            raise DataError(
                f"row {row}: no damage of kind {', '.join(kinds)} changes its {response_key}. "
                "Leave the row out or allow more kinds."
            )
    return damaged, labels


def damaged_copies(
    samples: Sequence[Sample],
    *,
    seed: int,
    foreign: Sequence[str],
    kinds: Sequence[str] = DAMAGE_KINDS,
) -> tuple[list[Sample], list[str]]:
    """Copies of rows of known quality whose last answers are damaged, and how each is.

    Args:
        samples: the rows.
        seed: fixes kinds and texts.
        foreign: answers in another language or domain, to mix in.
        kinds: of damage, each on as many copies.

    Raises:
        DataError: an answer that no damage can change.
    """
    records = [
        {ANSWER: sample.response, QUESTION: sample.prompt[-1].content if sample.prompt else ""}
        for sample in samples
    ]
    copies: list[Sample] = []
    found: list[str] = []
    for n in range(N_COPIES):
        try:
            damaged, labels = damage_rows(
                records, share=1.0, kinds=kinds, seed=seed + n, foreign=foreign
            )
        except DataError as error:
            raise DataError(
                f"anchors cannot be damaged to weigh the parts of a score: {error} (Kinds: "
                "score.copies.) Or give every weight of a part as a number, and threshold.aim keep."
            ) from None
        for sample, record, kind in zip(samples, damaged, labels, strict=True):
            assert kind is not None
            last = replace(sample.messages[-1], content=record[ANSWER])
            copies.append(replace(sample, messages=(*sample.messages[:-1], last), choices=()))
            found.append(kind)
    # Positions are a file's; copies come after one another.
    numbered = [replace(copy, row=n, answer=None) for n, copy in enumerate(copies)]
    return numbered, found


def _check(share: float, kinds: Sequence[str], foreign: Sequence[str]) -> None:
    if not 0 <= share <= 1:
        raise ConfigError(f"damage share {share} is not between 0 and 1.")
    unknown = [kind for kind in kinds if kind not in ALL_KINDS]
    if unknown or not kinds:
        found = ", ".join(unknown) or "none"
        raise ConfigError(f"damage kinds: found {found}; known are {', '.join(ALL_KINDS)}.")
    lending = [kind for kind in kinds if kind in _LEND_FOREIGN]
    if lending and not any(_PIECE.search(text) for text in foreign):
        raise ConfigError(
            f"damage kind {lending[0]} needs answers in another language or domain. "
            f"Give them as foreign, or leave {lending[0]} out."
        )


def _answers(records: Sequence[dict[str, Any]], response_key: str) -> list[str]:
    answers = []
    for row, record in enumerate(records):
        answer = record.get(response_key)
        if not isinstance(answer, str) or not answer.strip():
            raise DataError(f"row {row}: {response_key} is missing, empty or not text.")
        answers.append(answer)
    return answers


def _cut(row: int, sources: Sources, rng: np.random.Generator) -> str | None:
    text = sources.answers[row].strip()
    if len(text) < 2:
        return None
    n_most = max(1, int(MAX_KEPT_BY_CUT * len(text)))
    return text[: rng.integers(1, n_most, endpoint=True)].rstrip()


def _delete(row: int, sources: Sources, rng: np.random.Generator) -> str | None:
    text = sources.answers[row].strip()
    pieces = [match.group() for match in _PIECE.finditer(text)]
    if len(pieces) < 2:  # one word: take away characters
        pieces = list(text)
    if len(pieces) < 2:
        return None
    kept = np.ones(len(pieces), dtype=bool)
    kept[rng.choice(len(pieces), _n_part(len(pieces)), replace=False)] = False
    # Never the same text: it is shorter by at least one visible character.
    return "".join(piece for piece, stays in zip(pieces, kept, strict=True) if stays).rstrip()


def _swap(row: int, sources: Sources, rng: np.random.Generator) -> str | None:
    own, n_rows = sources.answers[row].strip(), len(sources.answers)
    start = int(rng.integers(n_rows))
    donors = (sources.answers[(start + step) % n_rows] for step in range(n_rows))
    return next((donor for donor in donors if donor.strip() != own), None)


def _mix(row: int, sources: Sources, rng: np.random.Generator) -> str | None:
    text = sources.answers[row].strip()
    pieces = [match.groups() for match in _PIECE.finditer(text)]
    n_foreign = len(sources.foreign)
    start = int(rng.integers(n_foreign))
    places = sorted(rng.choice(len(pieces), _n_part(len(pieces)), replace=False).tolist())
    for step in range(n_foreign):
        donor = _PIECE.findall(sources.foreign[(start + step) % n_foreign])
        first = int(rng.integers(len(donor)))
        mixed = list(pieces)
        for i, place in enumerate(places):
            word, space = donor[(first + i) % len(donor)]
            mixed[place] = (word, pieces[place][1] or space)
        result = "".join(word + space for word, space in mixed).rstrip()
        if result != text:
            return result
    return None


def _n_part(n_pieces: int) -> int:
    """How many of the pieces change: about half, one at least, and one stays where it can."""
    return max(1, min(n_pieces - 1, round(SHARE_OF_WORDS * n_pieces)))


_DAMAGE: dict[str, Accident] = {
    **ACCIDENTS,
    "cut": _cut,
    "delete": _delete,
    "swap": _swap,
    "mix": _mix,
}
