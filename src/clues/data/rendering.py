"""Two renderings of a conversation, and what is different between them."""

from collections.abc import Sequence
from typing import Protocol

from clues.data.samples import Message
from clues.data.templates import Rendered


class Render(Protocol):
    """What renders turns, with what stands in front of an answer at the end or without."""

    def __call__(self, turns: Sequence[Message], *, header: bool) -> Rendered:
        """The text of these turns."""
        ...


def said_instead(turn: Message, words: str) -> Message:
    """A turn that says these words, thinks nothing and calls nothing."""
    return Message(turn.role, words, name=turn.name, call_id=turn.call_id)


def difference(text: str, other: str, word: str) -> tuple[int, int]:
    """From where to where a text differs from the one with a stand-in, which is taken out whole."""
    at = other.find(word)
    start = common_start(text, other)
    after = len(other) - start
    if at >= 0:
        start, after = min(start, at), len(other) - at - len(word)
    same = common_start(text[start:][::-1], other[::-1])
    return start, len(text) - min(same, after)


def common_start(one: str, two: str) -> int:
    """Number of characters at the start that two texts share."""
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == two[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
