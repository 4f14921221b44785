"""A silo's decisions: which rows are above the one threshold, and why."""

import csv
import io
from collections.abc import Mapping

import numpy as np

from clues.atomic import atomic_write_bytes
from clues.data.files import named_container
from clues.data.formats import write_rows
from clues.errors import RecipeMismatchError
from clues.rundir import write_json
from clues.scoring.table import ScoreTable
from clues.scoring.trajectory import set_weights
from clues.selection.threshold import Ruling, Selection, Threshold, group_units, select
from clues.selection.units import Units
from clues.selection.weighing import replaced
from clues.silo.overrides import in_force, overrides_token
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
        min_kept=space.fewest_kept(),
        allow_degenerate=allow_degenerate,
        rulings=in_force(space, recipe.hash) if rulings is None else rulings,
    )


def check_threshold(space: Workspace, threshold: Threshold) -> None:
    """Whether a threshold is the recipe's: its rule, and units made of the anchors' scores.

    With other units a coordinator could turn the score round, or let one part of it decide alone.

    Raises:
        RecipeMismatchError: it is another rule, or the units are others.
    """
    recipe, settings = space.recipe(), space.recipe().threshold
    ratio = settings.ratio if settings.rule == "ratio" else None
    value = settings.preset if settings.rule == "preset" else threshold.value
    by_rule = (threshold.rule, threshold.units_kind, threshold.ratio, threshold.value) == (
        *(settings.rule, settings.units, ratio, value),
    )
    public = recipe.public[space.settings.domain]
    weights = replaced(set_weights(recipe.score, public.validation), space.sent_weights())
    stored = space.anchor_scores()
    ours, _ = group_units(
        {g: {k: np.array(v) for k, v in raw.items()} for g, raw in stored.items()},
        dict.fromkeys(stored, weights),
        settings,
    )
    theirs = threshold.units
    if not by_rule or not all(g in theirs and _same(u, theirs[g]) for g, u in ours.items()):
        raise RecipeMismatchError(
            f"silo {space.name}: the threshold that came is not by the recipe's rule, or its units "
            "are not those of the anchors' scores. The coordinator runs another program, or asks "
            "for a selection that the recipe does not describe."
        )


def _same(ours: Units, theirs: Units) -> bool:
    """Whether two units are equal but for rounding."""
    named = (ours.weights.keys(), ours.scales.keys(), ours.parts.keys())
    if named != (theirs.weights.keys(), theirs.scales.keys(), theirs.parts.keys()):
        return False
    return bool(np.allclose(_numbers(ours), _numbers(theirs), rtol=1e-9, atol=0.0))


def _numbers(units: Units) -> list[float]:
    parts = [units.parts[name] for name in sorted(units.parts)]
    return [
        units.location,
        units.spread,
        *(units.weights[name] for name in sorted(units.weights)),
        *(units.scales[name] for name in sorted(units.scales)),
        *(number for part in parts for number in (part.centre, part.width, part.weight)),
    ]


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
    space.keep(selection.kept, overruled=overrides_token(space, space.recipe().hash))
    names = [f"{name}{rows.suffix}" for name in halves]
    note(space, "select", [*names, "decisions.csv", "threshold.json", "selection.json"])


def in_units(space: Workspace, table: ScoreTable, threshold: Threshold) -> np.ndarray:
    """Scores in the units that make the threshold's one number mean the same everywhere.

    Raises:
        RecipeMismatchError: the threshold has no units for one of the silo's groups.
    """
    return table.in_units(threshold, space.groups(), where=f"silo {space.name}")
