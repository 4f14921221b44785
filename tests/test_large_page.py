"""A private report of very many rows stays small enough to open and quick enough to use."""

from typing import Any

import numpy as np
import pytest
from browser import Opened, chromium

from clues.report.grouping import Grouping
from clues.report.pack import ROW_LIMIT, TEXT_BUDGET, pack_texts, row_limit
from clues.report.private import Review, render_private

DRAWS = True  # the pictures are looked at
N_ROWS = 100_000


def review_of(n_rows: int) -> Review:
    draw = np.random.default_rng(0)
    terms = {f"checkpoint {k}": draw.normal(size=n_rows) for k in (1, 2)}
    lengths = draw.integers(20, 60, n_rows)
    words = np.array(["fever", "cough", "ankle", "splint", "wound", "dose", "twice", "daily"])
    texts = [
        (("user", f"case n{n}"), ("assistant", " ".join(words[draw.integers(0, 8, 30)])))
        for n in range(n_rows)
    ]
    return Review(
        silo="large",
        facts=[("Rows", f"{n_rows:,}")],
        recipe_hash="0123456789ab",
        cut=0.0,
        interval=(-0.1, 0.1),
        ratio=None,
        min_kept=10,
        anchors=draw.normal(size=50).tolist(),
        anchors_from="public anchors of wards",
        ids=[draw.bytes(8).hex() for _ in range(n_rows)],
        scores=np.sum(list(terms.values()), axis=0),
        terms=terms,
        traces={},
        losses={"before training": draw.random(n_rows)},
        n_tokens=2 * lengths,
        n_response_tokens=lengths,
        unscored={},
        labels=None,
        groupings=[Grouping("ward", ("a", "b"), draw.integers(0, 2, n_rows).astype(np.uint8))],
        texts=texts,
        rulings={},
        waiting={},
    )


def wait_for_hits(page: Any, n_hits: int) -> None:
    for _ in range(600):  # the page's policy forbids what Playwright's own waiting needs
        if page.evaluate("clues.list.hits.length") == n_hits:
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"the list never came to {n_hits} rows")


@pytest.mark.walk
def test_a_hundred_thousand_rows_open_scroll_and_are_searched(tmp_path):
    with chromium() as browser:
        path = tmp_path / "report.html"
        path.write_text(render_private(review_of(N_ROWS)), encoding="utf-8")
        assert path.stat().st_size < 30_000_000
        view = Opened(browser, path)
        page = view.page
        page.wait_for_selector("html[data-ready]")
        page.focus("#list")
        page.keyboard.press("End")
        assert page.get_attribute("#list", "aria-activedescendant") == f"at-{N_ROWS - 1}"
        assert page.locator("#list .row").count() < 40, "rows off the screen are in the document"
        page.fill("#search", "case n99999")
        wait_for_hits(page, 1)
        assert page.evaluate("clues.list.hits[0]") == 99_999
        page.fill("#search", "")
        wait_for_hits(page, N_ROWS)
        # Measured 9 ms for a step of the slider and 35 ms for a search; far more is a loop too many.
        took = page.evaluate(
            "() => { const t = performance.now(); for (let k = 0; k < 10; k++)"
            " { clues.choice.value = k / 10; clues.refresh(); clues.find(); }"
            " return performance.now() - t; }"
        )
        assert took / 10 < 1000
        assert (view.complaints, view.left) == ([], [])
        view.close()


def test_texts_beyond_what_a_page_can_hold_are_cut_and_the_page_is_told():
    assert row_limit(np.array([10, 20])) == ROW_LIMIT
    many = np.full(200_000, 500)
    assert np.minimum(many, row_limit(many)).sum() <= TEXT_BUDGET
    arrays, limit = pack_texts([[("user", "u" * ROW_LIMIT), ("assistant", "a" * ROW_LIMIT)]])
    assert limit == ROW_LIMIT
    shown = arrays["text"].tobytes().decode()
    assert "u" * 1000 in shown
    assert "a" * (ROW_LIMIT // 2) in shown
    assert len(shown) < ROW_LIMIT + 100
    assert pack_texts([[("user", "short")]])[1] is None
