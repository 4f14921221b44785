"""The language of an answer, by py3langid among languages that people write rows in."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from clues.data.samples import Sample
from clues.findings.base import Finding, in_answer, question, whole
from clues.findings.words import asks_for_another_language

KNOWN = (
    *(
        "en",
        "es",
        "fr",
        "de",
        "it",
        "pt",
        "nl",
        "sv",
        "da",
        "nb",
        "fi",
        "pl",
        "cs",
        "sk",
        "ro",
        "hu",
    ),
    *(
        "tr",
        "ru",
        "uk",
        "bg",
        "el",
        "ar",
        "fa",
        "he",
        "hi",
        "bn",
        "ta",
        "ur",
        "zh",
        "ja",
        "ko",
        "vi",
    ),
    *("th", "id", "ca", "hr", "lt", "et"),
)
MIN_LETTERS = 40  # of a shorter text nobody can say
MIN_SIGNS = 12  # of scripts whose signs are words or syllables
SURE = 0.99
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
    """At most one finding: an answer in a language that neither checked rows nor its question have.

    Args:
        sample: the row.
        usual: languages of the checked rows.
        common: languages of many of the rows.
    """
    answer, asked = sample.response, question(sample)
    if not usual or asks_for_another_language(asked):
        return
    found = language_of(answer)
    if not found or found in usual:
        return
    of_question = language_of(asked)
    detail = f"{found}, checked rows {', '.join(sorted(usual))}"
    # A question in the same language is answered as it was asked, and a language of many rows is
    # one of theirs: other rows than the checked ones, and no damage.
    sure = of_question != found and found not in common
    yield in_answer(sample, "language", whole(answer), sure=sure, detail=detail)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # reads its model, half a second

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([name for name in KNOWN if name in identifier.nb_classes])
    return identifier
