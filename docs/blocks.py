"""Blocks of a page that a script writes: the text between `<!-- NAME: begin -->` and its end."""

from collections.abc import Sequence
from pathlib import Path


def with_block(page: str, name: str, block: str) -> str:
    """Return a page with the named block replaced.

    Raises:
        ValueError: the page does not hold the block's two markers, once each and in order.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed) or begin in rest or end in after:
        raise ValueError(f"the page must hold {begin} and then {end}, once each.")
    # Blank lines: Markdown takes what touches a comment for a part of it.
    return f"{before}{begin}\n\n{block.strip()}\n\n{end}{after}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns left-aligned."""
    lines = [heads, [":---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def write_block(path: Path, name: str, block: str) -> None:
    """Replace the named block of a file."""
    text = with_block(path.read_text(encoding="utf-8"), name, block)
    path.write_text(text, encoding="utf-8")
