"""Answers that end in the middle of a sentence, where those of checked rows end with one."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from clues.data.samples import Sample
from clues.findings.base import Finding, in_answer, question
from clues.findings.profile import LONG, Profile, ends, n_words

# After them a sentence of their language goes on.
_GOES_ON = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "and",
        "or",
        "to",
        "in",
        "on",
        "at",
        "by",
        "for",
        "with",
        "from",
        "as",
        "that",
        "which",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "has",
        "have",
        "had",
        "this",
        "these",
        "those",
        "their",
        "its",
        "his",
        "her",
        "your",
        "our",
        "my",
        "not",
        "but",
        "if",
        "when",
        "while",
        "because",
        "than",
        "into",
        "such",
        "may",
        "can",
        "el",
        "la",
        "los",
        "las",
        "un",
        "una",
        "de",
        "del",
        "al",
        "y",
        "o",
        "que",
        "en",
        "por",
        "para",
        "con",
        "se",
        "su",
        "sus",
        "es",
        "son",
        "como",
        "más",
        "entre",
        "le",
        "les",
        "des",
        "du",
        "et",
        "ou",
        "dans",
        "pour",
        "par",
        "avec",
        "sur",
        "qui",
        "est",
        "sont",
        "une",
        "au",
        "aux",
        "ce",
        "cette",
        "ses",
        "der",
        "die",
        "das",
        "den",
        "dem",
        "des",
        "ein",
        "eine",
        "einen",
        "einer",
        "und",
        "oder",
        "zu",
        "mit",
        "von",
        "im",
        "auf",
        "für",
        "ist",
        "sind",
        "dass",
        "nicht",
        "il",
        "lo",
        "gli",
        "i",
        "uno",
        "di",
        "e",
        "nel",
        "nella",
        "per",
        "con",
        "che",
        "è",
        "sono",
        "della",
        "dei",
        "delle",
        "os",
        "as",
        "dos",
        "das",
        "num",
        "numa",
        "uma",
        "são",
        "ao",
        "à",
    ]
)
_OPEN = re.compile(r"[,;:(\[{\-\N{EN DASH}\N{EM DASH}/&]\s*$")
_WORD = re.compile(r"[^\W\d_]{2,}")
_LAST = re.compile(r"([^\W\d_]+)\s*$")
_LISTED = re.compile(r"(?:^|\n)\s*(?:[-*\N{BULLET}]|\d+[.)])\s[^\n]*$")
SURE_SHARE = 0.99  # of the long answers among the checked rows that end with a sentence
FLAG_SHARE = 0.9
MIN_LONG = 30


class Endings:
    """Knows the words of all rows, so that a part of a word is known as one."""

    def __init__(
        self, samples: Sequence[Sample], checked: Sequence[Sample], profile: Profile
    ) -> None:
        """Count the words, and how often a checked answer ends as if it were cut."""
        self.profile = profile
        texts = [turn.content for s in (*samples, *checked) for turn in s.messages]
        self.words = Counter(w for text in texts for w in _WORD.findall(text.lower()))
        self.beginnings = Counter(w[:n] for w in self.words for n in range(2, len(w)))
        long = [a for s in checked if n_words(a := s.response.rstrip()) >= LONG]
        odd = sum(not ends(answer) and self._is_broken(answer) for answer in long)
        self.never_broken = len(long) >= MIN_LONG // 2 and not odd

    def cut(self, sample: Sample) -> Iterator[Finding]:
        """At most one finding: the last words."""
        answer = sample.response.rstrip()
        if sample.choices or ends(answer) or n_words(answer) < LONG or "```" in answer:
            return
        span = max(0, len(answer) - 24), len(answer)
        enough = self.profile.n_long >= MIN_LONG
        broken = self._is_broken(answer)
        if broken or (enough and self.profile.share_ended >= FLAG_SHARE):
            # Items of a list end without a sentence; broken off they are cut all the same.
            listed = _LISTED.search(answer) is not None
            always = enough and self.profile.share_ended >= SURE_SHARE and not listed
            # A translation of a sentence that is cut is cut as well; a colon ends a question.
            asked = question(sample).rstrip()
            asked_so = not asked.endswith(":") and self._is_broken(asked)
            sure = not asked_so and (always or (broken and self.never_broken))
            detail = "in the middle of a word" if self._is_part(answer) else ""
            yield in_answer(sample, "cut", span, sure=sure, detail=detail)

    def _is_broken(self, answer: str) -> bool:
        if _OPEN.search(answer) or self._is_part(answer):
            return True
        last = _LAST.search(answer)
        if last is None or (len(last[1]) == 1 and answer[: last.start()].rstrip().endswith(",")):
            return False  # a letter of a list is no word
        return last[1].lower() in _GOES_ON

    def _is_part(self, answer: str) -> bool:
        """Whether the last letters are no word of any row, and longer words begin with them."""
        last = _LAST.search(answer)
        word = last[1] if last else ""
        return word.islower() and self.words[word] <= 1 and self.beginnings[word] >= 2
