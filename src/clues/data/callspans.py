"""Where calls of tools are in a rendered conversation, and the proof that no result is trained."""

from collections.abc import Sequence

from clues.data.rendering import Render, difference, said_instead
from clues.data.samples import Message
from clues.errors import DataError


def call_place(
    render: Render, turns: Sequence[Message], turn: int, found: tuple[str, str]
) -> dict[int, tuple[int, int]]:
    """From where to where a turn stands that calls tools, by its position; empty where nowhere.

    The conversation is cut behind the turn, because a result without its call may be refused, and
    rendered with a plain answer in place of the call: what is different is the call.

    Args:
        render: renders turns.
        turns: the conversation.
        turn: position of the turn.
        found: the conversation as text, and a word that it does not have.

    Raises:
        DataError: the call cannot be told from what follows.
    """
    text, word = found
    before, own = list(turns[:turn]), turns[turn]
    cut = render([*before, own], header=False).text
    plain = render([*before, said_instead(own, word)], header=False).text
    if word not in plain:
        raise _unclear()
    start, end = difference(cut, plain, word)
    # An earlier turn may end otherwise than a last one: the call itself is written the same.
    at = start if text.startswith(cut[:end]) else text.find(cut[start:end])
    if at < 0 or (at != start and text.count(cut[start:end]) > 1):
        raise _unclear()
    return {turn: (at, at + end - start)} if cut[start:end].strip() else {}


def check_results(render: Render, turns: Sequence[Message], trained: Sequence[str]) -> None:
    """See that what is trained is the same whatever the tools give back.

    Args:
        render: renders turns.
        turns: the conversation.
        trained: the texts that are trained, in order.

    Raises:
        DataError: it is not, so that a result would be trained.
    """
    if not any(turn.role == "tool" for turn in turns):
        return
    texts = [turn.content for turn in turns]
    word = next(f"zr{n}y" for n in range(10**6) if not any(f"zr{n}y" in text for text in texts))
    others = [
        said_instead(turn, f"{word}{i}") if turn.role == "tool" else turn
        for i, turn in enumerate(turns)
    ]
    try:
        rendered, at = render(others, header=False).text, 0
    except DataError:
        # A template that reads results, and takes no other words: they are looked for instead.
        if any(_holds_result(piece, turns) for piece in trained):
            raise _unclear() from None
        return
    for piece in trained:
        at = rendered.find(piece, at)
        if at < 0:
            raise _unclear()
        at += len(piece)


def _holds_result(piece: str, turns: Sequence[Message]) -> bool:
    results = (turn.content.strip() for turn in turns if turn.role == "tool")
    return any(result and result in piece for result in results)


def _unclear() -> DataError:
    return DataError(
        "this model's chat template writes calls of tools so that they cannot be told from what "
        "stands around them. Leave rows with tools out, or repair the template."
    )
