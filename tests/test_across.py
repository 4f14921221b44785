"""Runs beside each other: which belong together, what is paired, and how wide the intervals are."""

import csv
import json
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import t as student

from clues.cli import compare as verb
from clues.cli import program as cli
from clues.cli.compare import seeds_of
from clues.config import EvaluateSettings, ScoreSettings, ThresholdSettings, validate
from clues.errors import DataError, UsageError
from clues.evaluation.across import compare_runs
from clues.evaluation.intervals import interval_over_seeds
from clues.results.run import Results
from tests.bounded import within

GAP = {"value": -0.2, "interval": [-0.3, -0.1]}


def run_of(seed: int, losses: dict[str, float], *, name="trial", kept=None, **recipe) -> Results:
    """Results with these held-out losses by arm."""
    arms = {
        arm: {
            "kept": (kept or {}).get(arm, 100),
            "steps": 1,
            "silos": 1,
            "energy_lost": 0.0,
            "heldout_loss": loss,
            "knowledge_accuracy": None,
            "knowledge_stderr": None,
            "seconds": 0.0,
            "against": {} if arm == "random" else {"random": {"heldout_loss": GAP}},
        }
        for arm, loss in losses.items()
    }
    method = {"score": "influence", "form": "less", "loss_weight": seed / 8, "loss_under": "base"}
    method |= {"alignment_weight": 0.0, "parts": "sum", "trajectory": "global", "layers": "all"}
    method |= {"rule": "ratio", "combine": "fedavg", "aggregation": "ffa"}
    threshold = {"value": None, "rule": "ratio", "units": "anchor", "interval": None}
    threshold |= {"confidence": 0.95, "assurance": None, "quantile": 0.05, "n_anchors": 9}
    content = {
        "results_version": 1,
        "name": name,
        "date": "2026-01-01",
        "machine": "CPU",
        "base_model": "tiny",
        "recipe_hash": "0" * 12,
        "recipe": {"seed": seed, **recipe},
        "seeds": [seed],
        "versions": {"clues": "0.1.0"},
        "method": method,
        "arms": arms,
        "silos": {},
        "absences": [],
        "stops": [],
        "curves": {},
        "threshold": {**threshold, "anchor_quantiles": []},
        "controls": {},
        "controls_kept": {},
        "questions": None,
        "guessing": None,
        "tasks": {},
        "judge": None,
        "seconds": {"train": 0.0, "score": 0.0, "select": 0.0},
    }
    return Results.from_bytes(json.dumps(content).encode(), where="test")


THREE = [run_of(s, {"random": 2.0 + s, "clues": 1.5 + s + s / 10}) for s in (0, 1, 2)]


def line(found, **wanted):
    (one,) = [x for x in found.lines if all(getattr(x, k) == v for k, v in wanted.items())]
    return one


def test_runs_that_differ_in_their_seed_alone_are_one_group_whatever_weights_they_found():
    found = compare_runs(THREE)
    assert found.seeds == {"trial": (0, 1, 2)}
    mean = line(found, arm="clues", against="")
    assert (mean.n, mean.value) == (3, pytest.approx(2.6))


def test_a_difference_is_paired_by_seed_and_its_interval_is_students():
    found = line(compare_runs(THREE[::-1]), arm="clues", against="random")
    gaps = np.array([-0.5, -0.4, -0.3])
    half = student.ppf(0.975, 2) * gaps.std(ddof=1) / math.sqrt(3)  # from the formula
    assert found.value == pytest.approx(-0.4)
    assert (found.low, found.high) == pytest.approx((-0.4 - half, -0.4 + half))
    assert found.over == "seeds"
    # Unpaired, the seeds' own spread would drown it.
    mean = line(compare_runs(THREE), arm="clues", against="")
    assert mean.high - mean.low > 5 * (found.high - found.low)


def test_one_seed_has_the_runs_own_interval_over_rows_and_a_note():
    found = compare_runs(THREE[:1])
    gap = line(found, arm="clues", against="random")
    assert (gap.low, gap.high, gap.over) == (-0.3, -0.1, "rows")
    mean = line(found, arm="clues", against="")
    assert (mean.low, mean.high, mean.over) == (None, None, "")
    assert any("one seed" in note for note in found.notes)


