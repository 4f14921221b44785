"""A finding: what was found, in which turn and where, and how sure the rule is."""

from collections.abc import Iterator
from dataclasses import dataclass

from clues.data.samples import Message, Sample

REPEATED = "duplicate"
# By kind, what a reader is told. The keys are those of the settings.
SAYS = {
    REPEATED: "the same question and answer stand in an earlier row",
    "near_duplicate": "nearly the same question and answer stand in an earlier row",
    "html": "remains of HTML stand in the answer",
    "boilerplate": "text of a web page's frame stands in the answer",
    "mojibake": "letters were broken by a wrong encoding",
    "refusal": "the answer refuses, as an assistant does",
    "prompt_repeated": "the answer repeats its question",
    "cut": "the answer ends in the middle of a sentence",
    "language": "the answer is in another language than the checked rows and its question",
    "near_empty": "the answer says next to nothing",
    "personal_data": "it may hold personal data",
}
KINDS = tuple(SAYS)
# The same in a word or two, for lists and counts.
NAMES = {
    REPEATED: "repeated",
    "near_duplicate": "nearly repeated",
    "html": "remains of HTML",
    "boilerplate": "frame of a web page",
    "mojibake": "broken letters",
    "refusal": "refusal",
    "prompt_repeated": "repeats its question",
    "cut": "cut off",
    "language": "another language",
    "near_empty": "nearly empty",
    "personal_data": "personal data",
}


@dataclass(frozen=True)
class Finding:
    """Something that a reader would see in a row.

    Attributes:
        row: zero-based position in the file.
        kind: a key of `SAYS`.
        turn: position of the turn that it stands in.
        start: first character of its place there.
        end: the place after the last one.
        sure: whether the rule is hardly ever wrong where it says so.
        detail: what is particular to it, such as the row that it repeats; never text of the row.
    """

    row: int
    kind: str
    turn: int
    start: int
    end: int
    sure: bool = True
    detail: str = ""

    @property
    def says(self) -> str:
        """A sentence for a reader."""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{SAYS[self.kind]}{detail}"

    @property
    def place(self) -> str:
        """Where it stands, for a reader who counts from 1."""
        return f"characters {self.start + 1:,} to {self.end:,}"


def in_answer(
    sample: Sample, kind: str, span: tuple[int, int], *, sure: bool = True, detail: str = ""
) -> Finding:
    """A finding in the last answer."""
    turn = len(sample.messages) - 1
    return Finding(sample.row, kind, turn, *span, sure=sure, detail=detail)


def whole(text: str) -> tuple[int, int]:
    """From the first to the last character of a text."""
    return 0, len(text)


def question(sample: Sample) -> str:
    """What the last turn before the answer says."""
    asked = [turn for turn in sample.prompt if turn.role == "user"]
    return asked[-1].content if asked else ""


def turns(sample: Sample) -> Iterator[tuple[int, Message]]:
    """Every turn but instructions to the system, with its position."""
    return ((n, turn) for n, turn in enumerate(sample.messages) if turn.role != "system")
