"""Pieces of a text, each wholly prompt or wholly answer, and the tokens of each.

A prompt and its answer are two texts where a model answers: it is given the one and says the other.
So each piece is tokenised apart, and no token lies across. Tokenizers that write a mark in front of
whatever text they are given (SentencePiece) would write one into the middle of a row: for them the
text is tokenised whole, and each token goes to the piece where its characters are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

BREAK = "\n"  # never one token with a letter after it


@dataclass(frozen=True)
class Segment:
    """A piece of the rendered text that is wholly prompt or wholly response."""

    text: str = field(repr=False)
    is_response: bool
    ends_text: bool = False


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
        if not self.apart and getattr(self._tokenizer, "is_fast", False):
            return self._whole(segments)
        ids: list[int] = []
        owners: list[int] = []
        for number, segment in enumerate(segments):
            piece = self._ids(segment.text) if self.apart or not ids else self._inner(segment.text)
            ids += piece
            owners += [number] * len(piece)
        return ids, owners

    def _whole(self, segments: Sequence[Segment]) -> tuple[list[int], list[int]]:
        """Tokens of the whole text; one that lies across two pieces is the answer's."""
        encoded = self._tokenizer(
            "".join(segment.text for segment in segments),
            add_special_tokens=False,
            return_offsets_mapping=True,
        )
        ends = list(accumulate(len(segment.text) for segment in segments))
        owners, owner = [], 0
        for start, end in encoded["offset_mapping"]:
            while owner < len(ends) - 1 and ends[owner] <= start:
                owner += 1
            last = owner
            while last < len(ends) - 1 and ends[last] < end:
                last += 1
            answers = [n for n in range(owner, last + 1) if segments[n].is_response]
            owners.append(answers[0] if answers else owner)
        return list(encoded["input_ids"]), owners

    def _inner(self, text: str) -> list[int]:
        """Tokens of a text as they are within a longer one, without the mark of a beginning."""
        before, both = self._ids(BREAK), self._ids(BREAK + text)
        return both[len(before) :] if both[: len(before)] == before else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
