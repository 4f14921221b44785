"""The verb for preference pairs."""

import csv
import io
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from clues.atomic import atomic_write_bytes
from clues.cli.calm import calm_libraries
from clues.cli.options import Json, Map, Quiet, err, mapping_of, out
from clues.config import BUILT_IN


def pairs(
    rows: Annotated[
        Path, typer.Argument(metavar="PAIRS", help="A file of pairs.", show_default=False)
    ],
    checked: Annotated[
        Path,
        typer.Option("--checked", help="Good rows of the same subject, as clues init takes them."),
    ],
    model: Annotated[
        str, typer.Option("--model", help="Base model: built-in, a folder or a hub name.")
    ] = BUILT_IN,
    table: Annotated[
        Path | None,
        typer.Option("--out", help="Write both scores of every pair to this private csv file."),
    ] = None,
    columns: Map = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find preference pairs whose answers may be swapped: the rejected one scores higher.

    Both answers are trained on and scored alike, whoever is right. Nothing is changed in the file.
    """
    mapped = mapping_of(columns)
    calm_libraries()
    from clues.api.pairs import compare_pairs
    from clues.data.formats import not_read, read_rows

    read = read_rows(rows, columns=mapped)
    found = compare_pairs(
        str(rows), columns=mapped, checked=str(checked), model=model, progress=not quiet
    )
    places = [read.table.place(row) for row in range(read.n_rows)]
    swapped = set(found.flipped)
    if table is not None:
        text = io.StringIO()
        lines = zip(places, found.chosen, found.rejected, strict=True)
        csv.writer(text).writerows(
            [
                ("place", "chosen", "rejected", "flipped"),
                *((p, f"{c:.6g}", f"{r:.6g}", n in swapped) for n, (p, c, r) in enumerate(lines)),
            ]
        )
        atomic_write_bytes(table, text.getvalue().encode(), private=True)
    listed = [places[row] for row in found.flipped]
    if read.unused:
        err.print(Text(f"note: {not_read(read.unused, option='--map')}"), soft_wrap=True)
    if as_json:
        figures = {"pairs": found.n_pairs, "flipped": listed, "not_read": dict(read.unused)}
        out.print_json(json.dumps(figures))
        return
    out.print(
        f"{found.n_pairs:,} pairs; of {len(listed):,} the rejected answer scores higher.",
        highlight=False,
    )
    if listed:
        more = ", ..." if len(listed) > 10 else ""
        out.print(
            f"Clearest first: {', '.join(listed[:10])}{more}", highlight=False, soft_wrap=True
        )
