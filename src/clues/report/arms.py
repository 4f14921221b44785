"""The arms of a run beside each other, and how sure their differences are."""

import math
from collections.abc import Mapping, Sequence

from clues.report.cells import (
    DASH,
    FEW,
    FEW_ROWS,
    clean,
    count,
    number,
    percent,
    questions,
    with_error,
    with_interval,
)
from clues.report.table import Column, Table
from clues.results.arms import ArmResult, Gap
from clues.results.run import Results

RATES = ("precision", "recall", "f1", "auc")
ARM_MEANINGS = {
    "mixed": "every row",
    "random": "as many, at random",
    "clues": "the selection",
    "oracle": "rows known clean",
}
# The arm's figure less the other's; loss in nats, knowledge in points.
FIGURES = {"heldout_loss": ("Loss", 1.0, 3), "knowledge_accuracy": ("Knowledge", 100.0, 1)}
OTHERS = ("mixed", "random")


def headline(results: Results) -> tuple[str, str]:
    """What the run found in one sentence, and how sure that is in another (may be empty)."""
    arms, silos = results.arms, results.silos
    if "clues" not in arms:
        return _without_models(results), ""
    chosen = arms["clues"]
    kept = count(chosen.kept)
    rows = count(arms["mixed"].kept if "mixed" in arms else None)
    of_rows = "" if rows == DASH else f" of {rows}"
    # Every silo has rounded what it told.
    kept_rows = "rows" if kept == DASH else f"about {kept}{of_rows} rows"
    start = f"The selection kept {kept_rows} in {len(silos)} silo{'' if len(silos) == 1 else 's'}"
    for key, verb, show, unit in (
        ("knowledge_accuracy", "answered", percent, f" of {questions(results.questions)} right"),
        ("heldout_loss", "had a held-out loss of", number, ""),
    ):
        own = getattr(chosen, key)
        if own is None:
            continue
        others = [
            (getattr(arms[name], key), other)
            for name, other in (
                ("mixed", "training on all rows"),
                ("random", "as many random rows"),
            )
            if name in arms
        ]
        against = [f"{show(value)} for {other}" for value, other in others if value is not None]
        contrast = ", against " + " and ".join(against) if against else ""
        found = f"{start}; the model trained on them {verb} {show(own)}{unit}{contrast}."
        return found, _certainty(arms, key)
    return f"{start}; what the model learned from them was not measured.", ""


def _without_models(results: Results) -> str:
    """What a selection kept where no model was trained on it, from the silos' rounded counts."""
    silos = results.silos.values()
    if not silos:
        return "This run made no selection: no silo was left to make one."
    # The sum of what each told; one that keeps too few to be counted leaves no sum.
    kept, rows = ([getattr(silo, key) for silo in silos] for key in ("kept", "rows"))
    few = FEW in (*map(count, kept), *map(count, rows))
    what = "rows" if few else f"about {count(sum(kept))} of {count(sum(rows))} rows"
    where = "1 silo" if len(silos) == 1 else f"{len(silos)} silos"
    return (
        f"The selection kept {what} in {where}. No model was trained on them, so none is compared."
    )


def in_order(arms: Mapping[str, ArmResult]) -> list[str]:
    """Names of the arms: what is compared with first, ours and the best possible last."""
    first, last = ("mixed", "random"), ("clues", "oracle")
    between = [name for name in arms if name not in (*first, *last)]
    return [name for name in (*first, *between, *last) if name in arms]


def arms_table(results: Results) -> Table:
    """One line per arm: rows trained on, detection where labels exist, loss, knowledge, time."""
    arms = results.arms
    shown = [key for key in RATES if any(getattr(arm, key) is not None for arm in arms.values())]
    columns = (
        Column("arm", "Arm", "arm", numeric=False),
        Column("kept", "Rows", "rows"),
        Column("steps", "Steps", "steps"),
        *rate_columns(shown),
        Column("heldout_loss", "Held-out loss", "loss"),
        Column("knowledge", "Knowledge", "knowledge"),
        Column("seconds", "Seconds", "seconds"),
    )
    rows: list[tuple[str, ...]] = []
    for name in in_order(arms):
        arm = arms[name]
        few = count(arm.kept) == FEW
        rows.append(
            (
                clean(name),
                count(arm.kept),
                number(arm.steps, 0),
                *(FEW_ROWS if few else number(getattr(arm, key)) for key in shown),
                number(arm.heldout_loss),
                with_error(arm.knowledge_accuracy, arm.knowledge_stderr),
                number(arm.seconds, 1),
            )
        )
    return Table(_arms_note(results, shown), columns, tuple(rows))


