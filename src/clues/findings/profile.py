"""What checked rows look like: what a rule about the other rows may expect of them."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from clues.data.samples import Sample
from clues.findings.tongues import language_of
from clues.findings.words import squeezed

LONG = 8  # words; a shorter answer may be a name or a number
_ENDS = re.compile(
    r"[.!?\N{HORIZONTAL ELLIPSIS}\u3002\uff01\uff1f\u0964\u061f\u06d4][\s\"'\u2019\u201d\u00bb)\]*_\u300d\u300f]*$"
)
N_TRIED = 300  # rows whose language is looked at before all are
COMMON = 0.1
MANY = 0.2
MIN_SHARE = 0.02  # of the checked rows, for a language to be one of theirs


@dataclass(frozen=True)
class Profile:
    """Facts of the checked rows, or of the rows themselves where none are checked.

    Attributes:
        n_long: answers of `LONG` words or more.
        share_ended: of those, the share that ends with a sentence.
        shortest: letters and digits of all but the shortest hundredth of the answers.
        languages: in which answers are written.
        common: the same of the rows that are looked at, where a tenth of them or more are.
        answers: short answers that occur, as `squeezed` gives them.
    """

    n_long: int
    share_ended: float
    shortest: int
    languages: frozenset[str]
    common: frozenset[str]
    answers: frozenset[str]


def profile_of(checked: Sequence[Sample], samples: Sequence[Sample]) -> Profile:
    """Look at the answers of checked rows, and at the languages of some of the others.

    Without checked rows the others say what is usual, and only what many of them have is.
    """
    usual_share, known = (MIN_SHARE, checked) if checked else (MANY, ())
    checked = checked or samples
    step = max(1, len(samples) // N_TRIED)
    answers = [sample.response.rstrip() for sample in checked]
    long = [answer for answer in answers if n_words(answer) >= LONG]
    lengths = sorted(len(squeezed(answer)) for answer in answers)
    usual = _spoken(answers, share=usual_share)
    common = _spoken([sample.response for sample in samples[::step]], share=COMMON)
    return Profile(
        n_long=len(long),
        share_ended=sum(map(ends, long)) / len(long) if long else 0.0,
        shortest=lengths[len(lengths) // 100] if lengths else 0,
        languages=usual,
        common=common,
        answers=frozenset(w for s in known if len(w := squeezed(s.response)) <= 40),
    )


def _spoken(answers: Sequence[str], *, share: float) -> frozenset[str]:
    found = Counter(tongue for answer in answers if (tongue := language_of(answer)))
    return frozenset(t for t, n in found.items() if n >= max(2, share * found.total()))


def ends(answer: str) -> bool:
    """Whether a text ends with a sentence."""
    return _ENDS.search(answer) is not None


def n_words(text: str) -> int:
    """Words; of a script without spaces, every second character."""
    unspaced = sum("\u3040" <= sign <= "\u9fff" or "\u0e00" <= sign <= "\u0e7f" for sign in text)
    return len(text.split()) + unspaced // 2
