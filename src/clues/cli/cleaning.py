"""Verbs for one file of rows: clean it, or draw rows of it for a person to check."""

import json
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from clues.cli.calm import calm_libraries
from clues.cli.opening import team_for
from clues.cli.options import Json, Map, Quiet, err, mapping_of, out
from clues.config import BUILT_IN
from clues.errors import UsageError
from clues.printable import rows_in_words
from clues.underway import run_of

Rows = Annotated[
    str, typer.Argument(metavar="ROWS", help="Your rows: a file, a folder, or a hub data set.")
]
Schema = Annotated[
    str | None,
    typer.Option(help="Which columns hold prompt and answer, where several schemas fit."),
]
Model = Annotated[str, typer.Option(help="Base model: a folder, a hub name, or built-in.")]


class LowTurn(StrEnum):
    """What a turn below the threshold costs, as `threshold.low_turn`."""

    keep = "keep"
    mask = "mask"
    drop = "drop"


def clean(
    rows: Rows,
    checked: Annotated[
        Path | None,
        typer.Option(
            help="Rows that somebody has looked at and found good; 150 are a good number."
        ),
    ] = None,
    rejected: Annotated[
        Path | None,
        typer.Option(
            help="Rows that somebody has found bad, ten or more: likeness to them counts against a row."
        ),
    ] = None,
    model: Model = BUILT_IN,
    folder: Annotated[Path, typer.Option("--out", help="Where the outcome goes.")] = Path(
        "cleaned"
    ),
    schema: Schema = None,
    columns: Map = None,
    overrides: Annotated[
        Path | None,
        typer.Option(
            help="What a person decided on the report, as exported there; it replaces what was."
        ),
    ] = None,
    turns: Annotated[
        LowTurn | None,
        typer.Option(
            help="Score every turn of chats, too. A low one is shown (keep), marked as not to be "
            "trained (mask), or costs the row (drop)."
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Clean one file of rows: no configuration, and no row lost in silence.

    kept.*, set_aside.* and unscored.* in the folder hold every row of the file between them, in its
    own format; decisions.csv says why, and report.html where rows were scored. Interrupted, the same
    command goes on where it stopped. Without --checked no row is scored, and only what a reader sees in
    the text is set aside:

    clues clean rows.json --checked checked.json --model ./base-model --out cleaned

    A launcher of several processes has them share the scoring: torchrun --nproc-per-node 2 -m clues clean ...
    """
    mapped = mapping_of(columns)
    for name, given in (("--overrides", overrides), ("--rejected", rejected), ("--turns", turns)):
        if given and checked is None:
            raise UsageError(f"{name} goes with --checked: without it no row is scored.")
    team = team_for(run_of(folder), models={})
    from clues.data.formats import not_read
    from clues.prepare.cleaning import clean_by_text, clean_file
    from clues.progress import Silent, Terminal

    how = {"schema": schema, "columns": mapped}
    if checked is None:
        found = clean_by_text(rows, folder, **how)
    else:
        progress = Silent() if quiet else Terminal(err)
        found = clean_file(
            rows,
            checked,
            folder,
            model=model,
            rejected=rejected,
            overrides=overrides,
            low_turn=turns.value if turns else None,
            team=team,
            say=None if quiet else partial(err.print, highlight=False, soft_wrap=True),
            progress=progress,
            **how,
        )
    for warning in found.warnings:
        err.print(Text(f"warning: {warning}", style="bold magenta"), soft_wrap=True)
    if found.unread:
        err.print(Text(f"note: {not_read(found.unread, option='--map')}"), soft_wrap=True)
    if as_json:
        out.print_json(json.dumps(found.to_json()))
        return
    out.print(found.sentence, highlight=False, soft_wrap=True)


def sample(
    rows: Rows,
    n: Annotated[int, typer.Option("--n", help="How many rows to draw.", min=10)] = 150,
    model: Model = BUILT_IN,
    page: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("to-check.html"),
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 42,
    schema: Schema = None,
    columns: Map = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw rows for a person to check, and write a page to do it on (NAME.html).

    Rows are spread over length, subject and how likely the base model finds them. The page needs no
    network. Its keys are g (good), b (bad) and s (skip); it saves checked.json with the good rows and
    rejected.json with the bad ones. Then:

    clues clean rows.json --checked checked.json --rejected rejected.json
    """
    calm_libraries()
    # A browser opens what is called a page.
    page = page if page.suffix else page.with_suffix(".html")
    from clues.prepare.sampling import sample_page
    from clues.progress import Silent, Terminal

    n_drawn = sample_page(
        rows,
        page,
        n=n,
        model=model,
        seed=seed,
        schema=schema,
        columns=mapping_of(columns),
        progress=Silent() if quiet else Terminal(err),
    )
    if as_json:
        out.print_json(json.dumps({"page": str(page), "rows": n_drawn}))
        return
    out.print(f"{rows_in_words(n_drawn)} to check: open {page}", highlight=False, soft_wrap=True)
    out.print(
        "The page shows rows: keep it where they may lie. Then: "
        f"clues clean {rows} --checked checked.json --rejected rejected.json",
        highlight=False,
        soft_wrap=True,
    )
