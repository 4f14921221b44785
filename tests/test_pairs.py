"""Pairs whose answers are swapped are found by the scores of both."""

import csv
import json
import stat

import numpy as np
import pytest
from test_cli import call
from test_formats import write_jsonl
from test_marked_rows import PREFERENCES, SPELLINGS

from clues.api.pairs import _record, compare_pairs
from clues.data.damage import damage_rows
from clues.data.formats import read_rows
from clues.errors import UsageError
from clues.prepare.facts import make_questions

SMALL = {"train": {"steps": 4, "rounds": 1, "batch_size": 8}, "threshold": {"bootstrap": 10}}


@pytest.fixture(scope="module")
def facts() -> list[dict]:
    made = make_questions("medicine", language="en", seed=5)
    return [{k: row[k] for k in ("instruction", "output")} for row in made]


@pytest.mark.walk
@pytest.mark.filterwarnings("ignore:the threshold keeps")
def test_swapped_pairs_score_higher_on_the_rejected_side(facts):
    good, n = facts[:24], 24
    worse, _ = damage_rows(good, share=1.0, kinds=("swap", "cut"), seed=1, foreign=[])
    swapped = set(range(0, n, 4))
    pairs = [
        {
            "prompt": row["instruction"],
            "chosen": (bad if i in swapped else row)["output"],
            "rejected": (row if i in swapped else bad)["output"],
            "note": i,
        }
        for i, (row, bad) in enumerate(zip(good, worse, strict=True))
    ]
    pairs.append({"prompt": "Alone?", "chosen": "Alone.", "rejected": None})
    public = {"validation": facts[30:50], "anchors": facts[50:80]}
    found = compare_pairs(pairs, recipe=SMALL, seed=3, progress=False, **public)
    assert found.n_pairs == n
    assert np.isnan(found.rejected[n])
    assert np.isfinite(found.chosen[n])
    hits = swapped & set(found.flipped)
    assert len(hits) >= 5, "of six swapped pairs"
    assert len(set(found.flipped) - swapped) <= 3
    ahead = found.rejected - found.chosen
    assert list(found.flipped) == sorted(found.flipped, key=lambda i: -ahead[i])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the threshold keeps")
def test_the_verb_names_pairs_by_line(facts, tmp_path, capsys, small_built_in):
    rows = [
        {"frage": row["instruction"], "gut": row["output"], "schlecht": "No.", "note": "x"}
        for row in facts[:6]
    ]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", *rows)
    checked = write_jsonl(tmp_path / "checked.jsonl", *facts[10:24])
    mapped = ("--map", "prompt=frage,chosen=gut,rejected=schlecht")
    given = (pairs, "--checked", checked, *mapped, "--out", tmp_path / "scores.csv")
    assert call("pairs", *given, "--json", "-q")[0] == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pairs"] == 6
    with (tmp_path / "scores.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["place"] for row in table] == [f"line {n}" for n in range(1, 7)]
    flipped = {row["place"] for row in table if float(row["rejected"]) > float(row["chosen"])}
    assert flipped == set(found["flipped"])
    assert {row["place"] for row in table if row["flipped"] == "True"} == flipped
    assert stat.S_IMODE((tmp_path / "scores.csv").stat().st_mode) == 0o600
    assert not any(row["output"] in (tmp_path / "scores.csv").read_text() for row in facts[:6])


def test_rows_without_another_answer_are_no_pairs(facts):
    with pytest.raises(UsageError, match="none is a pair"):
        compare_pairs(facts[:3], validation=facts[5:7], anchors=facts[9:20])


@pytest.mark.parametrize("row", [*PREFERENCES.values(), *SPELLINGS.values()])
def test_a_side_is_written_as_the_row_that_it_is(row, tmp_path):
    sample = read_rows(write_jsonl(tmp_path / "a.jsonl", json.loads(json.dumps(row)))).samples[0]
    again = read_rows(write_jsonl(tmp_path / "b.jsonl", _record(sample.messages, sample.tools)))
    assert again.samples[0].id == sample.id
    assert again.unused == {}
