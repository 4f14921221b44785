"""What stands around the code: pages made of it, and the files for whoever carries on."""

from pathlib import Path

import pytest

from docs import leaves
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
