"""A real headless Chromium for tests of pages, and a record of all that a page tried to do."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

QUIET = (
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser for the tests of one module; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if found is None:
        pytest.skip("no Chromium is installed, so no page is opened")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=[*QUIET], timeout=180_000)
        yield browser
        browser.close()


class Opened:
    """A page opened from disk, and its console errors, exceptions, dialogs and requests that left it."""

    def __init__(self, browser: Any, path: Path, **how: Any) -> None:
        how = {"viewport": {"width": 1280, "height": 900}, **how}
        self.size = how["viewport"]
        self.context = browser.new_context(**how)
        self.context.set_default_timeout(120_000)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self._complain(m.type, m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(f"exception: {e}"))
        self.dialogs: list[str] = []
        self.page.on("dialog", self._accept)
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(path.as_uri())

    def afresh(self) -> None:
        """The same page as at the first time; far cheaper than a new one."""
        self.page.evaluate("sessionStorage.clear()")
        self.page.set_viewport_size(self.size)
        self.requests[1:] = []
        self.page.goto(self.requests[0])
        for list_ in (self.complaints, self.dialogs):
            list_.clear()

    def _accept(self, dialog: Any) -> None:
        self.dialogs.append(dialog.type)
        dialog.accept()

    def _complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(f"{kind}: {text}")

    def close(self) -> None:
        self.context.close()

    @property
    def left(self) -> list[str]:
        """Requests for anything but the file itself and what the page made."""
        own = (self.requests[0], "blob:file", "blob:null")
        return [url for url in self.requests if not url.startswith(own)]


def violations(page: Any) -> list[str]:
    """What axe finds that is serious or critical, as rule and element."""
    axe_api = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed"
    )
    found = axe_api.Axe().run(page).response["violations"]
    return [
        f"{v['id']}: {node['target']} {node['failureSummary']}"
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"]
    ]
