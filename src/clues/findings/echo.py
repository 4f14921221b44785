"""Answers that repeat their question, or the headings of a conversation."""

import re
from collections.abc import Iterator

from clues.data.samples import Sample
from clues.findings.base import Finding, in_answer, question
from clues.findings.words import squeezed

_HEADING = re.compile(
    r"(?:^|\n)\s*(?:#{2,4} ?(?:Instruction|Response|Input|Human|User|Assistant)\b:?|<\|?(?:im_start|im_end|user|assistant|system|endoftext)\|?>|\[/?INST\]|(?:Human|User|Assistant|Question)\s*:(?=[^\n]*\n\s*(?:Assistant|AI|Answer)\s*:))"
)
MIN_WORDS, MIN_CHARACTERS = 4, 16
MOSTLY = 0.6  # of an answer
LOOKED_AT = 400  # characters of a long question


def echo(sample: Sample) -> Iterator[Finding]:
    """At most one finding: the question at the beginning of the answer, or a heading in it."""
    answer, asked = sample.response, question(sample)
    if heading := _HEADING.search(answer):
        yield in_answer(sample, "prompt_repeated", heading.span(), detail="a turn's heading")
        return
    said = squeezed(answer)
    # The instruction is the first line where a text to work on follows it.
    for part in dict.fromkeys((asked, asked.partition("\n")[0])):
        wanted = squeezed(part)[:LOOKED_AT]
        # What counts is a question: "Summarize" as the first word of an answer is a word.
        if len(wanted) < MIN_CHARACTERS or wanted.count(" ") + 1 < MIN_WORDS:
            continue
        if said.startswith(wanted):
            end = _end_of(answer, len(wanted.replace(" ", "")))
            # Some sites write the question anew as a heading; letter for letter it was copied.
            copied = answer.lstrip().startswith(part.strip()[:LOOKED_AT])
            alone = len(wanted) >= MOSTLY * len(said)
            yield in_answer(sample, "prompt_repeated", (0, end), sure=copied or alone)
            return


def _end_of(text: str, n_signs: int) -> int:
    """The place in a text after so many letters and digits."""
    seen = 0
    for place, sign in enumerate(text):
        seen += sign.isalnum() or sign == "_"
        if seen >= n_signs:
            return place + 1
    return len(text)
