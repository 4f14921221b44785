"""The verb that puts runs beside each other, and the seeds that make several of one."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clues.atomic import atomic_write_bytes
from clues.cli.options import Json, err, out
from clues.errors import UsageError
from clues.printable import MAX_TEXT, printable
from clues.results.run import Results

if TYPE_CHECKING:
    from clues.evaluation.across import Comparison, Line

MAX_SEEDS = 1000
# A run's name is text, and may have come from somebody else; none of it is a command of LaTeX.
_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "#$%&_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
)
Csv = Annotated[
    Path | None, typer.Option("--csv", help="Write one line for each figure and difference.")
]
Latex = Annotated[
    Path | None, typer.Option("--latex", help="Write a table for a paper (LaTeX, booktabs).")
]
Against = Annotated[
    str, typer.Option("--against", help="The joint model that the others are compared with.")
]


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN ...", help="Folders of runs, or their results.json."),
    ],
    against: Against = "random",
    csv: Csv = None,
    latex: Latex = None,
    as_json: Json = False,
) -> None:
    """Compare runs: means over seeds, and paired differences with 95 % intervals.

    Runs that differ in recipe.seed alone are one group, and their differences are paired by seed.
    Other groups are compared with the first one, arm by arm:

    clues compare runs/trial-seed-* runs/other-seed-* --csv table.csv
    """
    found = [Results.load(run / "results.json" if run.is_dir() else run) for run in runs]
    show_comparison(found, against=against, csv=csv, latex=latex, as_json=as_json)


def show_comparison(
    runs: Sequence[Results],
    *,
    against: str = "random",
    csv: Path | None = None,
    latex: Path | None = None,
    as_json: bool = False,
) -> None:
    """Compare, print, and write the tables that are asked for.

    Raises:
        DataError: the runs cannot be compared.
    """
    from clues.evaluation.across import compare_runs

    found = compare_runs(runs, against=against)
    if csv is not None:
        atomic_write_bytes(csv, _frame(found).to_csv(index=False).encode())
    if latex is not None:
        atomic_write_bytes(latex, _latex(found).encode())
    if as_json:
        content = {"seeds": found.seeds, "lines": [asdict(line) for line in found.lines]}
        out.print_json(json.dumps({**content, "notes": found.notes}, allow_nan=False))
        return
    for group, seeds in found.seeds.items():
        out.print(f"{group}: seeds {', '.join(map(str, seeds))}", style="bold", highlight=False)
        for line in [line for line in found.lines if line.group == group]:
            what = f"{printable(line.arm, MAX_TEXT)}, {line.measure}"
            what += f", less {line.against}" if line.against else ""
            out.print(f"  {what:<52} {_shown(line)}", highlight=False, soft_wrap=True)
    for note in found.notes:
        err.print(f"note: {note}", style="bold magenta", highlight=False, soft_wrap=True)


def seeds_of(text: str) -> list[int]:
    """Seeds as they are typed: `0..4` for five of them, or `1,2,7`.

    Raises:
        UsageError: it is neither, a seed comes twice, or they are too many.
    """
    first, dots, last = text.partition("..")
    parts = [first, last] if dots else text.split(",")
    if not all(part.strip().isdecimal() and len(part.strip()) < 19 for part in parts):
        raise UsageError("--seeds: write 0..4 for five seeds, or 1,2,7.")
    numbers = [int(part) for part in parts]
    if dots:
        if not 0 <= numbers[1] - numbers[0] < MAX_SEEDS:
            raise UsageError(f"--seeds: from the lower to the higher, at most {MAX_SEEDS} seeds.")
        return list(range(numbers[0], numbers[1] + 1))
    if len(set(numbers)) < len(numbers):
        raise UsageError("--seeds: a seed comes twice.")
    return numbers


def _shown(line: "Line") -> str:
    value = f"{line.value:+.3f}" if line.against else f"{line.value:.3f}"
    if line.low is None or line.high is None:
        return f"{value} ({line.n} seeds, all the same)" if line.n > 1 else f"{value} (1 seed)"
    over = f"{line.n} seeds" if line.over == "seeds" else "over the rows of one run"
    return f"{value} ({line.low:.3f} to {line.high:.3f}, 95 %, {over})"


def _frame(found: "Comparison") -> Any:
    import pandas as pd  # half a second, for a file that is seldom asked for

    return pd.DataFrame([asdict(line) for line in found.lines])


def _latex(found: "Comparison") -> str:
    """One line an arm: each measure as mean and half-width, or with both ends."""
    import pandas as pd

    cells: dict[tuple[str, str], dict[str, str]] = {}
    for line in found.lines:
        column = f"{line.measure} less {line.against}" if line.against else line.measure
        if line.low is None or line.high is None:
            text = f"{line.value:.3f}"
        else:
            text = f"{line.value:.3f} [{line.low:.3f}, {line.high:.3f}]"
        cells.setdefault((line.group, line.arm), {})[column.replace("_", " ")] = text
    table = pd.DataFrame.from_dict(cells, orient="index").fillna("")
    table.index.names = ["runs", "arm"]
    seeds = "; ".join(f"{group}: {', '.join(map(str, s))}" for group, s in found.seeds.items())
    caption = f"Means over seeds with 95 % intervals. Seeds: {seeds}."
    return table.to_latex(escape=True, caption=caption.translate(_LATEX))
