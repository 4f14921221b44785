"""A table of a report: text cells under their columns, for a page, Markdown or a terminal."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column: `title` for a page, `short` for a terminal."""

    key: str
    title: str
    short: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """Text cells under their columns; the first cell of a row names it."""

    note: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]


def markdown_table(table: Table) -> list[str]:
    """Lines of the table in Markdown, without its note."""
    rule = ["---:" if column.numeric else ":---" for column in table.columns]
    lines = [[escape(column.title) for column in table.columns], rule]
    lines += [[escape(cell) for cell in row] for row in table.rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def escape(text: str) -> str:
    """Text that Markdown shows as it is, also inside a table."""
    for mark in "\\`*[]|":
        text = text.replace(mark, "\\" + mark)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
