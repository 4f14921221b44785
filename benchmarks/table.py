"""The table: what was aimed at and what came out, and the file that keeps one for every machine."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clues.atomic import atomic_write_bytes

HEAD = """# Benchmarks

Made by `python -m benchmarks.scoring --write`: one section for every machine and model, replaced when
the same machine measures the same model again. A ratio is the median over turns, with the smallest and
the largest in brackets. A target that is missed stays in the table.

Scoring here is by the side branch (form `sgd`), but for the line that says what the default form `less` costs instead:
it goes through the gradients of single rows. The coordinator scores the anchors and, where parts are weighed, two damaged copies
of each beside them, once per domain, so 150 anchors cost it about what 450 rows cost a silo. Rows, adapter and directions come from
seed 0. The picture is of 24 November 2026, of the first machine below, and older than its table. Tables up to 26 November 2026 are
of the code that made all logits at once and took batches of 2,048 padded tokens, not 1,024; on a model with 49,152 words scoring
takes 0.73 to 0.87 of that time without the logits (27 November, docs/log.md).

![Time and peak memory from a thousand to a hundred thousand rows](images/growth.svg)
"""
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what is compared.
        target: what it is to reach.
        measured: what it reached, with its unit.
        met: whether it did; None where nothing was measured or nothing was aimed at.
    """

    what: str
    target: str
    measured: str
    met: bool | None


def table_text(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    words = {True: "yes", False: "no", None: "-"}
    lines = ["| what | target | measured | met |", "| :--- | :--- | :--- | :--- |"]
    lines += [f"| {r.what} | {r.target} | {r.measured} | {words[r.met]} |" for r in rows]
    return "\n".join(lines) + "\n"


def write_section(path: Path, key: str, text: str) -> None:
    """Put a section into the file, in the place of the one with the same key; others stay.

    Args:
        path: the Markdown file; made if it is not there.
        key: the section's heading.
        text: what stands below it.
    """
    sections = read_sections(path)
    sections[key] = text.strip()
    parts = [HEAD, *(f"## {name}\n\n{body}\n" for name, body in sections.items())]
    atomic_write_bytes(path, "\n".join(parts).encode())


def read_sections(path: Path) -> dict[str, str]:
    """Text of every section of the file, by heading, in order."""
    if not path.exists():
        return {}
    _, *parts = re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: body.strip() for name, _, body in (part.partition("\n") for part in parts)}
