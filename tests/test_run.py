import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import yaml
from federation_helpers import (
    edit_config,
    files_of,
    open_micro,
    run_micro,
    without_volatile,
    write_micro,
)
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from clues.cli.program import app
from clues.config import BASELINE_NAMES, FORMS, Recipe
from clues.coordinator.public import counted_recipe, portable_recipe
from clues.errors import ConfigError, DataError, NumericsError
from clues.model.adapters import load_checkpoint
from clues.model.loss import row_losses
from clues.pipeline import run_until
from clues.results.run import Results
from clues.scoring.compared import Standpoint, compare
from clues.scoring.parts import BEFORE, Compared, InRunLoss, checkpoint_losses
from clues.scoring.perplexity import mean_losses
from clues.scoring.table import ScoreTable

SECRET = "Zyx-marker-"
STAGES = ("train", "score", "threshold", "select", "fit-mixed", "fit-clues", "measure-mixed")
RATIO = {"rule": "ratio", "ratio": 0.5}
SCRIPT = (
    "import sys; from pathlib import Path; from federation_helpers import run_micro;"
    "run_micro(Path(sys.argv[1]), Path(sys.argv[2]))"
)


@pytest.fixture(scope="module")
def model(micro_model) -> Path:
    return micro_model


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory) -> tuple[Path, Path, dict]:
    folder = tmp_path_factory.mktemp("finished")
    config = write_micro(folder / "input", model)
    return config, folder / "run", run_micro(config, folder / "run")


@pytest.mark.slow
def test_results_have_all_arms_silos_and_figures(finished) -> None:
    _, root, results = finished
    assert set(results["arms"]) == {"mixed", "random", "clues", "oracle"}
    assert len({arm["steps"] for arm in results["arms"].values()}) == 1, "arms differ in steps"
    assert set(results["silos"]) == {"north", "south"}
    for silo in results["silos"].values():
        assert silo["rows"] == 24
        assert 0 <= silo["auc"] <= 1
    assert results["arms"]["random"]["kept"] == results["arms"]["clues"]["kept"]
    stored = json.loads((root / "results.json").read_text())
    assert stored == results
    assert (root / "report.html").read_text().lower().startswith("<!doctype html>")


# What stood in results.json before it had a version, in this order.
KEYS = {
    (): "name date machine base_model recipe_hash recipe seeds versions method arms silos absences "
    "stops curves threshold controls controls_kept questions guessing tasks judge seconds "
    "passes",
    ("method",): "score form loss_weight loss_under alignment_weight parts trajectory layers rule "
    "combine aggregation reject_weight",
    ("arms",): "mixed random clues oracle",
    ("arms", "mixed"): "kept steps silos energy_lost heldout_loss knowledge_accuracy "
    "knowledge_stderr seconds against",
    ("arms", "clues"): "kept steps silos energy_lost heldout_loss knowledge_accuracy "
    "knowledge_stderr seconds precision recall f1 auc against",
    ("arms", "clues", "against"): "mixed random",
    ("arms", "clues", "against", "random"): "heldout_loss knowledge_accuracy",
    ("arms", "clues", "against", "random", "heldout_loss"): "value interval",
    ("arms", "clues", "against", "random", "knowledge_accuracy"): "value interval p_value",
    (
        "silos",
        "north",
    ): "domain rows kept accuracy auc clean detection dropped_by_kind f1 precision "
    "recall score_bands threshold",
    ("silos", "north", "detection", "influence"): "auc auc_by_kind",
    ("threshold",): "value rule units interval confidence assurance quantile n_anchors "
    "anchor_quantiles aim aims",
    ("threshold", "aims"): "keep model",
    ("threshold", "aims", "keep"): "value anchors_kept copies_kept",
    ("seconds",): "train score select",
    ("passes",): "train score",
}


def test_results_json_has_the_keys_that_it_promises_in_their_order(finished) -> None:
    _, root, _ = finished
    stored = json.loads((root / "results.json").read_text())
    assert next(iter(stored.items())) == ("results_version", 1)
    del stored["results_version"]
    for path, names in KEYS.items():
        inside = stored
        for key in path:
            inside = inside[key]
        assert [*inside] == names.split(), path


def test_results_json_comes_back_as_a_type_and_goes_out_byte_by_byte(finished, tmp_path) -> None:
    _, root, results = finished
    found = Results.load(root / "results.json")
    assert found.arms["clues"].heldout_loss == results["arms"]["clues"]["heldout_loss"]
    found.write(tmp_path / "results.json")
    assert (tmp_path / "results.json").read_bytes() == (root / "results.json").read_bytes()


