"""What stands around the code: pages made of it, and the files for whoever carries on."""

import os
import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from test_architecture import arrows, modules

import clues
from docs import architecture, leaves
from docs.blocks import with_block

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", leaves.PAGES, ids=lambda page: page.name)
def test_the_table_of_what_leaves_is_made_of_the_messages(page):
    text = page.read_text(encoding="utf-8")
    assert text == with_block(text, leaves.NAME, leaves.leaves()), "run make leaves"
    for sent in leaves.SENT:
        assert f"| `{sent.kind}` | {sent.reveals} |" in text


def test_the_table_of_what_leaves_has_every_message_from_a_silo():
    kinds = {sent.kind for sent in leaves.SENT}
    types = [c for c in vars(leaves.messages).values() if hasattr(c, "reveals")]
    # A request goes the other way; the envelope is what all have in common.
    sent = {c.kind for c in types if not c.__name__.endswith(("Request", "Envelope"))}
    assert kinds == sent
    assert all(c.reveals.startswith("nothing") for c in types if c.__name__.endswith("Request"))


def test_the_page_for_sign_off_says_of_every_message_why_it_is_sent_and_how_long_it_is_kept():
    assert set(leaves.ITEMS) == {sent.kind for sent in leaves.SENT}
    text = leaves.SIGN_OFF.read_text(encoding="utf-8")
    assert text == with_block(text, leaves.NAME, leaves.sign_off()), "run make leaves"
    assert all(all(part.strip() for part in item) for item in leaves.ITEMS.values())


def test_the_picture_of_who_sends_what_is_drawn_by_code_for_light_and_dark():
    drawing = leaves.PICTURE.read_text(encoding="utf-8")
    assert drawing == leaves.picture(), "run make leaves"
    assert "prefers-color-scheme: dark" in drawing
    assert ElementTree.fromstring(drawing).tag.endswith("svg")


@pytest.mark.parametrize("page", ["", "<!-- x: end --><!-- x: begin -->", "<!-- x: begin -->"])
def test_a_page_without_its_markers_is_refused(page):
    with pytest.raises(ValueError, match="x: begin"):
        with_block(page, "x", "new")


def test_the_page_and_the_picture_of_the_rooms_are_made_of_the_code():
    page = architecture.PAGE.read_text(encoding="utf-8")
    new = with_block(page, architecture.NAME, architecture.figures())
    assert page == new, "run make architecture"
    drawing = architecture.PICTURE.read_text(encoding="utf-8")
    assert drawing == architecture.picture(), "run make architecture"
    assert ElementTree.fromstring(drawing).tag.endswith("svg")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\((?!#)", drawing)


def test_the_rooms_hold_every_module_once_and_have_the_arrows_that_the_wall_is_tested_with():
    by_room, kinds = architecture.rooms(), architecture.loose()
    named = sorted([m for names in by_room.values() for m in names])
    assert sorted([*named, *kinds["ground"], *kinds["doors"]]) == [*modules()]
    home = {m: room for room, names in by_room.items() for m in names}
    known: set[tuple[str, str]] = set()
    for module, others in arrows().items():
        rooms = {home.get(o, o.split(".")[0]) for o in others} & set(by_room)
        known |= {(home[module], room) for room in rooms if module in home}
    found = {(room, other) for room, others in architecture.arrows().items() for other in others}
    assert found == {(room, other) for room, other in known if room != other}


def test_arrows_that_a_chain_stands_for_are_not_drawn():
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": set(), "d": set()}
    assert architecture.drawn(graph) == [("a", "b"), ("a", "d"), ("b", "c")]


def test_what_the_walks_name_is_in_the_code():
    text = architecture.PAGE.read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)*\w+\.py)`(?: `(\w+)`)?", text)
    assert len(named) > 30
    for file, name in named:
        if file.startswith("tests/"):
            assert (ROOT / file).exists(), file
            continue
        source = architecture.SOURCE / file
        assert source.exists(), f"docs/architecture.md names {file}, which is not there"
        defined = re.search(rf"^(?:def|class) {name}\b", source.read_text(), re.MULTILINE)
        assert not name or defined, f"docs/architecture.md: {file} has no {name}"


def test_the_hosted_check_is_the_local_one():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    job = content["jobs"]["check-and-test"]
    assert content["jobs"]["long-tests"]["if"] == "github.event_name == 'schedule'"
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used), used
    assert content["permissions"] == {"contents": "read"}
    assert "secrets" not in text
    [version] = [s["with"]["python-version"] for s in job["steps"] if "python" in str(s)]
    assert project()["requires-python"] == f">={version}", "CI runs the oldest Python"


@pytest.mark.parametrize("name", ["bug.yml", "question.yml"])
def test_an_issue_form_warns_of_private_rows_and_can_be_filled_in(name):
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    form = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    warning, *fields = form["body"]
    assert warning["type"] == "markdown"
    assert "Do not paste rows" in warning["attributes"]["value"]
    assert {f["type"] for f in fields} <= {"textarea", "input", "dropdown", "checkboxes"}
    assert len({f["id"] for f in fields}) == len(fields)
    assert all(f["attributes"]["label"] for f in fields)
    assert yaml.safe_load((folder / "config.yml").read_text()) == {"blank_issues_enabled": False}


def test_the_citation_names_the_paper_and_this_version():
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(content), "required by the format"
    assert content["version"] == clues.__version__ == project()["version"]
    assert content["license"] == project()["license"]
    [paper] = content["references"]
    assert {"type", "title", "authors"} <= set(paper), "required by the format"
    assert all({"family-names", "given-names"} == set(author) for author in paper["authors"])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "2507.03004" in paper["url"]
    assert paper["title"] in readme
    assert f"version = {{{clues.__version__}}}" in readme
    names = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    assert f"author    = {{{names}}}" in readme


def test_hooks_before_a_commit_are_those_of_make_check():
    content = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    [repo] = content["repos"]
    assert repo["repo"] == "local", "nothing is fetched"
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ncheck:")[1].split("\n\n")[0]
    checks = {" ".join(line.split()[:2]) for line in recipe.splitlines() if "$(BIN)" in line}
    for hook in repo["hooks"]:
        assert hook["language"] == "system"
        command = hook["entry"].replace(".venv/bin", "$(BIN)").split()
        assert " ".join(command[:2]) in checks, hook["id"]


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_pages_for_whoever_carries_on_name_what_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    places = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    places += re.findall(r"`((?:src|tests|docs|experiments)/[\w/.-]+)`", text)
    assert len(places) > 1
    assert [p for p in places if "NAME" not in p and not (ROOT / p).exists()] == []
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"\| `make (\w+)` \|", text)) <= set(targets)


def test_security_supports_this_version_and_invents_no_address():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert f"| {'.'.join(clues.__version__.split('.')[:2])}, and the branch `main` | yes |" in text
    assert "@" not in text


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_test_that_the_page_on_privacy_names_is_there():
    page = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", page))
    here = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/test_*.py"))
    assert len(named) > 50, "the table of attacks is not read"
    assert not {name for name in named if f"def {name}(" not in here}
