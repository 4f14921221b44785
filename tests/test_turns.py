"""A row of several turns, turn by turn: the same loss, gradient and score as the turn alone in its row."""

import random
from dataclasses import replace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from test_influence import checkpoint_of, gradients_by_loop, random_direction, row_error
from test_spans import FAMILIES, conversation, every_family

from clues.api.rows import take_rows
from clues.config import CombineSettings, Recipe, RunConfig, TokenSettings, validate
from clues.data.samples import Sample
from clues.data.tokens import RowEncoder
from clues.data.turnrows import by_turn, without_turns
from clues.errors import ConfigError
from clues.prepare.checklist import FileCheck, Role, notes_on, warnings_on
from clues.scoring.forms import form_scores
from clues.scoring.perplexity import mean_losses
from clues.scoring.turns import one_turn
from clues.selection.turns import Turns, TurnScore

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


@pytest.mark.parametrize("low_turn", ["keep", "mask", "drop"])
@pytest.mark.parametrize("marks", [True, False])
def test_what_is_compared_with_the_threshold_says_whether_the_row_is_kept(low_turn, marks):
    rng = np.random.default_rng(3)
    for _ in range(200):
        n = int(rng.integers(0, 5))
        own = {7: tuple(TurnScore(float(x), i) for i, x in enumerate(rng.normal(size=n)))}
        turns = Turns(own if n else {}, low_turn, frozenset({7} if marks else ()))
        score, cut = rng.normal(size=2).tolist()
        found = turns.verdict(7, cut=cut, kept=score >= cut)
        kept = found.kept if found else score >= cut
        assert kept == (turns.deciding(7, score) >= cut)
        if found:
            assert all(t.score < cut for t in found.low)
            trained = [t.turn for t in found.turns if t.turn not in found.untrained]
            assert trained, "a kept row trains nothing"
            assert not (found.untrained and not found.kept)
            assert not found.untrained or (low_turn == "mask" and marks)


def test_one_turn_of_each_anchor_is_drawn_by_its_content_and_the_seed(chats):
    rows, _ = chats
    for _, row in rows:
        own = list(by_turn(row).values())
        drawn = [one_turn(row, seed=seed) for seed in range(30)]
        assert {one.ids for one in drawn} == {one.ids for one in own}, "a turn is never drawn"
        assert one_turn(row, seed=4) == drawn[4]
        single = replace(row, turns=())
        assert one_turn(single, seed=1) is single


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"threshold": {"low_turn": "mask"}}, "low_turn mask needs a score of every turn"),
        ({"score": {"turns": True, "method": "rds"}}, "needs method influence or perplexity"),
        (
            {"score": {"turns": True, "trajectory": "inrun"}, "train": {"epochs": 1}},
            "a step of training sees a whole row",
        ),
        ({"score": {"turns": True}, "tokens": {"loss_on": "last"}}, "loss_on last trains one"),
    ],
)
def test_settings_of_turns_that_do_not_fit_are_refused(settings, said):
    public = {"d": {"validation": "v.jsonl", "anchor": "a.jsonl"}}
    with pytest.raises(ConfigError, match=said):
        validate(Recipe, {"public": public, **settings}, where="recipe")


def test_a_recipe_that_does_not_ask_for_turns_keeps_its_hash():
    public = {"d": {"validation": "v.jsonl", "anchor": "a.jsonl"}}
    plain, off, on, mask = (
        validate(Recipe, {"public": public, **more}, where="recipe")
        for more in (
            {},
            {"score": {"turns": False}, "threshold": {"low_turn": "keep"}},
            {"score": {"turns": True}},
            {"score": {"turns": True}, "threshold": {"low_turn": "mask"}},
        )
    )
    assert plain.hash == off.hash != on.hash
    assert "turns" not in plain.model_dump()["score"]
    assert on.scoring_hash == mask.scoring_hash, "what a low turn costs changes no score"


def test_a_caller_s_rows_come_back_in_their_type_with_the_mark_in_a_copy(tmp_path):
    turns = [{"role": m.role, "content": m.content} for m in chat(2).messages]
    rows = [{"messages": turns, "n": n} for n in range(3)]
    sources = {
        "list": (rows, lambda found: found),
        "frame": (pd.DataFrame(rows, index=[7, 8, 9]), lambda f: f.to_dict("records")),
        "dataset": (datasets.Dataset.from_list(rows), lambda d: d.to_list()),
    }
    for name, (source, plain) in sources.items():
        given = take_rows(source, name, tmp_path)
        kept = given.at([2, 1], {1: [3]})
        assert type(kept) is type(source)
        found = plain(kept)
        assert [row["n"] for row in found] == [2, 1]
        marks = [[turn.get("train") for turn in row["messages"]] for row in found]
        assert marks == [[None] * 4, [None, None, None, False]]
        if name == "frame":
            assert list(kept.index) == [9, 8]
    assert all("train" not in turn for row in rows for turn in row["messages"]), "not a copy"


@pytest.mark.parametrize("anchors", [0, 3])
def test_check_says_how_many_turns_are_scored_and_warns_of_anchors_without(anchors):
    public = {"d": {"validation": "v.jsonl", "anchor": "a.jsonl"}}
    score = {"turns": True}
    silo = {"name": "north", "data": "n.jsonl", "domain": "d"}
    content = {"recipe": {"public": public, "score": score}, "silos": [silo]}
    config = validate(RunConfig, content, where="clues.yaml")
    lengths = (9, 9, 9, 9)
    files = [
        FileCheck(name, role, "rows", 80, 0, 0, 0, lengths, lengths, n_chats=n, n_turns=3 * n)
        for name, role, n in (("north", Role.SILO, 7), ("d anchors", Role.ANCHORS, anchors))
    ]
    notes = "\n".join(notes_on(config, files))
    assert "rows with several trained turns: 7, of 21 turns in all. Every turn has a score" in notes
    # 20 rounds of 10 steps of 16 rows.
    assert "goes over the rows of the smallest silo 40 times" in notes
    few = config.model_copy(update={"combine": CombineSettings(rounds=5)})
    assert "smallest silo" not in "\n".join(notes_on(few, files))
    warned = [text for text in warnings_on(config, files) if "no anchor row has several" in text]
    assert bool(warned) == (anchors == 0)
