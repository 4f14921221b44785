"""results.json is a contract: a type with a version, read back exactly or refused in one sentence."""

import json
import math
import random
from pathlib import Path

import pytest
from test_report import changed, make_results, places, results_of, with_everything

from clues.errors import DataError
from clues.results.run import Results
from clues.results.silos import silo_result
from docs.results_json import PAGE, explanations, groups, reference
from experiments.stored import StoredRun

SECRET = "zqxsecret"


def written(folder: Path, content: object) -> Path:
    path = folder / "results.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_the_page_is_made_of_the_types():
    assert PAGE.read_text(encoding="utf-8") == reference(), "run make reference"


def test_every_key_is_explained_and_nothing_else():
    found = dict(groups())
    assert {"arms.NAME.against.NAME.heldout_loss", "judge.pairwise.NAME", "absences[]"} <= set(
        found
    )
    for path, model in found.items():
        said = explanations(model)
        assert set(said) == set(model.model_fields), f"{path}: docstring section Attributes"
        assert all(said.values()), path


def test_what_is_written_comes_back_and_is_written_again_byte_by_byte(tmp_path):
    content = with_everything()
    draw = random.Random(0)
    floats = [p for p in places(content) if isinstance(value_at(content, p), float)]
    assert len(floats) > 50
    for path in floats:
        content = changed(content, path, draw.uniform(-1, 1) * 10.0 ** draw.randint(-300, 300))
    content = changed(content, ("threshold", "value"), -0.0)
    content = changed(content, ("silos", "north", "auc"), None)
    assert results_of(content).to_json()["silos"]["north"]["auc"] is None
    results_of(content).write(tmp_path / "one.json")
    Results.load(tmp_path / "one.json").write(tmp_path / "two.json")
    one = (tmp_path / "one.json").read_bytes()
    assert one == (tmp_path / "two.json").read_bytes()
    assert json.loads(one) == content, "a number changed on its way"
    assert [*json.loads(one)] == [*content], "the order of the keys changed"


def value_at(content, path):
    for key in path:
        content = content[key]
    return content


def test_what_was_not_said_is_not_written_and_reads_as_nothing(tmp_path):
    content = make_results()
    del content["silos"]["north"]["auc"]
    north = Results.load(written(tmp_path, content)).silos["north"]
    assert north.auc is None
    assert north.score_bands == ()
    assert "auc" not in north.model_dump(exclude_unset=True)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is no JSON, or only a part of it"),
        (json.dumps(make_results()).encode()[:-40], "is no JSON, or only a part of it"),
        (b"\xff\xfe\x00", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (changed(make_results(), ("threshold", "value"), math.nan), "is no JSON"),
        (changed(make_results(), ("threshold", "value"), -math.inf), "is no JSON"),
        ([make_results()], "no results of a run with a results_version"),
        ("results", "no results of a run with a results_version"),
        ({}, "no results of a run with a results_version"),
        (changed(make_results(), ("results_version",), 2), "results_version is 2, and .* reads 1"),
        (changed(make_results(), ("results_version",), 0), "results_version is 0, and .* reads 1"),
        (changed(make_results(), ("results_version",), "1"), "results_version is 1, and"),
        (changed(make_results(), ("results_version",), True), "results_version is True, and"),
        (changed(make_results(), ("results_version",), 1.0), r"results_version is 1\.0, and"),
        (changed(make_results(), ("results_version",), None), "results_version is None, and"),
        (changed(make_results(), ("results_version",), SECRET * 9), "results_version is zqx"),
        (changed(make_results(), ("arms", "mixed", "kept"), "many"), r"arms\.mixed\.kept: input"),
        (changed(make_results(), ("arms", "mixed", "kept"), 8.5), r"arms\.mixed\.kept: input"),
        (changed(make_results(), ("arms", "mixed", "kept"), True), r"arms\.mixed\.kept: input"),
        (changed(make_results(), ("silos", "north"), []), r"silos\.north: "),
        (changed(make_results(), ("silos", "north", "row"), SECRET), "unknown key silos.north.row"),
        (changed(make_results(), ("extra",), SECRET), "unknown key extra"),
        (changed(make_results(), ("threshold", "interval"), [1.0]), "interval"),
        (changed(make_results(), ("seeds",), SECRET), "seeds: "),
    ],
)
def test_a_file_that_is_no_results_is_refused_in_one_sentence(tmp_path, content, problem):
    path = written(tmp_path, content)
    with pytest.raises(DataError, match=problem) as raised:
        Results.load(path)
    said = str(raised.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert "clues report" in said, "what to do is missing"
    assert len(said.replace(str(path), "")) < 300
    assert said.count(SECRET) <= 2, "an error shows what stands in the file"


@pytest.mark.parametrize("key", [k for k in make_results() if k != "results_version"])
def test_a_key_that_every_run_has_is_an_error_when_absent(tmp_path, key):
    content = make_results()
    del content[key]
    with pytest.raises(DataError, match=f"key {key} is missing"):
        Results.load(written(tmp_path, content))


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "results.json", tmp_path):
        with pytest.raises(DataError, match=r"cannot be read .* folder of a run") as raised:
            Results.load(path)
        assert str(path) in str(raised.value)


