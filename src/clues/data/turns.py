"""Turns in an order that a chat template does not take, brought into one that it does."""

from collections.abc import Iterator, Sequence

from clues.data.samples import Message

GAP = "\n\n"  # between texts that become one turn


def foldings(turns: Sequence[Message]) -> Iterator[tuple[Message, ...]]:
    """Yield what to try in place of refused turns, from the smallest change to the largest.

    First an assistant's turn that answers nobody is left out and neighbours of one role become one
    turn. Then the system's text stands in front of the user's, for a template without a system.
    """
    asked = next((i for i, turn in enumerate(turns) if turn.role == "user"), len(turns))
    led = [turn for turn in turns[:asked] if turn.role != "assistant"]
    joined = _joined([*led, *turns[asked:]])
    if joined != tuple(turns):
        yield joined
    if joined and joined[0].role == "system":
        yield _joined([Message("user", joined[0].content), *joined[1:]])


def _joined(turns: Sequence[Message]) -> tuple[Message, ...]:
    """Neighbours of one role as one turn."""
    found: list[Message] = []
    for turn in turns:
        if found and found[-1].role == turn.role:
            found[-1] = Message(turn.role, found[-1].content + GAP + turn.content)
        else:
            found.append(turn)
    return tuple(found)
