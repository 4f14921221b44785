"""The documentation: it builds strictly, asks nobody for anything, and its tutorials run."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from browser import Opened, chromium
from federation_helpers import edit_config
from test_cli import call
from typer.main import get_command

import clues
from clues import errors
from clues.cli import program as cli
from clues.config import LoraSettings, ModelSettings, SiloSettings, load_silo, validate
from clues.config.columns import PARTS
from clues.data.layouts import SCHEMAS
from clues.model.adapters import LoraModel
from clues.network.settings import load_coordinator, load_join
from clues.prepare import demo

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the documentation is not here")
# The tutorials' own files, with as little work in them as a run can have.
SMALL = {
    "recipe": {
        "lora": {"rank": 2},
        "tokens": {"max_length": 512},
        "train": {"steps": 2, "rounds": 2, "checkpoints": 2, "batch_size": 8},
        "threshold": {"quantile": 0.5, "confidence": 0.5, "bootstrap": 10},
    },
}


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of every fenced block."""
    text = (DOCS / "tutorials" / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    """Lines of a block, those that end in a backslash put together."""
    return [line for line in re.sub(r"\\\n\s*", "", block).splitlines() if line.strip()]


def shrink(path: Path) -> None:
    """Cut down what init has just written; a coordinator's file or a silo's has no such parts."""
    if not path.exists():
        return
    small = dict(SMALL)
    if "combine" in yaml.safe_load(path.read_text()):
        small["combine"] = {"rounds": 1, "local_steps": 1}
    edit_config(path, small)


def run_bash(block: str) -> None:
    for line in commands(block):
        if not line.startswith("clues "):
            subprocess.run(["bash", "-ec", line], check=True, stdout=subprocess.DEVNULL)
            continue
        words = line.split()[1:]
        assert call(*words)[0] == 0, line
        if words[0] == "init":
            shrink(Path(words[1]))


def run_yaml(block: str) -> None:
    """`# FILE` is all of a file, written and read; `# in FILE` a piece that the file would take."""
    said = re.match(r"# (in )?(\S+\.yaml)\n", block)
    assert said, "say in the first line where the settings belong"
    path = Path(said[2])
    if said[1]:
        content = yaml.safe_load(path.read_text()) | yaml.safe_load(block)
        validate(SiloSettings, content, where=path.name)
        return
    path.write_text(block)
    (load_join if "silo" in yaml.safe_load(block) else load_coordinator)(path)


@pytest.fixture
def desk(small_built_in, tmp_path, monkeypatch) -> Path:
    """An empty folder, a base model of no size, and few rows."""
    sizes = demo.Sizes(private=80, validation=6, anchor=12, heldout=4)
    monkeypatch.setattr(demo, "Sizes", lambda: sizes)
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


@pytest.mark.walk
@pytest.mark.parametrize(
    "page", ["one-site.md", "one-machine.md", "three-machines.md", "adding-a-scorer.md"]
)
def test_a_tutorial_runs_as_it_stands(desk, page) -> None:
    space: dict = {}
    found = blocks(page)
    assert found
    for language, block in found:
        if language == "bash":
            run_bash(block)
        elif language == "yaml":
            run_yaml(block)
        else:
            assert language == "python"
            exec(compile(block, page, "exec"), space)
    if page == "one-site.md":
        kept = desk / "bank/run/silos/harbor-bank/private/kept.jsonl"
        rows = (desk / "practice/input/silos/harbor-bank.jsonl").read_text().splitlines()
        assert 0 < len(kept.read_text().splitlines()) < len(rows)
        assert set(kept.read_text().splitlines()) < set(rows), "lines keep their bytes"
    if page == "three-machines.md":
        assert load_silo(desk / "hospital/north.yaml").domain == "medicine-en"


@pytest.mark.walk
@pytest.mark.filterwarnings("ignore:the threshold keeps")
def test_the_page_of_the_library_runs_as_it_stands(desk, small_built_in) -> None:
    base = shutil.copytree(small_built_in, desk / "base-model")
    for seed, site in enumerate(("site-a", "site-b")):
        lora = LoraModel.load(ModelSettings(name=str(base)), LoraSettings(), seed=seed)
        lora.save(lora.initial, desk / site)
    space: dict = {}
    for language, block in blocks("../library.md"):
        if language == "bash":
            run_bash(block)
        else:
            exec(compile(block, "library.md", "exec"), space)
    assert (desk / "report.html").exists()
    assert (desk / "joint" / "adapter_config.json").exists()
    text = (DOCS / "library.md").read_text(encoding="utf-8")
    assert [n for n in clues.__all__ if n[0] != "_" and f"`clues.{n}`" not in text] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the threshold keeps")
def test_the_page_of_rows_runs_as_it_stands(desk) -> None:
    space: dict = {}
    (desk / "north.yaml").write_text("name: north\ndata: rows.jsonl\ndomain: d\n")
    for language, block in blocks("../rows.md"):
        if language == "bash":
            run_bash(block)
        elif language == "yaml":
            run_yaml(block)
        else:
            exec(compile(block, "rows.md", "exec"), space)
    assert (desk / "scores.csv").read_text().count("\n") == 7
    text = (DOCS / "rows.md").read_text(encoding="utf-8")
    assert [schema for schema in SCHEMAS if f"`{schema}`" not in text] == []
    assert [part for part in PARTS if f"`{part}`" not in text] == []


@pytest.mark.parametrize("page", sorted(p.name for p in (DOCS / "tutorials").glob("*.md")))
def test_every_command_in_a_tutorial_names_options_that_exist(page) -> None:
    """Also those that are not run: a verb or an option must not be invented."""
    verbs = get_command(cli.app).commands  # pyright: ignore[reportAttributeAccessIssue]
    text = re.sub(r"\\\n\s*", "", (DOCS / "tutorials" / page).read_text(encoding="utf-8"))
    for line in re.findall(r"^clues (\w+.*)$", text, flags=re.MULTILINE):
        verb, *words = line.split()
        command = verbs[verb]
        command = getattr(command, "commands", {}).get(words[0] if words else "", command)
        known = {o for p in command.params for o in p.opts}
        assert {w for w in words if re.match("--?[a-z]", w)} <= known, line


def test_the_page_of_commands_has_every_verb_and_exit_code() -> None:
    text = (DOCS / "commands.md").read_text(encoding="utf-8")
    verbs = get_command(cli.app).commands  # pyright: ignore[reportAttributeAccessIssue]
    assert [verb for verb in verbs if f"`{verb}`" not in text] == []
    kinds = [c for c in vars(errors).values() if isinstance(c, type)]
    assert [k for k in kinds if f"\n| {k.exit_code} |" not in text] == []  # pyright: ignore


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)|src=\"([^\"]+)\"", text)
    found = [link or image for link, image in links]
    assert len(found) > 10
    assert [place for place in found if not (ROOT / place).exists()] == []


