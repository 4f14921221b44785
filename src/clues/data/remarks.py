"""What a chat template does to a row that is worth knowing: what it drops, changes or never ends."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from clues.data.samples import Message

THOUGHT_END = "</think>"


class Remark(StrEnum):
    """What is worth knowing about a row's text; its words are what a check says."""

    SPACE = "the chat template changes white space in answers"
    THOUGHT = (
        "the chat template leaves out what an answer says before </think>, so it is not trained"
    )
    CHANGED = "the chat template changes the words of an answer; what it writes is trained"
    MISSING = "the chat template leaves out an answer, so it is not trained"
    CALLS = "the chat template does not write a call of a tool, so it is not trained"
    ARGUMENTS = "the chat template leaves out arguments of a call, so they are not trained"
    TOOLS = "the template does not write the tools that the row offers"
    PROMPT = "the chat template changes or leaves out a turn of the prompt"
    NO_END = "nothing that ends a turn comes after an answer, so the end is not trained"
    LED = "the row begins with the assistant's turn, which is not trained"
    FOLDED = "the chat template refuses the turns as they are; they are folded (tokens.odd_turns)"


@dataclass(frozen=True)
class Span:
    """What is trained of one answer, as places in the text.

    Attributes:
        turn: position of the answer among the turns.
        start: first character that is trained.
        end: the place after the last one, the end of the turn included.
        tail: the place after the white space that follows.
        words: from where to where the answer itself stands.
    """

    turn: int
    start: int
    end: int
    tail: int
    words: tuple[int, int]


def remarks_on(
    turns: Sequence[Message],
    spans: Sequence[Span],
    text: str,
    pieces: Sequence[tuple[int, int, int]],
) -> Iterator[Remark]:
    """Compare the answers and the prompt with what the text has of them.

    Args:
        turns: the conversation.
        spans: its answers in the text.
        text: the rendered conversation.
        pieces: from where to where text is trained, and the place after the white space behind it.
    """
    ends = {end for _, end, _ in pieces}
    for span in spans:
        start, end = span.words
        turn, shown = turns[span.turn], text[min(start, span.start) : end]
        answer = turn.content
        if turn.thought and squeezed(turn.thought) not in squeezed(shown):
            yield Remark.THOUGHT
        if turn.calls:
            if squeezed(answer) not in squeezed(shown):
                yield Remark.CHANGED
            if any(name not in shown for name in call_names(turn)):
                yield Remark.CALLS
            elif not _writes_arguments(turn, squeezed(shown)):
                yield Remark.ARGUMENTS
        elif not text.endswith(answer, 0, end):
            kept = text.endswith(answer.strip(), 0, end)
            yield Remark.SPACE if kept else _change(answer, shown)
        # Marks may end anywhere; what is trained ends after the words, or it has no end.
        if not any(stop > len(text[:end].rstrip()) for stop in ends if stop <= span.tail):
            yield Remark.NO_END
    if any(turn.role != "assistant" and turn.content.strip() not in text for turn in turns):
        yield Remark.PROMPT


def _change(answer: str, shown: str) -> Remark:
    if squeezed(shown) == squeezed(answer):
        return Remark.SPACE
    thought, end, rest = answer.rpartition(THOUGHT_END)
    if end and thought and squeezed(shown) == squeezed(rest):
        return Remark.THOUGHT
    return Remark.CHANGED


def call_names(turn: Message) -> list[str]:
    """The tools that a turn calls."""
    return [call["name"] for call in json.loads(turn.calls or "[]")]


def _writes_arguments(turn: Message, shown: str) -> bool:
    """Whether names and values of all arguments stand in a text without white space."""
    spelled = (
        {squeezed(json.dumps(value, ensure_ascii=ascii)).strip('"') for ascii in (True, False)}
        | {squeezed(str(value))}
        for call in json.loads(turn.calls)
        for value in _values(call["arguments"])
    )
    return all(any(spelling in shown for spelling in spellings) for spellings in spelled)


def _values(value: Any) -> Iterator[str | float]:
    """Keys, texts and numbers of a value of JSON."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _values(part)
    elif isinstance(value, str | int | float):
        yield value


def squeezed(text: str) -> str:
    """A text without its white space."""
    return "".join(text.split())
