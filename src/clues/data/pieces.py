"""Pieces of a text, each wholly prompt or wholly answer, and the tokens of each.

A prompt and its answer are two texts where a model answers: it is given the one and says the other.
So each piece is tokenised apart, and no token lies across. Tokenizers that write a mark in front of
whatever text they are given (SentencePiece) would write one into the middle of a row: their pieces
are tokenised as within a text. If the text as a whole has other tokens all the same, those count, and
each goes to the piece where its characters are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

BREAK = "\n"  # never one token with a letter after it
NO_TURN = -1


@dataclass(frozen=True)
class Segment:
    """A piece of the rendered text that is wholly prompt or wholly response."""

    text: str = field(repr=False)
    is_response: bool
    ends_text: bool = False
    turn: int = NO_TURN  # whose words a response is: its position among the row's turns


class TurnRun(NamedTuple):
    """Tokens that follow one another and are trained as one turn's.

    Attributes:
        turn: position of the turn in the row.
        start: first token.
        end: the place after the last one.
    """

    turn: int
    start: int
    end: int


def turn_runs(turns: Sequence[int], mask: Sequence[bool]) -> tuple[TurnRun, ...]:
    """Runs of the trained tokens of each turn.

    Args:
        turns: of every token the position of its turn, or `NO_TURN`.
        mask: whether it is trained.

    Returns:
        Empty where fewer than two turns are trained, or nobody knows whose a trained token is.
    """
    runs: list[TurnRun] = []
    for place, (turn, trained) in enumerate(zip(turns, mask, strict=True)):
        if not trained:
            continue
        if turn == NO_TURN:
            return ()
        if runs and runs[-1].turn == turn and runs[-1].end == place:
            runs[-1] = runs[-1]._replace(end=place + 1)
        else:
            runs.append(TurnRun(turn, place, place + 1))
    return tuple(runs) if len({run.turn for run in runs}) > 1 else ()


class PieceTokens:
    """A tokenizer, asked for the tokens of a row piece by piece."""

    def __init__(self, tokenizer: Any) -> None:
        """Try out whether the tokens of two pieces are those of the whole (`apart`)."""
        self._tokenizer = tokenizer
        parts = self._ids(BREAK), self._ids("a")
        self.apart = [*parts[0], *parts[1]] == self._ids(BREAK + "a")
        self._first = tokenizer.bos_token_id
        self._adds_first = tokenizer("")["input_ids"][:1] == [self._first]

    def of(self, segments: Sequence[Segment]) -> tuple[list[int], list[int]]:
        """Token ids of a row, and for each the number of its piece; -1 in front of all pieces."""
        ids: list[int] = []
        owners: list[int] = []
        start = 0
        for end, segment in enumerate(segments, start=1):
            if not (segment.ends_text or end == len(segments)):
                continue
            found, theirs = self._together(segments[start:end])
            ids += found
            owners += [start + owner for owner in theirs]
            if segment.ends_text:
                ids.append(self._tokenizer.eos_token_id)
                owners.append(end - 1)
            start = end
        # Templates may write the first token themselves: two of them would change every score.
        if self._first is not None and self._adds_first and ids[:1] != [self._first]:
            ids, owners = [self._first, *ids], [-1, *owners]
        return ids, owners

    def _together(self, segments: Sequence[Segment]) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        owners: list[int] = []
        for number, text in self._texts(segments):
            piece = self._ids(text) if self.apart or not ids else self._inner(text)
            ids += piece
            owners += [number] * len(piece)
        if self.apart or not getattr(self._tokenizer, "is_fast", False):
            return ids, owners
        encoded = self._tokenizer(
            "".join(segment.text for segment in segments),
            add_special_tokens=False,
            return_offsets_mapping=True,
        )
        whole, places = list(encoded["input_ids"]), encoded["offset_mapping"]
        # Places are wrong where a tokenizer leaves out characters that it does not know.
        if whole == ids or any(
            later != earlier and later[0] < earlier[1] for earlier, later in pairwise(places)
        ):
            return ids, owners
        return whole, _owners(segments, places)

    def _texts(self, segments: Sequence[Segment]) -> list[tuple[int, str]]:
        """The texts to tokenise, with the number of the first piece of each."""
        texts: list[tuple[int, str]] = []
        for number, segment in enumerate(segments):
            # Only between prompt and answer do two texts meet.
            if not (
                self.apart or not texts or segment.is_response or segments[number - 1].is_response
            ):
                texts[-1] = (texts[-1][0], texts[-1][1] + segment.text)
            else:
                texts.append((number, segment.text))
        return texts

    def _inner(self, text: str) -> list[int]:
        """Tokens of a text as they are within a longer one, without the mark of a beginning."""
        before, both = self._ids(BREAK), self._ids(BREAK + text)
        return both[len(before) :] if both[: len(before)] == before else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _owners(segments: Sequence[Segment], places: Sequence[tuple[int, int]]) -> list[int]:
    """The piece of each token of the whole text; one that lies across two pieces is the answer's."""
    ends = list(accumulate(len(segment.text) for segment in segments))
    owners, owner = [], 0
    for start, end in places:
        while owner < len(ends) - 1 and ends[owner] <= start:
            owner += 1
        last = owner
        while last < len(ends) - 1 and ends[last] < end:
            last += 1
        answers = [n for n in range(owner, last + 1) if segments[n].is_response]
        owners.append(answers[0] if answers else owner)
    return owners
