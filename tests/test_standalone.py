"""Experiments that are no recipe: what they deal out, what they leave out, and the tables they show."""

import gzip
import json

import numpy as np
import pytest
import yaml
from federation_helpers import merged, run_micro, tiny_model, write_micro

from clues.data.damage import ALL_KINDS
from clues.selection.weighing import Controls
from experiments import draws, standalone
from experiments.kinds.run import FAMILIES, Scene, left_out
from experiments.rejected import run as rejected
from experiments.robustft import run as robustft
from experiments.rows import LABELS


def test_a_part_that_sees_one_kind_alone_is_out_where_that_kind_is():
    rng = np.random.default_rng(0)

    def drawn(n, *, influence=0.0, loss=0.0):
        return {"v": rng.normal(size=n) + influence, "loss": rng.normal(size=n) + loss}

    def joined(*several):
        return {name: np.concatenate([rows[name] for rows in several]) for name in several[0]}

    swapped, cut = drawn(200, influence=-2), drawn(200, loss=-6, influence=1)
    scene = Scene(
        anchors=drawn(200),
        copies=Controls(joined(swapped, cut), ["swap"] * 200 + ["cut"] * 200),
        rows=joined(drawn(100), drawn(50, influence=-2), drawn(50, loss=-6, influence=1)),
        labels=np.array([""] * 100 + ["swap"] * 50 + ["cut"] * 50),
        weights={"v": 1.0, "loss": 1.0},
        parts=("loss",),
    )
    found = left_out(scene)
    cut = found["cut"]
    assert cut["rows"] == 50
    assert cut["weights"]["all kinds"]["loss"] > 0 == cut["weights"]["without it"]["loss"]
    assert cut["auc"]["all kinds"] > 0.9 > cut["auc"]["without it"]
    assert cut["auc"]["without it"] == cut["auc"]["influence alone"]
    assert found["swap"]["auc"]["without it"] > 0.8


def test_every_kind_of_damage_has_one_family():
    assert sorted(kind for kinds in FAMILIES.values() for kind in kinds) == sorted(ALL_KINDS)


@pytest.fixture
def labelled(tmp_path):
    """Files as RobustFT has them: 300 questions, some of whose answers are wrong."""
    rng = np.random.default_rng(3)
    choices = ["negative", "neutral", "positive"]
    clean = [
        {"question": f"Sentence {n}.", "options": json.dumps(choices), "answer": "ABC"[n % 3]}
        for n in range(500)
    ]
    for share in (0, 30, 50, 70):
        rows = [
            {**row, "answer": "BCA"["ABC".index(row["answer"])]}
            if rng.random() < share / 100
            else row
            for row in clean
        ]
        name = f"fpb.noisy{share}" if share else "fpb.clean"
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.write("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_wrong_labels_are_those_that_differ_from_the_clean_file_and_no_row_is_in_two_sets(labelled):
    validation, anchors, silos = robustft.deal(labelled, "fpb", seed=0)
    right = {
        row["instruction"]: row["output"]
        for row in robustft.read_rows(labelled / "fpb.clean.jsonl.gz")
    }
    everything = [*validation, *anchors, *(row for rows in silos.values() for row in rows)]
    assert len({row["instruction"] for row in everything}) == len(everything)
    for name, share in robustft.SILOS.items():
        wrong = [row[LABELS] == robustft.WRONG for row in silos[name]]
        assert wrong == [row["output"] != right[row["instruction"]] for row in silos[name]]
        assert np.mean(wrong) == pytest.approx(share / 100, abs=0.2)
    assert all(right[row["instruction"]] == row["output"] for row in [*validation, *anchors])
    assert silos != robustft.deal(labelled, "fpb", seed=1)[2]


def test_rejected_and_private_rows_have_few_sentences_in_common(tmp_path):
    rows = [
        {"instruction": f"What is {n}?", "output": f"{n} is a number, and so is {n + 1}. " * 3}
        for n in range(1500)
    ]
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    rejected.write_inputs(tmp_path, tmp_path / "rows.jsonl.gz", model="built-in", seed=1)

    def read(name):
        return list(map(json.loads, (tmp_path / f"{name}.jsonl").read_text().splitlines()))

    sets = {name: read(name) for name in rejected.SIZES}
    assert {name: len(found) for name, found in sets.items()} == rejected.SIZES
    questions = [row["instruction"] for found in sets.values() for row in found]
    assert len(set(questions)) == len(questions)
    assert all(row["output"].endswith(rejected.REJECTED) for row in sets["reject"])
    for row in sets["clinic"]:
        assert row["output"].endswith(rejected.PRIVATE) == (row[LABELS] == rejected.ADVERTISING)
    assert set(rejected.REJECTED) & set(rejected.PRIVATE) == set(rejected.SENTENCES[3:5])


@pytest.mark.slow
def test_each_has_a_section_with_its_figures_or_says_that_it_has_not_run(tmp_path, monkeypatch):
    model = tiny_model(tmp_path / "model")
    run = run_micro(write_micro(tmp_path / "input", model), tmp_path / "run")
    monkeypatch.setattr(standalone, "HERE", tmp_path)
    contents = {
        "grades": run,
        "robustft": {"keep": run, "model": run},
        "rejected": {"without": run, "with": run},
    }
    for one in standalone.ALL:
        assert standalone.section(one)[-1] == "Not run yet."
    for name, content in contents.items():
        folder = tmp_path / name / "results"
        folder.mkdir(parents=True)
        (folder / "model-3.json").write_text(json.dumps(content))
    auc = np.mean([silo["auc"] for silo in run["silos"].values()])
    for one in standalone.ALL:
        if one.name in contents:
            page = "\n".join(standalone.section(one))
            assert f"| selection score | {auc:.3f} |" in page
            assert "Seeds 3; " in page
    arms = "\n".join(standalone.section(standalone.ALL[1]))
    right = run["arms"]["oracle"]["knowledge_accuracy"]
    assert f"| the rows with right labels | {run['arms']['oracle']['kept']} | {right:.3f} |" in arms


@pytest.mark.slow
def test_draws_are_stored_once_and_their_variants_share_what_they_can(tmp_path):
    model = tiny_model(tmp_path / "tiny")
    args = draws.parser(None, model=str(model), seeds=[3], work="micro").parse_args(
        ["--work", str(tmp_path / "work")]
    )
    asked = []

    def run(draw):
        asked.append(draw.seed)
        config = write_micro(draw.folder / "input", model, changes={"evaluate": {"arms": []}})
        rule = {"recipe": {"threshold": {"rule": "anchor_tolerance", "bootstrap": 20}}}
        settings = merged(yaml.safe_load(config.read_text()), rule)
        variants = draws.by_aim("micro")
        return draws.run_variants(draw, settings, variants, look=lambda run, _: asked.append(run))

    for _ in range(2):
        draws.run_draws(args, tmp_path / "results", run, part="part")
    stored = json.loads((tmp_path / "results" / "tiny-part-3.json").read_text())
    assert [*stored] == ["keep", "model"]
    assert [stored[aim]["threshold"]["aim"] for aim in stored] == ["keep", "model"]
    assert {stored[aim]["base_model"] for aim in stored} == {"tiny"}
    seed, first, second = asked
    assert seed == 3
    assert first.run_dir.root == second.run_dir.root, "the scores were made twice"
