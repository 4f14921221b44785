import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clues.cli import program as cli
from clues.prepare.demo import SILOS, Sizes, write_demo


@pytest.fixture
def inputs(small_built_in, tmp_path: Path) -> Path:
    small = Sizes(private=24, validation=8, anchor=10, heldout=6)
    return write_demo(tmp_path / "input", seed=0, sizes=small)


def edit(path: Path, change) -> Path:
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def call(*arguments: str | Path) -> tuple[int, str]:
    """Run a verb as a user does, in this process, and return exit code and stderr."""
    code = 0
    old = sys.argv
    sys.argv = ["clues", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = old
    return code, ""


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    code, _ = call(*arguments)
    return code, capsys.readouterr().err


@pytest.mark.slow
def test_help_names_every_verb_and_needs_no_torch() -> None:
    text = "import sys, clues.cli.verbs; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False", "the command line must answer before torch is loaded"
    done = subprocess.run(
        [sys.executable, "-m", "clues.cli", "--help"], capture_output=True, text=True, check=True
    )
    verbs = "demo init run check train score threshold select merge evaluate judge report ledger approve"
    assert all(verb in done.stdout for verb in verbs.split())
    groups = ("Whole runs", "One stage", "Audit")
    places = [done.stdout.index(group) for group in groups]
    assert places == sorted(places), "a newcomer's verbs must come first"


@pytest.mark.slow
def test_the_shell_completes_verbs_and_options() -> None:
    def completed(words: str) -> list[str]:
        n = str(len(words.split()) - 1)
        environment = {**os.environ, "COMP_WORDS": words, "COMP_CWORD": n}
        environment["_CLUES_COMPLETE"] = "complete_bash"
        code = "from clues.cli.program import app; app(prog_name='clues')"
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        return done.stdout.split()

    assert completed("clues se") == ["select", "serve"]
    assert completed("clues select --dr") == ["--dry-run"]


def test_an_unknown_key_comes_with_a_suggestion(inputs, capsys) -> None:
    edit(inputs, lambda c: c["recipe"]["lora"].update(rnak=3))
    code, message = fails(capsys, "check", inputs)
    assert code == 2
    assert "unknown key recipe.lora.rnak. Did you mean 'rank'?" in message


def test_a_missing_config_is_named(tmp_path, capsys) -> None:
    code, message = fails(capsys, "run", tmp_path / "nothing.yaml")
    assert code == 2
    assert "nothing.yaml" in message


def test_a_folder_is_no_configuration_and_what_lies_in_it_is_named(inputs, capsys) -> None:
    code, message = fails(capsys, "check", inputs.parent)
    assert code == 2
    assert "this is a folder" in message
    assert "clues.yaml" in message


def test_a_data_file_is_no_configuration_and_shows_no_row(inputs, capsys) -> None:
    path = inputs.parent / "silos" / "harbor-bank.jsonl"
    path.write_text('{"instruction": "SECRET-41"}\n' * 2)
    code, message = fails(capsys, "run", path)
    assert code == 2
    assert "data file" in message
    assert "SECRET-41" not in message


def test_yaml_that_is_broken_names_its_line(tmp_path, capsys) -> None:
    path = tmp_path / "clues.yaml"
    path.write_text("recipe:\n  seed: [1\nsilos: 3\n")
    code, message = fails(capsys, "run", path)
    assert code == 2
    assert "line 3" in message


def test_a_silo_whose_domain_has_no_public_set_is_refused(inputs, capsys) -> None:
    edit(inputs, lambda c: c["silos"][0].update(domain="law-en"))
    code, message = fails(capsys, "run", inputs)
    assert code == 2
    assert "law-en" in message
    assert "no public set" in message
    assert "finance-en" in message, "the domains that exist must be listed"


def test_a_missing_public_file_is_named(inputs, capsys) -> None:
    (inputs.parent / "public" / "finance-en.anchor.jsonl").unlink()
    code, message = fails(capsys, "run", inputs)
    assert code == 2
    assert "finance-en.anchor.jsonl" in message


def test_a_model_folder_without_weights_is_refused(inputs, tmp_path, capsys) -> None:
    folder = tmp_path / "input" / "empty-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    edit(inputs, lambda c: c["recipe"].update(model={"name": "empty-model"}))
    code, message = fails(capsys, "train", inputs, "--out", tmp_path / "run", "-q")
    assert code == 3
    assert "no model.safetensors" in message


@pytest.mark.slow
def test_fewer_than_five_anchors_stop_the_run(inputs, tmp_path, capsys) -> None:
    path = inputs.parent / "public" / "finance-en.anchor.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    edit(inputs, lambda c: c["recipe"]["train"].update(steps=1, rounds=1, checkpoints=1))
    code, message = fails(capsys, "threshold", inputs, "--out", tmp_path / "run", "-q")
    assert code == 3
    assert "4 anchor rows" in message


def test_a_silo_without_rows_is_refused(inputs, tmp_path, capsys) -> None:
    (inputs.parent / "silos" / "harbor-bank.jsonl").write_text("")
    code, message = fails(capsys, "train", inputs, "--out", tmp_path / "run", "-q")
    assert code == 3
    assert "harbor-bank.jsonl" in message


def test_a_bad_row_is_named_and_not_shown(inputs, tmp_path, capsys) -> None:
    path = inputs.parent / "silos" / "harbor-bank.jsonl"
    path.write_text(path.read_text() + '{"instruction": "SECRET-41", "output": ""}\n')
    edit(inputs, lambda c: c["silos"][2].update(strict=True))
    code, message = fails(capsys, "train", inputs, "--out", tmp_path / "run", "-q")
    assert code == 3
    assert "line 25" in message
    assert "SECRET-41" not in message


@pytest.mark.slow
def test_columns_that_are_nearly_a_schema_come_with_the_mapping(inputs, capsys) -> None:
    path = inputs.parent / "silos" / "harbor-bank.jsonl"
    path.write_text(path.read_text().replace('"instruction"', '"Instructon"'))
    code, _ = call("check", inputs, "--rows", "0")
    assert code == 3
    assert "Is it columns: {instruction: Instructon}?" in capsys.readouterr().out


@pytest.mark.slow
def test_a_labels_column_that_is_missing_is_found_before_any_training(
    inputs, tmp_path, capsys
) -> None:
    edit(inputs, lambda c: c["silos"][2].update(labels="dirt"))
    code, _ = call("check", inputs, "--rows", "0")
    assert code == 3
    assert "silo harbor-bank, labels:" in capsys.readouterr().out
    code, message = fails(capsys, "run", inputs, "--out", tmp_path / "run", "-q")
    assert code == 3
    assert "no column dirt" in message
    assert not list(tmp_path.glob("run/coordinator/stages/train.json"))


@pytest.mark.slow
def test_check_says_what_few_anchors_can_promise(inputs, capsys) -> None:
    assert call("check", inputs, "--json")[0] == 0
    warnings = "\n".join(json.loads(capsys.readouterr().out)["warnings"])
    # 1 - 0.95^10
    assert (
        "10 rows are short enough to be used, and they keep 95% of the clean rows with" in warnings
    )
    assert "probability 40% only. It takes 59 for 95%" in warnings


@pytest.mark.slow
def test_check_counts_the_anchors_that_are_short_enough(inputs, capsys) -> None:
    anchors = inputs.parent / "public" / "finance-en.anchor.jsonl"
    rows = [json.loads(line) for line in anchors.read_text().splitlines()]
    many = [{**rows[i % 10], "instruction": f"Number {i}?"} for i in range(70)]
    for row in many[:20]:
        row["output"] = "So it goes. " * 200
    anchors.write_text("".join(json.dumps(row) + "\n" for row in many))
    assert call("check", inputs)[0] == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: finance-en anchors: 50 of 70 rows are short enough to be used" in said
    assert "with probability 92% only" in said


@pytest.mark.slow
def test_check_counts_what_a_reader_sees_and_what_cannot_be_used(inputs, capsys) -> None:
    path = inputs.parent / "silos" / "harbor-bank.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[0])
    refused = {**row, "output": "I'm sorry, but I cannot help with that."}
    path.write_text("\n".join([*lines, json.dumps(refused), json.dumps({**row, "output": ""})]))
    assert call("check", inputs, "--json")[0] == 0
    told = json.loads(capsys.readouterr().out)
    (bank,) = (file for file in told["files"] if file["name"] == "silo harbor-bank")
    assert bank["findings"]["the answer refuses, as an assistant does"] == 1
    assert bank["n_unusable"] == 1
    notes = "\n".join(told["notes"])
    assert "silo harbor-bank: 1 row: the answer refuses" in notes
    assert "1 row cannot be used: no answer, or an empty one, for example" in notes


@pytest.mark.slow
def test_check_says_that_the_model_reads_less_than_the_recipe_allows(inputs, capsys) -> None:
    edit(inputs, lambda c: c["recipe"].update(tokens={"max_length": 4096}))
    assert call("check", inputs, "--json")[0] == 0
    notes = "\n".join(json.loads(capsys.readouterr().out)["notes"])
    assert "max_length is 4096, and the base model reads 512 tokens at once: 512 counts" in notes


@pytest.mark.slow
def test_check_says_when_one_anchor_is_the_threshold(inputs, capsys) -> None:
    anchors = inputs.parent / "public" / "finance-en.anchor.jsonl"
    rows = [json.loads(line) for line in anchors.read_text().splitlines()]
    for n, said in ((60, True), (93, False)):
        many = [{**rows[i % len(rows)], "instruction": f"Number {i}?"} for i in range(n)]
        anchors.write_text("".join(json.dumps(row) + "\n" for row in many))
        assert call("check", inputs, "--json")[0] == 0
        notes = "\n".join(json.loads(capsys.readouterr().out)["notes"])
        text = "lowest of 60 anchor scores: one odd anchor moves it"
        assert (text in notes) is said
        assert ("With 93 rows it is the second lowest, with 181 the fifth" in notes) is said


@pytest.mark.slow
def test_check_reports_overlap_of_anchors_with_the_held_out_set(inputs, capsys) -> None:
    heldout = inputs.parent / "public" / "heldout.jsonl"
    anchors = inputs.parent / "public" / "finance-en.anchor.jsonl"
    line = anchors.read_text().splitlines(keepends=True)[0]
    row = {**json.loads(line), "choices": None, "answer": None}
    del row["choices"], row["answer"]
    rows = [json.loads(text) for text in heldout.read_text().splitlines()]
    plain = [{k: r[k] for k in ("instruction", "output")} for r in rows]
    heldout.write_text("".join(json.dumps(r) + "\n" for r in [*plain, row]))
    code, _ = call("check", inputs, "--rows", "1")
    text = " ".join(capsys.readouterr().out.split())
    assert code == 3
    assert "finance-en anchors and held-out share 1 row" in text


@pytest.mark.slow
def test_check_shows_masks_and_an_estimate_and_json_shows_no_row(inputs, capsys) -> None:
    assert call("check", inputs, "--rows", "1")[0] == 0
    text = capsys.readouterr().out
    assert "### Response:" in text
    assert "minute" in text
    assert call("check", inputs, "--json")[0] == 0
    found = json.loads(capsys.readouterr().out)
    assert {f["n_rows"] for f in found["files"]} == {24, 8, 10, 30}
    assert "shown" not in found
    assert "###" not in json.dumps(found)


def test_a_threshold_of_one_silo_needs_a_dry_run(inputs, capsys) -> None:
    code, message = fails(capsys, "select", inputs, "--threshold", "0.5")
    assert code == 2
    assert "--dry-run" in message


@pytest.mark.walk
def test_stages_run_one_by_one_and_the_dry_run_writes_nothing(inputs, tmp_path, capsys) -> None:
    edit(inputs, lambda c: c["recipe"]["train"].update(steps=2, rounds=2, checkpoints=2))
    edit(inputs, lambda c: c["combine"].update(rounds=1, local_steps=1))
    root = tmp_path / "run"
    assert call("train", inputs, "--out", root, "-q", "--json")[0] == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(root)}
    assert call("score", inputs, "--out", root, "-q", "--json")[0] == 0
    places = json.loads(capsys.readouterr().out)
    assert all(Path(place).is_file() for place in places.values())
    assert call("threshold", inputs, "--out", root, "-q", "--json")[0] == 0
    capsys.readouterr()
    what_if = ("select", inputs, "--out", root, "-q", "--dry-run", "--json")
    assert call(*what_if, "--threshold", "-100")[0] == 0
    counts = json.loads(capsys.readouterr().out)
    assert set(counts) == {silo.name for silo in SILOS}
    assert all(c["kept"] == c["rows"] == 24 for c in counts.values())
    assert all(c["kept_now"] + c["more"] == 24 and c["fewer"] == 0 for c in counts.values())
    assert call(*what_if[:-1], "--threshold", "99")[0] == 0
    text = capsys.readouterr().out
    assert "Threshold in force: -1 (anchor_tolerance). Tried: 99." in text
    kept = counts["harbor-bank"]["kept_now"]
    said = f"harbor-bank: {kept} of 24 kept ({kept / 24:.0%}); would be 0 (0%): 0 rows more, {kept}"
    assert f"{said} fewer" in text
    assert not list(root.glob("silos/*/private/kept*")), "a dry run must not write a selection"
    capsys.readouterr()
    assert call("merge", inputs, "--out", root, "-q", "--allow-degenerate", "--json")[0] == 0
    adapter = Path(json.loads(capsys.readouterr().out)["adapter"])
    assert (adapter / "adapter_model.safetensors").exists()
    assert call("ledger", root, "--verify")[0] == 0
    assert "the chain holds" in capsys.readouterr().out
    assert call("ledger", root, "--verify", "--json")[0] == 0
    n_messages = json.loads(capsys.readouterr().out)["messages"]
    assert call("ledger", root, "--messages", "--json")[0] == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["n"] for entry in entries] == list(range(n_messages))
    assert call("ledger", root, "--messages")[0] == 0
    assert entries[-1]["sha256"] in capsys.readouterr().out
    ledger = root / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"train"', '"score"', 1))
    code, message = fails(capsys, "ledger", root, "--verify")
    assert code == 5
    assert "line" in message


def test_demo_splits_share_no_row_and_test_no_fact_of_the_public_sets(tmp_path) -> None:
    path = write_demo(tmp_path, seed=3)
    texts = {
        p.name: {json.loads(line)["instruction"] for line in p.read_text().splitlines()}
        for p in path.parent.rglob("*.jsonl")
    }
    for silo in SILOS:
        sets = [
            texts[f"{silo.name}.jsonl"],
            texts[f"{silo.public}.validation.jsonl"],
            texts[f"{silo.public}.anchor.jsonl"],
            texts["heldout.jsonl"],
        ]
        union = set().union(*sets)
        # Geography and medicine ask different questions in every language.
        assert len(union) == sum(map(len, sets)), silo.name


@pytest.mark.parametrize(("found", "typed"), [("/bin/clues", "clues"), (None, "python -m clues")])
def test_commands_that_are_shown_can_be_typed_where_clues_is_run_as_a_module(
    monkeypatch, tmp_path, found, typed
):
    from clues.cli.opening import program

    monkeypatch.setattr(sys, "argv", [str(tmp_path / "src/clues/__main__.py"), "init"])
    monkeypatch.setattr("clues.cli.opening.shutil.which", lambda name: found)
    assert program() == typed
