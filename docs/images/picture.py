"""Take the README's picture of a private report: python docs/images/picture.py RUN_FOLDER.

The page is opened in Chromium as a person would, with the rows to read first and one of them chosen.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

SILO = "north-clinic"
TARGET = Path(__file__).with_name("private-report.png")
MOST_BYTES = 300_000


def take(page_of: Path) -> bytes:
    """The upper part of the page as PNG, in 128 colours."""
    with sync_playwright() as playwright:
        found = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 1400}, color_scheme="light")
        page.goto(page_of.resolve().as_uri())
        page.wait_for_selector("html[data-ready]")
        page.click("#start")
        page.click("#list .row >> nth=3")
        page.locator(":focus").blur()
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(500)
        shot = page.screenshot()
        browser.close()
    buffer = io.BytesIO()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(128).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    """Write the picture of a finished run of the demo."""
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    page = run / "silos" / SILO / "private" / "report.html"
    if not page.exists():
        sys.exit(f"{page} is missing: run clues demo --out {run} first.")
    picture = take(page)
    if len(picture) > MOST_BYTES:
        sys.exit(f"the picture has {len(picture)} bytes, more than {MOST_BYTES}.")
    TARGET.write_bytes(picture)
    sys.stdout.write(f"{TARGET} {len(picture)} bytes\n")


if __name__ == "__main__":
    main()