def test_all_pages_ask_for_the_same_number_of_checked_rows() -> None:
    pages = [
        ROOT / "README.md",
        DOCS / "index.md",
        DOCS / "limits.md",
        *DOCS.glob("tutorials/*.md"),
    ]
    told = re.compile(r"(\d+) (?:\*?checked rows|anchors are a good|are a good (?:number|start))")
    found = {p.name: told.findall(p.read_text(encoding="utf-8")) for p in pages}
    numbers = {n for name, ns in found.items() for n in ns if name != "limits.md"}
    assert numbers == {"150"}
    assert found["limits.md"][0] == "150"


def test_no_page_installs_a_package_of_a_name_that_is_not_ours_yet() -> None:
    """Whoever owns the name on the index would run code on the reader's machine."""
    folders = ("docs", "src", "examples", "deploy")
    pages = [p for name in folders for p in (ROOT / name).rglob("*") if p.is_file()]
    pages += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    texts = {p: p.read_text(encoding="utf-8", errors="ignore") for p in pages if p.name != "log.md"}
    named = re.compile(r"clues\[\w+\]|(?:pip|uv|pipx) (?:install|add) (?:-\S+ )*['\"]?clues\b")
    assert [str(p) for p, text in texts.items() if named.search(text)] == []


@pytest.mark.walk
def test_the_site_builds_strictly_and_its_pages_ask_nobody(tmp_path) -> None:
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": "", "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    remote = re.compile(r"<(?:script|link|img|iframe|source)[^>]*(?:src|href)=\"?(?:https?:)?//")
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    assert [p.name for p in pages if remote.search(p.read_text(encoding="utf-8"))] == []
    with chromium() as browser:
        for name in ("index.html", "tutorials/one-site.html", "api.html"):
            opened = Opened(browser, site / name)
            # Loaded when opened. A wait until nothing is asked for may never end: of a worker that is
            # not allowed to start from disk, a browser on a busy machine may not say that it ended.
            opened.page.wait_for_function("document.fonts.status === 'loaded'")
            left = [
                url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))
            ]
            assert (left, opened.complaints) == ([], []), name
            if not name.startswith("api"):
                opened.page.locator("input.md-search__input").click()
                opened.page.keyboard.type("anchor")
                # From disk a browser starts no worker, which the search is.
                opened.page.wait_for_selector(".md-search-result__item", timeout=30_000)
            opened.close()
