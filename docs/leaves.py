"""Write what leaves a silo into the pages that show it, and draw it: python -m docs.leaves.

The messages say it themselves, in `reveals`, so that no page can leave one out.
"""

from html import escape
from pathlib import Path
from typing import NamedTuple

from clues.wall import messages
from docs.blocks import table, write_block

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "privacy.md")
SIGN_OFF = ROOT / "docs" / "sign-off.md"
PICTURE = ROOT / "docs" / "images" / "who-sends-what.svg"
NAME = "what leaves"
# Everything that goes from a silo to the coordinator, in the order of a run.
SENT = (
    *messages.REPLIES.values(),
    messages.Refusal,
    messages.Failure,
    messages.WhoReply,
)


class Item(NamedTuple):
    """What a person who signs asks about a message, beside what it tells."""

    purpose: str
    kept: str
    switch: str


RECORD = "stays in the run's record (counts, `results.json`)"
ROUND = "the silo's own until the round is joined, then removed; the joint adapter stays"
ALWAYS = "none: a silo that takes part says this much"
# By kind. Who sees it is the same for all: the coordinator.
ITEMS = {
    "hello-reply": Item(
        "the coordinator learns who takes part, and what must be done again",
        RECORD,
        f"{ALWAYS}. `privacy` puts noise on the number of rows",
    ),
    "sketch-reply": Item(
        "find the same question in two silos",
        "as long as the stage takes; the pairs found stay in `coordinator/`",
        "`recipe.duplicates` (off)",
    ),
    "leave-reply": Item("say how many rows went", RECORD, "`recipe.duplicates` (off)"),
    "train-reply": Item(
        "make the model that scores rows",
        ROUND,
        "`recipe.score.trajectory: local` or `crossfit`; `privacy` puts noise on it",
    ),
    "score-reply": Item(
        "set the threshold where silos score the public anchors themselves",
        "as long as the run's folder",
        "`recipe.score.trajectory: global` (the default), and no rule `mixture`",
    ),
    "select-reply": Item(
        "say how many rows will train", RECORD, "`approval: true` makes it wait for a person"
    ),
    "fit-reply": Item(
        "make the joint model",
        ROUND,
        "`privacy` puts noise on it; fewer joint models with `evaluate.arms`",
    ),
    "evaluate-reply": Item(
        "measure how good the selection is",
        RECORD,
        "`share_diagnostics` (off); the epsilon spent is told with `privacy`",
    ),
    "refusal": Item(
        "say that a person has not approved", RECORD, "`approval: false` (the default)"
    ),
    "failure": Item("say that something went wrong", RECORD, ALWAYS),
    "who-reply": Item(
        "find a silo without keys, on one machine", "not kept", "keys (`clues keys`)"
    ),
}


def leaves() -> str:
    """The table: every kind of message from a silo, and what it tells."""
    rows = [(f"`{sent.kind}`", sent.reveals) for sent in SENT]
    return table(("message", "what it tells the coordinator"), rows)


def sign_off() -> str:
    """The table to sign: item, purpose, who sees it, how long it is kept, what switches it off."""
    rows = [
        (f"`{sent.kind}`: {sent.reveals}", item.purpose, "the coordinator", item.kept, item.switch)
        for sent in SENT
        for item in [ITEMS[sent.kind]]
    ]
    heads = ("item", "purpose", "who sees it", "how long it is kept there", "what switches it off")
    return table(heads, rows)


