"""The language of an answer, by py3langid among languages that people write rows in."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from clues.data.samples import Sample
from clues.findings.base import Finding, in_answer, question, whole
from clues.findings.tonguenames import NAMES, named_in, names_one_untold
from clues.findings.words import asks_for_another_language

MIN_LETTERS = 40  # of a shorter text nobody can say
MIN_SIGNS = 12  # of scripts whose signs are words or syllables
SURE = 0.99
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
    sample: Sample, usual: frozenset[str], common: frozenset[str]
) -> Iterator[Finding]:
    """At most one finding: an answer in a language that its row gives no reason for.

    A reason is a question that is written in it, even in one of its lines, or that names it. Where
    the question is of the same language as the answer, or of none that is clear, a language of the
    checked rows needs none.

    Args:
        sample: the row.
        usual: languages of the checked rows.
        common: languages of many of the rows.
    """
    answer, asked = sample.response, question(sample)
    if not usual or not (found := language_of(answer)):
        return
    of_question = language_of(asked)
    if found in usual and of_question in ("", found):
        return
    named = named_in(asked)
    if found in named or names_one_untold(asked, found) or _speaks(asked, found):
        return
    if not named and asks_for_another_language(asked):
        return
    if found in usual:
        detail, sure = f"{found}, question {of_question}", True
    else:
        # A language of many rows is one of theirs: other rows than the checked ones, and no damage.
        detail, sure = f"{found}, checked rows {', '.join(sorted(usual))}", found not in common
    yield in_answer(sample, "language", whole(answer), sure=sure, detail=detail)


def _speaks(text: str, language: str) -> bool:
    """Whether a line or a sentence of a text may be in a language."""
    pieces = [piece for piece in _PIECES.split(text) if sum(map(str.isalpha, piece)) >= MIN_PIECE]
    return any(_identifier().classify(piece)[0] == language for piece in pieces)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # reads its model, half a second

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([name for name in NAMES if name in identifier.nb_classes])
    return identifier
