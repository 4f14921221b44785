"""A row of several turns, turn by turn: the same loss, gradient and score as the turn alone in its row."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_influence import checkpoint_of, gradients_by_loop, random_direction, row_error
from test_spans import FAMILIES, conversation, every_family

from clues.config import TokenSettings
from clues.data.samples import Sample
from clues.data.tokens import RowEncoder
from clues.data.turnrows import by_turn, without_turns
from clues.scoring.forms import form_scores
from clues.scoring.perplexity import mean_losses

ANSWERS = ("The heart.", "In the pancreas, behind the stomach.", "No.", "It is red.")
ASKED = ("What pumps?", "Where is insulin made?", "Does it?", "And blood?")


def chat(n: int, *, row: int = 0, seed: int = 0) -> Sample:
    """A conversation of n questions and answers."""
    draw = random.Random(seed)
    texts = [text for _ in range(n) for text in (draw.choice(ASKED), draw.choice(ANSWERS))]
    return conversation(*texts, row=row)


def training_only(sample: Sample, turn: int) -> Sample:
    """The row that says of all answers but one that they are not trained."""
    turns = tuple(
        replace(m, trained=m.trained and i == turn) for i, m in enumerate(sample.messages)
    )
    return replace(sample, messages=turns)


@pytest.fixture(scope="module")
def chats(tokenizer):
    """Three chats of two to four answers; with row 0 one answer is not to be trained."""
    encoder = RowEncoder(tokenizer, TokenSettings(max_length=256))
    samples = [chat(n, row=row, seed=row) for row, n in enumerate((4, 2, 3))]
    turns = list(samples[0].messages)
    turns[3] = replace(turns[3], trained=False)
    samples[0] = replace(samples[0], messages=tuple(turns))
    return [(sample, encoder.encode(sample)) for sample in samples], encoder


@every_family
def test_the_row_of_a_turn_is_the_row_in_which_it_alone_is_trained(family, make_tokenizer):
    tokenizer = make_tokenizer(chat_template=FAMILIES[family][0])
    encoder = RowEncoder(tokenizer, TokenSettings())
    for seed in range(1, 4):
        sample = chat(seed, seed=seed)
        row = encoder.encode(sample)
        found = by_turn(row)
        answers = [i for i, turn in enumerate(sample.messages) if turn.role == "assistant"]
        assert list(found) == (answers if len(answers) > 1 else [])
        for turn, own in found.items():
            whole = encoder.encode(training_only(sample, turn))
            assert own.ids == whole.ids[: len(own.ids)]
            assert own.mask == whole.mask[: len(own.ids)]
            assert sum(own.mask) == sum(whole.mask), "an end of the turn is cut off"


def test_a_chat_without_a_template_is_split_as_well(chats):
    rows, encoder = chats
    for sample, row in rows:
        trained = [i for i, m in enumerate(sample.messages) if m.role == "assistant" and m.trained]
        assert list(by_turn(row)) == trained
        for turn, own in by_turn(row).items():
            whole = encoder.encode(training_only(sample, turn))
            assert (own.ids, own.mask) == (whole.ids[: len(own.ids)], whole.mask[: len(own.ids)])


def test_rows_that_cannot_be_told_apart_count_as_a_whole(make_tokenizer):
    folds = make_tokenizer(chat_template=FAMILIES["inst"][0])
    encoder = RowEncoder(folds, TokenSettings(odd_turns="fold"))
    led = conversation("Welcome!", "What pumps?", "The heart.", "And?", "No.", first="assistant")
    assert by_turn(encoder.encode(led)) == {}, "folded turns have other positions than the row's"
    last = RowEncoder(folds, TokenSettings(loss_on="last"))
    assert by_turn(last.encode(chat(3))) == {}
    cut = RowEncoder(folds, TokenSettings(max_length=40, overlong="truncate"))
    row = cut.encode(chat(4, seed=1))
    assert row.truncated
    assert all(len(own.ids) <= 40 for own in by_turn(row).values())


def test_turns_that_are_not_trained_any_more_leave_the_row_as_its_reader_would(chats):
    rows, encoder = chats
    for sample, row in rows:
        for turn in by_turn(row):
            messages = list(sample.messages)
            messages[turn] = replace(messages[turn], trained=False)
            again = encoder.encode(replace(sample, messages=tuple(messages)))
            found = without_turns(row, {turn})
            assert (found.ids, found.mask, found.turns) == (again.ids, again.mask, again.turns)


def test_gradients_of_turns_weighted_by_their_tokens_sum_to_the_row_s(chats, make_lora):
    model = make_lora(dtype=torch.float64)
    for _, row in chats[0]:
        own = list(by_turn(row).values())
        shares = [one.n_response_tokens / row.n_response_tokens for one in own]
        (whole,) = gradients_by_loop(model, [row])
        parts = gradients_by_loop(model, own)
        for name, gradient in whole.items():
            total = sum(share * part[name] for share, part in zip(shares, parts, strict=True))
            error = (total - gradient).norm() / gradient.norm()
            assert error < 1e-12, f"{name}: {error}: a token is in two turns, or in none"
        losses = mean_losses(model, own, adapter=model.state())
        (loss,) = mean_losses(model, [row], adapter=model.state())
        assert np.dot(shares, losses) == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("form", ["sgd", "adam", "adam_two_sided", "cosine", "adam_exact", "less"])
def test_a_turn_scores_as_the_row_in_which_it_alone_is_trained(chats, make_lora, form):
    model = make_lora(dtype=torch.float64)
    checkpoint = checkpoint_of(model)
    moments = {n: 0.1 * t for n, t in random_direction(model, seed=2).items()}
    checkpoint = replace(checkpoint, first_moment=moments, optimizer_steps=3)
    directions = [random_direction(model, seed=1)]
    how = {"form": form, "way": "side_branch" if form.startswith(("sgd", "adam")) else "gradients"}
    how["way"] = "gradients" if form == "adam_exact" else how["way"]
    rows, encoder = chats
    turns = [own for _, row in rows for own in by_turn(row).values()]
    slow = [encoder.encode(training_only(s, turn)) for s, row in rows for turn in by_turn(row)]
    found = form_scores(model, turns, checkpoint, directions, **how)
    alone = [form_scores(model, [row], checkpoint, directions, **how) for row in slow]
    expected = np.concatenate([one.products for one in alone])
    assert row_error(found.products, expected) < 1e-12, "the turn's context is not its row's"
    if form in ("sgd", "adam", "adam_two_sided"):
        whole = form_scores(model, [row for _, row in rows], checkpoint, directions, **how)
        at = 0
        for number, (_, row) in enumerate(rows):
            own = list(by_turn(row).values())
            shares = np.array([one.n_response_tokens for one in own]) / row.n_response_tokens
            total = shares @ found.products[at : at + len(own)]
            assert total == pytest.approx(whole.products[number], rel=1e-10)
            at += len(own)