def test_the_joint_adapter_opens_in_plain_peft(finished, model) -> None:
    _, root, _ = finished
    base = AutoModelForCausalLM.from_pretrained(model)
    joint = PeftModel.from_pretrained(base, root / "coordinator" / "adapter")
    moved = [p.abs().sum().item() for n, p in joint.named_parameters() if "lora_B" in n]
    assert min(moved) > 0, "the adapter was saved untrained"


def test_a_second_run_does_nothing_again(finished) -> None:
    config, root, results = finished
    before = {p: p.stat().st_mtime_ns for p in (root / "coordinator" / "stages").glob("*.json")}
    assert run_micro(config, root) == results
    after = {p: p.stat().st_mtime_ns for p in (root / "coordinator" / "stages").glob("*.json")}
    assert after == before


@pytest.mark.slow
def test_rounds_found_on_disk_count_in_the_seconds(finished, tmp_path) -> None:
    config, root, results = finished
    moved = shutil.copytree(root, tmp_path / "moved")
    for stage in ("train", "fit-clues"):
        (moved / "coordinator" / "stages" / f"{stage}.json").unlink()
    again = run_micro(config, moved)
    assert again["seconds"]["train"] == results["seconds"]["train"] > 0
    assert again["arms"]["clues"]["seconds"] == results["arms"]["clues"]["seconds"] > 0


@pytest.mark.walk
def test_the_same_seed_gives_the_same_results_in_another_folder(finished, tmp_path) -> None:
    config, _, results = finished
    again = run_micro(config, tmp_path / "again")
    assert without_volatile(again) == without_volatile(results)


@pytest.mark.slow
@pytest.mark.parametrize("under", ["base", "checkpoints"])
@pytest.mark.parametrize("trajectory", ["global", "local", "inrun"])
def test_whose_loss_is_a_part_of_the_score(model, tmp_path, under, trajectory) -> None:
    config = write_micro(tmp_path / "input", model)
    score = {"trajectory": trajectory, "loss_weight": 0.5, "loss_under": under}
    # In-run scores need every row seen.
    train = {"train": {"steps": 12}} if trajectory == "inrun" else {}
    edit_config(config, {"recipe": {"score": score, **train}})
    run = open_micro(config, tmp_path / "run")
    run_until(run, "threshold")
    silo = run.silos["north"].space
    table = silo.scores()
    along = checkpoint_losses(table.parts) or [table.parts[InRunLoss()]]
    expected = {"base": table.parts[BEFORE], "checkpoints": np.mean(along, axis=0)}
    np.testing.assert_allclose(-table.raw["loss"], expected[under], rtol=1e-6)
    assert not np.allclose(expected["base"], expected["checkpoints"], rtol=1e-4)
    # The same for the public anchors, with which the threshold is set.
    (anchors,) = json.loads((silo.private / "anchors.json").read_text()).values()
    slow = mean_losses(silo.model(), silo.anchors(), adapter=silo.model().initial)
    assert np.allclose(-np.array(anchors["loss"]), slow, rtol=1e-4) == (under == "base")


def test_another_threshold_rule_keeps_training_and_scores(finished, tmp_path) -> None:
    config = shutil.copytree(finished[0].parent, tmp_path / "input") / "clues.yaml"
    root = shutil.copytree(finished[1], tmp_path / "run")
    stages = root / "coordinator" / "stages"
    before = json.loads((stages / "train.json").read_text())["result"]["seconds"]
    edit_config(config, {"recipe": {"threshold": {"rule": "ratio", "ratio": 0.25}}})
    run = open_micro(config, root)
    threshold = run_until(run, "select").threshold
    kept = {name: len(silo.select(threshold).kept) for name, silo in run.silos.items()}
    assert kept == {"north": 6, "south": 6}
    assert before > 0


@pytest.mark.parametrize(
    "how", [{}, {"quantization": "nf4"}, {"attn_implementation": "eager"}, {"dtype": "bfloat16"}]
)
def test_a_recipe_has_the_same_hash_where_it_arrives(how):
    public = {
        "medicine": {part: {"path": "p.jsonl", "sha256": "0" * 64} for part in ("anchor", "reject")}
    }
    public["medicine"]["validation"] = {"v": {"path": "v.jsonl", "sha256": "1" * 64}}
    files = {"model.safetensors": "2" * 64}
    recipe = Recipe.model_validate({"public": public, "model": {"files": files, **how}})
    assert Recipe.model_validate(portable_recipe(recipe)).hash == recipe.hash
    counted = counted_recipe(recipe)["model"]
    assert how.items() <= counted.items()


