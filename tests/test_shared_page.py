"""The shared report in a real browser: complete, quiet, readable by all, and without a row in it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import Opened, chromium, violations
from federation_helpers import run_micro, tiny_model, write_micro

from clues.report.cells import DASH, band, count, number, size
from clues.wall.ledger import summary, verify

DRAWS = True  # the pictures are looked at
pytestmark = pytest.mark.slow  # a browser
MARKER = "ZQMARK"
MINUS = "\N{MINUS SIGN}"


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


class World:
    """A finished run of two silos whose every row carries a marker; one shares no diagnostics."""

    def __init__(self, folder: Path) -> None:
        self.config = write_micro(folder / "input", tiny_model(folder / "model"))
        for path in (folder / "input/silos").glob("*.jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            keys = ("instruction", "output", "key")
            rows = [{**row, **{k: f"{MARKER} {row[k]}" for k in keys}} for row in rows]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        content = yaml.safe_load(self.config.read_text())
        content["silos"][1] |= {"share_diagnostics": False, "labels": None}
        self.config.write_text(yaml.safe_dump(content))
        self.root = folder / "run"
        self.results = run_micro(self.config, self.root)


@pytest.fixture(scope="module")
def world(browser, tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def opened(browser, world):
    """The page; at the end nothing may have gone wrong or left it."""
    view = Opened(browser, world.root / "report.html")
    yield view
    assert view.complaints == [], "the page complained"
    assert view.requests == view.requests[:1], "the page asked for something"
    view.close()


def cells(page: Any, region: str) -> dict[str, list[str]]:
    """Cells of a table by the name in their row's head; what only a screen reader says is cut."""
    found: dict[str, list[str]] = {}
    for row in page.locator(f'[aria-label="{region}"] tbody tr').all():
        head = row.locator("th").evaluate("e => e.firstChild.textContent")
        texts = [cell.inner_text() for cell in row.locator("td").all()]
        found[head] = [t.replace("\n", "").replace("not measured", "") for t in texts]
    return found


@pytest.mark.walk
def test_arms_and_silos_show_what_results_json_holds(opened, world):
    results = json.loads((world.root / "results.json").read_text())
    arms = cells(opened.page, "Arms")
    assert set(arms) == set(results["arms"])
    for name, arm in results["arms"].items():
        figures = [count(arm["kept"]), number(arm["steps"], 0)]
        assert arms[name][:2] == figures
        assert number(arm["heldout_loss"]) in arms[name]
        knowledge = f"{number(arm['knowledge_accuracy'])} \N{PLUS-MINUS SIGN} "
        assert knowledge + number(arm["knowledge_stderr"]) in arms[name]
    silos = cells(opened.page, "Silos")
    for name, silo in results["silos"].items():
        known = [count(silo["rows"]), count(silo["kept"]), band(silo["rows"], silo["kept"])]
        assert silos[name][1:4] == known


def test_differences_are_those_of_the_same_rows(opened, world):
    compared = cells(opened.page, "Arms compared")
    gap = world.results["arms"]["clues"]["against"]["random"]["heldout_loss"]
    low, high = (number(end) for end in gap["interval"])
    text = f"{number(gap['value'])} ({low} to {high})".replace("-", MINUS)
    assert compared["clues"][1].lstrip("+") == text
    assert compared["random"][1] == DASH, "an arm is compared with itself"
    stages = world.root / "coordinator/stages"
    ours, theirs = (
        json.loads((stages / f"measure-{arm}.json").read_text())["result"]["losses"]
        for arm in ("clues", "random")
    )
    mean = sum(a - b for a, b in zip(ours, theirs, strict=True)) / len(ours)
    assert gap["value"] == pytest.approx(mean, abs=1e-9)
    assert gap["interval"][0] <= gap["value"] <= gap["interval"][1]


def test_the_ledger_table_is_the_ledger(opened, world):
    table = cells(opened.page, "What left each silo")
    entries = summary(verify(world.root / "ledger.jsonl"))
    for name in world.results["silos"]:
        left = [e for e in entries if e["silo"] == name and e["direction"] == "out"]
        assert size(sum(e["bytes"] for e in left)) in table[name]
        [fit] = [e for e in left if e["kind"] == "fit-reply"]
        assert size(fit["bytes"]) in table[name]


def test_training_and_scores_are_drawn_where_they_may_be_known(opened, world):
    assert set(world.results["curves"]) == {"warm-up", *world.results["arms"]}
    for points in world.results["curves"].values():
        assert [point[0] for point in points] == [0, 1, 2]
    assert opened.page.locator("section:has(#training) svg:visible").count() == 1
    bands = opened.page.locator("section:has(#threshold)")
    assert bands.locator("svg:visible text", has_text="north").count() == 1
    assert bands.locator("svg:visible text", has_text="south").count() == 0
    assert "not shared: 1 of 2 silos" in bands.inner_text()
    assert "score_bands" not in world.results["silos"]["south"]


def test_no_row_text_stands_in_anything_that_is_shared(opened, world):
    assert MARKER not in opened.page.content()
    shared = [p for p in world.root.rglob("*") if p.is_file() and "private" not in p.parts]
    leaks = [p.name for p in shared if MARKER.encode() in p.read_bytes()]
    assert not leaks, "row text left the private folders"
    kept = world.root / "silos/north/private/kept.jsonl"
    assert MARKER in kept.read_text(), "the marker is in no row, so this shows nothing"


@pytest.mark.walk
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser, world, theme):
    view = Opened(browser, world.root / "report.html", color_scheme=theme)
    view.page.click("summary")
    assert violations(view.page) == []
    other = "dark" if theme == "light" else "light"
    view.page.focus("#theme-auto")
    view.page.keyboard.press("ArrowRight" if other == "light" else "ArrowLeft")
    shade = "getComputedStyle(document.body).backgroundColor"
    assert (view.page.evaluate(shade) == "rgb(21, 24, 28)") == (other == "dark")
    assert violations(view.page) == []
    view.close()


@pytest.mark.walk
@pytest.mark.parametrize("width", [360, 800])
def test_a_narrow_window_needs_no_sideways_scrolling(browser, world, width):
    view = Opened(browser, world.root / "report.html", viewport={"width": width, "height": 800})
    assert view.page.evaluate("document.documentElement.scrollWidth") <= width
    view.close()


@pytest.mark.walk
def test_paper_is_light_and_has_the_recipe(browser, world):
    view = Opened(browser, world.root / "report.html", color_scheme="dark")
    view.page.emulate_media(media="print")
    assert view.page.evaluate("getComputedStyle(document.body).color") == "rgb(29, 33, 38)"
    assert not view.page.locator(".themes").is_visible()
    assert view.page.locator("pre", has_text="seed: 3").bounding_box()["height"] > 100
    view.close()
