"""What may be personal data: a flag for a person to look at, never a reason to set a row aside."""

import re
from collections.abc import Iterator

from clues.data.samples import Sample
from clues.findings.base import Finding, turns

_EMAIL = re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{2,63}){1,4}\b")
_PHONE = re.compile(
    r"(?<![\w.,$€£])(?:\+\d{1,3}[ .()-]{0,2}|\(\d{2,4}\)[ .-]?|0\d{1,4}[ /-])(?:\d{2,4}[ .-]?){2,4}\d{2,4}(?![\w,]|\.\d)"
)
_PHONE_US = re.compile(r"(?<![\w.,$-])1?-?\(?\d{3}\)?[-. ]\d{3}-\d{4}(?!\w)")
_CARD = re.compile(r"(?<![\w.,])(?:\d[ -]?){12,18}\d(?![\w,]|\.\d)")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_NUMBER = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")
_NAMED = re.compile(
    r"\b(?:date of birth|DOB|social security (?:number|no)|passport (?:number|no)|patient (?:name|id)|medical record (?:number|no)|MRN)\b\s*[:#]\s*\S",
    re.IGNORECASE,
)

MOST = 5  # of a turn


def personal(sample: Sample) -> Iterator[Finding]:
    """One finding for each place, at most a few a row."""
    for number, turn in turns(sample):
        taken: list[tuple[int, int]] = []
        for what, (start, end) in _places(turn.content):
            # The first that fits: digits of an account are no telephone number, too.
            if len(taken) == MOST or any(start < e and s < end for s, e in taken):
                continue
            taken.append((start, end))
            yield Finding(sample.row, "personal_data", number, start, end, sure=False, detail=what)


def _places(text: str) -> Iterator[tuple[str, tuple[int, int]]]:
    looks = {
        "an e-mail address": _EMAIL,
        "a number like a social security number": _NUMBER,
        "a field of a record": _NAMED,
    }
    for what, pattern in looks.items():
        yield from ((what, match.span()) for match in pattern.finditer(text))
    for match in _IBAN.finditer(text):
        if _iban_adds_up(match.group()):
            yield "a bank account", match.span()
    for match in _CARD.finditer(text):
        digits = [int(sign) for sign in match.group() if sign.isdigit()]
        if 13 <= len(digits) <= 19 and len(set(digits)) > 1 and _card_adds_up(digits):
            yield "a card number", match.span()
    for pattern in (_PHONE, _PHONE_US):
        for match in pattern.finditer(text):
            if 8 <= sum(map(str.isdigit, match.group())) <= 15:
                yield "a telephone number", match.span()


def _card_adds_up(digits: list[int]) -> bool:
    """Luhn: every second digit from the right counts double, less 9 where that has two digits."""
    doubled = [d * 2 - 9 * (d > 4) if n % 2 else d for n, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _iban_adds_up(text: str) -> bool:
    plain = text.replace(" ", "")
    turned = plain[4:] + plain[:4]
    return int("".join(str(int(sign, 36)) for sign in turned)) % 97 == 1
