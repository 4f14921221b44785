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
from clues.silo.overrides import read_overrides
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


@pytest.fixture(scope="module")
def shared(browser, world):
    """One page for all tests of this file."""
    view = Opened(browser, world.private / "report.html")
    yield view
    view.close()


@pytest.fixture
def opened(shared):
    """The page as at the first time, ready; at the end nothing may have gone wrong or left it."""
    shared.afresh()
    shared.page.wait_for_selector("html[data-ready]")
    yield shared
    assert shared.complaints == [], "the page complained"
    assert shared.left == [], "the page asked for something outside of itself"


def decided(private: Path) -> dict[str, dict[str, str]]:
    with (private / "decisions.csv").open() as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def run_clues(verb: str, config: Path, root: Path, *more: str) -> None:
    cli.app([verb, str(config), "--out", str(root), "-q", *more], standalone_mode=False)


def figure(page: Any, name: str, column: int = 2) -> str:
    row = page.locator("#figures tbody tr, #statistics tbody tr", has_text=name)
    return row.locator("td").nth(column - 1).text_content()


def settle(page: Any) -> None:
    """Wait until the list has followed the slider."""
    page.wait_for_timeout(400)


@pytest.mark.walk
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
    page.click("#detail button[type=submit]")
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
        page.click("#detail button[type=submit]")
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


@pytest.mark.walk
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


# --- the first screen, and reading


def test_the_first_screen_says_how_many_went_and_why_and_leads_to_the_worst(opened, world):
    page, rows = opened.page, list(decided(world.private).values())
    aside = [row for row in rows if row["file"] == "dropped"]
    assert page.inner_text("h1") == f"{len(aside)} of {len(rows)} rows were set aside"
    assert page.inner_text("#lede") == f"{len(rows) - len(aside)} are kept."
    counted = [int(n) for n in page.locator(".reasons .number").all_inner_texts()]
    assert sum(counted) == len(aside)
    assert page.locator(".reasons button").first.inner_text() in {
        "teaches something else than the checked rows",
        "reads as unlikely text",
        "seems to answer another question",
    }
    page.click(".reasons button >> nth=0")
    assert page.evaluate("clues.list.hits.length") == counted[0]
    page.click("#start")
    scores = {float(row["score"]): n for n, row in enumerate(rows)}
    worst = scores[min(scores)]
    assert page.evaluate("clues.detail.row") == worst
    first = page.evaluate("Array.from(clues.list.hits)")
    assert first == page.evaluate("clues.rows.header.first")
    wanted = [n for _, n in sorted(scores.items())][:10]
    assert first[: len(aside)][:10] == wanted[: len(aside)], "the worst rows do not come first"
    assert page.evaluate("document.getElementById('progress').value") == 1


def test_the_next_row_is_one_that_nobody_has_read_or_decided(opened):
    page = opened.page
    page.click("#start")
    page.keyboard.press("n")
    page.keyboard.press("n")
    assert page.evaluate("clues.list.at") == 2
    assert page.inner_text("#progress-text").startswith("3 of")
    page.click("#list .row >> nth=0")
    page.keyboard.press("n")
    assert page.evaluate("clues.list.at") == 3, "it stops at a row that is read"
    page.click("#detail button[type=submit]")  # left as it is
    assert page.evaluate("clues.list.at") == 4
    assert page.locator("#decisions tbody tr").count() == 0
    page.select_option("#show", "unread")
    assert page.evaluate("clues.list.hits.length") == page.evaluate("clues.rows.n") - 5


def test_several_rows_are_decided_at_once_with_a_common_reason(opened):
    page = opened.page
    page.fill("#search", "the")
    settle(page)
    n = page.evaluate("clues.list.hits.length")
    assert n > 3
    page.focus("#list")
    page.keyboard.press("Home")
    page.keyboard.press(" ")
    assert page.locator("#list .row[aria-checked=true]").count() == 1
    page.click("#tick-all")
    assert f"Decide about {n} rows" in page.inner_text("#several button[type=submit]")
    page.locator("#several input[value=drop]").check()
    page.click("#several button >> text=refuses")
    page.click("#several button[type=submit]")
    assert page.locator("#decisions tbody tr").count() == n
    assert set(page.locator("#decisions td.reason").all_inner_texts()) == {"refuses"}
    assert not page.locator("#several").is_visible()
    page.click("#list .row .tick >> nth=1")
    page.click("#list .row >> nth=3", modifiers=["Shift"])
    assert page.evaluate("clues.several.ticked.size") >= 2


