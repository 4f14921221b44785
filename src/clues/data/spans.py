"""Where the answers are in a conversation that a chat template has rendered.

The conversation is rendered once more with a word that it does not have (a stand-in) in place of
each answer: what stands between stand-ins is the template's and the prompt's, what is left is the
answers'. No rendering has to begin with another. Where a template looks into answers, so that the
two do not fit together, the answers are replaced one at a time, and what changes is the answer.

A template with `{% generation %}` says itself where the assistant speaks; then that counts.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise

from clues.data.callspans import call_place, check_results
from clues.data.pieces import NO_TURN
from clues.data.remarks import THOUGHT_END, Remark, Span, remarks_on, squeezed
from clues.data.rendering import Render, common_start, difference, said_instead
from clues.data.samples import Message
from clues.data.templates import Rendered
from clues.errors import DataError

_TAG = re.compile(r"\s*(<[^<>\s]{1,60}>|\[[^\[\]\s]{1,60}\])")
_OPEN_TAG = re.compile(r"[<\[][^<>\[\]]*$")
_ROLE = re.compile("user|human|system|inst|assistant|bot|tool|observation", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """A rendered conversation, and its answers.

    Attributes:
        text: the conversation.
        spans: what is trained of each answer, in order.
        pieces: from where to where text is trained, and the place after the white space that
            follows: those of `spans`, or what the template marks.
        owners: of each piece the position of its turn, or `NO_TURN` where it is not one turn's.
        remarks: what is worth knowing.
    """

    text: str
    spans: tuple[Span, ...]
    pieces: tuple[tuple[int, int, int], ...]
    owners: tuple[int, ...]
    remarks: tuple[Remark, ...]


def find_answers(render: Render, turns: Sequence[Message], *, last: bool) -> Found:
    """Render a conversation and find what is trained of it.

    Args:
        render: renders turns.
        turns: the conversation; the last turn is the assistant's.
        last: whether the last answer alone is trained.

    Raises:
        DataError: the template refuses the turns, or shows no answer, or one in several places.
    """
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    # Nobody has asked for an answer that begins the conversation.
    counted = [len(turns) - 1] if last else [i for i in answers if i > 0]
    counted = [i for i in counted if turns[i].trained]
    whole = render(turns, header=False)
    # How the last turn ends says how earlier ones do, trained or not.
    places = _words(render, turns, sorted({*counted, len(turns) - 1}), whole.text)
    words = {turn: place for turn, place in places.items() if turn in counted}
    spans = tuple(s for s in _spans(render, turns, places, whole.text) if s.turn in words)
    pieces = tuple((span.start, span.end, span.tail) for span in spans)
    if whole.marked:
        shown = None if counted == answers else list(words.values())
        pieces = tuple(_marked(whole, shown))
    pieces = tuple(piece for piece in pieces if piece[0] < piece[1])
    check_results(render, turns, [whole.text[start:end] for start, end, _ in pieces])
    # A mark around an answer that is not written holds what ends the turn, and nothing to learn.
    unwritten = not words and not any(turns[i].calls for i in counted)
    if not pieces or unwritten:
        raise DataError(
            "this model's chat template does not write the answer into the text. Set "
            "recipe.tokens.template to alpaca, or repair the template."
        )
    remarks = set(remarks_on(turns, spans, whole.text, pieces))
    missing = [turns[i] for i in counted if i not in words]
    remarks |= {Remark.CALLS if turn.calls else Remark.MISSING for turn in missing}
    context = [turns[i].content.rpartition(THOUGHT_END)[2] for i in answers if i not in counted]
    if any(said.strip() not in whole.text for said in context):
        remarks.add(Remark.PROMPT)
    if turns[0].role == "assistant" and not last:
        remarks.add(Remark.LED)
    owners = tuple(_owner(start, end, words) for start, end, _ in pieces)
    return Found(whole.text, spans, pieces, owners, tuple(sorted(remarks)))


def _owner(start: int, end: int, words: Mapping[int, tuple[int, int]]) -> int:
    """The turn whose words stand in a piece of text; none where they are of several or of none."""
    found = [turn for turn, (first, last) in words.items() if first < end and start < last]
    return found[0] if len(found) == 1 else NO_TURN


def _words(
    render: Render, turns: Sequence[Message], counted: Sequence[int], text: str
) -> dict[int, tuple[int, int]]:
    """From where to where each answer stands, by turn; an answer that is nowhere is left out."""
    stand_ins = _stand_ins(turns, counted, text)
    if not stand_ins:
        return {}
    # Without its call a result may be refused, and what is written instead has another shape.
    if not any(turns[i].calls for i in counted):
        replaced = render(_replaced(turns, stand_ins), header=False).text
        found = _aligned(text, replaced, turns, stand_ins)
        if found is not None:
            return found
    found = {}
    for turn, word in stand_ins.items():
        if turns[turn].calls:
            found |= call_place(render, turns, turn, (text, word))
            continue
        other = render(_replaced(turns, {turn: word}), header=False).text
        if other.count(word) > 1:
            raise _unclear()
        if other != text:
            found[turn] = difference(text, other, word)
    places = list(found.values())
    if any(a[1] > b[0] for a, b in pairwise(places)):
        raise _unclear()
    return found


def _unclear() -> DataError:
    return DataError(
        "this model's chat template writes an answer in several places, so the response cannot be "
        "told from the prompt. Set recipe.tokens.loss_on: last or template: alpaca."
    )


def _stand_ins(turns: Sequence[Message], counted: Sequence[int], text: str) -> dict[int, str]:
    """A word for each answer that no turn has."""
    texts = [text, *(turn.content for turn in turns)]
    first = next(f"zq{n}x" for n in count() if not any(f"zq{n}x" in t for t in texts))
    return {turn: f"{first}{turn}xqz" for turn in counted}


def _replaced(turns: Sequence[Message], words: Mapping[int, str]) -> list[Message]:
    return [said_instead(turn, words[i]) if i in words else turn for i, turn in enumerate(turns)]


def _aligned(
    text: str, replaced: str, turns: Sequence[Message], stand_ins: Mapping[int, str]
) -> dict[int, tuple[int, int]] | None:
    """Lay the text beside its copy with stand-ins; None where they do not fit together."""
    at, rest = 0, replaced
    ends: list[str] = []
    for word in stand_ins.values():
        before, found, rest = rest.partition(word)
        ends.append(before)
        if not found or word in rest:
            return None
    if not text.startswith(ends[0]):
        return None
    at, places = len(ends[0]), {}
    for turn, after in zip(stand_ins, [*ends[1:], rest], strict=True):
        until_end = turn == len(turns) - 1
        for words in _written(turns[turn].content):
            end = at + len(words)
            fits = text.startswith(words, at) and text.startswith(after, end)
            if fits and (not until_end or end + len(after) == len(text)):
                places[turn] = (at, end)
                at = end + len(after)
                break
        else:
            return None
    return places


def _written(answer: str) -> Iterator[str]:
    """An answer as templates write it: as it is, without white space, without its thought."""
    for text in (answer, answer.rpartition(THOUGHT_END)[2]):
        yield from (text, text.strip(), text.rstrip(), text.lstrip(), text.lstrip("\n"))


def _spans(
    render: Render, turns: Sequence[Message], words: Mapping[int, tuple[int, int]], text: str
) -> Iterator[Span]:
    """From the answers to what is trained: what begins an answer, and what ends its turn."""
    places = list(words.items())
    last = len(turns) - 1
    closing = text[words[last][1] :] if last in words else None
    before = 0
    for number, (turn, (start, end)) in enumerate(places):
        prompted = _prompted(render, turns[:turn], text, (before, start, end))
        first = _first(text, (prompted, start, end), turns[turn].said)
        until = places[number + 1][1][0] if number + 1 < len(places) else len(text)
        tail = len(text)
        if turn != last:
            after = text[end:until]
            if closing is None or not after.startswith(closing):
                closed = render(turns[: turn + 1], header=False).text
                own = closed[end:] if closed[:end] == text[:end] else (closing or "")
                tail = end + len(_closing(after, own))
            else:
                tail = end + len(closing)
        stop = first + len(text[first:tail].rstrip())
        yield Span(turn, first, stop, tail, (start, end))
        before = end


def _prompted(
    render: Render, prompt: Sequence[Message], text: str, places: tuple[int, int, int]
) -> int:
    """Where the prompt ends that a model is given when it is to answer."""
    before, start, end = places
    given = render(prompt, header=True).text
    if text.startswith(given):
        return min(len(given), end)
    # The template writes earlier turns otherwise now; its header reads as before.
    plain = render(prompt, header=False).text
    header = given[common_start(given, plain) :]
    for length in range(len(header), 0, -1):
        at = text.rfind(header[:length], before, start)
        if at >= 0:
            shared = common_start(header, text[at:end])
            return at + shared if shared == len(header) else min(at + shared, start)
    return start


def _first(text: str, places: tuple[int, int, int], answer: str) -> int:
    """Where training begins: after what is given to the model, and what templates add to it."""
    prompted, start, end = places
    if prompted >= start:
        return prompted
    added, shown = text[prompted:start], squeezed(text[start:end])
    # A thought's opening that the row has and the model is not given is for the model to say.
    if added.strip() and shown != squeezed(answer) and squeezed(answer).startswith(squeezed(added)):
        return prompted
    # The space before an answer stays with its first word: so tokenizers merge them.
    return start - (len(added) - len(added.rstrip(" ")))


def _closing(after: str, own: str) -> str:
    """What ends a turn that another follows, where the last turn of a text ends otherwise.

    Args:
        after: the text behind the answer.
        own: the text behind the answer where the conversation ends there.
    """
    if own and after.startswith(own):
        return own
    shared = _OPEN_TAG.sub("", after[: common_start(after, own)])
    if shared.strip():
        return shared
    tag = _TAG.match(after)
    return tag[0] if tag and not _ROLE.search(tag[1]) else ""


def _marked(
    whole: Rendered, shown: Sequence[tuple[int, int]] | None
) -> Iterator[tuple[int, int, int]]:
    """What the template marks, without white space after it; only where these answers are."""
    joined: list[tuple[int, int]] = []
    for start, end in whole.marked:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    for start, end in joined:
        if shown is None or any(a < end and start < b for a, b in shown):
            yield start, start + len(whole.text[start:end].rstrip()), end
