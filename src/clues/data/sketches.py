"""Sketches of questions under a shared key: who lacks it learns how alike two are, and no more.

A question is a set of shingles, all pieces of `N_BYTES` bytes of its text. MinHash turns a set into
numbers: of two sets, one number is the same with probability J, the share of their shingles that
they have in common (Jaccard). A band hashes `width` such numbers together, so that it is the same
with probability J^width. Only bands leave a silo: of questions that are not alike they show next
to nothing (at similarity 0.8 the width is 6, and of two questions with J = 0.3 one band in 1,400
is the same), and near the similarity asked for they tell J as well as the numbers would.

N questions, B bands.

Source: Broder 1997, On the resemblance and containment of documents.
"""

import hashlib
import math
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clues.data.samples import Sample

# Six Latin letters, or two Chinese characters: scripts without spaces need no words.
N_BYTES = 6
N_BANDS = 64
BAND_BYTES = 4
SKETCH_BYTES = N_BANDS * BAND_BYTES
PAD_TO = 64  # sketches are sent in multiples of this
MAX_WIDTH = 16
_CHUNK = 512  # shingles of a question that are hashed at once, so that memory stays small
Bands = NDArray[np.uint32]


def question_of(sample: Sample) -> str:
    """What a row asks, in one form: compatibility characters, case and white space do not count.

    Instructions to the system are no part of the question: whole files share them.
    """
    turns = [turn.content for turn in sample.prompt if turn.role != "system"]
    return " ".join(unicodedata.normalize("NFKC", "\n".join(turns)).casefold().split())


def band_width(similarity: float) -> int:
    """How many MinHash numbers a band joins: at this similarity about a third of the bands agree.

    Wider bands would leave too few that agree to be counted, narrower ones show more of questions
    that are less alike.
    """
    if similarity >= 0.25 ** (1 / MAX_WIDTH):
        return MAX_WIDTH
    return max(1, int(math.log(0.25) / math.log(similarity)))


def fewest_equal(similarity: float) -> int:
    """From how many equal bands on two questions count as one: as many as are expected."""
    return max(1, math.ceil(N_BANDS * similarity ** band_width(similarity) - 1e-9))


def run_key(key: bytes, recipe_hash: str) -> bytes:
    """The key for one recipe: sketches under two recipes cannot be told to be of the same row."""
    secret = hashlib.blake2b(key, digest_size=32, person=b"clues rows key").digest()
    return hashlib.blake2b(recipe_hash.encode(), key=secret, digest_size=32).digest()


def key_token(key: bytes) -> str:
    """What all silos with the same key say, and what tells nothing about it."""
    return hashlib.blake2b(b"which key", key=key, digest_size=8).hexdigest()


def shingles(text: str) -> NDArray[np.uint64]:
    """All different pieces of `N_BYTES` bytes of a text, as numbers, in order."""
    # A space at either end, so that first and last word count as much as the others.
    data = f" {text} ".encode().ljust(N_BYTES, b"\0")
    letters = np.frombuffer(data, np.uint8).astype(np.uint64)
    n = len(letters) - N_BYTES + 1
    numbers = np.zeros(n, np.uint64)
    for place in range(N_BYTES):
        numbers = (numbers << np.uint64(8)) | letters[place : place + n]
    return np.unique(numbers)


def sketch(questions: Sequence[str], key: bytes, *, similarity: float) -> Bands:
    """Bands of each question, NB.

    Args:
        questions: as `question_of` gives them.
        key: of this recipe, from `run_key`.
        similarity: that decides how wide a band is; all silos need the same.
    """
    width = band_width(similarity)
    seeds = _stream(key, "minhash", 16 * N_BANDS * width).view(np.uint64).reshape(2, -1)
    masks, factors = seeds[0], seeds[1] | np.uint64(1)
    found = np.zeros((len(questions), N_BANDS), np.uint32)
    for n, question in enumerate(questions):
        lowest = _lowest(_keyed(shingles(question), key), masks, factors)
        found[n] = [
            int.from_bytes(_digest(key, bytes((band,)) + numbers.tobytes(), BAND_BYTES), "little")
            for band, numbers in enumerate(lowest.reshape(N_BANDS, width))
        ]
    return found


def estimated_similarity(n_equal: int, *, similarity: float) -> float:
    """The J at which this many equal bands are expected, for a width made for `similarity`."""
    return (n_equal / N_BANDS) ** (1 / band_width(similarity))


def random_sketches(n: int, seed: bytes) -> Bands:
    """Sketches of nothing, which look like all others."""
    return _stream(seed, "dummies", n * SKETCH_BYTES).view(np.uint32).reshape(n, N_BANDS)


def random_order(n: int, seed: bytes) -> list[int]:
    """A permutation that nobody knows without the seed."""
    return np.argsort(_stream(seed, "order", 16 * n).view(np.uint64)[:n], kind="stable").tolist()


def padded(n: int) -> int:
    """How many sketches are sent for so many questions."""
    return PAD_TO * max(1, math.ceil(n / PAD_TO))


def _lowest(
    hashed: NDArray[np.uint64], masks: NDArray[np.uint64], factors: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """The MinHash numbers of a set: the lowest of its hashes, under every permutation."""
    found = np.full(len(masks), np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(hashed), _CHUNK):
        mixed = (hashed[start : start + _CHUNK, None] ^ masks) * factors
        mixed ^= mixed >> np.uint64(32)
        mixed *= factors
        found = np.minimum(found, mixed.min(axis=0))
    return found


def _keyed(numbers: NDArray[np.uint64], key: bytes) -> NDArray[np.uint64]:
    digests = b"".join(_digest(key, number.tobytes(), 8) for number in numbers)
    return np.frombuffer(digests, np.uint64)


def _digest(key: bytes, data: bytes, n_bytes: int) -> bytes:
    return hashlib.blake2b(data, key=key, digest_size=n_bytes).digest()


def _stream(seed: bytes, purpose: str, n_bytes: int) -> NDArray[np.uint8]:
    start = _digest(seed, purpose.encode(), 64)
    return np.frombuffer(hashlib.shake_256(start).digest(n_bytes), np.uint8)
