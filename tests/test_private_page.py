"""The private report in a real browser: what a person at a silo can do with it, and what rows cannot."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from browser import Opened, chromium, violations
from federation_helpers import run_micro, tiny_model, write_micro

from clues.cli import program as cli
from clues.report.cells import escaped
from clues.wall.ledger import verify

DRAWS = True  # the pictures are looked at
pytestmark = pytest.mark.slow  # a browser
HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'><svg onload='window.hacked = 3'>",
    "<!-- <script> ]]> \u2028 \u2029 \x1e \x1f & &lt;b&gt;",
    "\u202eright to left\u202c {{ 7 * 7 }} ${7 * 7} `",
)
MARKER = "ZQMARK"
COLUMN = "</script><b>source & \u2028"


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


class World:
    """A finished run whose rows and a column carry what a page could take for its own."""

    def __init__(self, folder: Path) -> None:
        self.config = write_micro(folder / "input", tiny_model(folder / "model"))
        path = folder / "input/silos/north.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for n, row in enumerate(rows):
            row[COLUMN] = ("<i>clinic</i>", "ward", None)[n % 3]
            row["weight"] = n / 2
            row["output"] += f" {MARKER}{n}"
            if n < len(HOSTILE):
                row["instruction"] = HOSTILE[n] + row["instruction"]
                row["output"] = row["output"] + HOSTILE[n]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.root = folder / "run"
        run_micro(self.config, self.root)

    @property
    def private(self) -> Path:
        return self.root / "silos/north/private"


@pytest.fixture(scope="module")
def world(browser, tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def opened(browser, world):
    """The page, ready; at the end nothing may have gone wrong or left it."""
    view = Opened(browser, world.private / "report.html")
    view.page.wait_for_selector("html[data-ready]")
    yield view
    assert view.complaints == [], "the page complained"
    assert view.left == [], "the page asked for something outside of itself"
    view.close()


def decided(private: Path) -> dict[str, dict[str, str]]:
    with (private / "decisions.csv").open() as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def run_clues(verb: str, config: Path, root: Path, *more: str) -> None:
    cli.app([verb, str(config), "--out", str(root), "-q", *more], standalone_mode=False)


def figure(page: Any, name: str, column: int = 2) -> str:
    row = page.locator("#figures tbody tr", has_text=name)
    return row.locator("td").nth(column - 1).inner_text()


def settle(page: Any) -> None:
    """Wait until the list has followed the slider."""
    page.wait_for_timeout(400)


def test_the_figures_are_those_of_the_selection(opened, world):
    rows = decided(world.private).values()
    results = json.loads((world.root / "results.json").read_text())["silos"]["north"]
    kept = sum(row["kept"] == "1" for row in rows)
    assert figure(opened.page, "Kept rows") == str(kept)
    assert figure(opened.page, "Clean recall") == f"{100 * results['recall']:.1f} %"
    assert figure(opened.page, "Precision") == f"{100 * results['precision']:.1f} %"


def test_the_slider_moves_the_threshold_from_the_keyboard_and_says_what_changes(opened, world):
    page = opened.page
    scores = np.array([float(row["score"]) for row in decided(world.private).values()])
    before = int(figure(page, "Kept rows"))
    page.focus("#slider")
    for _ in range(3):
        page.keyboard.press("PageUp")
    settle(page)
    value = page.evaluate("clues.choice.value")
    assert value > page.evaluate("clues.choice.inForce")
    assert int(figure(page, "Kept rows")) == int((scores >= value).sum()) < before
    assert figure(page, "Kept rows", 1) == str(before), "the one in force moved with it"
    assert "would go out" in page.inner_text("#moved")
    assert page.locator("#here").is_visible()
    page.click("#back")
    settle(page)
    assert int(figure(page, "Kept rows")) == before
    assert "how good the model becomes" in page.inner_text("#warning")


def test_the_number_field_takes_an_exact_threshold(opened, world):
    page = opened.page
    rows = decided(world.private).values()
    middle = round(float(np.median([float(row["score"]) for row in rows])), 3)
    page.fill("#number", str(middle))
    page.keyboard.press("Enter")
    page.locator("#number").blur()
    settle(page)
    assert page.evaluate("clues.choice.value") == middle
    wanted = sum(float(row["score"]) >= middle for row in rows)
    assert int(figure(page, "Kept rows")) == wanted
    page.select_option("#show", "changed")
    in_force = {id_ for id_, row in decided(world.private).items() if row["kept"] == "1"}
    changed = sum((row["id"] in in_force) != (float(row["score"]) >= middle) for row in rows)
    assert page.evaluate("clues.list.hits.length") == changed


def test_keep_rates_are_shown_by_length_and_by_any_column(opened, world):
    page = opened.page
    names = page.locator("#by option").all_inner_texts()
    assert names == [
        "response length, tokens",
        "damage (known damage)",
        "key",
        escaped(COLUMN),
        "weight",
    ]
    page.select_option("#by", label=escaped(COLUMN))
    lines = page.locator("#groups tbody tr").all()
    found = {
        line.locator("th").inner_text(): int(line.locator("td").nth(0).inner_text())
        for line in lines
    }
    assert found == {"(empty)": 8, "<i>clinic</i>": 8, "ward": 8}
    kept = sum(int(line.locator("td").nth(1).inner_text()) for line in lines)
    assert kept == int(figure(page, "Kept rows"))
    page.click("#groups button >> text=ward")
    assert page.evaluate("clues.list.hits.length") == 8
    page.select_option("#by", label="weight")
    assert page.locator("#groups tbody tr").count() == 5
    page.select_option("#by", label="key")
    assert page.locator("#groups tbody tr").count() >= 24


def test_search_finds_rows_by_words_and_ids_whatever_their_case(opened, world):
    page = opened.page
    texts = page.evaluate("Array.from({length: clues.rows.n}, (_, i) => clues.rows.raw(i))")
    word = re.findall(r"[A-Za-z]{6,}", texts[7])[0]
    page.fill("#search", word.upper())
    settle(page)
    wanted = [n for n, text in enumerate(texts) if word.lower() in text.lower()]
    assert sorted(page.evaluate("clues.list.hits")) == wanted
    id_ = list(decided(world.private))[5]
    page.fill("#search", id_)
    settle(page)
    assert page.evaluate("clues.list.hits") == [5]
    page.fill("#search", "no-row-holds-this")
    settle(page)
    assert page.inner_text("#found") == "No row is like this."
    assert page.locator("#list .row").count() == 0


def test_lowest_borderline_and_highest_are_in_order(opened):
    page = opened.page
    scores = "Array.from(clues.list.hits, (row) => clues.rows.score[row])"
    assert page.evaluate(scores) == sorted(page.evaluate(scores))
    page.click("label[for=order-highest]")
    assert page.evaluate(scores) == sorted(page.evaluate(scores), reverse=True)
    page.click("label[for=order-borderline]")
    cut = page.evaluate("clues.choice.value")
    distances = [abs(score - cut) for score in page.evaluate(scores)]
    assert distances == sorted(distances)


def test_the_terms_of_a_row_add_up_to_its_score(opened):
    sums = opened.page.evaluate(
        "Array.from(clues.rows.score, (_, i) => clues.rows.terms.reduce((s, t) => s + t[i], 0))"
    )
    scores = opened.page.evaluate("Array.from(clues.rows.score)")
    header = opened.page.evaluate("clues.rows.header")
    folder = Path(unquote(urlsplit(opened.page.url).path)).parent
    groups = json.loads((folder / "threshold.json").read_text())["units"]
    units = next(iter(groups.values()))
    parts = [part for part in ("influence", "loss", "alignment") if part in units["parts"]]
    assert header["terms"] == (parts or header["traces"])
    assert sums == pytest.approx(scores, abs=1e-4)
    assert len(opened.page.evaluate("clues.rows.header.traces")) == 2


def test_rows_are_reached_and_decided_from_the_keyboard(opened):
    page = opened.page
    page.focus("#list")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("End")
    assert page.get_attribute("#list", "aria-activedescendant") == "at-23"
    page.keyboard.press("Home")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    assert "Say why" in page.inner_text("#detail .problem")
    page.keyboard.type("plainly right")
    page.keyboard.press("Enter")
    assert "Kept by a person: plainly right" in page.inner_text("#detail .why")
    assert page.locator("#decisions tbody tr").count() == 1
    assert page.evaluate("document.activeElement.id") == "list"


def test_a_decision_survives_a_reload_and_can_be_taken_back(opened):
    page = opened.page
    page.click("#list .row >> nth=1")
    page.check("#detail input[value=drop]")
    page.fill("#detail input[name=reason]", "twice in the ward book")
    page.click("#detail button")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert opened.dialogs == ["beforeunload"], "the page let unsaved decisions go unasked"
    assert "twice in the ward book" in page.inner_text("#decisions")
    page.click("#decisions button >> text=Take back")
    assert not page.locator("#decisions").is_visible()


def export(page: Any, folder: Path, choices: list[tuple[int, str, str]]) -> Path:
    for row, way, reason in choices:
        page.evaluate("(row) => clues.open(row)", row)
        page.check(f"#detail input[value={way}]")
        page.fill("#detail input[name=reason]", reason)
        page.click("#detail button")
    with page.expect_download() as waiting:
        page.click("#export")
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_what_is_exported_is_honoured_and_the_next_report_shows_it(
    browser, opened, world, tmp_path
):
    shutil.copytree(world.root, tmp_path / "run")
    private = tmp_path / "run/silos/north/private"
    before = list(decided(private).values())
    kept = next(n for n, row in enumerate(before) if row["kept"] == "1")
    dropped = next(n for n, row in enumerate(before) if row["kept"] == "0")
    hostile = f"=1+1 {HOSTILE[0]}"
    path = export(opened.page, tmp_path, [(kept, "drop", hostile), (dropped, "keep", "right")])
    assert path.name == "overrides-north.json"
    text = path.read_text()
    assert MARKER not in text, "a row stands in the export"
    assert "clues select CONFIG --overrides overrides-north.json" in opened.page.inner_text(
        "#command"
    )
    run_clues(
        "select", world.config, tmp_path / "run", "--allow-degenerate", "--overrides", str(path)
    )
    after = list(decided(private).values())
    assert (after[kept]["kept"], after[dropped]["kept"]) == ("0", "1")
    assert hostile in after[kept]["reason"]
    view = Opened(browser, private / "report.html")
    view.page.wait_for_selector("html[data-ready]")
    assert view.page.locator("#decisions tbody tr").count() == 2
    assert view.page.locator("#decisions td", has_text="in force").count() == 2
    assert int(figure(view.page, "Kept rows")) == sum(row["kept"] == "1" for row in after)
    assert view.page.evaluate("window.hacked") is None
    assert (view.complaints, view.left) == ([], [])
    view.close()


def test_a_decision_goes_from_the_page_through_a_rerun_to_ledger_and_results(
    browser, opened, world, tmp_path, capsys
):
    root = tmp_path / "run"
    shutil.copytree(world.root, root)
    before = json.loads((root / "results.json").read_text())
    n_before = len(verify(root / "ledger.jsonl"))
    rows = list(decided(root / "silos/north/private").values())
    kept = [n for n, row in enumerate(rows) if row["kept"] == "1"][:2]
    path = export(opened.page, tmp_path, [(n, "drop", "not ours") for n in kept])
    flags = ("--allow-degenerate",)
    run_clues("select", world.config, root, *flags, "--overrides", str(path))
    said = capsys.readouterr().out
    assert "2 rows decided by a person" in said
    assert f"run {world.config} --out {root}" in said, "it does not say how to go on"
    run_clues("run", world.config, root, *flags)
    new = {(e.silo, e.kind) for e in verify(root / "ledger.jsonl")[n_before:]}
    assert {("north", "select-reply"), ("north", "fit-reply"), ("south", "fit-reply")} <= new
    assert not {kind for _, kind in new} & {"train-reply", "score-reply"}
    after = json.loads((root / "results.json").read_text())
    north = (before["silos"]["north"]["kept"], after["silos"]["north"]["kept"])
    assert north[1] == north[0] - len(kept)
    losses = [r["arms"]["clues"]["heldout_loss"] for r in (before, after)]
    assert losses[0] != losses[1]
    mixed = [
        {k: v for k, v in r["arms"]["mixed"].items() if k != "against"} for r in (before, after)
    ]
    assert mixed[0] == mixed[1], "mixed was made again: not even its seconds may differ"
    view = Opened(browser, root / "report.html")
    row = view.page.locator('[aria-label="Arms"] tbody tr', has_text="the selection")
    assert f"{losses[1]:.3f}" in row.inner_text()
    assert (view.complaints, view.left) == ([], [])
    view.close()


def test_row_text_stays_text(opened):
    page = opened.page
    for row, hostile in enumerate(HOSTILE):
        page.evaluate("(row) => clues.open(row)", row)
        found = page.text_content("#detail .text >> nth=1")
        assert found.endswith(escaped(hostile))
        unseen = {ord(c) for c in found} & {0x1E, 0x1F, 0x2028, 0x2029, 0x202C, 0x202E}
        assert not unseen, "what nobody sees must be seen"
    assert "\\u202eright to left" in found
    page.select_option("#by", label=escaped(COLUMN))
    page.click("#groups button >> text=<i>clinic</i>")
    assert page.locator("main script, main img, main i > i, #groups b b, #detail b").count() == 0
    assert page.evaluate("window.hacked") is None


def test_no_row_text_stands_in_the_page_outside_of_its_packed_data(world):
    html = (world.private / "report.html").read_text()
    outside = re.sub(
        r'<script type="application/octet-stream".*?</script>', "", html, flags=re.DOTALL
    )
    assert MARKER in world.config.parent.joinpath("silos/north.jsonl").read_text()
    assert MARKER not in outside
    assert not re.search(r"https?://(?!www\.w3\.org/)", outside), (
        "the page names something on the network"
    )
    assert html.count("</script>") == 2


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser, world, theme):
    view = Opened(browser, world.private / "report.html", color_scheme=theme)
    view.page.wait_for_selector("html[data-ready]")
    view.page.click("#list .row >> nth=1")
    view.page.check("#detail input[value=drop]")
    view.page.fill("#detail input[name=reason]", "unclear")
    view.page.click("#detail button")
    assert violations(view.page) == []
    other = "dark" if theme == "light" else "light"
    view.page.click(f"label[for=theme-{other}]")
    shade = "getComputedStyle(document.body).backgroundColor"
    assert (view.page.evaluate(shade) == "rgb(21, 24, 28)") == (other == "dark")
    assert violations(view.page) == []
    view.close()


@pytest.mark.parametrize("width", [360, 800])
def test_a_narrow_window_needs_no_sideways_scrolling(browser, world, width):
    view = Opened(browser, world.private / "report.html", viewport={"width": width, "height": 800})
    view.page.wait_for_selector("html[data-ready]")
    assert view.page.evaluate("document.documentElement.scrollWidth") <= width
    view.close()


@pytest.mark.walk
def test_equal_runs_give_an_equal_page(world, tmp_path):
    before = (world.private / "report.html").read_bytes()
    run_clues("report", world.config, world.root)
    assert (world.private / "report.html").read_bytes() == before