@pytest.mark.slow
def test_a_run_whose_attention_is_named_reaches_its_end(model, tmp_path) -> None:
    changes = {"recipe": {"model": {"attn_implementation": "eager"}}, "evaluate": {"arms": []}}
    config = write_micro(tmp_path / "input", model, changes=changes)
    results = run_micro(config, tmp_path / "run")
    assert results["recipe"]["model"]["attn_implementation"] == "eager"


def test_another_aim_keeps_training_and_scores_and_is_shown_beside_the_first(
    finished, tmp_path
) -> None:
    config = shutil.copytree(finished[0].parent, tmp_path / "input") / "clues.yaml"
    root = shutil.copytree(finished[1], tmp_path / "run")
    marker = root / "coordinator" / "stages" / "score.json"
    scored, before = marker.read_bytes(), finished[2]["threshold"]
    rule = {"rule": "anchor_tolerance", "aim": "model"}
    edit_config(config, {"recipe": {"threshold": rule}})
    after = run_micro(config, root)["threshold"]
    assert marker.read_bytes() == scored
    assert after["aim"] == "model"
    assert before["aim"] == "keep"
    assert after["value"] == after["aims"]["model"]["value"] > after["aims"]["keep"]["value"]
    assert before["value"] == before["aims"]["keep"]["value"]
    assert after["aims"]["model"]["copies_kept"] < after["aims"]["keep"]["copies_kept"]
    assert after["aims"]["model"]["anchors_kept"] >= 0.5
    page = (root / "report.html").read_text()
    assert "Aim model: serve the joint model (this run)" in page
    assert "Aim keep: spare clean rows" in page


def test_the_report_says_what_the_threshold_lets_pass(finished) -> None:
    config, root, results = finished
    kept, told_apart = results["controls_kept"], results["controls"]
    assert {g: set(k) for g, k in kept.items()} == {g: set(k) for g, k in told_apart.items()}
    assert told_apart
    shares = [share for kinds in kept.values() for share in kinds.values()]
    assert all(0 <= share <= 1 for share in shares)
    assert min(shares) < 1, "the threshold lets every damaged copy pass"
    page = (root / "report.html").read_text()
    assert "told apart" in page
    runner = CliRunner()
    call = ["threshold", str(config), "--out", str(root), "-q"]
    printed = runner.invoke(app, call, catch_exceptions=False).output
    for group, kinds in kept.items():
        said = ", ".join(f"{kind} {share:.0%}" for kind, share in kinds.items())
        assert f"{group}: of damaged copies of its anchors it would keep {said}" in printed


@pytest.mark.walk
@pytest.mark.parametrize(
    ("recipe", "combine"),
    [
        ({"score": {"trajectory": "local"}}, {"method": "average"}),
        ({"score": {"trajectory": "crossfit", "form": "sgd"}}, {"method": "task_arithmetic"}),
        ({"train": {"aggregation": "svd"}}, {"aggregation": "svd"}),
        ({"score": {"method": "perplexity"}}, {"method": "ties"}),
        (
            {"score": {"layers": "first", "loss_weight": 0, "alignment_weight": 0}},
            {"method": "dare"},
        ),
        ({"score": {"method": "alignment"}}, {"method": "average"}),
        (
            {"score": {"method": "datainf", "trajectory": "crossfit"}, "threshold": RATIO},
            {"method": "average"},
        ),
        ({"score": {"form": "adam_exact", "compare": ["adam", "less"]}}, {}),
        ({"score": {"form": "cosine"}, "threshold": {"combine": "sum"}}, {}),
        ({"score": {"form": "adam", "projections": ["q_proj"]}}, {}),
        ({"score": {"way": "finite_difference", "per_block": True}}, {}),
        (
            {
                "threshold": {"rule": "anchor_mean", "units": "raw"},
                "score": {"loss_weight": 0, "alignment_weight": 0, "form": "sgd"},
            },
            {"aggregation": "factors"},
        ),
        ({"threshold": {"rule": "mixture"}, "score": {"loss_weight": 1}}, {}),
    ],
    ids=[
        *("local", "crossfit", "svd", "perplexity", "layers", "alignment", "datainf"),
        *("adam_exact", "sum", "projections", "finite difference by block", "raw", "mixture"),
    ],
)
def test_every_way_to_score_and_combine_runs_to_the_end(model, tmp_path, recipe, combine) -> None:
    changes = {"recipe": recipe, "combine": combine, "evaluate": {"arms": ["clues"]}}
    config = write_micro(tmp_path / "input", model, changes=changes)
    results = run_micro(config, tmp_path / "run")
    for arm in results["arms"].values():
        assert arm["heldout_loss"] > 0
    base = AutoModelForCausalLM.from_pretrained(model)
    PeftModel.from_pretrained(base, tmp_path / "run" / "coordinator" / "adapter")


