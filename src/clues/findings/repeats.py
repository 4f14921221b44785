"""Rows that stand in the file before: the same text, or nearly the same by MinHash (datasketch)."""

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import cast

import numpy as np

from clues.data.samples import Sample
from clues.findings.base import REPEATED, Finding, in_answer, question, whole
from clues.findings.words import squeezed

SIMILARITY = 0.9  # share of five-word pieces that two rows have in common
N_WORDS = 5
# A changed word is in five pieces of either row: of a short text that is a large share.
FEW_APART = 2 * 2 * N_WORDS
CANDIDATES = 0.6  # share in common of two texts of the fewest pieces that differ in one word
N_PERMUTATIONS = 128
SAME_LINE = 0.85  # ratio of two sentences that say the same
ADDED = 0.15  # share of an answer that nearly the same answer may have more
MIN_PIECES = 20  # of shorter texts one word is a large share
SEED = 1


def repeats(samples: Sequence[Sample], *, worse: Collection[int] = ()) -> Iterator[Finding]:
    """One finding for each row whose like comes before it.

    Args:
        samples: in the order of the file.
        worse: positions of rows with other faults: of two alike, the one without them stays.
    """
    order = sorted(samples, key=lambda s: (s.row in worse, s.row))
    first: dict[str, Sample] = {}
    left: list[tuple[Sample, str]] = []
    for sample in order:
        text = f"{squeezed(question(sample))} \N{BULLET} {squeezed(sample.response)}"
        before = first.setdefault(text, sample)
        if before is not sample:
            yield _found(sample, REPEATED, before)
        else:
            left.append((sample, text))
    yield from _near(left)


def _near(texts: Sequence[tuple[Sample, str]]) -> Iterator[Finding]:
    from datasketch import MinHash, MinHashLSH  # a second, for runs that look

    index = MinHashLSH(threshold=CANDIDATES, num_perm=N_PERMUTATIONS)
    sets: dict[int, frozenset[int]] = {}
    known: dict[int, Sample] = {}
    for sample, text in texts:
        pieces = _pieces(text)
        if len(pieces) < MIN_PIECES:
            continue
        sketch = MinHash(num_perm=N_PERMUTATIONS, seed=SEED, hashfunc=int)
        sketch.update_batch(pieces)
        own = frozenset(pieces)
        # The sketch finds candidates; what decides is the sets themselves.
        candidates = cast("list[int]", index.query(sketch))
        alike = [
            row
            for row in candidates
            if _close(own, sets[row]) and _says_the_same(sample, known[row])
        ]
        if alike:
            yield _found(sample, "near_duplicate", known[min(alike)])
            continue
        index.insert(sample.row, sketch)
        sets[sample.row], known[sample.row] = own, sample


def _pieces(text: str) -> list[int]:
    """Hashes of all pieces of five words; of a script without spaces, of five signs."""
    words = text.split()
    if len(words) * 12 < len(text):
        words = list(text.replace(" ", ""))
    pieces = {" ".join(words[n : n + N_WORDS]) for n in range(max(1, len(words) - N_WORDS + 1))}
    data = b"".join(hashlib.blake2b(p.encode(), digest_size=4).digest() for p in sorted(pieces))
    return np.frombuffer(data, "<u4").tolist()


def _says_the_same(a: Sample, b: Sample) -> bool:
    """Whether what differs of two rows is small in itself, and no number.

    Two questions on one long table have nearly all words in common, and are two questions.
    """
    asked, said = _apart(question(a), question(b)), _apart(a.response, b.response)
    return asked == 0 and said is not None and said <= ADDED * len(a.response)


def _apart(text: str, other: str) -> int | None:
    """Length of the sentences that the other text has not even nearly; None where numbers differ."""
    ours, theirs = _lines(text), _lines(other)
    left, right = ours - theirs, theirs - ours
    alone = [line for line in left if not any(_alike(line, other) for other in right)]
    near = left - set(alone)
    if _numbers(near) != _numbers(line for line in right if any(_alike(line, o) for o in near)):
        return None
    return sum(map(len, alone))


def _alike(line: str, other: str) -> bool:
    return SequenceMatcher(None, line, other, autojunk=False).ratio() >= SAME_LINE


def _lines(text: str) -> frozenset[str]:
    sentences = re.split(r"\n|(?<=[.!?])\s", text)
    return frozenset(said for sentence in sentences if (said := squeezed(sentence)))


def _numbers(lines: Iterable[str]) -> list[str]:
    return sorted(number for line in lines for number in re.findall(r"\d+", line))


def _close(a: frozenset[int], b: frozenset[int]) -> bool:
    """Whether two sets of pieces have nearly all in common, or all but what two words change."""
    apart = len(a ^ b)
    return apart <= FEW_APART or apart <= (1 - SIMILARITY) * len(a | b)


def _found(sample: Sample, kind: str, before: Sample) -> Finding:
    detail = f"row {before.row + 1}"
    return in_answer(sample, kind, whole(sample.response), detail=detail)
