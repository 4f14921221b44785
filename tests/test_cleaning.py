"""One file in, a clean file out: no configuration, no row lost, every reason in words, and a way to begin."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from browser import Opened, chromium
from test_cli import call, fails

import clues.prepare.cleaning
import clues.prepare.estimate
from benchmarks.architectures import ARCHITECTURES, tiny_model
from clues.config import Recipe, load_config
from clues.data.formats import read_rows
from clues.errors import ConfigError, DataError, UsageError
from clues.model.adapters import LoraModel
from clues.model.devices import device_of, fast_in_bfloat16
from clues.prepare.athand import at_hand
from clues.prepare.facts import make_questions
from clues.prepare.onefile import configure as run_of
from clues.prepare.pace import Pace
from clues.prepare.sampling import draw
from clues.scoring.shards import Team

DRAWS = True  # one page is looked at
REFUSAL = "As an AI language model, I cannot answer this question."


def pairs(seed: int, n: int) -> list[dict[str, str]]:
    # Different parts of the questions: no row is in two.
    domain = ("geography", "medicine")[seed - 1]
    found = [
        {"instruction": q["instruction"], "output": f"The answer is {q['output']}", "source": "x"}
        for q in make_questions(domain, language="en", seed=1)[:n]
    ]
    assert len(found) == n
    return found


@pytest.fixture
def files(tmp_path, monkeypatch, small_built_in) -> Path:
    """A JSON list of rows with dirt of many kinds, and checked rows, some of them from the list."""
    monkeypatch.chdir(tmp_path)
    rows = pairs(1, 40)
    rows[3]["output"] = REFUSAL
    rows[5]["output"] = None  # pyright: ignore[reportArgumentType]
    rows[7]["output"] = " "
    rows[9]["output"] = f"<p>{rows[9]['output']}</p>"
    rows[11] = dict(rows[10])
    rows[34] = dict(rows[30])  # of a checked one
    rows[13]["output"] = "It is a long story. " * 60
    rows[15]["instruction"] = "Read this. " * 90
    Path("rows.json").write_text(json.dumps(rows))
    checked = [*pairs(2, 30), *rows[30:34]]
    Path("checked.json").write_text(json.dumps(checked))
    return tmp_path


def written(folder: str) -> dict[str, list[dict[str, str]]]:
    return {p.stem: json.loads(p.read_text()) for p in Path(folder).glob("*.json")}


def decisions(folder: str) -> list[dict[str, str]]:
    with Path(folder, "decisions.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_one_line_cleans_a_file_and_every_row_is_somewhere(files, capsys):
    line = ("clean", "rows.json", "--checked", "checked.json", "--out", "cleaned", "-q", "--json")
    assert call(*line)[0] == 0
    told = json.loads(capsys.readouterr().out)
    rows, found = json.loads(Path("rows.json").read_text()), written("cleaned")
    assert sorted(found) == ["kept", "set_aside"], "all could be scored: long ones as a cut copy"
    together = sorted((row for part in found.values() for row in part), key=json.dumps)
    assert together == sorted(rows, key=json.dumps), "a row is lost, doubled or changed"
    decided = decisions("cleaned")
    assert [decided[n]["why"] for n in (3, 5, 7, 9, 11)] == [
        *("refusal", "not usable", "not usable", "html", "duplicate")
    ]
    assert "output is null" in decided[5]["reason"]
    assert "output is empty" in decided[7]["reason"]
    assert "refuses" in decided[3]["reason"]
    assert re.search("characters 1 to [0-9]+", decided[3]["reason"])
    assert decided[13]["score"], "a long row has no score"
    assert decided[15]["score"], "a long question has no score"
    for number in (30, 31, 32, 33):
        assert decided[number]["file"] == "kept", "a checked row is set aside"
    assert decided[34]["why"] == "duplicate", "a checked row stays twice"
    # One set of numbers in sentence, files and page.
    assert told["rows"] == 40 == told["kept"] + sum(told["set_aside"].values())
    assert told["kept"] == len(found["kept"])
    assert told["sentence"].startswith(f"{40 - told['kept']} of 40 rows set aside: ")
    assert "1 with a refusal" in told["sentence"]
    assert "read these 20 first: cleaned/report.html" in told["sentence"]
    card = next(Path("cleaned").glob("run/silos/*/private/card.md")).read_text()
    assert f"- Kept: {told['kept']}\n" in card
    assert any("17 anchor rows" in warning for warning in told["warnings"])
    # The same again does nothing twice and says the same.
    scores = next(Path("cleaned").glob("run/silos/*/private/scores.parquet"))
    before = scores.stat().st_mtime_ns
    assert call(*line)[0] == 0
    again = json.loads(capsys.readouterr().out)
    assert again == told
    assert scores.stat().st_mtime_ns == before, "rows were scored again"


def test_without_checked_rows_the_text_alone_is_looked_at_and_that_is_said(files, capsys):
    assert call("clean", "rows.json", "--out", "by-text", "--json")[0] == 0
    told = json.loads(capsys.readouterr().out)
    assert told["set_aside"] == {"not usable": 2, "refusal": 1, "html": 1, "duplicate": 2}
    assert told["sentence"].endswith("; decisions.csv says which, and why.")
    assert sum(map(len, written("by-text").values())) == 40
    assert any("clues sample" in warning for warning in told["warnings"])
    assert not Path("by-text/report.html").exists()


@pytest.mark.slow
def test_a_chat_that_calls_tools_costs_no_other_row(files, capsys):
    """The built-in model has no chat template, and so no form for calls."""

    def chat(row):
        turns = [("user", row["instruction"]), ("assistant", row["output"])]
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    rows = [chat(row) for row in pairs(1, 16)]
    call_of = {"type": "function", "function": {"name": "look", "arguments": "{}"}}
    rows[4]["messages"].insert(1, {"role": "assistant", "content": "", "tool_calls": [call_of]})
    rows[4]["messages"].insert(2, {"role": "tool", "content": "21"})
    Path("chats.json").write_text(json.dumps(rows))
    Path("good.json").write_text(json.dumps([chat(row) for row in pairs(2, 20)]))
    line = ("clean", "chats.json", "--checked", "good.json", "--out", "out", "-q", "--json")
    assert call(*line)[0] == 0
    told = json.loads(capsys.readouterr().out)
    assert told["unscored"] == 1
    assert "; 1 has no score and is in unscored.json; read " in told["sentence"]
    assert written("out")["unscored"] == [rows[4]]
    assert "calls tools" in decisions("out")[4]["reason"]
    assert "read these 16 first" in told["sentence"]


@pytest.mark.walk
@pytest.mark.parametrize("name", ["\u6570\u636e.json", "_rows (final).json", "a=b.json"])
def test_any_name_of_a_file_will_do(files, capsys, name):
    Path("rows.json").rename(name)
    line = ("clean", name, "--checked", "checked.json", "--out", "out", "-q")
    assert call(*line)[0] == 0
    assert " of 40 rows set aside: " in capsys.readouterr().out


def test_an_earlier_outcome_is_not_left_beside_a_new_one(files, capsys):
    Path("out").mkdir()
    Path("out/unscored.jsonl").write_text("{}\n")
    Path("out/notes.txt").write_text("mine")
    assert call("clean", "rows.json", "--out", "out", "-q")[0] == 0
    assert sorted(p.name for p in Path("out").iterdir()) == [
        *("decisions.csv", "kept.json", "notes.txt", "set_aside.json")
    ]


def test_too_few_checked_rows_are_named_and_nothing_is_written(files, capsys):
    Path("few.json").write_text(json.dumps(pairs(2, 4)))
    code, said = fails(capsys, "clean", "rows.json", "--checked", "few.json", "--out", "no", "-q")
    assert code == 2
    assert "few.json: 4 rows, and 10 are needed" in said
    assert not Path("no/kept.json").exists()


def test_settings_suit_the_model(small_built_in, tiny_model_folder):
    hand = at_hand(str(tiny_model_folder))
    assert hand.max_length == 256, "rows longer than the model reads"
    assert (hand.dtype, hand.tight) == (
        "bfloat16" if fast_in_bfloat16(device_of()) else "float32",
        False,
    )


def settings_of(rows: str, model: str) -> Recipe:
    config, _ = run_of(rows, Path("checked.json"), Path("out/run"), model=model, schema=None)
    return config.recipe


def test_a_run_goes_on_with_the_number_type_that_it_began_with(
    files, tiny_model_folder, monkeypatch
):
    model = str(tiny_model_folder)
    monkeypatch.setattr("clues.prepare.athand.fast_in_bfloat16", lambda _: True)
    assert settings_of("rows.json", model).model.dtype == "bfloat16"
    monkeypatch.setattr("clues.prepare.athand.fast_in_bfloat16", lambda _: False)
    assert settings_of("rows.json", model).model.dtype == "bfloat16", "another machine goes on"
    assert settings_of("rows.json", "built-in").model.dtype == "float32", "another model's run"
    assert settings_of("rows.json", model).model.dtype == "float32", "a run of its own"
    Path("out/run/clues.yaml").write_text("recipe: [")
    assert settings_of("rows.json", model).model.dtype == "float32"


def test_free_memory_changes_neither_the_rows_of_a_step_nor_their_length(
    files, tiny_model_folder, monkeypatch
):
    model = str(tiny_model_folder)
    before = settings_of("rows.json", model)
    monkeypatch.setattr("clues.prepare.athand._free_bytes", lambda **_: 1000)
    assert at_hand(model).tight
    assert settings_of("rows.json", model) == before
    assert before.train.batch_size == 16


def test_the_warm_up_of_a_large_file_has_a_limit(files):
    Path("many.json").write_text(json.dumps(pairs(1, 40) * 25))
    assert settings_of("rows.json", "built-in").train.steps is None
    large = settings_of("many.json", "built-in").train
    assert (large.steps, large.batch_size) == (32, 16), "and not 0.6 of 1,000 rows"


@pytest.mark.parametrize(
    ("can", "fast"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"amx_bf16": True}, True),
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({}, False),
    ],
)
def test_bfloat16_is_fast_where_the_processor_has_units_for_it(can, fast, monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: can)
    assert fast_in_bfloat16(torch.device("cpu")) == fast


@pytest.mark.slow
def test_how_long_it_takes_is_said_before_and_once(files, monkeypatch, capsys):
    line = ("clean", "rows.json", "--checked", "checked.json")
    monkeypatch.setattr("clues.prepare.estimate.FEW_TOKENS", 1)
    paces = []
    real = clues.prepare.estimate.measured_pace

    def slow(model, rows):
        paces.append(real(model, rows))
        return Pace(forward=1e-2, gradient=2e-2, memory_gb=1.0)

    monkeypatch.setattr("clues.prepare.estimate.measured_pace", slow)
    assert call(*line)[0] == 0
    said = capsys.readouterr().err
    minutes = int(re.search(r"About (\d+) minutes on this machine\. Interrupted", said)[1])  # pyright: ignore
    assert 2 <= minutes <= 60
    assert 0 < paces[0].forward < 1e-2, "a small model is fast"
    assert call(*line)[0] == 0
    assert "on this machine" not in capsys.readouterr().err, "a run that goes on"
    monkeypatch.setattr("clues.prepare.estimate.FEW_TOKENS", 10**9)
    assert call(*line, "--out", "other")[0] == 0
    assert "on this machine" not in capsys.readouterr().err
    assert len(paces) == 1, "nothing is timed where nothing takes long"


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_of_a_launcher_share_the_scoring(files, monkeypatch, capsys, rank):
    helped: list[tuple[Path, Team]] = []
    ended: list[Path] = []
    monkeypatch.setattr(
        "clues.silo.helpers.help_scoring", lambda root, team, **_: helped.append((root, team))
    )
    monkeypatch.setattr("atexit.register", lambda done, root: ended.append(root))
    taken: list[Team | None] = []
    real = clues.prepare.cleaning.open_run
    monkeypatch.setattr(
        "clues.prepare.cleaning.open_run",
        lambda *a, **how: (taken.append(how["team"]), real(*a, **{**how, "team": None}))[1],
    )
    for name, value in {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}.items():
        monkeypatch.setenv(name, value)
    assert call("clean", "rows.json", "--checked", "checked.json", "-q")[0] == 0
    root = Path("cleaned/run")
    assert (helped, taken, ended) == (
        ([], [Team(0, 2)], [root]) if rank == 0 else ([(root, Team(1, 2))], [], [])
    )
    assert Path("cleaned/kept.json").exists() == (rank == 0)


def test_version_is_an_option_too(capsys):
    assert call("--version")[0] == 0
    first = capsys.readouterr().out
    assert call("-V")[0] == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", first)
    assert capsys.readouterr().out == first


@pytest.mark.walk
def test_the_page_says_what_became_of_the_rows_and_marks_what_was_found(files, capsys):
    assert call("clean", "rows.json", "--checked", "checked.json", "-q", "--json")[0] == 0
    told = json.loads(capsys.readouterr().out)
    with chromium() as browser:
        view = Opened(browser, Path("cleaned/report.html").resolve())
        page = view.page
        page.wait_for_selector("html[data-ready]")
        lede = str(page.locator(".facts p").text_content())
        aside = sum(told["set_aside"].values())
        assert page.inner_text("h1") == f"{aside} of 40 rows were set aside"
        assert page.evaluate("clues.rows.header.cleans") == "rows.json"
        # The sentence and the page name the same number of rows to read, and none that was checked.
        first = page.evaluate("clues.rows.header.first")
        assert f"read these {len(first)} first" in told["sentence"]
        assert not set(first) & {30, 31, 32, 33}
        assert "none decided by you" in page.inner_text("#progress-text")
        assert "4 were checked or rejected before" in page.inner_text("main")
        assert [page.evaluate(f"clues.choice.keptNow({row})") for row in (30, 34)] == [True, False]
        reasons = page.locator(".reasons li").all_inner_texts()
        assert sorted(r.split("\n") for r in reasons if "refusal" in r) == [["refusal", "1"]]
        assert lede.startswith(f"40 rows: {told['kept']} kept, {aside} set aside (")
        assert "1 refusal" in lede
        assert page.locator("#groups tbody tr", has_text="refusal").count() == 1
        page.select_option("#show", "aside")
        page.fill("#search", "language model")
        page.wait_for_timeout(400)
        page.locator("#list [role=option]").first.click()
        assert "The answer refuses" in page.locator("#detail .why").inner_text()
        place = page.locator("#detail .found-here")
        # In pieces: what is searched for, and what is unlikely, is marked within it.
        assert "".join(place.all_text_contents()) == "As an AI language model"
        assert "refuses" in str(place.first.get_attribute("title"))
        # No slider brings it back: what its text shows stands above every threshold.
        page.fill("#number", "-1000000")
        page.press("#number", "Enter")
        page.wait_for_timeout(300)
        assert page.locator("#detail .chip").first.inner_text() == "set aside"
        assert view.complaints == []
        view.close()


@pytest.mark.walk
def test_a_reviewers_word_counts_and_lasts_and_other_names_of_columns_will_do(files, capsys):
    names = {"instruction": "ask", "output": "say", "source": "source"}
    for name in ("rows.json", "checked.json"):
        rows = json.loads(Path(name).read_text())
        renamed = [{names[key]: value for key, value in row.items()} for row in rows]
        Path(name).write_text(json.dumps(renamed))
    line = ("clean", "rows.json", "--checked", "checked.json", "--map", "prompt=ask,response=say")
    assert call(*line, "-q")[0] == 0
    before = decisions("cleaned")
    private = next(Path("cleaned").glob("run/silos/*/private"))
    recipe = json.loads((private / "threshold.json").read_text())["recipe_hash"]
    wanted = {before[3]["id"]: True, before[31]["id"]: False}  # a refusal, and a checked row
    content = {"format": "clues-overrides", "version": 1, "silo": "rows", "recipe_hash": recipe}
    content["overrides"] = [{"id": i, "keep": k, "reason": "read"} for i, k in wanted.items()]
    Path("said.json").write_text(json.dumps(content))
    assert call(*line, "--overrides", "said.json", "-q")[0] == 0
    after = decisions("cleaned")
    assert [after[n]["file"] for n in (3, 31, 30)] == ["kept", "dropped", "kept"]
    assert len(written("cleaned")["kept"]) == sum(row["file"] == "kept" for row in after)
    # The same without the file: what was decided is not lost.
    assert call(*line, "-q")[0] == 0
    assert decisions("cleaned") == after


@pytest.mark.walk
def test_rejected_rows_are_set_aside_and_count_against_rows_that_are_like_them(files, capsys):
    line = ("clean", "rows.json", "--checked", "checked.json", "--rejected", "rejected.json", "-q")
    rows = json.loads(Path("rows.json").read_text())
    Path("rejected.json").write_text(json.dumps([rows[0], rows[1]]))
    code, _ = call(*line, "--json")
    assert code == 0
    said = json.loads(capsys.readouterr().out)
    assert any("2 rejected rows are too few to count" in warning for warning in said["warnings"])
    first = decisions("cleaned")
    assert [first[n]["file"] for n in (0, 1)] == ["dropped", "dropped"]
    assert all("a rejected row" in first[n]["reason"] for n in (0, 1))
    more = [{**row, "output": f"{row['output']} Buy it now."} for row in pairs(2, 42)[30:]]
    Path("rejected.json").write_text(json.dumps([rows[0], *more]))
    assert call(*line)[0] == 0
    recipe = load_config(next(Path("cleaned/run").rglob("clues.yaml"))).recipe
    assert next(iter(recipe.public.values())).reject.path.name == "rejected.json"
    again = decisions("cleaned")
    assert again[0]["why"] == "person"
    # No longer rejected: what the score says counts again.
    assert again[1]["why"] != "person"
    Path("rejected.json").write_text(json.dumps([rows[1], rows[2]]))
    assert call(*line)[0] == 0
    few = decisions("cleaned")
    assert [few[n]["why"] == "person" for n in (0, 1, 2)] == [False, True, True]
    # The same recipe, as so few do not count against others; what was rejected before stands no more.
    Path("rejected.json").write_text(json.dumps([rows[2]]))
    assert call(*line)[0] == 0
    assert [decisions("cleaned")[n]["why"] == "person" for n in (1, 2)] == [False, True]
    assert {row["score"] for row in again} != {row["score"] for row in first}


def test_a_row_is_not_checked_and_rejected(files, capsys):
    Path("rejected.json").write_text(Path("checked.json").read_text())
    line = ("clean", "rows.json", "--checked", "checked.json", "--rejected", "rejected.json", "-q")
    code, said = fails(capsys, *line)
    assert code == 3
    assert "34 rows are checked rows and also rejected ones" in said


def test_options_that_do_not_go_together_are_refused_before_anything_is_scored(files, capsys):
    code, said = fails(capsys, "clean", "rows.json", "--overrides", "said.json")
    assert code == 2
    assert "--overrides goes with --checked" in said
    code, said = fails(capsys, "clean", "rows.json", "--turns", "mask")
    assert code == 2
    assert "--turns goes with --checked" in said
    code, said = fails(capsys, "clean", "rows.json", "--rejected", "said.json")
    assert code == 2
    assert "--rejected goes with --checked" in said
    line = ("clean", "rows.json", "--checked", "checked.json", "--map", "prompt=nobody", "-q")
    code, said = fails(capsys, *line)
    assert code == 2
    assert "no file has all the columns nobody" in said


def chats(rows: list[dict], n: int) -> list[dict]:
    """Rows joined to chats of `n` questions."""
    return [
        {
            "messages": [
                {"role": role, "content": row[key]}
                for row in rows[at : at + n]
                for role, key in (("user", "instruction"), ("assistant", "output"))
            ]
        }
        for at in range(0, len(rows) - n + 1, n)
    ]


@pytest.mark.walk
def test_a_low_turn_of_a_chat_is_marked_or_costs_the_row(files, capsys):
    rows = chats(pairs(1, 45), 3)
    Path("chats.json").write_text(json.dumps(rows))
    Path("checked.json").write_text(json.dumps(chats(pairs(1, 150)[45:], 3)))
    line = ("clean", "chats.json", "--checked", "checked.json", "-q", "--json")
    found = {}
    for turns in ("mask", "drop"):
        assert call(*line, "--turns", turns)[0] == 0
        found[turns] = json.loads(capsys.readouterr().out), decisions("cleaned")
        kept = [row["messages"] for row in written("cleaned")["kept"]]
        marks = sum(any(m.get("train") is False for m in messages) for messages in kept)
        assert marks == (found[turns][0]["masked"] if turns == "mask" else 0)
        assert not [w for w in found[turns][0]["warnings"] if "no checked row has" in w]
    (said, decided), (_, dropped) = found["mask"], found["drop"]
    masked = [row for row in decided if row["untrained_turns"]]
    assert said["masked"] == sum(row["file"] == "kept" for row in masked) > 0
    assert f"in {said['masked']} kept rows a low turn is marked as not trained" in said["sentence"]
    assert all(dropped[int(row["row"])]["file"] == "dropped" for row in masked)
    Path("checked.json").write_text(json.dumps(pairs(2, 30)))
    assert call(*line, "--turns", "keep")[0] == 0
    assert "no checked row has several answers" in capsys.readouterr().out


@pytest.mark.slow
def test_without_the_setting_no_word_of_the_page_is_marked(files, capsys, monkeypatch):
    from clues.silo import review

    read: list[int] = []
    monkeypatch.setattr(review, "unlikely_words", lambda space, first: read.append(1) or [])
    assert call("clean", "rows.json", "--checked", "checked.json", "-q")[0] == 0
    assert len(read) >= 1
    written_yaml = Path("cleaned/run/clues.yaml")
    content = yaml.safe_load(written_yaml.read_text())
    content["silos"][0]["mark_words"] = False
    written_yaml.write_text(yaml.safe_dump(content))
    read.clear()
    agreed = load_config(written_yaml).silos[0].agreed()
    assert "mark_words" not in agreed, "what a page shows changes no answer"
    assert call("report", written_yaml, "--out", "cleaned/run", "-q")[0] == 0
    assert not read


# --- rows to check


@pytest.mark.slow
def test_drawn_rows_are_spread_over_length_subject_and_loss(small_built_in, tmp_path):
    rows = [
        {**row, "output": row["output"] * (1 + n % 5 * 3)} for n, row in enumerate(pairs(1, 120))
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    samples = read_rows(tmp_path / "rows.json").samples
    drawn = draw(samples, n=24, model="built-in", seed=1)
    assert len({s.row for s in drawn}) == 24
    assert [s.row for s in draw(samples, n=24, model="built-in", seed=1)] == [s.row for s in drawn]
    lengths = sorted(len(s.response) for s in samples)
    quarters = [sum(len(s.response) <= lengths[k * 30 - 1] for s in drawn) for k in (1, 2, 3)]
    assert all(abs(found - 6 * k) <= 4 for k, found in zip((1, 2, 3), quarters, strict=True))
    assert len(draw(samples[:9], n=24, model="built-in", seed=1)) == 9


@pytest.mark.slow
def test_a_person_checks_rows_from_the_keyboard_and_saves_files_that_clues_reads(files):
    assert call("sample", "rows.json", "--n", "12", "--out", "page.html")[0] == 0
    text = Path("page.html").read_text()
    assert REFUSAL not in text, "rows are packed"
    with chromium() as browser:
        view = Opened(browser, Path("page.html").resolve())
        page = view.page
        page.wait_for_selector("html[data-ready]")
        for key in "gggbsggggggb":
            page.keyboard.press(key)
        assert page.locator("#count").inner_text() == "9 good, 2 bad, 1 skipped"
        done = "All 12 rows are decided: save checked.json and rejected.json below."
        assert page.locator("#state").inner_text().startswith(done)
        # One key too many judges nothing; a row that is looked up again is judged again.
        for key in "gggg":
            page.keyboard.press(key)
        assert page.locator("#count").inner_text() == "9 good, 2 bad, 1 skipped"
        assert page.locator("[data-way=good]").is_disabled()
        page.keyboard.press("ArrowRight")
        assert page.locator("#state").inner_text().startswith("Row 1 of 12 (row ")
        page.keyboard.press("b")
        assert page.locator("#count").inner_text() == "8 good, 3 bad, 1 skipped"
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("g")
        page.reload()
        assert page.locator("#count").inner_text() == "9 good, 2 bad, 1 skipped"
        for button, name, n in (
            ("#save-good", "checked.json", 9),
            ("#save-bad", "rejected.json", 2),
        ):
            with page.expect_download() as download:
                page.click(button)
            assert download.value.suggested_filename == name
            download.value.save_as(name)
            assert len(read_rows(name).samples) == n
        assert view.complaints == []
        assert [url for url in view.left if not url.startswith("blob:")] == []
        view.close()
    ours = json.loads(Path("rows.json").read_text())
    assert all(row in ours for row in json.loads(Path("checked.json").read_text()))


# --- settings as others name them, and on the command line


def configured(folder: Path, **recipe: object) -> Path:
    for name in ("validation", "anchor", "rows"):
        (folder / f"{name}.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    public = {"general": {"validation": "validation.jsonl", "anchor": "anchor.jsonl"}}
    silo = {"name": "north", "data": "rows.jsonl", "domain": "general"}
    content = {"recipe": {"public": public, **recipe}, "silos": [silo]}
    (folder / "clues.yaml").write_text(json.dumps(content))
    return folder / "clues.yaml"


def test_names_of_peft_and_transformers_are_taken(tmp_path):
    recipe = load_config(
        configured(
            tmp_path,
            lora={"r": 8, "lora_alpha": 32, "lora_dropout": 0.1, "use_dora": False},
            model={"torch_dtype": "bfloat16", "load_in_4bit": False},
            tokens={"cutoff_len": 100},
            train={"num_train_epochs": 2, "per_device_train_batch_size": 4, "warmup_ratio": 0.1},
        )
    ).recipe
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout) == (8, 32.0, 0.1)
    assert (recipe.model.dtype, recipe.tokens.max_length) == ("bfloat16", 100)
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.warmup) == (2.0, 4, 0.1)
    assert recipe.model.quantization is None
    packed = load_config(configured(tmp_path, model={"load_in_4bit": True})).recipe
    assert packed.model.quantization == "nf4"
    own = load_config(configured(tmp_path, lora={"rank": 8, "alpha": 32, "dropout": 0.1})).recipe
    assert own.lora == recipe.lora, "another name is another recipe"


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (
            {"model": {"load_in_4bit": True, "load_in_8bit": True}},
            "recipe.model: quantization stands there twice",
        ),
        ({"lora": {"r": 8, "rank": 8}}, "recipe.lora: rank stands there twice, once as r"),
        ({"train": {"gradient_checkpointing": True}}, r"set compute\.gradient_checkpointing"),
        ({"lora": {"zzz": 8}}, r"unknown key recipe\.lora\.zzz\. Known here: alpha, dropout, rank"),
        ({"lora": {"rnak": 8}}, "Did you mean 'rank'"),
    ],
)
def test_what_there_is_not_is_said_in_a_sentence(tmp_path, recipe, said):
    with pytest.raises(ConfigError, match=said):
        load_config(configured(tmp_path, **recipe))


def test_settings_are_changed_on_the_command_line(tmp_path):
    path = configured(tmp_path, seed=3)
    changes = ["recipe.seed=1", "recipe.lora.r=4", "silos.north.min_kept=9", "license=cc-by-4.0"]
    config = load_config(path, changes=[*changes, "recipe.tokens={max_length: 99}"])
    assert (config.recipe.seed, config.recipe.lora.rank, config.silos[0].min_kept) == (1, 4, 9)
    assert (config.license, config.recipe.tokens.max_length) == ("cc-by-4.0", 99)
    assert load_config(path).recipe.seed == 3, "the file was changed"


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ("recipe.seed", UsageError, "Write it as recipe.seed=1"),
        ("=1", UsageError, "Write it as"),
        ("silos.south.min_kept=9", UsageError, "none of this name. There are: north"),
        ("recipe.seed.x=9", UsageError, "has no keys"),
        ("recipe.sede=9", ConfigError, "Did you mean 'seed'"),
        ("recipe.seed=many", ConfigError, "recipe.seed"),
    ],
)
def test_a_change_that_cannot_be_made_is_named(tmp_path, change, error, said):
    with pytest.raises(error, match=said):
        load_config(configured(tmp_path, seed=3), changes=[change])


@pytest.mark.parametrize(
    ("name", "layers"), [("GPT-2", ["c_attn"]), ("Llama", ["q_proj", "v_proj"])]
)
def test_a_model_is_adapted_where_it_has_layers(files, tokenizer, name, layers):
    tiny_model(ARCHITECTURES[name]).save_pretrained("model")
    tokenizer.save_pretrained("model")
    config, _ = run_of("rows.json", Path("checked.json"), Path("run"), model="model", schema=None)
    assert list(config.recipe.lora.target_modules) == layers
    assert LoraModel.load(config.recipe.model, config.recipe.lora, seed=0, device="cpu").initial


def test_rows_of_two_schemas_are_read_by_the_one_that_is_named(files):
    rows = [{**row, "prompt": "p", "completion": "c"} for row in pairs(1, 20)]
    Path("both.json").write_text(json.dumps(rows))
    config, _ = run_of(
        "both.json", Path("checked.json"), Path("run"), model="built-in", schema="alpaca"
    )
    assert config.silos[0].schema_name == "alpaca"
    with pytest.raises(DataError, match="several schemas fit"):
        run_of("both.json", Path("checked.json"), Path("other"), model="built-in", schema=None)
