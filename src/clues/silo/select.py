"""A silo's decisions: which rows are above the one threshold, and why."""

import csv
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from clues.atomic import refuse_what_never_ends, unreadable, write_atomically
from clues.data.files import named_container
from clues.data.formats import write_rows
from clues.data.untrained import mark_untrained
from clues.errors import DataError, RecipeMismatchError
from clues.rundir import write_json
from clues.scoring.table import ScoreTable
from clues.scoring.trajectory import set_weights
from clues.selection.decisions import Decision, Ruling, Selection, select
from clues.selection.threshold import Threshold, group_units
from clues.selection.units import Units
from clues.selection.weighing import replaced
from clues.silo.cascade import early_rows
from clues.silo.counts import draw_of_ten
from clues.silo.overrides import in_force, overrides_token
from clues.silo.reasons import with_reasons
from clues.silo.turns import judged_turns
from clues.silo.whole import note
from clues.silo.workspace import Workspace

COLUMNS = ("row", "number", "id", "score", "kept", "file", "why", "reason", "findings")
# Turns are counted from 1, the user's and the system's too, as the page counts them.
TURN_COLUMNS = ("worst_turn", "worst_turn_score", "untrained_turns")


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
    recipe = space.recipe()
    # Another rule for the threshold leaves the scores what they are.
    current = table.recipe_hash == recipe.scoring_hash
    early = early_rows(space, table, threshold) if current else {}
    whole = table.whole
    selection = select(
        list(zip(whole.row.tolist(), whole.id, strict=True)),
        in_units(space, whole, threshold),
        threshold,
        recipe_hash=recipe.hash if current else table.recipe_hash,
        dropped={**space.apart(), **early},
        where=f"silo {space.name}",
        min_kept=fewest_told(space),
        allow_degenerate=allow_degenerate,
        rulings=in_force(space, recipe.hash) if rulings is None else rulings,
        aside=set_aside(space),
        turns=judged_turns(space),
    )
    return with_reasons(selection, space, table, threshold)


def fewest_told(space: Workspace) -> int:
    """The fewest rows that a selection under this recipe may keep; the key draws up to nine more."""
    return space.fewest_kept() + (draw_of_ten(space, "fewest", space.recipe().hash) or 0)


def set_aside(space: Workspace) -> dict[int, tuple[str, str]]:
    """Kind and reason of the rows that are set aside for what a reader sees in them."""
    kinds = space.settings.findings.setting_aside
    found = ((row, space.findings().of(row)) for row in space.findings().by_row)
    sure = {row: [f for f in seen if f.sure and f.kind in kinds] for row, seen in found}
    return {row: (f[0].kind, f"{f[0].says}, {f[0].place}") for row, f in sure.items() if f}


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
    weights = replaced(set_weights(recipe.score, public), space.sent_weights())
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
    files = {name: selection.of(name) for name in ("kept", "dropped", "unscored")}
    if not files["unscored"]:
        del files["unscored"]
    marks = mark_untrained(rows, selection.untrained)
    written = {
        write_rows(rows, chosen, space.private / f"{name}{rows.suffix}", changes=marks)
        for name, chosen in files.items()
    }
    # The rows may have come in another format before, or some had no score.
    for name in ("kept", "dropped", "unscored"):
        for old in space.private.glob(f"{name}.*"):
            if old not in written and named_container(old):
                old.unlink()
    lines = partial(_write_decisions, space, selection)
    write_atomically(space.private / "decisions.csv", lines)
    write_json(space.private / "threshold.json", threshold.to_json())
    # The last file of a selection: what reads it finds the others whole.
    overruled = overrides_token(space, space.recipe().hash)
    space.keep(selection.kept, overruled=overruled, untrained=selection.untrained)
    names = [path.name for path in sorted(written)]
    note(space, "select", [*names, "decisions.csv", "threshold.json", "selection.json"])


def _write_decisions(space: Workspace, selection: Selection, part: Path) -> None:
    """A line for each row; line after line, because rows may be many."""
    found, by_turn = space.findings(), space.recipe().score.turns
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        # `row` as in scores.parquet, so that the two can be joined; `number` as the page counts.
        writer.writerow((*COLUMNS, *TURN_COLUMNS) if by_turn else COLUMNS)
        for d in selection.decisions:
            kinds = " ".join(dict.fromkeys(f.kind for f in found.of(d.row)))
            fate = (int(d.kept), d.file, d.why, d.reason, kinds)
            turns = _turn_cells(d) if by_turn else ()
            writer.writerow([d.row, d.row + 1, d.id, d.score, *fate, *turns])


def _turn_cells(decision: Decision) -> tuple[str | int | float, ...]:
    """The lowest turn, counted from 1, its score, and the turns that are not trained."""
    worst = decision.worst
    untrained = " ".join(str(turn + 1) for turn in decision.untrained)
    return ("", "", untrained) if worst is None else (worst.turn + 1, worst.score, untrained)


def each_decision(space: Workspace) -> Iterator[dict[str, str]]:
    """The decision about every row of the selection that is in force, as written, one at a time.

    Raises:
        DataError: it is missing or damaged; if lines lack at the end, after those that are there.
    """
    path, n_rows, n = space.private / "decisions.csv", space.rows().n_rows, 0
    damaged = DataError(f"{path}: damaged (not a line for each row). Select again.")
    try:
        refuse_what_never_ends(path)
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            for n, line in enumerate(csv.DictReader(file), start=1):
                if n > n_rows or set(COLUMNS) - line.keys():
                    raise damaged
                yield line
    except OSError as error:
        raise unreadable(path, error) from None
    except csv.Error:
        raise damaged from None
    if n != n_rows:
        raise damaged


def in_units(space: Workspace, table: ScoreTable, threshold: Threshold) -> np.ndarray:
    """Scores in the units that make the threshold's one number mean the same everywhere.

    Raises:
        RecipeMismatchError: the threshold has no units for one of the silo's groups.
    """
    return table.in_units(threshold, space.groups(), where=f"silo {space.name}")