@pytest.mark.walk
def test_every_compared_score_has_a_ranking_and_a_threshold_of_its_own(
    model, finished, tmp_path
) -> None:
    names = [*FORMS, *BASELINE_NAMES]
    changes = {"recipe": {"score": {"compare": names}}, "evaluate": {"arms": ["clues"]}}
    config = write_micro(tmp_path / "input", model, changes=changes)
    results = run_micro(config, tmp_path / "run")
    plain = finished[2]
    for name, silo in results["silos"].items():
        found = silo["detection"]
        assert set(names) <= set(found)
        for score in names:
            assert 0 <= found[score]["auc"] <= 1
            assert set(found[score]["auc_by_kind"]) == {"cut", "delete", "swap", "mix"}
        assert 0 <= found["random"]["recall"] <= 1
        # Its own form without the loss is what the silo calls influence.
        assert found["less"]["auc"] == pytest.approx(found["influence"]["auc"], abs=1e-12)
        assert silo["auc"] == plain["silos"][name]["auc"], "comparing changed the selection"


@pytest.mark.walk
@pytest.mark.parametrize("method", ["influence", "perplexity"])
def test_anchors_that_the_coordinator_compares_score_as_in_the_silo(model, tmp_path, method):
    names = [*FORMS, *BASELINE_NAMES]
    changes = {"recipe": {"score": {"compare": names, "method": method}}}
    run = open_micro(write_micro(tmp_path / "input", model, changes=changes), tmp_path / "run")
    trained = run_until(run, "score").trained
    desk, silo = run.coordinator.desk, run.silos["north"]
    domain = silo.settings.domain
    base = desk.folder / "trajectory" / trained.folder
    checkpoints = [load_checkpoint(base / name) for name in trained.checkpoints]
    place = Standpoint(
        desk.model,
        desk.validation(domain),
        checkpoints,
        desk.recipe,
        domain,
        desk.scored_weights(),
    )
    alone = compare(place, silo.space.encoded().rows, desk.anchors(domain), known={})
    sent = json.loads((silo.private / "compared.json").read_text())
    table = ScoreTable.read(silo.private / "scores.parquet")
    for name in names:
        (anchors,) = sent[name].values()
        assert anchors == pytest.approx(alone[name].anchors.tolist(), rel=1e-3, abs=1e-5)
        rows = table.parts[Compared(name)].tolist()
        assert rows == pytest.approx(alone[name].rows.tolist(), rel=1e-3, abs=1e-5)
    assert len({tuple(np.round(alone[name].anchors, 6)) for name in names}) == len(names)


@pytest.mark.walk
def test_an_arm_is_trained_on_what_another_score_would_select(model, tmp_path) -> None:
    changes = {
        "recipe": {"score": {"compare": ["adam", "base_perplexity", "alignment"]}},
        "evaluate": {"arms": ["mixed", "random", "base_perplexity", "adam"]},
    }
    config = write_micro(tmp_path / "input", model, changes=changes)
    results = run_micro(config, tmp_path / "run")
    run = open_micro(config, tmp_path / "run")
    for arm in ("base_perplexity", "adam"):
        found = {n: s["detection"][arm] for n, s in results["silos"].items()}
        assert results["arms"][arm]["kept"] == sum(f["kept"] for f in found.values())
        assert results["arms"][arm]["auc"] == pytest.approx(
            sum(f["auc"] for f in found.values()) / len(found)
        )
        for name, silo in run.silos.items():
            assert len(silo.arm_rows(arm)) == found[name]["kept"]
    losses = {results["arms"][arm]["heldout_loss"] for arm in results["arms"]}
    assert len(losses) == 4, "two arms were trained on the same rows"
    with pytest.raises(DataError, match="no such arm"):
        next(iter(run.silos.values())).arm_rows("less")


