"""Options that several verbs share, and the two consoles."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

# No markup: what is printed may hold brackets that somebody else has written.
out, err = Console(markup=False), Console(stderr=True, markup=False)

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
Changes = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings in place of the file's, such as recipe.seed=1 or silos.north.min_kept=9.",
        show_default=False,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