def differences_table(results: Results) -> Table | None:
    """Every arm less mixed and less random on the same rows; None where that was not measured."""
    arms = results.arms
    pairs = [
        (other, key)
        for key in FIGURES
        for other in OTHERS
        if any(gap_of(arm, other, key) for arm in arms.values())
    ]
    if not pairs:
        return None
    columns = (
        Column("arm", "Arm", "arm", numeric=False),
        *(
            Column(key, f"{FIGURES[key][0]} minus {o}", f"{FIGURES[key][0]}-{o}")
            for o, key in pairs
        ),
    )
    rows = [
        (clean(name), *(_written(gap_of(arms[name], other, key), key) for other, key in pairs))
        for name in in_order(arms)
        if name != "mixed"
    ]
    note = (
        "The arm's figure less the other's, on the same held-out rows and questions, with its 95 % "
        "interval from a paired bootstrap over them. Loss in nats, lower is better; knowledge in "
        "points of 100, higher is better. An interval that holds zero shows no difference. It "
        "covers the choice of held-out rows, not that of the seed: this is one run."
    )
    return Table(note, columns, tuple(rows))


def gap_of(arm: ArmResult, other: str, key: str) -> Gap | None:
    """How far an arm's figure is from another arm's; None where that was not measured."""
    return getattr(arm.against[other], key) if other in arm.against else None


def _written(gap: Gap | None, key: str) -> str:
    if gap is None:
        return DASH
    _, scale, decimals = FIGURES[key]
    ends = [scale * end for end in gap.interval]
    return with_interval(scale * gap.value, ends, decimals=decimals, signed=True)


def rate_columns(keys: Sequence[str]) -> tuple[Column, ...]:
    """Columns of the detection figures that are there."""
    titles = {
        "precision": ("Precision", "prec."),
        "recall": ("Recall", "recall"),
        "f1": ("F1", "F1"),
        "auc": ("AUC", "AUC"),
    }
    return tuple(Column(key, *titles[key]) for key in keys)


def _arms_note(results: Results, rates: Sequence[str]) -> str:
    guessing = number(results.guessing)
    note = "Rows trained on, rounded to tens. "
    if rates:
        note += (
            "Precision: share of kept rows that are clean. "
            "Recall: share of clean rows that are kept. "
        )
    note += "Held-out loss: lower is better."
    if results.questions:
        note += (
            f" Knowledge: share of {questions(results.questions)} answered right, with its standard "
            "error"
        )
        note += "." if guessing == DASH else f"; guessing would score {guessing}."
    return note + f" {DASH} means not measured."


def _certainty(arms: Mapping[str, ArmResult], key: str) -> str:
    """How far the selection is from mixed and random, and whether chance alone may explain it."""
    parts = [_paired(arms["clues"], other, key) for other in OTHERS]
    if any(parts):
        what = " The intervals are of 95 %, on the same held-out rows; one run."
        return f"That is {' and '.join(part for part in parts if part)}.{what}"
    return _independent(arms) if key == "knowledge_accuracy" else "Lower is better."


def _paired(arm: ArmResult, other: str, key: str) -> str:
    gap = gap_of(arm, other, key)
    if gap is None:
        return ""
    _, scale, decimals = FIGURES[key]
    side = "above" if gap.value >= 0 else "below"
    sign = scale if side == "above" else -scale
    low, high = sorted(sign * end for end in gap.interval)
    unit = " points" if key == "knowledge_accuracy" else ""
    shown = number(sign * gap.value, decimals)
    return f"{shown}{unit} {side} {other} ({number(low, decimals)} to {number(high, decimals)})"


def _independent(arms: Mapping[str, ArmResult]) -> str:
    """The differences in knowledge, in standard errors; arms taken as independent."""
    chosen, parts = arms["clues"], list[str]()
    for name, other in ((name, arms[name]) for name in OTHERS if name in arms):
        if chosen.knowledge_accuracy is None or other.knowledge_accuracy is None:
            continue
        if not (chosen.knowledge_stderr and other.knowledge_stderr):
            continue
        error = math.hypot(chosen.knowledge_stderr, other.knowledge_stderr)
        gap = chosen.knowledge_accuracy - other.knowledge_accuracy
        side, n_errors = "above" if gap >= 0 else "below", abs(gap) / error
        points = f"{100 * abs(gap):.1f} points {side} {name}"
        parts.append(f"{points} ({n_errors:.1f} standard errors)")
    if not parts:
        return ""
    return (
        f"That is {' and '.join(parts)}. "
        "Below two standard errors chance alone may explain a difference."
    )
