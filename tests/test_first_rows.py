"""What a reviewer sees first: which rows, how many went and why, and their unlikely words."""

from types import SimpleNamespace

import numpy as np
import pytest

from clues.data.samples import Message, Sample
from clues.model.loss import make_batch, row_losses
from clues.report.first import N_FIRST, first_to_read
from clues.report.outcome import LOW, UNSCORED, outcome
from clues.report.words import TERMS
from clues.scoring.perplexity import response_losses
from clues.silo.unlikely import words

NAN = float("nan")


def test_the_lowest_come_first_then_the_nearest_then_one_of_each_reason():
    scores = np.arange(100.0) - 50
    why = [LOW if score < 0 else "" for score in scores]
    why[70] = "refusal"
    first = first_to_read(scores, 0.0, why)
    assert first[:9] == list(range(9))
    assert set(first[9:18]) == set(range(46, 55)), "not the nearest to the threshold"
    assert first[18] == 70, "a reason has no row"
    assert len(first) == len(set(first)) == N_FIRST


def test_twenty_are_read_where_few_are_set_aside_and_those_already_decided_are_not():
    why = ["refusal", LOW, *[""] * 58]
    first = first_to_read(np.arange(60.0), 1.5, why)
    assert len(first) == len(set(first)) == N_FIRST
    known = np.arange(60) % 2 == 0
    unread = ["" if done else said for done, said in zip(known, why, strict=True)]
    first = first_to_read(np.where(known, NAN, np.arange(60.0)), 1.5, unread)
    assert len(first) == N_FIRST
    assert not any(known[row] for row in first)


def test_every_reason_has_a_row_among_the_first_up_to_six():
    why = [f"reason {n % 8}" for n in range(80)]
    first = first_to_read(np.full(80, NAN), -1.0, why)
    assert {why[row] for row in first} == set(why)
    assert len(first) == N_FIRST
    scored = first_to_read(np.arange(80.0), 200.0, why)
    assert len({why[row] for row in scored}) >= 6


@pytest.mark.parametrize("cut", [float("inf"), float("-inf"), 0.0])
def test_few_rows_are_read_once_each_whatever_the_threshold(cut):
    scores = np.array([NAN, 1.0, -1.0])
    why = [UNSCORED, "" if cut < 1 else LOW, LOW if cut > -1 else ""]
    first = first_to_read(scores, cut, why)
    assert len(first) == len(set(first))
    assert set(first) >= {row for row, reason in enumerate(why) if reason}
    assert first_to_read(np.zeros(0), cut, []) == []


def test_the_first_screen_counts_every_row_once():
    why = ["", "", LOW, LOW, "refusal", UNSCORED]
    found = outcome(why, n_rulings=1, n_first=4)
    assert found.headline == "3 of 6 rows were set aside"
    assert found.rest == (
        "2 are kept; 1 without a score is neither; 1 decision of a person is in force."
    )
    assert [(r.code, r.name, r.n, r.share) for r in found.reasons] == [
        (1, LOW, 2, 1.0),
        (2, "refusal", 1, 0.5),
        (3, UNSCORED, 1, 0.5),
    ]
    assert found.minutes == 2
    assert outcome([""], n_rulings=0, n_first=1).headline == "0 of 1 rows were set aside"


def test_explanations_are_sentences():
    assert all(text.endswith(".") and text[0].isupper() for text in TERMS.values())


def test_token_losses_have_the_rows_loss_as_their_mean(make_lora, encoded_rows):
    model = make_lora()
    found = response_losses(model, encoded_rows, adapter=model.initial)
    for row, losses in zip(encoded_rows, found, strict=True):
        assert len(losses) == row.n_response_tokens
        batch = make_batch([row], device=model.device)
        slow = row_losses(model.peft, batch).item()  # all logits of one row, without a batch
        assert losses.mean() == pytest.approx(slow, rel=1e-5)


class Pieces:
    """A tokenizer with two characters a token; a space begins a new one."""

    is_fast = True

    def __call__(self, text, **_):
        spans, at = [], 0
        while at < len(text):
            end = min(at + 2, len(text))
            spans.append((at, end))
            at = end
        ids = [hash(text[a:b]) % 1000 for a, b in spans]
        return {"input_ids": ids, "offset_mapping": spans}


def row_of(text: str, *, ended: int = 1, cut: int | None = None):
    ids = [7, 7, *Pieces()(text)["input_ids"][:cut], *[1] * (0 if cut else ended)]
    return SimpleNamespace(ids=ids, mask=[False, False] + [True] * (len(ids) - 2))


def test_a_word_has_the_highest_loss_of_its_tokens_and_its_own_place():
    text = "abcd ef, gh"
    sample = Sample(0, (Message("user", "?"), Message("assistant", text)))
    row = row_of(text)
    losses = np.array([1.0, 5.0, 2.0, 3.0, 4.0, 6.0, 9.0])
    found = {text[a:b]: loss for (a, b), loss in words(Pieces(), sample, row, losses)}
    assert found == {"abcd": 5.0, "ef,": 3.0, "gh": 6.0}


def test_an_answer_that_was_cut_is_marked_as_far_as_it_was_read():
    text = "abcdefgh"
    sample = Sample(0, (Message("user", "?"), Message("assistant", text)))
    found = words(Pieces(), sample, row_of(text, cut=2), np.array([1.0, 2.0]))
    assert found == [((0, 4), 2.0)]


def test_nothing_is_marked_where_tokens_do_not_say_where_they_stand():
    text = "abcd"
    sample = Sample(0, (Message("user", "?"), Message("assistant", text)))
    other = SimpleNamespace(ids=[7, 7, 3, 4, 1], mask=[False, False, True, True, True])
    losses = np.ones(3)
    assert words(Pieces(), sample, other, losses) == []
    assert words(SimpleNamespace(is_fast=False), sample, row_of(text), losses) == []
    assert words(Pieces(), sample, row_of(text), np.array([1.0, NAN, 1.0])) == []