def test_a_key_that_would_spoil_a_terminal_does_not(tmp_path):
    path = written(tmp_path, changed(make_results(), ("silos", "a\x1b[2J\n\u202e"), {}))
    with pytest.raises(DataError, match=r"key silos\.a\?\[2J\?\?\.domain is missing, and 3 more"):
        Results.load(path)


def test_results_do_not_change_under_the_hand():
    results = results_of(make_results())
    for change in (
        lambda: setattr(results, "name", "other"),
        lambda: setattr(results.threshold, "value", 0.0),
        lambda: setattr(results, "unknown", 1),
    ):
        with pytest.raises(ValueError, match=r"frozen|no field"):
            change()


KNOWN = {"rows": 20, "kept": 10, "threshold": -1.0}


def test_what_a_silo_says_stands_in_place_of_what_is_known_of_it():
    alone = silo_result("north", KNOWN, domain="wards", shared={})
    assert (alone.rows, alone.kept, alone.threshold) == (20, 10, -1.0)
    assert not alone.labelled
    shared = {
        "rows": 23,
        "kept": 12,
        "threshold": None,
        "precision": None,
        "score_bands": [[0.1, 2]],
    }
    found = silo_result("north", KNOWN, domain="wards", shared=shared)
    assert (found.rows, found.kept, found.threshold) == (23, 12, None)
    assert found.labelled
    assert found.score_bands == ((0.1, 2.0),)


@pytest.mark.parametrize(
    ("shared", "problem"),
    [
        ({"rows": SECRET}, "rows: input"),
        ({"rows": True}, "rows: input"),
        ({"rows": None}, "rows: input"),
        ({"kept": 1.5}, "kept: input"),
        ({"domain": SECRET}, "unknown key domain"),
        ({"answer": SECRET}, "unknown key answer"),
        ({"detection": {"influence": {"auc": SECRET}}}, r"detection\.influence\.auc"),
        ({"detection": [SECRET]}, "detection"),
        ({"score_bands": [[0.1]]}, r"score_bands\.0"),
        ({"by_hand": {"kept": 1}}, r"by_hand\.dropped is missing"),
    ],
)
def test_a_silo_whose_diagnostics_are_none_is_named_and_shows_nothing(shared, problem):
    with pytest.raises(DataError, match=rf"silo north: .*{problem}.*same version") as raised:
        silo_result("north", KNOWN, domain="wards", shared=shared)
    assert SECRET not in str(raised.value)


def test_stored_figures_without_a_version_are_those_of_the_first():
    content = make_results()
    expected = StoredRun.from_json(content, where="made up").results
    later = ("results_version", "recipe", "absences", "stops", "curves", "controls")
    for key in (*later, "controls_kept", "tasks", "judge"):
        del content[key]
    for arm in content["arms"].values():
        del arm["against"]
    found = StoredRun.from_json({**content, "analysis": {"rules": {}}}, where="made up")
    assert found.results == expected.model_copy(update={"recipe": {}})
    assert found.analysis == {"rules": {}}
    with pytest.raises(DataError, match="made up: its results_version is 2"):
        StoredRun.from_json(make_results() | {"results_version": 2}, where="made up")