STYLE = """
  text { font-family: system-ui, sans-serif; font-size: 13px; fill: #2b2f36 }
  .page { fill: #ffffff } .box { stroke: #6b7280; fill: #f3f4f7 } .private { fill: #fbe9e4 } .public { fill: #e3effb }
  .name { font-size: 15px; font-weight: 600 } .soft { fill: #565d66 } .middle { text-anchor: middle }
  .says { paint-order: stroke; stroke: #ffffff; stroke-width: 7px; stroke-linejoin: round }
  .arrow { stroke-width: 2; fill: none; stroke: #b4492f } .in { stroke: #2f6ab4 }
  .head { fill: #b4492f } .head-in { fill: #2f6ab4 } .wall { stroke: #b4492f; stroke-width: 5; stroke-dasharray: 2 7; stroke-linecap: round }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e6ea } .page { fill: #1b1e24 } .box { fill: #2a2f38; stroke: #9aa3b2 } .soft { fill: #a6adb5 }
    .private { fill: #45281f } .public { fill: #1d3550 } .wall, .arrow { stroke: #e2704f } .in { stroke: #6fa8e8 }
    .says { stroke: #1b1e24 } .head { fill: #e2704f } .head-in { fill: #6fa8e8 }
  }
"""
WIDTH, TOP, STEP = 860, 92, 58
# What goes each way, in the order of a run: to the silo, and from it.
STEPS = (
    ("recipe, public rows", "name, rounded number of rows"),
    ("joint adapter", "adapter and mean gradients of a round"),
    ("directions of public rows", "that it has scored"),
    ("one threshold", "rounded number of kept rows"),
    ("joint adapter", "adapter trained on the kept rows"),
)
INSIDE = ("rows", "scores of rows", "gradients of rows", "kept and set-aside files")
INSIDE += ("decisions of people", "the private report")
OUTSIDE = ("recipe and threshold", "joint adapter", "rounded counts", "results, report.html")
OUTSIDE += ("ledger of every message",)


def picture() -> str:
    """Who sends what to whom, as SVG that reads in light and in dark."""
    height = TOP + STEP * len(STEPS) + 34
    bottom = height - 22
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="A silo keeps rows, scores, gradients of rows and decisions. It sends adapters '
        "and rounded counts to the coordinator, which sends the recipe, joint adapters and one "
        'threshold.">',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        *(_head(name) for name in ("head", "head-in")),
        _side(20, "Each silo", "keeps inside", INSIDE, "private", bottom),
        _side(640, "The coordinator", "has and shows", OUTSIDE, "public", bottom),
        f'<path class="wall" d="M430 44V{bottom}"/>',
        '<text class="middle soft" x="430" y="34">the wall: only messages cross it</text>',
    ]
    for n, (to_silo, from_silo) in enumerate(STEPS):
        y = TOP + n * STEP
        parts.append(_arrow(y, to_silo, leftward=True))
        parts.append(_arrow(y + STEP / 2, from_silo, leftward=False))
    return "\n".join([*parts, "</svg>", ""])


def _side(x: int, name: str, says: str, items: tuple[str, ...], kind: str, bottom: int) -> str:
    lines = "".join(
        f'<text x="{x + 16}" y="{112 + 25 * n}">{escape(item)}</text>'
        for n, item in enumerate(items)
    )
    return (
        f'<rect class="box {kind}" x="{x}" y="20" width="200" height="{bottom - 20}" rx="8"/>'
        f'<text class="name" x="{x + 16}" y="50">{escape(name)}</text>'
        f'<text class="soft" x="{x + 16}" y="78">{says}:</text>{lines}'
    )


def _arrow(y: float, says: str, *, leftward: bool) -> str:
    ends = f"M630 {y:g}H236" if leftward else f"M230 {y:g}H624"
    kind, head = ("arrow in", "head-in") if leftward else ("arrow", "head")
    return (
        f'<path class="{kind}" marker-end="url(#{head})" d="{ends}"/>'
        f'<text class="middle says" x="430" y="{y - 10:g}">{escape(says)}</text>'
    )


def _head(name: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" markerHeight="6" '
        f'orient="auto-start-reverse"><path class="{name}" d="M0 0L8 4L0 8z"/></marker>'
    )


def main() -> None:
    """Bring pages and picture up to date."""
    for page in PAGES:
        write_block(page, NAME, leaves())
    write_block(SIGN_OFF, NAME, sign_off())
    PICTURE.write_text(picture(), encoding="utf-8")


if __name__ == "__main__":
    main()
