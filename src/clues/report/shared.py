"""What a run may show to everyone: aggregates only, as Markdown or as one HTML page.

Row counts are rounded to tens and counts below ten are not shown. Keep rates are worked out from
the rounded counts, so they give away nothing more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from clues.report.answers import judge_table, tasks_table
from clues.report.arms import ARM_MEANINGS, arms_table, differences_table, headline
from clues.report.cells import DASH, clean
from clues.report.figures import MOST_SILOS, curves, gains, score_bands, sharing
from clues.report.page import environment
from clues.report.pairs import repeat_pairs, threshold_pairs
from clues.report.silos import (
    absences_table,
    controls_table,
    detection_table,
    ledger_table,
    silos_table,
)
from clues.report.table import escape, markdown_table
from clues.results.run import Results

LIMITS = (
    "Everything here is one run. Another seed, base model or set of rows may order the arms "
    "differently.",
    "Whether a row is good was known only where damage was injected. Precision, recall, F1 and AUC "
    "are about that damage, not about the faults of real data.",
    "Selection is not a defence against poisoning. A row made to score well passes.",
    "Row counts are rounded to tens, and counts below ten are not shown. Keep rates come from the "
    "rounded counts and can be off by one band. Precision and recall, where shown, have three "
    "decimals, which can pin down the counts behind them.",
    "Multiple-choice questions test recall of facts, not whether an answer is safe or useful.",
)


def render_markdown(results: Results) -> str:
    """The run as Markdown, for results.md."""
    view = _view(results)
    lines = [f"# {escape(view['name'])}", "", *(escape(line) for line in view["headline"])]
    for title, table in view["tables"].items():
        lines += ["", f"## {title}", "", *markdown_table(table), "", escape(table.note)]
    for title, pairs in (("Threshold", view["threshold"]), ("How to repeat it", view["repeat"])):
        lines += ["", f"## {title}", "", *(f"- {key}: {escape(text)}" for key, text in pairs)]
    lines += ["", "## What this does not say", "", *(f"- {limit}" for limit in LIMITS)]
    return "\n".join(lines) + "\n"


def render_html(results: Results, *, ledger_summary: Sequence[Mapping[str, Any]]) -> str:
    """The run as one page that needs no network and no script.

    Args:
        results: what `results.json` holds.
        ledger_summary: for every silo, direction and kind the number of messages and their bytes.

    Raises:
        DataError: a line of the summary lacks something.
    """
    n_silos = len(results.silos)
    return (
        environment()
        .get_template("shared.html.j2")
        .render(
            **_view(results),
            gains=gains(results),
            bands=score_bands(results),
            n_silos=n_silos,
            unshared=_unshared(n_silos, len(sharing(results))),
            curves=curves(results),
            ledger=ledger_table(ledger_summary),
            recipe=_recipe(results),
            meanings=ARM_MEANINGS,
            limits=LIMITS,
            dash=DASH,
        )
    )


def _view(results: Results) -> dict[str, Any]:
    """Everything that both renderings say, as text."""
    tables = {
        "Arms": arms_table(results) if results.arms else None,
        "Arms compared": differences_table(results),
        "Silos": silos_table(results),
        "Who was missing": absences_table(results),
        "Tasks": tasks_table(results),
        "Judge": judge_table(results),
        "What the score can see": controls_table(results.controls, results.controls_kept),
        "Detection by score": detection_table(results),
    }
    return {
        "name": clean(results.name),
        "date": clean(results.date),
        "recipe_hash": clean(results.recipe_hash),
        "headline": headline(results),
        "tables": {title: table for title, table in tables.items() if table},
        "threshold": threshold_pairs(results.threshold),
        "repeat": repeat_pairs(results),
    }


def _unshared(n_silos: int, n_sharing: int) -> str:
    """Whose scores are not in the figure, and why; empty where all are."""
    if n_sharing > MOST_SILOS:
        return (
            f"The figure has the first {MOST_SILOS} of {n_sharing} silos that share their scores."
        )
    if n_sharing == n_silos:
        return ""
    return (
        f"Not in the figure, because not shared: {n_silos - n_sharing} of {n_silos} silos. A silo may "
        "allow it (share_diagnostics in its own file), and it is never sent for fewer than 20 rows."
    )


def _recipe(results: Results) -> str:
    """The recipe as YAML, as its hash is of it."""
    text = yaml.safe_dump(dict(results.recipe), sort_keys=False, allow_unicode=True)
    return "\n".join(clean(line) for line in text.splitlines())