@pytest.mark.parametrize(
    ("changes", "silo_changes", "said"),
    [
        ({"evaluate": {"arms": ["mixed", "less"]}}, {}, "add it to recipe.score.compare"),
        (
            {
                "recipe": {"score": {"compare": ["less"]}},
                "evaluate": {"arms": ["mixed", "less"]},
            },
            {"share_diagnostics": False},
            "share_diagnostics",
        ),
    ],
    ids=["no such score", "a silo that shares nothing"],
)
def test_an_arm_by_another_score_needs_the_score_and_consent(
    model, tmp_path, changes, silo_changes, said
) -> None:
    with pytest.raises(ConfigError, match=said):
        run_micro(
            write_micro(tmp_path / "input", model, changes=changes, silo_changes=silo_changes),
            tmp_path / "run",
        )


@pytest.mark.walk
def test_blocks_are_ranked_one_by_one_where_labels_are_known(model, tmp_path) -> None:
    changes = {"recipe": {"score": {"per_block": True}}, "evaluate": {"arms": ["clues"]}}
    results = run_micro(write_micro(tmp_path / "input", model, changes=changes), tmp_path / "run")
    for silo in results["silos"].values():
        blocks = [name for name in silo["detection"] if "block" in name]
        assert blocks == ["influence, block 0", "influence, block 1"]
        aucs = [silo["detection"][name]["auc"] for name in (*blocks, "influence")]
        assert len(set(aucs)) > 1, "every block ranks like the whole"
    assert "influence, block 1" in (tmp_path / "run" / "results.md").read_text()


def test_a_run_goes_on_where_its_input_was_moved(finished, tmp_path) -> None:
    config, root, before = finished
    shutil.copytree(root, tmp_path / "run")
    stages = tmp_path / "run" / "coordinator" / "stages"
    times = {path.name: path.stat().st_mtime_ns for path in stages.glob("*.json")}
    shutil.copytree(config.parent, tmp_path / "elsewhere")
    after = run_micro(tmp_path / "elsewhere" / config.name, tmp_path / "run")
    assert {path.name: path.stat().st_mtime_ns for path in stages.glob("*.json")} == times
    assert without_volatile(after) == without_volatile(before)


@pytest.mark.slow
def test_two_weighted_validation_sets_are_scored_side_by_side(model, tmp_path) -> None:
    config = write_micro(tmp_path / "input", model)
    public = {
        "geography": {
            "validation": {
                "own": "public/geography.validation.jsonl",
                "other": {"path": "public/medicine.validation.jsonl", "weight": 0.5},
            },
            "anchor": "public/geography.anchor.jsonl",
        }
    }
    edit_config(config, {"recipe": {"public": public}})
    run = open_micro(config, tmp_path / "run")
    outcome = run_until(run, "select")
    units = outcome.threshold.units["domain geography"]
    chosen = outcome.scored.weights
    assert set(chosen) == {"loss", "alignment"}
    assert units.weights == {"own": 1.0, "other": 0.5, **{k: w for k, w in chosen.items() if w}}