def test_groups_are_compared_arm_by_arm_over_the_seeds_that_both_have():
    other = [run_of(s, {"clues": 1.0 + s}, name="other") for s in (1, 2, 3)]
    found = line(compare_runs([*THREE, *other]), group="other", against="trial: clues")
    assert found.n == 2
    assert found.value == pytest.approx(np.mean([2.0 - 2.6, 3.0 - 3.7]))


def test_two_recipes_of_one_name_are_told_apart():
    found = compare_runs([THREE[0], run_of(0, {"random": 1.0, "clues": 1.0}, layers="last")])
    assert list(found.seeds) == ["trial", "trial (2)"]


def test_a_run_that_is_called_like_a_number_of_ours_is_a_group_of_its_own():
    runs = [run_of(0, {"random": 1.0}, lora=n) for n in range(2)]
    runs += [run_of(7, {"random": 5.0}, name=name) for name in ("trial (2)", "trial (3)")]
    found = compare_runs(runs)
    assert {group: tuple(s) for group, s in found.seeds.items()} == {
        "trial": (0,),
        "trial (2)": (0,),
        "trial (2) (2)": (7,),
        "trial (3)": (7,),
    }, "runs of two recipes are one mean"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("what", ["pipe", "device", "itself"])
def test_results_that_are_no_plain_file_are_not_waited_for(tmp_path, what):
    path = tmp_path / "results.json"
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"device": "/dev/zero", "itself": path}[what])

    def load() -> str:
        try:
            return str(Results.load(path))
        except DataError as error:
            return f"refused: {error}"

    assert within(load).startswith("refused: ")


def test_what_a_foreign_run_is_called_neither_steers_nor_floods_the_terminal(capsys):
    name = "\x1b[2J\u202e" + "n" * 100_000
    foreign = run_of(1, {"random": 1.0, name: 2.0}, name=name)
    foreign = foreign.model_copy(update={"machine": name, "base_model": name})
    verb.show_comparison([foreign, run_of(0, {"random": 1.0})])
    printed = capsys.readouterr()
    assert all(c.isprintable() or c == "\n" for c in printed.out + printed.err)
    assert len(printed.out + printed.err) < 10_000


def test_other_budgets_machines_and_versions_are_noted():
    unequal = run_of(0, {"random": 1.0, "clues": 1.0, "length": 1.0}, kept={"length": 140})
    (note,) = [n for n in compare_runs([unequal]).notes if "numbers of rows" in n]
    assert "length" in note
    assert "equal scores" in note
    equal = run_of(0, {"random": 1.0, "clues": 1.0, "length": 1.0}, kept={"length": 101})
    assert not [n for n in compare_runs([equal]).notes if "numbers of rows" in n]


def test_a_share_has_no_interval_outside_of_what_it_can_be():
    """Two seeds, whose Student's interval reaches from 0.81 to 1.01."""
    runs = [run_of(s, {"random": 2.0, "clues": 1.0 + s}) for s in (0, 1)]
    for run, auc in zip(runs, (0.904, 0.92), strict=True):
        run.arms["clues"] = run.arms["clues"].model_copy(update={"auc": auc, "recall": 1.0})
    found = compare_runs(runs)
    auc = line(found, arm="clues", measure="auc", against="")
    assert (auc.value, auc.high) == (pytest.approx(0.912), 1.0)
    assert 0.8 < auc.low < 0.82
    recall = line(found, arm="clues", measure="recall", against="")
    assert (recall.low, recall.high, recall.over) == (None, None, "")
    assert any("2 seeds" in note for note in found.notes)


def test_under_the_rule_ratio_unequal_budgets_are_called_what_they_are():
    def runs(rule):
        made = [run_of(s, {"clues": 1.0 + s, "odd": 2.0}, kept={"odd": 130}) for s in (0, 1, 2)]
        method = made[0].method.model_copy(update={"rule": rule})
        return [run.model_copy(update={"method": method}) for run in made]

    (note,) = compare_runs(runs("ratio")).notes
    assert "equal scores at the cut" in note
    (note,) = compare_runs(runs("anchor_tolerance")).notes
    assert "set recipe.threshold.rule: ratio" in note


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match="no run"):
        compare_runs([])
    with pytest.raises(DataError, match="no joint models"):
        compare_runs([run_of(0, {})])
    with pytest.raises(DataError, match="two runs have seed 1"):
        compare_runs([THREE[1], THREE[1]])


