"""Write the table of what leaves a silo into the pages that show it: python -m docs.leaves.

The messages say it themselves, in `reveals`, so that no page can leave one out.
"""

from pathlib import Path

from clues.wall import messages
from docs.blocks import table, write_block

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "privacy.md")
NAME = "what leaves"
# Everything that goes from a silo to the coordinator, in the order of a run.
SENT = (
    *messages.REPLIES.values(),
    messages.Refusal,
    messages.Failure,
    messages.WhoReply,
)


def leaves() -> str:
    """The table: every kind of message from a silo, and what it tells."""
    rows = [(f"`{sent.kind}`", sent.reveals) for sent in SENT]
    return table(("message", "what it tells the coordinator"), rows)


def main() -> None:
    """Bring both pages up to date."""
    for page in PAGES:
        write_block(page, NAME, leaves())


if __name__ == "__main__":
    main()
