"""What stands around the code: pages made of it, and the files for whoever carries on."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_architecture import arrows, modules

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
    assert sorted([*named, *kinds["ground"], *kinds["doors"]]) == modules()
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
