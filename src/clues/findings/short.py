"""Answers that say next to nothing."""

import re
from collections.abc import Iterator

from clues.data.samples import Sample
from clues.findings.base import Finding, in_answer, question, whole
from clues.findings.profile import Profile
from clues.findings.words import squeezed

_NOTHING = frozenset(
    {
        *(
            "n a",
            "na",
            "nan",
            "null",
            "none",
            "nil",
            "nothing",
            "todo",
            "tbd",
            "tba",
            "idk",
            "xxx",
            "test",
        ),
        *(
            "ok",
            "okay",
            "k",
            "yes ok",
            "see above",
            "see below",
            "no answer",
            "no response",
            "not available",
        ),
        *(
            "not applicable",
            "unknown",
            "i don t know",
            "i do not know",
            "no idea",
            "undefined",
            "empty",
        ),
        *(
            "no comment",
            "as above",
            "same as above",
            "ninguno",
            "ninguna",
            "no sé",
            "nada",
            "aucun",
            "rien",
        ),
        *(
            "je ne sais pas",
            "keine",
            "nichts",
            "weiß nicht",
            "无",
            "不知道",
            "暂无",
            "没有",
            "answer",
            "output",
            "response",
        ),
    }
)
TINY = 12  # letters and digits
FAR_BELOW = 5  # times shorter than the shortest of the checked rows


def near_empty(sample: Sample, profile: Profile) -> Iterator[Finding]:
    """At most one finding: the whole answer."""
    answer = sample.response
    if sample.choices:
        return
    said = squeezed(answer)
    # A label that checked rows or the question itself name is an answer.
    if said in profile.answers or (said and f" {said} " in f" {squeezed(question(sample))} "):
        return
    if not said:
        yield in_answer(sample, "near_empty", whole(answer), detail="no letter and no digit")
    elif said in _NOTHING or re.fullmatch(r"(\w{1,12})(?: \1)+", said):
        yield in_answer(sample, "near_empty", whole(answer))
    elif len(said) * FAR_BELOW < profile.shortest:
        detail = f"{len(said)} letters, checked rows {profile.shortest:,} or more"
        # A short sentence may say enough.
        yield in_answer(sample, "near_empty", whole(answer), sure=len(said) <= TINY, detail=detail)