def test_equal_values_have_an_interval_of_no_width_and_one_value_none():
    assert interval_over_seeds([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert interval_over_seeds([2.0]) is None


# --- the verb


@pytest.mark.parametrize(
    ("text", "seeds"), [("0..4", [0, 1, 2, 3, 4]), ("3", [3]), ("1,2,7", [1, 2, 7]), ("5..5", [5])]
)
def test_seeds_are_typed_as_a_range_or_a_list(text, seeds):
    assert seeds_of(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "4..0", "1,1", "0..1000", "1..", "-1..2", "9" * 20])
def test_other_seeds_are_refused(text):
    with pytest.raises(UsageError, match="--seeds"):
        seeds_of(text)


def call(*arguments: str | Path) -> None:
    old, sys.argv = sys.argv, ["clues", *map(str, arguments)]
    try:
        cli.app(standalone_mode=False)
    finally:
        sys.argv = old


def test_the_verb_reads_folders_and_writes_csv_and_latex(tmp_path, capsys):
    folders = []
    for run in THREE:
        folders.append(tmp_path / f"trial-seed-{run.seeds[0]}")
        folders[-1].mkdir()
        run.write(folders[-1] / "results.json")
    table, paper = tmp_path / "t.csv", tmp_path / "t.tex"
    call("compare", folders[0] / "results.json", *folders[1:], "--csv", table, "--latex", paper)
    said = capsys.readouterr().out
    assert "trial: seeds 0, 1, 2" in said
    assert "clues, heldout_loss, less random" in said
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["over"] for row in rows} == {"seeds"}
    assert len(rows) == 3
    text = paper.read_text()
    assert r"\toprule" in text
    assert "heldout loss less random" in text
    call("compare", *folders, "--json")
    assert len(json.loads(capsys.readouterr().out)["lines"]) == 3


def test_seeds_run_once_each_into_folders_of_their_own(tmp_path, monkeypatch, capsys):
    from clues.cli import whole

    opened = []
    monkeypatch.setattr(whole, "load_config", lambda path, changes: list(changes))
    monkeypatch.setattr(whole, "open_for_verb", lambda s, place, **how: opened.append((s, place)))
    found = iter(THREE[:2])

    class Outcome:
        def __init__(self, _):
            self.results = next(found)

    monkeypatch.setattr("clues.pipeline.run_until", Outcome)
    call("run", "c.yaml", "recipe.train.steps=1", "--seeds", "0..1", "--out", tmp_path / "r", "-q")
    assert [place.name for _, place in opened] == ["r-seed-0", "r-seed-1"]
    assert [s for s, _ in opened] == [
        ["recipe.train.steps=1", "recipe.seed=0"],
        ["recipe.train.steps=1", "recipe.seed=1"],
    ]
    assert "less random" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"recipe\.seed or --seeds"):
        call("run", "c.yaml", "recipe.seed=1", "--seeds", "0..1")


def test_the_table_of_a_paper_escapes_what_latex_would_read(capsys):
    found = compare_runs([run_of(0, {"random": 1.0, "adam_exact": 2.0}, name="a_b")])
    text = verb._latex(found)
    assert r"adam\_exact" in text
    assert r"a\_b: 0" in text


def test_no_command_of_latex_comes_in_with_a_name():
    names = (r"\input{/etc/passwd}", "50% $x^2$ ~#&", "a_b")
    runs = [run_of(0, {"random": 1.0, name: 2.0}, name=name) for name in names]
    written = verb._latex(compare_runs(runs))
    assert r"\input" not in written.replace(r"\textbackslash{}input", "")


def test_the_page_about_experiments_reads_as_it_stands(tmp_path, monkeypatch, capsys):
    page = Path(__file__).parent.parent / "docs" / "experiments.md"
    found = dict(re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
    settings = yaml.safe_load(found["yaml"])
    validate(ScoreSettings, settings["recipe"]["score"], where="score")
    validate(ThresholdSettings, settings["recipe"]["threshold"], where="threshold")
    arms = validate(EvaluateSettings, settings["evaluate"], where="evaluate").arms
    assert set(settings["recipe"]["score"]["compare"]) < set(arms)
    for run in THREE:
        folder = tmp_path / f"runs/trial-seed-{run.seeds[0]}"
        folder.mkdir(parents=True)
        run.write(folder / "results.json")
    monkeypatch.chdir(tmp_path)
    exec(compile(found["python"], "experiments.md", "exec"), {})
    assert "clues heldout_loss random -0.39" in capsys.readouterr().out
