"""Damaged copies of public rows: what a score is held against where nobody knows what is bad."""

from collections.abc import Sequence
from dataclasses import replace

from clues.data.damage import DAMAGE_KINDS, damage_rows
from clues.data.samples import Sample
from clues.errors import DataError

ANSWER = "output"
N_COPIES = 2  # of every row, each damaged in one way


def damaged_copies(
    samples: Sequence[Sample], *, seed: int, foreign: Sequence[str]
) -> tuple[list[Sample], list[str]]:
    """Copies of rows of known quality whose last answers are damaged, and how each is.

    Args:
        samples: the rows.
        seed: fixes kinds and texts.
        foreign: answers in another language or domain, to mix in.

    Raises:
        DataError: an answer that no damage can change.
    """
    records = [{ANSWER: sample.response} for sample in samples]
    copies: list[Sample] = []
    kinds: list[str] = []
    for n in range(N_COPIES):
        try:
            damaged, labels = damage_rows(
                records, share=1.0, kinds=DAMAGE_KINDS, seed=seed + n, foreign=foreign
            )
        except DataError as error:
            raise DataError(
                f"anchors cannot be damaged to weigh the parts of a score: {error} Or give "
                "score.loss_weight and score.alignment_weight as numbers."
            ) from None
        for sample, record, kind in zip(samples, damaged, labels, strict=True):
            assert kind is not None
            last = replace(sample.messages[-1], content=record[ANSWER])
            copies.append(replace(sample, messages=(*sample.messages[:-1], last), choices=()))
            kinds.append(kind)
    # Positions are a file's; copies come after one another.
    numbered = [replace(copy, row=n, answer=None) for n, copy in enumerate(copies)]
    return numbered, kinds
