"""Rows with names and marks of their own, in check, init and a whole run."""

import csv
import json
import stat

import pytest
import yaml
from federation_helpers import edit_config, write_micro
from test_cli import call, fails
from test_init import home, write

from clues.config import load_config
from clues.data.formats import read_rows
from clues.data.tokens import UNTRAINED, UNWANTED
from clues.pipeline import open_run, run_until
from clues.prepare.check import check_run
from clues.progress import Silent

MARKER = "zqxsecret"
NAMES = {"instruction": "frage", "output": "antwort"}
MAP = {"prompt": "frage", "completion": "antwort"}
__all__ = ["home"]  # a fixture


def renamed(path) -> None:
    """Give the columns of a file of rows names of their own."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [{NAMES.get(key, key): value for key, value in row.items()} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    "tokens", [{"max_length": 4}, {"max_length": 24, "overlong": "error"}], ids=["none", "one"]
)
def test_an_error_of_check_says_once_whose_rows_they_are(tmp_path, micro_model, tokens):
    config = write_micro(tmp_path, micro_model, changes={"recipe": {"tokens": tokens}})
    errors = check_run(load_config(config), n_shown=0).errors
    names = ("silo north", "silo south", "geography anchors", "finance-en anchors")
    about = [(name, error) for name in names for error in errors if name in error]
    assert {name for name, _ in about} >= {"silo north", "silo south"}
    assert [error for name, error in about if error.count(name) != 1] == []


@pytest.fixture
def mapped(tmp_path, micro_model):
    """A run all of whose files have other names than any schema."""
    path = write_micro(tmp_path / "run", micro_model, silos=("north",))
    for file in path.parent.rglob("*.jsonl"):
        renamed(file)
    content = yaml.safe_load(path.read_text())
    public = content["recipe"]["public"]["geography"]
    for name in ("validation", "anchor"):
        public[name] = {"path": public[name], "columns": MAP}
    public["validation"] = {"own": public["validation"]}
    heldout = {"path": "public/heldout.jsonl", "columns": MAP, "schema": "prompt_completion"}
    silo = content["silos"][0] | {"columns": MAP}
    content |= {"evaluate": {"heldout": heldout, "arms": ["clues"]}, "silos": [silo]}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.slow
def test_a_run_reads_every_file_as_its_columns_are_mapped(mapped, tmp_path):
    north = mapped.parent / "silos" / "north.jsonl"
    lines = north.read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    for row, label in zip(rows[:2], (True, False), strict=True):
        row["kto_tag"] = label
    lines[:2] = (json.dumps(row) + "\n" for row in rows[:2])
    north.write_text("".join(lines))
    config = load_config(mapped)
    results = run_until(open_run(config, tmp_path / "out", progress=Silent())).results
    assert results
    assert results.arms["clues"].heldout_loss is not None
    private = tmp_path / "out" / "silos" / "north" / "private"
    kept = (private / "kept.jsonl").read_text().splitlines(keepends=True)
    assert kept
    assert set(kept) < set(lines), "kept rows are written as they were read"
    with (private / "decisions.csv").open() as file:
        decisions = list(csv.DictReader(file))
    assert UNWANTED in decisions[1]["reason"]
    resolved = load_config(tmp_path / "out" / "config.resolved.yaml")
    assert resolved.recipe.hash == config.recipe.hash
    assert resolved.silos[0].columns == MAP


def test_how_a_public_file_is_read_is_part_of_the_recipe(mapped):
    with_map = load_config(mapped).recipe
    edit_config(mapped, {"recipe": {"public": {"geography": {"anchor": {"columns": None}}}}})
    assert load_config(mapped).recipe.hash != with_map.hash


def test_check_lists_what_is_not_read_and_what_is_left_out(mapped):
    north = mapped.parent / "silos" / "north.jsonl"
    rows = [json.loads(line) for line in north.read_text().splitlines()]
    rows[0] |= {"kto_tag": False, "source": "web"}
    rows[1] |= {"kto_tag": True, "source": "web", "rejected": "No."}
    north.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = check_run(load_config(mapped), n_shown=0)
    assert found.errors == ()
    file = found.files[0]
    assert file.as_marked == {UNWANTED: 1}
    assert (file.n_pairs, file.n_too_long) == (1, 0)
    assert file.unused["source"] == 2
    assert "damage" not in file.unused, "a column of labels is used"
    notes = "\n".join(found.notes)
    assert f"1 row is left out: {UNWANTED}." in notes
    assert "1 row is a pair: the chosen answer is trained" in notes
    assert "source (2 rows)" in notes
    assert json.loads(json.dumps(found.to_json()))["files"][0]["unused"]["source"] == 2


def test_check_counts_rows_that_train_nothing(mapped):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    silent = [turns[0], turns[1] | {"train": False}]
    rows = [{"messages": turns, "damage": ""}] * 4 + [{"messages": silent, "damage": ""}]
    north = mapped.parent / "silos" / "north.jsonl"
    north.write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = yaml.safe_load(mapped.read_text())
    del content["silos"][0]["columns"]
    mapped.write_text(yaml.safe_dump(content))
    found = check_run(load_config(mapped), n_shown=0)
    assert found.files[0].as_marked == {UNTRAINED: 1}


def test_check_writes_every_bad_row_to_a_private_file(mapped, tmp_path, capsys):
    north = mapped.parent / "silos" / "north.jsonl"
    bad = json.dumps({"frage": MARKER, "antwort": "", "damage": ""}) + "\n"
    north.write_text(bad * 9 + "{" + MARKER + "\n" + north.read_text())
    out = tmp_path / "bad.csv"
    code, _ = fails(capsys, "check", mapped, "--rows", "0", "--bad-rows", out)
    assert code == 3
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["place"] for row in rows} == {f"line {n}" for n in range(1, 11)}
    assert {row["rows of"] for row in rows} == {"silo north"}
    reasons = {row["reason"] for row in rows}
    assert reasons == {"completion (column antwort) is empty", "not valid JSON (character 2)"}
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert MARKER not in out.read_text()


def test_init_maps_the_files_that_have_the_columns(home, capsys):
    renamed(home / "rows.jsonl")
    renamed(home / "test.jsonl")
    rest = ("--public", "checked.jsonl", "--heldout", "test.jsonl")
    text = "prompt=frage,completion=antwort"
    assert call("init", "--silo", "rows.jsonl", *rest, "--map", text)[0] == 0
    config = load_config("clues.yaml")
    assert config.silos[0].columns == MAP
    assert config.evaluate.heldout
    assert config.evaluate.heldout.columns == MAP
    assert config.recipe.public["general"].anchor.columns is None


def test_init_splits_mapped_public_rows(home):
    renamed(write(home / "own.jsonl", 13, "own"))
    arguments = ("--silo", "rows.jsonl", "--public", "own.jsonl")
    assert call("init", *arguments, "--map", "prompt=frage,completion=antwort")[0] == 0
    public = load_config("clues.yaml").recipe.public["general"]
    assert [f.columns for f in (public.anchor, *public.validation.values())] == [MAP, MAP]


def test_a_split_of_a_folder_is_found_from_the_configuration(home, monkeypatch):
    (home / "hub" / "data").mkdir(parents=True)
    for split in ("train", "test"):
        renamed(write(home / "hub" / "data" / f"{split}-0.jsonl", 6, split))
    rest = ("--public", "checked.jsonl", "--map", "prompt=frage,completion=antwort")
    assert call("init", "sub/clues.yaml", "--silo", "hub:train", *rest)[0] == 0
    monkeypatch.chdir(home / "sub")
    (silo,) = load_config("clues.yaml").silos
    assert (silo.name, silo.columns) == ("hub-train", MAP)
    rows = read_rows(silo.data, columns=silo.read_columns)
    assert rows.samples[0].messages[0].content == "train 0?"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("promt=frage", "--map: 'promt' is no part of a row. Did you mean 'prompt'?"),
        ("prompt=gone", "--map: no file has all the columns gone"),
    ],
)
def test_a_map_that_cannot_be_is_a_usage_error(home, capsys, text, said):
    arguments = ("init", "--silo", "rows.jsonl", "--public", "checked.jsonl", "--map", text)
    code, message = fails(capsys, *arguments)
    assert code == 2
    assert said in message.replace("\n", " ")
    assert not (home / "clues.yaml").exists()
