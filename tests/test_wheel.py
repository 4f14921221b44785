"""The package as others get it: a wheel, unpacked elsewhere, with nothing of this folder beside it."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="not a checkout"),
]


def test_links_of_the_package_page_are_absolute_or_no_links() -> None:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec
    assert spec.loader
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    text = 'see [a page](docs/a.md#b), [out](https://x.org), <img src="docs/p.png" width="9">'
    told = build.for_index(text, "https://example.org/clues")
    assert "[a page](https://example.org/clues/blob/main/docs/a.md#b)" in told
    assert '<img src="https://example.org/clues/raw/main/docs/p.png" width="9">' in told
    assert build.for_index(text, "") == "see a page, [out](https://x.org), "


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def in_python(code: str, site: Path, folder: Path) -> str:
    """Run code that sees the wheel's clues first, in a folder that holds nothing of ours."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(unpacked) -> None:
    files = [p.relative_to(unpacked).as_posix() for p in unpacked.rglob("*") if p.is_file()]
    tops = {file.split("/")[0] for file in files}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"clues"}
    assert not [f for f in files if "test" in f.split("/") or "experiments" in f.split("/")]
    tracked = subprocess.run(["git", "ls-files", "src/clues"], cwd=ROOT, capture_output=True)
    for file in tracked.stdout.decode().split():
        assert file.removeprefix("src/") in files, "a file of the package is not in the wheel"
    assert "clues/py.typed" in files
    (metadata,) = unpacked.glob("*.dist-info/METADATA")
    head, _, description = metadata.read_text(encoding="utf-8").partition("\n\n")
    assert "Classifier: Typing :: Typed" in head
    assert not re.search(r"\]\((?!https?:)|src=\"(?!https?:)", description), (
        "an index cannot follow this link"
    )


@pytest.mark.walk
def test_the_library_and_the_command_line_work_from_the_wheel(unpacked, tmp_path) -> None:
    where = "import clues; print(clues.__file__); print(clues.score.__module__, dir(clues))"
    found = in_python(where, unpacked, tmp_path)
    assert found.startswith(str(unpacked)), "another clues was imported"
    assert "clues.api.scoring" in found

    def clues(*arguments: str) -> str:
        call = f"import sys; sys.argv = {['clues', *arguments]!r}; "
        return in_python(call + "from clues.cli.program import main; main()", unpacked, tmp_path)

    clues("demo", "--data-only", "--out", "demo")
    public = "demo/input/public/finance-en.validation.jsonl"
    public += ",demo/input/public/finance-en.anchor.jsonl"
    clues("init", "--silo", "demo/input/silos/harbor-bank.jsonl", "--public", public)
    checked = json.loads(clues("check", "clues.yaml", "--json"))
    assert checked["errors"] == []
    assert checked["files"][0]["n_rows"] == 200
