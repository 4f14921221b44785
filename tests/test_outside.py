"""Other people's tables: the forms that keep gradients equal the project's, padding equals padding."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_llama import make_base

from clues.config import LoraSettings
from clues.data.tokens import EncodedRow
from clues.model.adapters import LoraModel
from clues.scoring.datainf import datainf_direction
from clues.scoring.direction import precondition
from clues.scoring.forms import explicit_scores, linear_scores
from clues.scoring.influence import influence_scores
from experiments.outside import forms, masks, page, run, sets, theirs

END, WIDTH = 1, 20


def rows_of(n, *, seed=0, first=7):
    rng = np.random.default_rng(seed)
    found = []
    for number in range(n):
        size = int(rng.integers(6, 15))
        ids = (first, *(int(i) for i in rng.integers(3, 300, size - 1)))
        start = int(rng.integers(2, size - 2))
        mask = tuple(t >= start for t in range(size))
        found.append(EncodedRow(number, f"row-{number}", ids, mask))
    return found


@pytest.fixture(scope="module")
def model():
    lora = LoraSettings(rank=2, alpha=4, dropout=0.1, target_modules=("q_proj", "v_proj"))
    return LoraModel(make_base(dtype=torch.float64), lora, seed=0, device="cpu")


@pytest.fixture(scope="module")
def tuned(model):
    settings = masks.Tuning(epochs=2, batch_size=4, path=0.1)
    return masks.tune(model, rows_of(8), masks.mean_loss, settings, seed=1)


def padded_alone(model, row):
    """The slow way: the padded row as one text, with an attention that keeps the two apart."""
    n = WIDTH - len(row.ids)
    ids = torch.tensor([[*[END] * n, *row.ids]])
    is_text = torch.arange(WIDTH) >= n
    seen = torch.tril(torch.ones(WIDTH, WIDTH, dtype=torch.bool)) & (
        is_text[:, None] == is_text[None, :]
    )
    logits = model.peft(input_ids=ids, attention_mask=seen[None, None], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[0, :-1].double(), ids[0, 1:])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_padded_loss_and_its_gradient_are_those_of_the_padded_row(model, tuned, seed):
    rows = [*rows_of(5, seed=seed), *rows_of(1, seed=9, first=8)]
    adapter = tuned.adapter
    text, _ = masks.row_gradients(model, [masks.whole(row) for row in rows], adapter)
    found = masks.padded_gradients(model, rows, adapter, texts=text, end=END, width=WIDTH)
    parameters = model.parameters()
    model.set_state(adapter)
    slow = [padded_alone(model, row) for row in rows]
    fast = masks.padded_loss(end=END, width=WIDTH)(model, rows)
    assert fast.item() == pytest.approx(np.mean([loss.item() for loss in slow]), rel=1e-6)
    for n, loss in enumerate(slow):
        own = torch.autograd.grad(loss, [*parameters.values()])
        for name, gradient in zip(parameters, own, strict=True):
            ours, alone = found[name][n].double(), gradient.flatten()
            assert (ours - alone).norm() <= 1e-5 * alone.norm(), f"padding of row {n} in {name}"


def test_a_row_as_wide_as_the_padding_has_none(model, tuned):
    row = EncodedRow(0, "row", tuple(range(3, 3 + WIDTH)), (False, *[True] * (WIDTH - 1)))
    text, _ = masks.row_gradients(model, [row], tuned.adapter)
    padded = masks.padded_gradients(model, [row], tuned.adapter, texts=text, end=END, width=WIDTH)
    assert all(torch.allclose(text[name], padded[name], rtol=1e-6) for name in text)


def test_influences_of_kept_gradients_are_those_of_the_project(model, tuned):
    rows, queries = rows_of(6), rows_of(3, seed=5)
    train, asked = (masks.row_gradients(model, r, tuned.adapter)[0] for r in (rows, queries))
    found = forms.influences(train, asked, tuned, silo=train)
    for q in range(len(queries)):
        v = {name: g[q].view_as(tuned.adapter[name]) for name, g in asked.items()}
        own = explicit_scores(model, rows, tuned, [v], forms=["sgd", "cosine", "less"])
        own |= linear_scores(model, rows, tuned, {"adam": [precondition(v, tuned, form="adam")]})
        direction = datainf_direction(model, rows, adapter=tuned.adapter, gradient=v)
        own["datainf"] = influence_scores(
            model, rows, adapter=tuned.adapter, directions=[direction]
        )
        assert set(own) == set(found)
        for form, scores in own.items():
            theirs_N = scores.products[:, 0]
            apart = np.abs(found[form][q] - theirs_N).max()
            assert apart <= 1e-4 * np.abs(theirs_N).max(), f"{form} of query {q}"


def test_training_lowers_the_loss_that_it_is_given(model):
    rows = rows_of(8)
    settings = masks.Tuning(epochs=8, batch_size=4, path=0.4)
    for loss in (masks.mean_loss, masks.padded_loss(end=END, width=WIDTH)):
        model.set_state(model.initial)
        before = loss(model, rows).item()
        trained = masks.tune(model, rows, loss, settings, seed=0)
        model.set_state(trained.adapter)
        assert loss(model, rows).item() < before - 0.1
        again = masks.tune(model, rows, loss, settings, seed=0)
        assert all(torch.equal(trained.adapter[n], again.adapter[n]) for n in again.adapter)


def test_acc_cover_and_auc_are_counted():
    rows = ["a", "a", "b", "b", "b", "b"]
    scores = np.array([[3.0, 1.0, 2.0, 0.0, -1.0, -2.0], [9.0, 8.0, 1.0, 2.0, 3.0, 4.0]])
    # Of the query a: rows 0, 2 and 1 are on top (six rows, two classes); of b: 0, 1 and 5.
    found = forms.judged(scores, ["a", "b"], rows)
    assert found == {"acc": 0.5, "cover": 0.5, "auc": 0.4375}


def test_a_score_that_looks_at_no_query_has_auc_one_half_where_classes_are_alike():
    labels = [c for c in "abcd" for _ in range(5)]
    blind = np.tile(np.random.default_rng(0).normal(size=20), (4, 1))
    assert forms.judged(blind, list("abcd"), labels)["auc"] == pytest.approx(0.5, abs=1e-4)


def test_the_selection_score_takes_a_part_that_tells_copies_from_anchors():
    rng = np.random.default_rng(0)
    labels, kinds = np.repeat(["a", "b"], 8), np.tile(["cut", "swap"], 8)

    def parts(n, loss):
        return forms.Parts(rng.normal(size=(2, n)), rng.normal(size=n) + loss, rng.normal(size=n))

    public = forms.Public(parts(16, 0.0), parts(16, -9.0), labels, kinds)
    scores, weights = forms.selection_scores(parts(30, 0.0), public, ["a", "b"])
    assert scores.shape == (2, 30)
    assert weights["loss"] > 0
    # Without a part that helps, the order is that of the influence.
    rows = parts(30, 0.0)
    even = forms.Parts(
        public.anchors.influence_QN - 9, public.anchors.loss_N, public.anchors.alignment_N
    )
    scores, weights = forms.selection_scores(
        rows, forms.Public(public.anchors, even, labels, kinds), ["a", "b"]
    )
    assert weights == {"loss": 0.0, "alignment": 0.0}
    for q in range(2):
        assert (np.argsort(scores[q]) == np.argsort(rows.influence_QN[q])).all()


@pytest.fixture
def folder(tmp_path):
    """Files as the two papers have them: two classes that differ in their answers."""
    for source, file, keys in (
        ("failures", "grammars", ("prompts", "response")),
        ("datainf", "grammars", ("prompt", "text")),
    ):
        (tmp_path / source).mkdir()
        for part, n in (("train", 40), ("test", 20)):
            rows = []
            for number in range(n):
                label = "upper" if number % 2 else "lower"
                prompt = f"Say the {part} number {number} in {label} letters: "
                answer = f"number {number}".upper() if number % 2 else f"number {number} it is"
                second = answer if source == "failures" else f"{prompt}{answer}</s>"
                rows.append({keys[0]: prompt, keys[1]: second, "variation": label})
            path = tmp_path / source / f"{file}.{part}.jsonl.gz"
            with gzip.open(path, "wt", encoding="utf-8") as out:
                out.write("\n".join(map(json.dumps, rows)))
    return tmp_path


SMALL = {
    "failures": sets.OutsideSet("grammars", "failures", "grammars", 6, 2, 2),
    "datainf": sets.OutsideSet("datainf-grammars", "datainf", "grammars", 6, 2, 2),
}


def test_rows_are_dealt_by_class_and_none_twice(folder):
    dealt = sets.deal(folder, SMALL["failures"], seed=0)
    every = [*dealt.train, *dealt.queries, *dealt.anchors]
    assert len(set(every)) == len(every) == 12 + 4 + 10
    for rows, n in ((dealt.train, 6), (dealt.queries, 2), (dealt.anchors, 5)):
        labels = [text.label for text in rows]
        assert {label: labels.count(label) for label in labels} == {"upper": n, "lower": n}
    assert dealt != sets.deal(folder, SMALL["failures"], seed=1)
    with pytest.raises(sets.DataError, match="class: 20, and 30 are needed"):
        sets.deal(folder, sets.OutsideSet("grammars", "failures", "grammars", 30, 2, 2), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["failures", "datainf"])
def test_a_set_is_run_once_and_holds_figures_and_no_text(folder, tmp_path, monkeypatch, source):
    wanted = SMALL[source]
    monkeypatch.setattr(run, "SETS", (wanted,))
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    work = tmp_path / "work"
    monkeypatch.setattr(
        "sys.argv",
        ["run", "--model", "built-in", "--data", str(folder), "--work", str(work)],
    )
    run.main()
    path = tmp_path / "results" / f"built-in-{wanted.name}-0.json"
    stored = path.read_text()
    assert "number" not in stored
    found = json.loads(stored)
    assert found["classes"] == [6, 6]
    assert found["chance"] == 0.5
    assert sum(found["positions"].values()) == pytest.approx(1, abs=1e-3)
    cells = found["cells"]
    assert [*cells] == ["response, response", "padded, padded", "padded, text", "padded, response"]
    assert {"selection score", "less", "datainf", "rds", "alignment"} < set(
        cells["response, response"]
    )
    for cell in cells.values():
        for figures in cell.values():
            assert set(figures) == {"acc", "cover", "auc", "class_auc"}
            assert all(0 <= value <= 1 for value in figures.values())
    # A half that is done is read, not run again.
    path.unlink()
    monkeypatch.setattr(run, "HALVES", dict.fromkeys(run.HALVES))
    run.main()
    again = json.loads(path.read_text())
    assert again["cells"] == cells


def test_the_mask_of_a_response_is_its_tokens():
    class Reader:
        """A tokenizer of words."""

        def __call__(self, text, *, max_length, **_):
            places, start = [], 0
            for word in text.split(" "):
                places.append((start, start + len(word)))
                start += len(word) + 1
            return {
                "input_ids": list(range(len(places)))[:max_length],
                "offset_mapping": places[:max_length],
            }

    texts = [sets.Text("[INST] What is it [/INST] ", "It is this", "a")]
    (row,) = sets.encode(Reader(), texts, name="train")
    assert row.mask == (False,) * 5 + (True,) * 3
    long = [sets.Text("word " * sets.LIMIT, "answer", "a")]
    with pytest.raises(sets.DataError, match="no response is left at 128 tokens"):
        sets.encode(Reader(), long, name="train")


@pytest.mark.skipif(
    "CLUES_SHARED" not in os.environ, reason="CLUES_SHARED names no folder of scores"
)
def test_their_stored_scores_give_the_figures_that_they_published():
    found = theirs.judge_all(Path(os.environ["CLUES_SHARED"]) / "outside")
    assert json.loads(theirs.STORED.read_text()) == found
    published = {
        ("grammars", "llama2", "sgd"): (0.14, 0.126),
        ("grammars", "llama2", "datainf"): (0.39, 0.244),
        ("math", "mistral", "sgd"): (0.94, 0.749),
        ("mixedS", "llama2", "datainf"): (0.90, 0.614),
        ("mixedL", "mistral", "sgd"): (0.212, 0.107),
    }
    for (name, model, form), (acc, cover) in published.items():
        figures = found[name][model][form]
        assert (figures["acc"], figures["cover"]) == pytest.approx((acc, cover), abs=6e-4)


def test_the_page_has_every_set_and_says_which_is_missing(tmp_path, monkeypatch):
    figures = {"acc": 0.25, "cover": 0.5, "auc": 0.75, "class_auc": 0.8}
    names = ["sgd", "cosine", "adam", "less", "datainf", "selection score", "repsim, prompt"]
    stored = {
        "set": "math",
        "base_model": "tiny",
        "dtype": "float32",
        "seed": 0,
        "date": "2026-11-27",
        "machine": "CPU",
        "torch": "2",
        "rows": 30,
        "queries": 12,
        "classes": [3] * 10,
        "chance": 0.1,
        "positions": {"padding": 0.5, "prompt": 0.3, "response": 0.2},
        "seconds": {"response": 1, "padded": 2},
        "cells": {cell: dict.fromkeys(names, figures) for cell in page.CELLS},
    }
    (tmp_path / "tiny-math-0.json").write_text(json.dumps(stored))
    (tmp_path / "theirs.json").write_text(theirs.STORED.read_text())
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    text = page.page()
    assert "Not measured yet: grammars, mixedS," in text
    assert "| math | 30 | 10 | 12 | 0.10 | 50% | 30% | 20% |" in text
    row = "| rows with padding: math | gradient dot product | 0.750 | 0.750 | 0.750 | 0.750 |"
    assert row in text
    assert text.count("| math | 0.750 | 0.750 | 0.750 | 0.750 |") == len(page.FORMS)
    assert "| math | Llama-2-7b-chat | gradient dot product | 0.10 | 1.00 | 0.845 | 0.943 |" in text


def test_no_set_is_stored_that_the_experiment_does_not_have():
    known = {wanted.name for wanted in sets.SETS}
    assert {one["set"] for ones in page.stored().values() for one in ones} <= known
