"""Held-out loss, and knowledge: multiple choice by likelihood."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from pydantic import BaseModel, ConfigDict

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

    rows: Sequence[EncodedRow]
    options: tuple[tuple[EncodedRow, ...], ...]
    answers: tuple[int, ...]

    @property
    def guessing(self) -> float | None:
        """Accuracy of a uniform guess."""
        if not self.options:
            return None
        return float(np.mean([1 / len(options) for options in self.options]))


class Measured(BaseModel):
    """One arm's figures on the held-out set; all None or empty where there is none.

    Attributes:
        heldout_loss: mean loss of the rows in nats.
        knowledge_accuracy: share of the questions answered right; None without questions.
        knowledge_stderr: standard error of that share.
        losses: of the rows, so that arms can be compared row by row.
        right: 1 for each question answered right, else 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    heldout_loss: float | None = None
    knowledge_accuracy: float | None = None
    knowledge_stderr: float | None = None
    losses: tuple[float, ...] = ()
    right: tuple[int, ...] = ()


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
            options.append(tuple(encoded.rows))
            answers.append(sample.answer)
    return HeldOut(tuple(rows), tuple(options), tuple(answers))


def measure(model: LoraModel, heldout: HeldOut, adapter: AdapterState) -> Measured:
    """Mean loss of held-out rows in nats, and multiple-choice accuracy with standard error.

    The choice with the lowest mean loss a token is the model's answer: the same loss function as
    in training and scoring, so that long choices are not punished for their length.
    """
    losses = mean_losses(model, heldout.rows, adapter=adapter)
    loss, rounded = float(losses.mean()), tuple(round(float(x), DIGITS) for x in losses)
    if not heldout.options:
        return Measured(heldout_loss=loss, losses=rounded)
    flat = [row for options in heldout.options for row in options]
    option_losses = mean_losses(model, flat, adapter=adapter)
    bounds = np.cumsum([0, *(len(options) for options in heldout.options)])
    guesses = [int(option_losses[a:b].argmin()) for a, b in pairwise(bounds)]
    right = np.array(guesses) == np.array(heldout.answers)
    accuracy = float(right.mean())
    return Measured(
        heldout_loss=loss,
        knowledge_accuracy=accuracy,
        knowledge_stderr=math.sqrt(accuracy * (1 - accuracy) / len(right)),
        losses=rounded,
        right=tuple(int(x) for x in right),
    )