def test_every_term_explains_itself_to_eye_and_screen_reader(opened):
    page = opened.page
    page.click("#list .row >> nth=1")
    page.click("#detail details summary")
    unexplained = page.evaluate(
        "[...document.querySelectorAll('.term')]"
        ".filter((t) => !document.getElementById(t.getAttribute('aria-describedby')))"
        ".map((t) => t.textContent)"
    )
    assert unexplained == []
    assert page.locator(".term").count() > 12
    page.focus(".keys .term >> nth=0")
    assert page.locator(".tip").is_visible()
    assert "stays" in page.inner_text(".tip")
    page.mouse.wheel(0, 30)
    settle(page)
    assert page.locator(".tip").is_visible(), "it goes along with its word"
    page.keyboard.press("Escape")
    assert not page.locator(".tip").is_visible()
    page.mouse.wheel(0, 30)
    settle(page)
    assert not page.locator(".tip").is_visible(), "what is put away stays away"


def test_words_of_the_first_rows_are_marked_by_their_loss(opened):
    page = opened.page
    marks = page.evaluate(
        "Array.from(clues.rows.arrays.markLevel, (level, k) => [clues.rows.arrays.markRow[k], level])"
    )
    first = set(page.evaluate("clues.rows.header.first"))
    words = [row for row, level in marks if level]
    assert words, "no word is unlikely"
    assert set(words) <= first
    page.evaluate("(row) => clues.open(row)", words[0])
    place = page.locator("#detail .unlikely, #detail .very-unlikely").first
    assert "less likely than 9" in str(place.get_attribute("title"))


def test_a_wish_and_the_reading_go_into_the_file_with_the_words_to_send(opened, tmp_path):
    page = opened.page
    assert not page.locator("#send-back").is_visible()
    page.click("#list .row >> nth=2")
    page.fill("#number", "-3")
    page.locator("#number").blur()
    settle(page)
    page.click("#wish")
    page.fill("#reviewer", "A. B.")
    assert "threshold \u22123.000 instead of" in page.inner_text("#wished")
    assert "overrides-north-A-B.json" in page.inner_text("#command")
    assert "of north and decided" in page.inner_text("#command")
    assert "clues select CONFIG --overrides" in page.inner_text("#command")
    # A page that `clues clean` has written names its file and that command alone.
    page.evaluate("clues.rows.header.cleans = 'rows.json'")
    page.fill("#reviewer", "A. B")
    words = page.inner_text("#command")
    assert "of rows.json and decided" in words
    assert "clues clean command as before, with --overrides" in words
    assert "clues select" not in words
    page.fill("#reviewer", "A. B.")
    path = export(page, tmp_path, [])
    assert path.name == "overrides-north-A-B.json"
    found = read_overrides(path)
    assert found.reviewer == "A. B."
    assert found.wish is not None
    assert found.wish.threshold == -3
    assert found.wish.kept == int(figure(page, "Kept rows"))
    assert found.wish.kept_in_force == int(figure(page, "Kept rows", 1))
    row = page.evaluate("clues.detail.row")
    kept = page.evaluate("(row) => clues.choice.keptWithout(row)", row)
    assert [(r.id, r.kept) for r in found.read] == [
        (page.evaluate("(row) => clues.rows.id(row)", row), kept)
    ]


# --- every window


@pytest.mark.walk
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, theme):
    page = opened.page
    page.click(f"label[for=theme-{theme}]")
    page.click("#list .row >> nth=1")
    page.check("#detail input[value=drop]")
    page.fill("#detail input[name=reason]", "unclear")
    page.click("#detail button[type=submit]")
    page.click("#tick-all")
    for summary in page.locator("main > details summary, section details summary").all():
        summary.click()
    assert violations(page) == []
    shade = "getComputedStyle(document.body).backgroundColor"
    assert (page.evaluate(shade) == "rgb(21, 24, 28)") == (theme == "dark")


def test_a_narrow_window_needs_no_sideways_scrolling(opened):
    for width in (360, 800):
        opened.page.set_viewport_size({"width": width, "height": 800})
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.walk
def test_on_a_phone_the_row_lies_over_the_list_until_it_is_put_away(opened):
    page = opened.page
    page.set_viewport_size({"width": 390, "height": 844})
    assert not page.locator("#detail").is_visible()
    page.click("#list .row >> nth=1")
    box = page.locator("#detail").bounding_box()
    assert (box["x"], box["y"], box["width"], box["height"]) == (0, 0, 390, 844)
    assert page.evaluate("document.activeElement.className") == "close"
    assert page.evaluate("document.querySelector('header').inert")
    assert violations(page) == []
    before = page.evaluate("clues.detail.row")
    page.click("#detail .next")
    assert page.evaluate("clues.detail.row") != before
    page.keyboard.press("Escape")
    assert not page.locator("#detail").is_visible()
    assert page.evaluate("document.activeElement.id") == "list"
    assert not page.evaluate("document.querySelector('header').inert")


@pytest.mark.walk
def test_equal_runs_give_an_equal_page(world, tmp_path):
    before = (world.private / "report.html").read_bytes()
    run_clues("report", world.config, world.root)
    assert (world.private / "report.html").read_bytes() == before
