"""The language of an answer, by py3langid among languages that people write rows in."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from clues.data.samples import Sample
from clues.findings.base import Finding, in_answer, question, whole
from clues.findings.tonguenames import (
    NAMES,
    named_in,
    names_any,
    names_one_unknown,
    names_one_untold,
)
from clues.findings.words import asks_for_another_language

MIN_LETTERS = 40  # of a shorter text nobody can say
MIN_SIGNS = 12  # of scripts whose signs are words or syllables
SURE = 0.99
LIKELY = 0.9  # of one line among others
MIN_PIECE = 12  # letters of a line or sentence that may be in a language of its own
_PIECES = re.compile(r"[\n.!?:;\"\u3002\uff1f]+")
_SIGNS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def language_of(text: str) -> str:
    """Two letters of the language; empty where the text is too short or it is not clear."""
    letters = sum(map(str.isalpha, text))
    if letters < MIN_LETTERS and len(_SIGNS.findall(text)) < MIN_SIGNS:
        return ""
    # Numbers and names of tables say nothing of a language.
    name, probability = _identifier().classify(text[:2000])
    return str(name) if probability >= SURE else ""


def other_language(
    sample: Sample, usual: frozenset[str], common: frozenset[str], *, told_by: str
) -> Iterator[Finding]:
    """At most one finding: an answer in a language that its row gives no reason for.

    A reason is a question that is written in it, even in one of its lines, or that names it, or
    that asks for a translation and names no language. A language of the checked rows needs none
    where the question is in it, too, or where neither its language is clear nor it names one.

    Args:
        sample: the row.
        usual: languages of the checked rows.
        common: languages of many of the rows.
        told_by: the rows that say what is usual, in words.
    """
    answer, asked = sample.response, question(sample)
    if not usual or not (found := language_of(answer)):
        return
    of_question, names = language_of(asked), names_any(asked)
    is_theirs = found in usual | common
    if is_theirs and of_question in ((found,) if names else ("", found)):
        return
    if found in named_in(asked) or names_one_unknown(asked) or _speaks(asked, found):
        return
    if names_one_untold(asked, found) and not _among_all(answer, found):
        return
    if not names and asks_for_another_language(asked):
        return
    if is_theirs:
        beside = f"question {of_question}" if of_question else "the question names others"
    else:
        beside = f"{told_by} {', '.join(sorted(usual))}"
    yield in_answer(sample, "language", whole(answer), sure=True, detail=f"{found}, {beside}")


def _speaks(text: str, language: str) -> bool:
    """Whether a line or a sentence of a text may be in a language."""
    pieces = [piece for piece in _PIECES.split(text) if sum(map(str.isalpha, piece)) >= MIN_PIECE]
    found = (_identifier().classify(piece) for piece in pieces)
    return any(name == language and probability >= LIKELY for name, probability in found)


def _among_all(text: str, language: str) -> bool:
    """Whether a text is in a language, told from all that the library knows."""
    name, probability = _every().classify(text[:2000])
    return bool(name == language and probability >= SURE)


@cache
def _identifier() -> Any:
    identifier = _read()
    identifier.set_languages(list(NAMES))
    return identifier


@cache
def _every() -> Any:
    return _read()


def _read() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # reads its model, half a second

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