def test_anchors_in_the_held_out_set_stop_the_run(model, tmp_path) -> None:
    config = write_micro(tmp_path / "input", model)
    public = tmp_path / "input" / "public"
    text = (public / "geography.anchor.jsonl").read_text().splitlines(keepends=True)[0]
    row = json.loads(text) | {"choices": ["a", "b"], "answer": 0}
    with (public / "heldout.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match="1 row also stands in the held-out set"):
        run_micro(config, tmp_path / "run")


@pytest.mark.slow
def test_labels_change_neither_scores_nor_threshold_nor_selection(
    model, finished, tmp_path
) -> None:
    def decided(root: Path) -> list[bytes]:
        silos = (root / "silos").glob("*/private/decisions.csv")
        files = [root / "coordinator" / "threshold.json", *sorted(silos)]
        # Only the label differs between the runs, and an id is made of the text alone.
        return [path.read_bytes() for path in files]

    config = write_micro(tmp_path / "input", model)
    for path in (tmp_path / "input" / "silos").glob("*.jsonl"):
        rewrite(path, lambda row: {**row, "damage": "" if row["damage"] else "cut"})
    run_until(open_micro(config, tmp_path / "run"), "select")
    usual, turned = decided(finished[1]), decided(tmp_path / "run")
    assert len(usual) == 3
    assert turned == usual, "a label reached the scores"


@pytest.mark.slow
def test_no_row_text_leaves_a_silo(model, tmp_path, capfd) -> None:
    config = write_micro(tmp_path / "input", model)
    mark_rows(tmp_path / "input")
    root = tmp_path / "run"
    run_micro(config, root)
    assert_nothing_leaked(root, capfd)
    outside = [p for p in files_of(root) if "outbox" in p.parts]
    assert outside, "there is nothing to search"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("break_row", "error"),
    [
        (lambda row: {**row, "output": ""}, DataError),
        (lambda row: {k: v for k, v in row.items() if k != "output"}, DataError),
        (lambda row: {**row, "instruction": {"text": row["instruction"]}}, DataError),
        (lambda row: {**row, "instruction": row["instruction"] * 60}, DataError),
        (lambda row: {**row, "output": "x\udc80" + row["output"]}, DataError),
    ],
    ids=["empty response", "no response", "keys for text", "response cut off", "surrogate"],
)
def test_no_row_text_stands_in_an_error(model, tmp_path, capfd, break_row, error) -> None:
    config = write_micro(
        tmp_path / "input", model, changes={"recipe": {"tokens": {"overlong": "error"}}}
    )
    silos = [{**silo, "strict": True} for silo in yaml.safe_load(config.read_text())["silos"]]
    edit_config(config, {"silos": silos})
    mark_rows(tmp_path / "input")
    path = tmp_path / "input" / "silos" / "south.jsonl"
    lines = path.read_text().splitlines()
    lines[3] = json.dumps(break_row(json.loads(lines[3])))
    path.write_text("\n".join(lines) + "\n")
    before = path.read_bytes()
    with pytest.raises(error) as raised:
        run_micro(config, tmp_path / "run")
    # With its causes: whoever catches the error may print them.
    assert SECRET not in "".join(traceback.format_exception(raised.value))
    assert_nothing_leaked(tmp_path / "run", capfd)
    assert path.read_bytes() == before, "the user's rows were touched"


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_leaks_nothing(
    model, tmp_path, capfd, monkeypatch
) -> None:
    config = write_micro(tmp_path / "input", model)
    mark_rows(tmp_path / "input")
    import clues.model.steps as steps

    def poisoned(*arguments, **options):
        return row_losses(*arguments, **options) * float("nan")

    monkeypatch.setattr(steps, "row_losses", poisoned)
    with pytest.raises(NumericsError, match="not finite") as raised:
        run_micro(config, tmp_path / "run")
    assert SECRET not in "".join(traceback.format_exception(raised.value))
    assert_nothing_leaked(tmp_path / "run", capfd)
    monkeypatch.undo()
    run_until(open_micro(config, tmp_path / "run"), "train")


def rewrite(path: Path, change) -> None:
    rows = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def mark_rows(folder: Path) -> None:
    """Plant the marker in both texts of every private row."""
    for path in (folder / "silos").glob("*.jsonl"):
        rewrite(
            path,
            lambda r: {**r, **{k: f"{SECRET}{r[k]}" for k in ("instruction", "output")}},
        )


def assert_nothing_leaked(root: Path, capfd) -> None:
    outside = [p for p in files_of(root) if "private" not in p.relative_to(root).parts]
    leaks = [p.name for p in outside if SECRET.encode() in p.read_bytes()]
    assert not leaks, "row text left the silo"
    out, err = capfd.readouterr()
    assert SECRET not in out + err


# Its short form forks instead of starting processes: test_killed.py.
@pytest.mark.long
def test_a_run_killed_in_every_stage_ends_in_the_same_results(finished, tmp_path) -> None:
    config, _, results = finished
    root = tmp_path / "run"
    # One thread, as in the unbroken run: the results name the machine.
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(config), str(root)]
    killed = 0
    for stage in ("", *STAGES):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        marker = (
            root / "coordinator" / "stages" / f"{stage}.json" if stage else root / "ledger.jsonl"
        )
        # As soon as one stage is finished the next is under way: kill it there.
        while process.poll() is None and not marker.exists():
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed >= len(STAGES) - 1, "the stages were over before they could be killed"
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    continued = json.loads((root / "results.json").read_text())
    assert without_volatile(continued) == without_volatile(results)
