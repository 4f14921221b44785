"""Which of a file's columns holds what: a mapping, in a configuration and on a command line."""

from difflib import get_close_matches
from typing import Annotated

from pydantic import AfterValidator

# What a row can consist of, under the names that files mostly use.
PROMPTS = ("instruction", "prompt", "question", "query", "input", "inputs")
RESPONSES = ("output", "completion", "response", "answer", "answers", "target", "targets")
CONVERSATIONS = ("conversations", "messages")
PAIRED = ("chosen", "rejected")
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
PARTS = (
    *PROMPTS,
    *RESPONSES,
    *CONVERSATIONS,
    *PAIRED,
    *("context", "system", "history", "thought", "choices", "options", "tools", "label"),
    *MEDIA,
)


def check_columns(columns: dict[str, str | None]) -> dict[str, str | None]:
    """Return a mapping from parts of a row to columns of a file, as it is.

    Raises:
        ValueError: no part of a row has such a name, or two have one column.
    """
    for part in columns:
        if part not in PARTS:
            close = get_close_matches(part, PARTS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"{part[:40]!r} is no part of a row.{hint} Parts: {', '.join(PARTS)}. Write PART: "
                "COLUMN, the file's own name on the right"
            )
    named = [name for name in columns.values() if name is not None]
    if len(set(named)) < len(named):
        raise ValueError("two parts of a row are read from one column")
    return columns


Columns = Annotated[dict[str, str | None], AfterValidator(check_columns)]


def parse_columns(text: str) -> dict[str, str | None]:
    """Read `prompt=question,context=passage`; nothing after '=' means a column that is not read.

    Raises:
        ValueError: it is no such list, or `check_columns` refuses it.
    """
    found: dict[str, str | None] = {}
    for entry in text.split(","):
        part, equals, column = (piece.strip() for piece in entry.partition("="))
        if not part or not equals or part in found:
            raise ValueError("write PART=COLUMN, several with commas between, and each part once")
        found[part] = column or None
    return check_columns(found)
