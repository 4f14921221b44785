"""A silo's decisions: which rows are above the one threshold, and why."""

import csv
import io
from collections.abc import Mapping

import numpy as np

from clues.atomic import atomic_write_bytes
from clues.data.files import named_container
from clues.data.formats import write_rows
from clues.rundir import write_json
from clues.scoring.table import ScoreTable
from clues.selection.threshold import Ruling, Selection, Threshold, select
from clues.silo.overrides import in_force
from clues.silo.whole import note
from clues.silo.workspace import Workspace


def decide(
    space: Workspace,
    threshold: Threshold,
    *,
    allow_degenerate: bool,
    rulings: Mapping[str, Ruling] | None = None,
) -> Selection:
    """Decide about every row under a threshold, and write nothing.

    Args:
        space: of the silo.
        threshold: the one for all.
        allow_degenerate: accept a selection that keeps nothing or everything.
        rulings: what a person decided, by content id; None for the overrides in force.

    Raises:
        RecipeMismatchError: the scores come from another recipe.
        DegenerateSelectionError: nothing, everything or too few rows would be kept.
    """
    table = space.scores()
    samples = {s.row: s.id for s in space.rows().samples}
    recipe = space.recipe()
    # Another rule for the threshold leaves the scores what they are.
    current = table.recipe_hash == recipe.scoring_hash
    return select(
        list(zip(table.row.tolist(), table.id, strict=True)),
        in_units(space, table, threshold),
        threshold,
        recipe_hash=recipe.hash if current else table.recipe_hash,
        dropped={row: (samples[row], why) for row, why in space.unscored().items()},
        where=f"silo {space.name}",
        min_kept=space.settings.min_kept,
        allow_degenerate=allow_degenerate,
        rulings=in_force(space, recipe.hash) if rulings is None else rulings,
    )


def write_selection(space: Workspace, selection: Selection, threshold: Threshold) -> None:
    """Kept and dropped rows in the format they came in, and a decision with a reason for each."""
    rows = space.rows()
    halves = {"kept": selection.kept, "dropped": selection.dropped}
    for name, chosen in halves.items():
        path = write_rows(rows, chosen, space.private / f"{name}{rows.suffix}")
        # The rows may have come in another format before.
        for old in space.private.glob(f"{name}.*"):
            if old != path and named_container(old):
                old.unlink()
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["row", "id", "score", "kept", "reason"])
    for d in selection.decisions:
        writer.writerow([d.row + 1, d.id, d.score, int(d.kept), d.reason])
    atomic_write_bytes(space.private / "decisions.csv", buffer.getvalue().encode())
    write_json(space.private / "threshold.json", threshold.to_json())
    # The last file of a selection: what reads it finds the others whole.
    write_json(space.private / "selection.json", list(selection.kept))
    names = [f"{name}{rows.suffix}" for name in halves]
    note(space, "select", [*names, "decisions.csv", "threshold.json", "selection.json"])


def in_units(space: Workspace, table: ScoreTable, threshold: Threshold) -> np.ndarray:
    """Scores in the units that make the threshold's one number mean the same everywhere.

    Raises:
        RecipeMismatchError: the threshold has no units for one of the silo's groups.
    """
    return table.in_units(threshold, space.groups(), where=f"silo {space.name}")
