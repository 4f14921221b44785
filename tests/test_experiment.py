"""Experiments: rows are dealt without overlap, runs go on, figures say what they mean."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from clues.config import load_config
from clues.errors import ConfigError, DataError, UsageError
from clues.prepare.facts import make_questions
from experiments.__main__ import app
from experiments.base.origins import DEFAULT, ORIGINS
from experiments.paper import experiment_tables
from experiments.rehearsal import rehearse
from experiments.rows import with_choices, write_config, write_inputs
from experiments.run import Plan, is_stored, require_model, settings_hash
from experiments.spec import Experiment, Scale, Source, load_experiment, merged
from experiments.statistics import over_seeds, paired_bootstrap, share_of_gain
from experiments.stored import read_seed

ROOT = Path(__file__).parent.parent / "experiments"
NAMES = (
    "aims",
    *("anchors", "fiqa", "layers", "levels", "medicalqa"),
    *("merging", "mmedbench", "natural", "thresholds"),
)


def content(model: Path | None = None) -> dict:
    config: dict = {
        "recipe": {
            "lora": {"rank": 2, "alpha": 4, "dropout": 0.0},
            "tokens": {"max_length": 384},
            "train": {"steps": 4, "rounds": 2, "checkpoints": 2, "batch_size": 4},
            "threshold": {"bootstrap": 20},
            "score": {"compare": ["base_perplexity"]},
        },
        "combine": {"rounds": 1, "local_steps": 2},
        "evaluate": {"arms": ["mixed", "random", "clues", "oracle", "base_perplexity"]},
    }
    if model:
        config["recipe"]["model"] = {"name": str(model)}
    small = {
        "sources": {"geography": {"file": "facts.jsonl", "fetch": "the facts"}},
        "silos": {"school": {"source": "geography", "n": 2, "rows": 16, "damage": 0.5}},
        "damage": ["cut", "delete"],
        "public": {"validation": 6, "anchor": 12, "heldout": 8},
        "config": config,
        "variants": {
            "default": {},
            "mean": {"config": {"recipe": {"threshold": {"rule": "anchor_mean"}}}},
        },
        "cost": "seconds",
    }
    return {
        "title": "Tiny",
        "asks": "Does it run?",
        "repeats": "nothing",
        "scales": {"small": small},
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    made = make_questions("geography", language="en", seed=0)
    rows = made[:200]
    keys = ("instruction", "output", "fact")
    lines = [json.dumps({k: row[k] for k in keys}) + "\n" for row in rows]
    (folder / "facts.jsonl").write_text("".join(lines))
    exam = [
        {k: row[k] for k in ("instruction", "output", "choices", "answer")} for row in made[-9:]
    ]
    (folder / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in exam))
    return folder


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def small(**changes):
    settings = merged(content(), {"scales": {"small": changes}})
    return Experiment.model_validate(settings).scales["small"]


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_valid_at_all_its_scales(name) -> None:
    experiment = load_experiment(name, ROOT)
    assert set(experiment.scales) == {"small", "laptop", "real"}
    assert (ROOT / name / "README.md").read_text().startswith(f"# {experiment.title}")


def test_no_recipe_is_missing_here() -> None:
    assert sorted(p.parent.name for p in ROOT.glob("*/experiment.yaml")) == sorted(NAMES)


def test_sets_share_no_row_and_a_seed_repeats_them(data, tmp_path) -> None:
    for folder in ("a", "b"):
        write_inputs(small(), tmp_path / folder, data=data, seed=1)
    write_inputs(small(), tmp_path / "other", data=data, seed=2)
    files = sorted(p.name for p in (tmp_path / "a").glob("*.jsonl"))
    assert files == [
        *("geography.anchor.jsonl", "geography.validation.jsonl", "heldout.jsonl"),
        *("school-01.jsonl", "school-02.jsonl"),
    ]
    questions = [row["instruction"] for name in files for row in read(tmp_path / "a" / name)]
    assert len(questions) == len(set(questions)) == 6 + 12 + 8 + 2 * 16
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / files[3]).read_bytes() != (tmp_path / "other" / files[3]).read_bytes()
    labels = [row["damage"] for row in read(tmp_path / "a" / "school-01.jsonl")]
    assert labels.count("") == 8


def test_what_split_by_keeps_together_is_in_one_set(data, tmp_path) -> None:
    fact_of = {row["instruction"]: row["fact"] for row in read(data / "facts.jsonl")}
    scale = small(sources={"geography": {"split_by": "fact"}})
    write_inputs(scale, tmp_path, data=data, seed=0)
    sets = [
        {fact_of[row["instruction"]] for row in read(tmp_path / name)}
        for name in ("geography.anchor.jsonl", "geography.validation.jsonl", "heldout.jsonl")
    ]
    silos = {
        fact_of[r["instruction"]] for n in (1, 2) for r in read(tmp_path / f"school-0{n}.jsonl")
    }
    assert not any(a & b for i, a in enumerate([*sets, silos]) for b in [*sets, silos][i + 1 :])


def test_translations_at_one_position_are_in_one_set(tmp_path) -> None:
    rows = [
        {"instruction": f"{word} {n}?", "output": f"{word} answer {n}", "language": language}
        for language, word in (("en", "question"), ("es", "pregunta"))
        for n in range(120)
    ]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    sources = {
        language: {
            "file": "facts.jsonl",
            "fetch": "them",
            "where": {"language": language},
            "split_by": "position",
        }
        for language in ("en", "es")
    }
    silos = {n: {"source": n, "rows": 20} for n in ("en", "es")}
    settings = merged(content(), {})
    settings["scales"]["small"] |= {"sources": sources, "silos": silos}
    scale = Experiment.model_validate(settings).scales["small"]
    write_inputs(scale, tmp_path / "out", data=tmp_path, seed=0)

    def numbers(name: str) -> set[str]:
        return {row["instruction"].split()[1] for row in read(tmp_path / "out" / name)}

    assert not numbers("en.jsonl") & numbers("heldout.jsonl")
    assert not numbers("es.jsonl") & numbers("en.anchor.jsonl")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sources": {"geography": {"file": "none.jsonl"}}}, "Fetch the facts and put it there"),
        ({"public": {"heldout": 5000}}, "rows for the heldout set"),
        ({"sources": {"geography": {"max_chars": 1}}}, "no row of"),
        ({"questions": [{"file": "no.jsonl", "fetch": "the exam"}]}, "Fetch the exam and put it"),
    ],
)
def test_a_source_that_does_not_do_says_what_to_do(data, tmp_path, changes, said) -> None:
    with pytest.raises(DataError, match=said):
        write_inputs(small(**changes), tmp_path, data=data, seed=0)


def test_an_unknown_experiment_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"Did you mean 'merging'\? Known: aims, anchors, fiqa"):
        load_experiment("mergin", ROOT)


def test_a_place_without_experiments_says_so_and_lists_nothing(tmp_path) -> None:
    for words in (["--list"], [], ["fiqa"]):
        with pytest.raises(UsageError, match=r"holds no NAME/experiment\.yaml.*--recipes"):
            CliRunner().invoke(app, [*words, "--recipes", str(tmp_path)], catch_exceptions=False)


@pytest.mark.walk
def test_the_list_has_every_experiment_and_an_error_is_one_line_and_a_code() -> None:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "experiments", *words]
        return subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True)

    listed = call("--list")
    assert listed.returncode == 0
    assert tuple(line.split()[0] for line in listed.stdout.splitlines()) == NAMES
    wrong = call("fiqua")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith(
        "python -m experiments: there is no experiment 'fiqua'. Did you mean 'fiqa'?"
    )
    assert wrong.stderr.count("\n") == 1


def test_a_wrong_key_is_named_with_what_was_meant(tmp_path) -> None:
    broken = merged(content(), {"scales": {"small": {"sillos": {}}}})
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "experiment.yaml").write_text(yaml.safe_dump(broken))
    with pytest.raises(ConfigError, match=r"sillos\. Did you mean 'silos'"):
        load_experiment("x", tmp_path)


def test_wrong_choices_are_answers_of_other_rows() -> None:
    rows = [{"instruction": str(n), "output": f"answer {n}"} for n in range(10)]
    for row in with_choices(rows, seed=0):
        assert len(set(row["choices"])) == 4
        assert row["choices"][row["answer"]] == row["output"]
    assert with_choices(rows, seed=0) == with_choices(rows, seed=0)


def test_every_variant_is_a_run_that_loads(data, tmp_path) -> None:
    scale = small()
    base = write_inputs(scale, tmp_path, data=data, seed=0)
    rules = []
    for name, variant in scale.variants.items():
        config = load_config(write_config(merged(base, variant.config), tmp_path / f"{name}.yaml"))
        rules.append(config.recipe.threshold.rule)
    assert rules == ["anchor_tolerance", "anchor_mean"]


def test_students_interval_and_its_single_value() -> None:
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found.mean, found.sd) == (2.0, 1.0)
    assert found.high == pytest.approx(2 + 4.303 / 3**0.5, abs=1e-3)
    assert over_seeds([1.0]).low is None


def test_the_paired_bootstrap_cancels_what_rows_share() -> None:
    rng = np.random.default_rng(0)
    theirs = [rng.normal(5, 3, 80).tolist() for _ in range(3)]
    ours = [[x - 0.1 for x in rows] for rows in theirs]
    found = paired_bootstrap(ours, theirs)
    assert found.mean == pytest.approx(-0.1)
    assert found.low == pytest.approx(-0.1), "shared noise was not cancelled"
    noisy = [
        [x - 0.1 + e for x, e in zip(rows, rng.normal(0, 1, 80), strict=True)] for rows in theirs
    ]
    wide = paired_bootstrap(noisy, theirs)
    assert wide.low is not None
    assert wide.high is not None
    assert wide.low < wide.mean < wide.high
    assert wide.high - wide.low == pytest.approx(2 * 1.96 / 240**0.5, rel=0.8)


def test_the_bootstrap_knows_that_seeds_differ() -> None:
    theirs = [[0.0] * 50] * 3
    found = paired_bootstrap([[1.0] * 50, [2.0] * 50, [3.0] * 50], theirs)
    assert found.low is not None
    assert found.low < 1.5, "seeds are a sample too"
    with pytest.raises(ValueError, match="same seeds and rows"):
        paired_bootstrap([[1.0]], [[1.0, 2.0]])


def test_the_share_of_the_oracles_gain() -> None:
    def run(mixed: float, clues: float, oracle: float) -> dict[str, float]:
        return {"mixed": mixed, "clues": clues, "oracle": oracle}

    runs = [run(2.0, 1.9, 1.8), run(2.0, 1.8, 1.8)]
    assert share_of_gain(runs, "clues") == pytest.approx(0.75)
    assert share_of_gain([run(2.0, 1.9, 2.1)], "clues") is None


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_laptop_scale_rehearses_without_its_model_and_refuses_to_run(
    name, tmp_path, monkeypatch
) -> None:
    scale = load_experiment(name, ROOT).scales["laptop"]
    model = scale.config["recipe"]["model"]["name"]
    assert Path(model).parent == Path("runs/base")
    assert Path(model).name in ORIGINS
    rows = [{"instruction": f"Question {n}?", "output": f"Answer {n}."} for n in range(400)]
    plain = Source(file="rows.jsonl", fetch="them")
    (tmp_path / plain.file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for asked in scale.questions:
        (tmp_path / asked.file).touch()
    made = scale.model_copy(update={"sources": dict.fromkeys(scale.sources, plain)})
    lines = list(rehearse(made, data=tmp_path, seed=0))
    assert [line.split(":")[0] for line in lines] == list(scale.variants)
    assert f" {sum(g.n for g in scale.silos.values())} silos with " in lines[0]
    monkeypatch.chdir(tmp_path)
    plan = Plan(name, scale, "laptop", None, tmp_path, tmp_path, tmp_path)
    with pytest.raises(DataError, match=rf"^{model}: there is no such model folder\. Make it: ma"):
        require_model(plan)
    with pytest.raises(DataError, match=f"{model}: there is no such model folder"):
        CliRunner().invoke(app, [name, "--scale", "laptop"], catch_exceptions=False)


def test_experiments_that_share_runs_share_what_scores(tmp_path) -> None:
    """Or the second would train and score again what the first has done."""
    for name in NAMES:
        experiment = load_experiment(name, ROOT)
        if experiment.with_runs_of is None:
            continue
        theirs = load_experiment(experiment.with_runs_of, ROOT)
        for size, scale in experiment.scales.items():
            other = theirs.scales[size]
            assert (scale.sources, scale.silos) == (other.sources, other.silos)
            if size == "laptop":
                assert scale.public == other.public
                assert scale.config["recipe"] == other.config["recipe"], name


def test_a_rehearsal_says_what_a_run_would_take_and_keeps_nothing(data, tmp_path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/experiment.yaml").write_text(yaml.safe_dump(content(tmp_path / "no-model")))
    words = ["tiny", "--check", "--data", str(data), "--recipes", str(tmp_path)]
    said = CliRunner().invoke(app, [*words, "--work", str(tmp_path / "work")])
    assert said.exit_code == 0, said.output
    sizes = (
        "2 silos with 32 rows; for each of 1 domains 6 validation, 12 anchor and 8 held-out rows"
    )
    arms = "arms mixed, random, clues, oracle, base_perplexity"
    assert said.output.splitlines() == [f"default: {sizes}; {arms}", f"mean: {sizes}; {arms}"]
    assert not (tmp_path / "work").exists()
    wrong = merged(content(), {"scales": {"small": {"config": {"combine": {"methud": "ties"}}}}})
    (tmp_path / "tiny/experiment.yaml").write_text(yaml.safe_dump(wrong))
    with pytest.raises(ConfigError, match="Did you mean 'method'"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_a_base_model_that_is_not_made_yet_is_asked_for_before_anything_runs(tmp_path) -> None:
    scale = load_experiment("medicalqa", ROOT).scales["laptop"]
    assert scale.config["recipe"]["model"]["name"] == f"runs/base/{DEFAULT}"
    changes = {"config": {"recipe": {"model": {"name": str(tmp_path / DEFAULT)}}}}
    changes |= {"model_from": scale.model_from}
    plan = plan_of(tmp_path, changes)
    with pytest.raises(DataError, match=rf"{DEFAULT}: there is no such model.* make base\."):
        require_model(plan)
    require_model(replace(plan, model="built-in"))
    require_model(plan_of(tmp_path, {}))  # a scale that says nothing may name a hub's model
    (tmp_path / DEFAULT).mkdir()
    require_model(plan)
    other = plan_of(tmp_path, {**changes, "model_from": "Otherwise."})
    assert settings_hash(plan) == settings_hash(other), "words are no settings"


def test_figures_of_a_published_model_say_that_it_is_dequantised() -> None:
    folder = ROOT / "medicalqa" / "results"
    seed = read_seed(next(folder.glob("small-built-in-*.json")))
    assert "dequantised" not in experiment_tables([seed])[0]
    published = experiment_tables([replace(seed, base_model=DEFAULT)])[0]
    assert f"Base model {DEFAULT}, dequantised from 4-bit; " in published


def test_a_seed_that_is_stored_is_shown_and_not_run_again(tmp_path) -> None:
    file = next((ROOT / "medicalqa" / "results").glob("small-built-in-*.json"))
    words = ["medicalqa", "--seeds", "1", "--first-seed", file.stem.rsplit("-", 1)[1]]
    words += ["--data", str(tmp_path / "none"), "--work", str(tmp_path / "work")]
    shown = CliRunner().invoke(app, words, catch_exceptions=False)
    assert experiment_tables([read_seed(file)])[0] in shown.stdout
    assert f"Stored: {file}" in shown.stdout
    raw = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    assert json.loads(raw.stdout) == [json.loads(file.read_text())]
    assert not (tmp_path / "work").exists()


def plan_of(folder: Path, changes: dict) -> Plan:
    scale = Scale.model_validate(merged(content()["scales"]["small"], changes))
    return Plan("tiny", scale, "small", None, folder, folder / "work", folder / "results")


def test_figures_of_other_settings_are_not_taken_for_these(tmp_path) -> None:
    plan = plan_of(tmp_path, {})
    assert not is_stored(plan, 0)
    file = tmp_path / "results" / "small-built-in-0.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"settings": settings_hash(plan)}))
    assert is_stored(plan, 0)
    worded = {"cost": "more", "sources": {"geography": {"fetch": "them"}}}
    assert is_stored(plan_of(tmp_path, worded), 0), "words are no settings"
    for changes in (
        {"silos": {"school": {"rows": 17}}},
        {"config": {"recipe": {"train": {"steps": 5}}}},
        {"variants": {"mean": {"config": {"recipe": {"threshold": {"rule": "ratio"}}}}}},
        {"variants": {"third": {}}},
    ):
        with pytest.raises(DataError, match=r"made with other settings.*Move it away"):
            is_stored(plan_of(tmp_path, changes), 0)
    file.write_text("{}")
    assert is_stored(plan, 0), "figures from before settings were stored"


@pytest.mark.parametrize("name", NAMES)
def test_committed_figures_are_of_the_settings_beside_them(name, tmp_path) -> None:
    scale, results = load_experiment(name, ROOT).scales["small"], ROOT / name / "results"
    plan = Plan(name, scale, "small", None, tmp_path, tmp_path, results)
    for file in results.glob("small-built-in-*.json"):
        assert json.loads(file.read_text())["settings"] == settings_hash(plan), file.name


def test_a_variant_depends_on_itself_and_on_the_first(tmp_path) -> None:
    plan = plan_of(tmp_path, {})
    other = plan_of(tmp_path, {"variants": {"mean": {"damage": 0.25}}})
    assert settings_hash(plan, "default") == settings_hash(other, "default")
    assert settings_hash(plan, "mean") != settings_hash(other, "mean")
    first = plan_of(tmp_path, {"variants": {"default": {"damage": 0.25}}})
    assert settings_hash(plan, "mean") != settings_hash(first, "mean")


@pytest.mark.slow
def test_what_variants_share_is_said_once() -> None:
    folder = Path(__file__).parents[1] / "experiments" / "thresholds" / "results"
    seeds = [read_seed(file) for file in sorted(folder.glob("small-built-in-*.json"))]
    page = experiment_tables(seeds)
    # A cut at 10 % has rules and anchors of its own; the scores are one table for all.
    rest = "anchor_tolerance, anchor_quantile, anchor_mean, ratio, preset, mixture"
    for title in (rest, "anchor_tolerance_10"):
        assert page.count(f"**{title}**") == 2
    assert sum(line.startswith("| score | AUC |") for line in page) == 1
    # One adapter scored these rows: there is no second one to agree with.
    assert not any("Checkpoints rank rows alike" in line for line in page)
    assert sum("every selector gets wrong" in line for line in page) == len(seeds[0].variants)

    for run in (run for seed in seeds for run in seed.variants.values()):
        run.analysis["checkpoints"] = {"auc": {"0": 0.8, "1": 0.9}, "agreement": 0.95}
    said = [line for line in experiment_tables(seeds) if "Checkpoints rank rows alike" in line]
    assert len(said) == 1
    assert "a correlation of 0.95; alone they reach AUC 0.80, 0.90, in order" in said[0]


@pytest.mark.walk
def test_an_experiment_runs_stores_shows_and_goes_on(data, micro_model, tmp_path) -> None:
    model = micro_model
    (tmp_path / "recipes" / "tiny").mkdir(parents=True)
    recipe = tmp_path / "recipes" / "tiny" / "experiment.yaml"
    exam = {"file": "exam.jsonl", "fetch": "it", "ask": {"name": "exam", "limit": 7}}
    settings = merged(content(model), {"scales": {"small": {"questions": [exam]}}})
    recipe.write_text(yaml.safe_dump(settings, sort_keys=False))
    call = ["tiny", "--seeds", "2", "--data", str(data), "--quiet"]
    call += ["--recipes", str(tmp_path / "recipes"), "--work", str(tmp_path / "work")]
    runner = CliRunner()
    first = runner.invoke(app, call, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    files = sorted((tmp_path / "recipes" / "tiny" / "results").glob("*.json"))
    assert [f.name for f in files] == [f"small-{model.name}-0.json", f"small-{model.name}-1.json"]
    seeds = [read_seed(f) for f in files]
    for seed in seeds:
        run = seed.variants["default"]
        assert set(run.arms) == set(run.heldout_losses)
        for arm, figures in run.arms.items():
            losses = run.heldout_losses[arm]
            assert figures.heldout_loss == pytest.approx(sum(losses) / len(losses), abs=1e-3)
        rules = run.analysis["rules"]
        ours = run.results.silos
        recall = sum(s.recall for s in ours.values()) / len(ours)
        assert rules["anchor_tolerance"]["recall"] == pytest.approx(recall)
        assert rules["ratio"]["share"] == pytest.approx(0.5)
        means = seed.variants["mean"].results.silos
        mean = sum(s.recall for s in means.values()) / len(means)
        assert rules["anchor_mean"]["recall"] == pytest.approx(mean), "rules differ from their runs"
        assert set(run.analysis["anchors"]) == {"5", "10"}
    page = "\n".join(experiment_tables(seeds))
    for wanted in ("default: **clues**", "mean: **clues**", "| mixture |", "base_perplexity"):
        assert wanted in page
    exams = [seed.variants["default"].results.tasks["exam"] for seed in seeds]
    for arm in exams[0].arms:
        values = [exam.arms[arm].acc_norm for exam in exams]
        assert f"| default: exam | {arm} | 7 | {sum(values) / 2:.3f} " in page
    files[1].unlink()
    alone = ["tiny", "--seeds", "1", "--first-seed", "1", *call[3:], "--json"]
    second = runner.invoke(app, alone, catch_exceptions=False)
    assert read_seed(files[1]) == seeds[1], "a run that was done was done again"
    assert [s["seed"] for s in json.loads(second.stdout)] == [1]
    again = runner.invoke(app, [*call, "--json"], catch_exceptions=False)
    assert [s["seed"] for s in json.loads(again.stdout)] == [0, 1]
