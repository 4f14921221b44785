"""Options that several verbs share, and the two consoles."""

from pathlib import Path
from typing import Annotated

import typer

from clues.cli.terminal import Shown
from clues.config import parse_columns
from clues.errors import UsageError

out, err = Shown(), Shown(stderr=True)

Config = Annotated[
    # click 8.5 hides the help of typer's arguments, so the name has to say it.
    Path,
    typer.Argument(metavar="CLUES.YAML", help="The run's configuration.", show_default=False),
]
Out = Annotated[Path | None, typer.Option("--out", help="The run's folder. Default: runs/NAME.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Degenerate = Annotated[
    bool,
    typer.Option("--allow-degenerate", help="Accept a selection that keeps nothing or everything."),
]
SkipNonfinite = Annotated[
    bool,
    typer.Option("--skip-nonfinite", help="Drop rows whose score is NaN or infinite, and say so."),
]
BadRows = Annotated[
    Path | None,
    typer.Option(
        "--bad-rows",
        help="Write where every bad row lies and why it is bad, without its text, to this csv file "
        "that nobody else can read.",
    ),
]
Map = Annotated[
    str | None,
    typer.Option(
        "--map",
        metavar="PART=COLUMN,...",
        help="The file's own names by what they hold, such as prompt=question,context=passage; "
        "for those files that have the columns.",
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings in place of the file's, such as recipe.seed=1 or silos.north.min_kept=9.",
        show_default=False,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


def mapping_of(text: str | None) -> dict[str, str | None] | None:
    """Read a mapping of columns as it stands on a command line.

    Raises:
        UsageError: it is none.
    """
    try:
        return parse_columns(text) if text else None
    except ValueError as error:
        problem = str(error)
    raise UsageError(f"--map: {problem}.")
