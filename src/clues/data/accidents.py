"""Damage as it happens to real files: pages scraped badly, scans, lost encodings, machine answers.

Each function gives an answer as such an accident would leave it, or None where it cannot happen to
this answer (no number to change, no second sentence to lose). All draw from the generator alone.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sources:
    """What the rows of a file, and other data sets, lend.

    Attributes:
        answers: of all rows, in the order of the file.
        questions: likewise; empty where rows have none.
        foreign: answers in another language or domain.
    """

    answers: Sequence[str]
    questions: Sequence[str]
    foreign: Sequence[str]


# Which row, what there is to draw on, and the row's own generator.
Accident = Callable[[int, Sources, np.random.Generator], str | None]

_NUMBER = re.compile(r"\d+")
_SENTENCE_END = re.compile("(?<=[.!?])\\s+(?=\\S)|(?<=[\u3002\uff01\uff1f])")
_WORD = re.compile(r"[^\W\d_]+")
NAME_LETTERS = 8  # the shortest word that counts as a name or a term, unless it has a capital
OCR_SHARE = 0.12  # of the characters that a scan can misread
_LOOKS_LIKE = "l1 Il O0 oc ec S5 B8 gq mrn nri hb tf ij uii ao ce"
_MISREAD = {pair[0]: pair[1:] for pair in _LOOKS_LIKE.split()}
_TYPOGRAPHIC = {"'": "\u2019", '"': "\u201d", "-": "\u2013", "...": "\u2026"}
_REFUSALS = (
    "As an AI language model, I am not able to help with that. Please ask a professional.",
    "I'm sorry, but I cannot answer this question. I have no access to such information.",
    "Unfortunately I can't assist with this request, as I am only a language model.",
    "I apologise, but as an AI I do not have opinions or knowledge on this matter.",
)
_FILLERS = (
    "There are many things to say about this, and each of them matters in its own way.",
    "It depends on a number of factors, which differ from case to case.",
    "This is an important topic that a lot of people think about.",
    "In general, it is good to look at it from all sides before deciding.",
    "More about it can be found in many places.",
    "As always, there are advantages and disadvantages to consider.",
)
_HEADS = (
    '<div class="content"><p>',
    '<td valign="top"><span style="color:#333">',
    '<!-- article --><br/><a href="#top">',
)
_TAILS = (
    "</p></div>\nHome | About us | Contact | Terms of use\nShare this page",
    "</span></td>&nbsp;&nbsp;<br>\nPrint page   Back to top   Next article &raquo;",
    '</a>\n<img src="/img/logo.gif">\nCookies help us to improve this site. Accept all',
)


def page_remains(row: int, sources: Sources, rng: np.random.Generator) -> str | None:
    """Tags and menus of the page that the answer was taken from."""
    kind = int(rng.integers(len(_HEADS)))
    text = sources.answers[row].strip().replace("&", "&amp;")
    return _HEADS[kind] + _SENTENCE_END.sub("<br/>\n", text) + _TAILS[kind]


def misread(row: int, sources: Sources, rng: np.random.Generator) -> str | None:
    """What a scan makes of letters that look alike."""
    text = sources.answers[row].strip()
    places = [i for i, letter in enumerate(text) if letter in _MISREAD]
    if not places:
        return None
    n = max(1, round(OCR_SHARE * len(places)))
    letters = list(text)
    for i in rng.choice(places, n, replace=False):
        letters[i] = _MISREAD[letters[i]]
    return "".join(letters)


def wrong_encoding(row: int, sources: Sources, _: np.random.Generator) -> str | None:
    """UTF-8 that was read as Windows-1252; typographic signs break even in English."""
    text = sources.answers[row].strip()
    for plain, typographic in _TYPOGRAPHIC.items():
        text = text.replace(plain, typographic)
    if text.isascii():
        # No-break spaces after each sentence, as word processors write them.
        text = _SENTENCE_END.sub("\u00a0 ", text)
    if text.isascii():
        text = text.replace(" ", "\u00a0")
    broken = text.encode("utf-8").decode("cp1252", errors="replace")
    return broken if broken != sources.answers[row].strip() else None


def refusal(row: int, sources: Sources, rng: np.random.Generator) -> str | None:
    """An assistant that does not answer."""
    return _REFUSALS[int(rng.integers(len(_REFUSALS)))]


def prompt_repeated(row: int, sources: Sources, rng: np.random.Generator) -> str | None:
    """The question once more, before the answer or instead of it."""
    question = sources.questions[row].strip() if sources.questions else ""
    if not question or question == sources.answers[row].strip():
        return None
    return question if rng.random() < 0.5 else f"{question}\n{sources.answers[row].strip()}"


def other_language(row: int, sources: Sources, rng: np.random.Generator) -> str | None:
    """An answer of the foreign data set."""
    own = sources.answers[row].strip()
    start = int(rng.integers(len(sources.foreign)))
    n = len(sources.foreign)
    donors = (sources.foreign[(start + step) % n].strip() for step in range(n))
    return next((donor for donor in donors if donor and donor != own), None)


def shifted(row: int, sources: Sources, _: np.random.Generator) -> str | None:
    """The answer of the row before: a column that slipped by one line."""
    own = sources.answers[row].strip()
    before = (sources.answers[(row - step) % len(sources.answers)].strip() for step in (1, 2, 3))
    return next((answer for answer in before if answer != own), None)


def changed_number(row: int, sources: Sources, rng: np.random.Generator) -> str | None:
    """Every number becomes another one of as many digits: a dose, a year, a sum."""
    text = sources.answers[row].strip()

    def other(found: re.Match[str]) -> str:
        size = len(found[0])
        first = "0123456789" if size == 1 else "123456789"
        while True:
            drawn = first[int(rng.integers(len(first)))]
            drawn += "".join(str(d) for d in rng.integers(10, size=size - 1))
            if drawn != found[0]:
                return drawn

    return _NUMBER.sub(other, text) if _NUMBER.search(text) else None


def swapped_name(row: int, sources: Sources, rng: np.random.Generator) -> str | None:
    """Names and terms become those of another answer: another drug, another firm."""
    text = sources.answers[row].strip()
    own = _names(text)
    if not own:
        return None
    start, n = int(rng.integers(len(sources.answers))), len(sources.answers)
    lent = (sorted(_names(sources.answers[(start + step) % n]) - own) for step in range(n))
    donor = next((names for names in lent if names), None)
    if donor is None:
        return None
    drawn = rng.permutation(donor).tolist()
    others = {name: drawn[i % len(drawn)] for i, name in enumerate(sorted(own))}
    return _WORD.sub(lambda found: others.get(found[0], found[0]), text)


def ends_early(row: int, sources: Sources, rng: np.random.Generator) -> str | None:
    """Cut at the end of a sentence: what is left reads as if it were whole."""
    text = sources.answers[row].strip()
    ends = [match.start() for match in _SENTENCE_END.finditer(text)]
    ends = [end for end in ends if text[:end].strip() and text[end:].strip()]
    if not ends:
        return None
    # In the first half where there is an end, so that something is missing.
    early = [end for end in ends if end <= len(text) / 2] or ends[:1]
    return text[: early[int(rng.integers(len(early)))]].rstrip()


def filler(row: int, sources: Sources, rng: np.random.Generator) -> str | None:
    """Sentences that fit any question and say nothing, about as long as the answer."""
    wanted, said = len(sources.answers[row]), ""
    for i in rng.permutation(len(_FILLERS)):
        said = f"{said} {_FILLERS[i]}".strip()
        if len(said) >= wanted:
            break
    return said


def near_copy(row: int, sources: Sources, rng: np.random.Generator) -> str | None:
    """The answer of another row with a word left out: two rows that say one thing."""
    own, n = sources.answers[row].strip(), len(sources.answers)
    start = int(rng.integers(n))
    for step in range(n):
        words = sources.answers[(start + step) % n].split()
        if len(words) < 2:
            continue
        del words[int(rng.integers(len(words)))]
        copy = " ".join(words)
        if copy != own and sources.answers[(start + step) % n].strip() != own:
            return copy
    return None


ACCIDENTS: dict[str, Accident] = {
    "page_remains": page_remains,
    "misread": misread,
    "wrong_encoding": wrong_encoding,
    "refusal": refusal,
    "prompt_repeated": prompt_repeated,
    "other_language": other_language,
    "shifted": shifted,
    "changed_number": changed_number,
    "swapped_name": swapped_name,
    "ends_early": ends_early,
    "filler": filler,
    "near_copy": near_copy,
}


def _names(text: str) -> set[str]:
    """Long words, and words with a capital inside a sentence."""
    found = set()
    for match in _WORD.finditer(text):
        word, before = match[0], text[: match.start()].rstrip()
        inside = bool(before) and before[-1] not in ".!?:\n"
        if len(word) >= NAME_LETTERS or (inside and word[0].isupper() and len(word) > 1):
            found.add(word)
    return found
