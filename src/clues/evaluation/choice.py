"""Held-out loss, and knowledge: multiple choice by likelihood."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from clues.data.samples import Message, Sample
from clues.data.tokens import EncodedRow, RowEncoder, encode_rows
from clues.model.adapters import AdapterState, LoraModel
from clues.scoring.perplexity import mean_losses

DIGITS = 6  # of stored losses


@dataclass(frozen=True)
class HeldOut:
    """Public rows that nobody trains on, encoded once for all arms.

    Attributes:
        rows: the rows with their right responses.
        options: for each multiple-choice question, one row a choice.
        answers: index of the right choice, in the same order.
    """

    rows: tuple[EncodedRow, ...]
    options: tuple[tuple[EncodedRow, ...], ...]
    answers: tuple[int, ...]

    @property
    def guessing(self) -> float | None:
        """Accuracy of a uniform guess."""
        if not self.options:
            return None
        return float(np.mean([1 / len(options) for options in self.options]))


def held_out(samples: Sequence[Sample], encoder: RowEncoder, *, where: str) -> HeldOut:
    """Encode held-out rows; every row with choices becomes a question too.

    A question is left out whole if one of its choices does not fit into `max_length`.
    """
    rows = encode_rows(samples, encoder, where=where).rows
    options, answers = [], []
    for sample in samples:
        if sample.answer is None:
            continue
        variants = [
            Sample(sample.row, (*sample.prompt, Message("assistant", choice)))
            for choice in sample.choices
        ]
        encoded = encode_rows(variants, encoder, where=where, may_be_empty=True)
        if len(encoded.rows) == len(variants):
            options.append(encoded.rows)
            answers.append(sample.answer)
    return HeldOut(rows, tuple(options), tuple(answers))


def measure(model: LoraModel, heldout: HeldOut, adapter: AdapterState) -> dict[str, Any]:
    """Mean loss of held-out rows in nats, and multiple-choice accuracy with standard error.

    The choice with the lowest mean loss a token is the model's answer: the same loss function as
    in training and scoring, so that long choices are not punished for their length.

    Returns:
        The figures, and what they are the means of, so that arms can be compared row by row:
        `losses` of the rows, and `right`, 1 for each question answered right, else 0.
    """
    losses = mean_losses(model, heldout.rows, adapter=adapter)
    figures: dict[str, Any] = {
        "heldout_loss": float(losses.mean()),
        "knowledge_accuracy": None,
        "knowledge_stderr": None,
        "losses": [round(float(x), DIGITS) for x in losses],
        "right": [],
    }
    if heldout.options:
        flat = [row for options in heldout.options for row in options]
        option_losses = mean_losses(model, flat, adapter=adapter)
        bounds = np.cumsum([0, *(len(options) for options in heldout.options)])
        guesses = [int(option_losses[a:b].argmin()) for a, b in pairwise(bounds)]
        right = np.array(guesses) == np.array(heldout.answers)
        accuracy = float(right.mean())
        figures["right"] = [int(x) for x in right]
        figures["knowledge_accuracy"] = accuracy
        figures["knowledge_stderr"] = math.sqrt(accuracy * (1 - accuracy) / len(right))
    return figures
