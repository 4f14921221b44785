import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from test_cli import call, fails

from clues.config import ScoreSettings, ThresholdSettings, load_config, load_shared, load_silo
from clues.errors import CluesError, UsageError
from clues.network.settings import load_coordinator, load_join
from clues.prepare.interview import Flags, answers_of
from clues.prepare.scaffold import write_scaffold


def write(path: Path, n: int, text: str = "row") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"instruction": f"{text} {i}?", "output": f"{text} {i}.", "bad": ""} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A folder with files as a newcomer has them."""
    monkeypatch.chdir(tmp_path)
    for name in ("rows", "b rows", "c,d"):
        write(tmp_path / f"{name}.jsonl", 6, name)
    write(tmp_path / "checked.jsonl", 13, "checked")
    write(tmp_path / "direction.jsonl", 5, "direction")
    write(tmp_path / "test.jsonl", 5, "test")
    return tmp_path


def test_one_silo_and_one_file_of_checked_rows_are_enough(home, capsys) -> None:
    assert call("init", "--silo", "rows.jsonl", "--public", "checked.jsonl")[0] == 0
    assert "Next: clues check clues.yaml" in capsys.readouterr().out
    config = load_config("clues.yaml")
    assert [silo.name for silo in config.silos] == ["rows"]
    assert config.evaluate.arms == (), "one silo alone trains no joint model"
    defaults = (ScoreSettings(), ThresholdSettings())
    assert (config.recipe.score, config.recipe.threshold) == defaults, "no second set of defaults"
    halves = [set(p.read_text().splitlines()) for p in sorted(home.glob("public/*"))]
    assert [len(half) for half in halves] == [7, 6]
    assert halves[0] | halves[1] == set((home / "checked.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    ("n_rows", "rounds", "local_steps"), [(6, 2, 1), (40, 8, 1), (400, 20, 4), (5000, 20, 10)]
)
def test_few_rows_are_not_learnt_by_heart(home, n_rows, rounds, local_steps) -> None:
    write(home / "large.jsonl", n_rows, "large")
    silos = ("--silo", "a=rows.jsonl", "--silo", "b=large.jsonl")
    assert call("init", *silos, "--public", "checked.jsonl")[0] == 0
    combine = load_config("clues.yaml").combine
    assert (combine.rounds, combine.local_steps) == (rounds, local_steps)
    passes = rounds * local_steps * 16 / n_rows
    assert passes <= 6


def test_what_a_reader_sees_is_set_aside_but_not_in_an_experiment(home) -> None:
    assert call("init", "--silo", "rows.jsonl", "--public", "checked.jsonl")[0] == 0
    (silo,) = load_config("clues.yaml").silos
    assert silo.findings.refusal == "set_aside"
    line = ("init", "b/c.yaml", "--silo", "b=rows.jsonl", "--public", "checked.jsonl")
    assert call(*line, "--labels", "bad")[0] == 0
    (silo,) = load_config("b/c.yaml").silos
    assert silo.findings.refusal == "off"


def test_several_domains_files_and_odd_names(home) -> None:
    arguments = ("--silo", "a:heart-en=rows.jsonl", "--silo", "b:law=b rows.jsonl")
    arguments += ("--silo", "c:law=c,d.jsonl", "--public", "heart-en=checked.jsonl")
    arguments += ("--public", "law=direction.jsonl,test.jsonl", "--labels", "bad")
    assert call("init", "sub/my.yaml", *arguments, "--name", "no")[0] == 0
    config = load_config("sub/my.yaml")
    assert config.name == "no", "a name that YAML would read as false"
    found = {s.name: (s.domain, Path(s.data).name) for s in config.silos}
    assert found == {
        "a": ("heart-en", "rows.jsonl"),
        "b": ("law", "b rows.jsonl"),
        "c": ("law", "c,d.jsonl"),
    }
    assert config.recipe.public["law"].anchor.path.name == "test.jsonl"
    assert all(silo.labels == "bad" and silo.share_diagnostics for silo in config.silos)
    assert config.evaluate.arms == ("clues",), "without held-out rows nothing can be compared"


def test_a_model_of_ones_own_and_held_out_rows(home) -> None:
    (home / "base").mkdir()
    (home / "base" / "config.json").write_text("{}")
    silos = ("--silo", "rows.jsonl", "--silo", "b=b rows.jsonl")
    rest = ("--public", "checked.jsonl", "--model", "base", "--heldout", "test.jsonl")
    assert call("init", *silos, *rest)[0] == 0
    config = load_config("clues.yaml")
    assert Path(config.recipe.model.name) == home / "base"
    assert config.recipe.model.dtype == "bfloat16"
    assert config.evaluate.heldout
    assert config.evaluate.heldout.path == home / "test.jsonl"
    assert "mixed" in config.evaluate.arms


def test_separate_machines_get_their_side_alone(home) -> None:
    assert call("init", "--for", "coordinator", "--public", "law=checked.jsonl")[0] == 0
    assert list(load_shared(Path("clues.yaml")).recipe.public) == ["law"]
    assert call("init", "there/x.yaml", "--for", "silo", "--silo", "b:law=b rows.jsonl")[0] == 0
    silo = load_silo(Path("there/b.yaml"))
    assert (silo.name, silo.domain) == ("b", "law")
    assert [p.name for p in (home / "there").iterdir()] == ["b.yaml"]


def test_every_line_switched_off_by_a_comment_is_a_setting_that_exists(home) -> None:
    """Uncomment each `# key: value` and load again: a comment must not teach a wrong key."""
    assert call("init", "--silo", "rows.jsonl", "--public", "checked.jsonl")[0] == 0
    text = Path("rows.yaml").read_text()
    keys = ("# schema:", "# labels:", "# share_diagnostics:", "# privacy:")
    for key in keys:
        assert key in text
        text = text.replace(key, key.removeprefix("# "))
    Path("rows.yaml").write_text(text)
    assert load_silo(Path("rows.yaml")).privacy is not None
    lines = Path("clues.yaml").read_text().splitlines()
    assert sum(line.startswith(("  # score: {", "  # threshold: {")) for line in lines) == 2
    lines = [re.sub("^  # (score|threshold): {", r"  \1: {", line) for line in lines]
    lines = [re.sub("^      # reject: ", "      reject: ", line) for line in lines]
    Path("bad.jsonl").write_text(Path("rows.jsonl").read_text())
    own = [line.replace("  #   ", "  ") for line in lines if line.startswith("  #   ")]
    recipe = yaml.safe_load("\n".join(own))
    assert set(recipe) == {"model", "lora", "tokens", "train"}
    content = yaml.safe_load("\n".join(lines))
    content["recipe"] |= recipe | {"model": {"name": "owner/name", "dtype": "bfloat16"}}
    Path("other.yaml").write_text(yaml.safe_dump(content))
    found = load_config("other.yaml").recipe
    assert found.train.learning_rate == 2.0e-4
    (public,) = found.public.values()
    assert public.reject is not None
    assert public.reject.path.name == "bad.jsonl"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nobody can be asked here. Try: clues init --silo"),
        (("--silo", "rows.jsonl"), "no checked rows are named"),
        (("--silo", "row.jsonl", "--public", "checked.jsonl"), "Did you mean 'rows.jsonl'"),
        (("--silo", "-x=rows.jsonl", "--public", "checked.jsonl"), "cannot be the name of a silo"),
        (
            ("--silo", "rows.jsonl", "--silo", "rows=test.jsonl", "--public", "checked.jsonl"),
            "two silos are called rows",
        ),
        (
            ("--silo", "a:lwa=rows.jsonl", "--public", "law=checked.jsonl"),
            "no public rows. Did you mean law?",
        ),
        (
            ("--silo", "a=rows.jsonl", "--public", "x=checked.jsonl", "--public", "y=test.jsonl"),
            "--silo NAME:DOMAIN=FILE",
        ),
        (("--silo", "rows.jsonl", "--public", "rows.jsonl"), "They must share no row"),
        (
            ("--silo", "rows.jsonl", "--public", "test.jsonl", "--heldout", "test.jsonl"),
            "They must share no row",
        ),
        (("--silo", "rows.jsonl", "--public", "test.jsonl"), "10 are needed to split it"),
        (
            ("--silo", "rows.jsonl", "--public", "checked.jsonl", "--labels", "dirt"),
            "no column dirt",
        ),
        (
            ("--silo", "rows.jsonl", "--public", "checked.jsonl", "--model", "bse"),
            "no model there",
        ),
        (
            ("--silo", "rows.jsonl", "--public", "checked.jsonl", "--heldout", "tset.jsonl"),
            "tset.jsonl: there is no such file",
        ),
        (("--for", "silo", "--silo", "rows.jsonl"), "--silo NAME:DOMAIN=FILE"),
        (
            ("--for", "coordinator", "--silo", "rows.jsonl", "--public", "checked.jsonl"),
            "each keeps its own file",
        ),
    ],
)
def test_what_cannot_be_used_is_said_and_nothing_is_written(home, capsys, arguments, said) -> None:
    before = sorted(home.rglob("*"))
    code, message = fails(capsys, "init", *arguments)
    assert code in (2, 3)
    assert said in " ".join(message.split())
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize("there", ["clues.yaml", "rows.yaml", "public/general.anchor.jsonl"])
def test_nothing_is_overwritten(home, capsys, there) -> None:
    (home / "public").mkdir()
    (home / there).write_text("mine")
    before = sorted(home.rglob("*"))
    code, message = fails(capsys, "init", "--silo", "rows.jsonl", "--public", "checked.jsonl")
    assert code == 2
    assert there in message
    assert (home / there).read_text() == "mine"
    assert sorted(home.rglob("*")) == before


def test_a_bad_row_is_named_and_not_shown(home, capsys) -> None:
    bad = '{"instruction": "SECRET-41", "output": ""}\n'
    (home / "rows.jsonl").write_text(f"{bad}{bad}")
    code, message = fails(capsys, "init", "--silo", "rows.jsonl", "--public", "checked.jsonl")
    assert code == 3
    assert "line 1" in message
    assert "SECRET-41" not in message


def scripted(answers: list[str]):
    """Somebody who answers in turn, and tries the next answer where one is refused."""
    refused: list[str] = []

    def ask(question, read, *, default=""):
        while True:
            text = answers.pop(0) or default
            try:
                return read(text)
            except CluesError as error:
                refused.append(str(error))

    return ask, refused


def test_a_person_is_asked_until_the_answers_fit(home) -> None:
    said = ["", "nothing.jsonl", "rows.jsonl", "hospital-a", "heart"]
    said += ["b rows.jsonl", "hospital-a", "hospital-b", "", ""]
    said += ["checked.jsonl", "", "no-model", ""]
    ask, refused = scripted(said)
    flags = Flags(Path("clues.yaml"), "all", "run", (), (), None, None, None)
    write_scaffold(answers_of(flags, ask))
    assert not said
    config = load_config("clues.yaml")
    assert [(s.name, s.domain) for s in config.silos] == [
        ("hospital-a", "heart"),
        ("hospital-b", "heart"),
    ]
    whys = ("an empty name", "nothing.jsonl", "is called hospital-a already", "no model there")
    assert [why in text for why, text in zip(whys, refused, strict=True)] == [True] * 4


def test_a_person_who_gave_flags_is_asked_for_what_is_missing_only(home) -> None:
    said = ["checked.jsonl"]
    ask, _ = scripted(said)
    flags = Flags(Path("clues.yaml"), "all", "run", ("a=rows.jsonl",), (), None, None, None)
    assert answers_of(flags, ask).public[0].anchor is None
    assert not said


def test_the_terminal_asks_again_and_says_why(home, monkeypatch, capsys) -> None:
    given = iter(["row.jsonl", "rows.jsonl", "", "", "", "checked.jsonl", "", ""])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: next(given))
    assert call("init")[0] == 0
    assert "there is no such file. Did you mean 'rows.jsonl'" in capsys.readouterr().out
    assert load_config("clues.yaml").silos[0].name == "rows"


def test_an_unknown_side_is_a_usage_error(home, capsys) -> None:
    code, message = fails(capsys, "init", "--for", "nobody")
    assert code == 2
    assert "nobody" in message
    with pytest.raises(UsageError):
        answers_of(Flags(Path("x"), "silo", None, ("rows.jsonl",), (), None, None, None), None)


def test_nobody_is_asked_for_ever_for_rows_that_there_are_not(home) -> None:
    ask, refused = scripted(["rows.jsonl", "", "", "", ""])
    flags = Flags(home / "clues.yaml", "all", None, (), (), None, None, None)
    with pytest.raises(UsageError, match=r"clues sample .* writes a page"):
        answers_of(flags, ask)
    assert refused == []


def test_the_length_of_rows_is_what_the_model_reads(home, tiny_model_folder) -> None:
    line = ("--silo", "rows.jsonl", "--public", "checked.jsonl", "--model", str(tiny_model_folder))
    assert call("init", *line)[0] == 0
    assert load_config(home / "clues.yaml").recipe.tokens.max_length == 256


def test_both_sides_of_a_federation_are_written_and_can_be_read(home, capsys) -> None:
    where = ("--address", "coordinator.example.org:8443")
    names = ("--silo", "north", "--silo", "no")
    line = ("init", "c/clues.yaml", "--for", "coordinator", *where, *names)
    assert call(*line, "--public", "law=checked.jsonl")[0] == 0
    assert "Next: the keys, as c/coord.yaml says" in capsys.readouterr().out
    for name in ("north", "no"):
        assert call("keys", "node", name, "--out", f"at-{name}/keys")[0] == 0
    assert call("keys", "ca", "--out", "c/keys")[0] == 0
    assert call("keys", "server", "coordinator.example.org", "--out", "c/keys")[0] == 0
    with pytest.raises(CluesError, match=r"north\.pub"):
        load_coordinator(Path("c/coord.yaml"))
    for name in ("north", "no"):
        shutil.copy(f"at-{name}/keys/{name}.pub", "c/keys")
        silo = ("--silo", f"{name}:law=rows.jsonl")
        assert call("init", f"at-{name}/x.yaml", "--for", "silo", *where, *silo)[0] == 0
        shutil.copy("c/keys/ca.crt", f"at-{name}/keys")
    found = load_coordinator(Path("c/coord.yaml"))
    assert list(found.keys) == ["north", "no"], "a name that YAML would read as false"
    assert found.settings.public == "coordinator.example.org:8443"
    assert found.run.name == "c"
    joined = load_join(Path("at-no/join.yaml"))
    assert (joined.silo.name, joined.coordinator) == ("no", found.settings.public)
    assert joined.folder == home / "at-no/no"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--silo", "rows.jsonl"), "goes with --for coordinator or --for silo"),
        (("--for", "coordinator"), "name everybody who will connect"),
        (("--for", "coordinator", "--silo", "a", "--silo", "a"), "two silos are called a"),
        (("--for", "coordinator", "--silo", "a=rows.jsonl"), "a=rows.jsonl"),
        (
            ("--for", "silo", "--silo", "a:law=rows.jsonl", "--silo", "b:law=c,d.jsonl"),
            "goes with one silo",
        ),
    ],
)
def test_an_address_goes_with_machines_apart(home, capsys, arguments, said) -> None:
    public = () if "silo" in arguments else ("--public", "law=checked.jsonl")
    line = ("init", "x/clues.yaml", *arguments, *public)
    code, text = fails(capsys, *line, "--address", "host:443")
    assert code == 2
    assert said in text
    assert not Path("x").exists()


def test_an_address_needs_its_port(home, capsys) -> None:
    line = ("init", "--for", "silo", "--silo", "a:law=rows.jsonl", "--address", "host")
    assert "must look like host:443" in fails(capsys, *line)[1]
    assert not Path("a.yaml").exists()
