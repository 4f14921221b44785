"""A run on a terminal: its tables, readable at 80 columns, and what to do next."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from clues.report.answers import judge_table, tasks_table
from clues.report.arms import arms_table
from clues.report.pairs import threshold_pairs, weak_promise
from clues.report.silos import silos_table
from clues.report.table import Table
from clues.results.run import Results


def print_table(results: Results, console: Console) -> None:
    """Print arms, silos, tasks, judge and the threshold, with the roundings of the shared page."""
    # The silos' own cuts would leave no room for names at 80 columns.
    tables = {"Silos": silos_table(results, cuts=False)}
    if results.arms:
        tables = {"Arms": arms_table(results), **tables}
    if tasks := tasks_table(results):
        tables["Tasks"] = tasks
    if judge := judge_table(results):
        tables["Judge"] = judge
    for title, table in tables.items():
        console.print(_grid(title, table))
        console.print(Text(table.note, style="dim"))
        console.print()
    console.print(Text("Threshold", style="bold"))
    for key, text in threshold_pairs(results.threshold):
        console.print(Text(f"{key}: {text}"))
    if warned := weak_promise(results.threshold):
        console.print(Text(f"warning: {warned}", style="bold magenta"))


def print_next(
    root: Path, silos: Sequence[str], console: Console, *, program: str, arguments: str
) -> None:
    """Say what to open after a run, and how a person overrules rows.

    Args:
        root: of the run.
        silos: names.
        console: to print on.
        program: as the user would type it.
        arguments: the configuration, and the run's folder where it is not the usual one.
    """
    private = root / "silos" / "SILO" / "private"
    names = ", ".join(silos[:5]) + (", ..." if len(silos) > 5 else "")
    lines = (
        "",
        f"Report for everyone: {root / 'report.html'}",
        f"Every row and why: {private / 'report.html'}",
        f"Kept rows: {private / 'kept.*'}",
        f"SILO is one of {names}." if silos else "",
        "To overrule rows, decide on the page of every row, export there, and then:",
        f"  {program} select {arguments} --overrides FILE",
        f"  {program} run {arguments}",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _grid(title: str, table: Table) -> Grid:
    grid = Grid(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for column in table.columns:
        # Only names may wrap: half a number is a wrong number.
        grid.add_column(
            Text(column.short),
            justify="right" if column.numeric else "left",
            no_wrap=column.numeric,
            overflow="fold",
        )
    for row in table.rows:
        # Text, not str: a name such as "[red]" is a name and not a style.
        style = "bold" if title == "Arms" and row[0] == "clues" else ""
        grid.add_row(*map(Text, row), style=style)
    return grid
