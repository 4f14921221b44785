"""What a run may show to everyone: aggregates only, as Markdown or as one HTML page.

Row counts are rounded to tens and counts below ten are not shown. Keep rates are worked out from
the rounded counts, so they give away nothing more.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clues.errors import DataError
from clues.report.page import environment

DASH = "\N{EN DASH}"
FEW = "<10"
FEW_ROWS = "n<10"
RATES = ("precision", "recall", "f1", "auc")
ARM_MEANINGS = {
    "mixed": "every row",
    "random": "as many, at random",
    "clues": "the selection",
    "oracle": "rows known clean",
}
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


@dataclass(frozen=True)
class Column:
    """A column: `title` for a page, `short` for a terminal."""

    key: str
    title: str
    short: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """Text cells under their columns; the first cell of a row names it."""

    note: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Label:
    """A tick of the threshold strip: its place in pixels and its two lines of text."""

    x: float
    quantile: str
    value: str


@dataclass(frozen=True)
class Strip:
    """The anchors' quantiles against the threshold, in pixels from the left."""

    width: int
    cut: float | None
    low: float
    high: float
    box: tuple[float, float] | None
    median: float | None
    interval: tuple[float, float] | None
    labels: tuple[Label, ...]


def render_markdown(results: Mapping[str, Any]) -> str:
    """The run as Markdown, for results.md.

    Raises:
        DataError: a key that every run has is missing; a number not measured is None instead.
    """
    view = _view(results)
    lines = [f"# {escape(view['name'])}", "", *(escape(line) for line in view["headline"])]
    for title, table in view["tables"].items():
        lines += ["", f"## {title}", "", *markdown_table(table), "", escape(table.note)]
    for title, pairs in (("Threshold", view["threshold"]), ("How to repeat it", view["repeat"])):
        lines += ["", f"## {title}", "", *(f"- {key}: {escape(text)}" for key, text in pairs)]
    lines += ["", "## What this does not say", "", *(f"- {limit}" for limit in LIMITS)]
    return "\n".join(lines) + "\n"


def render_html(results: Mapping[str, Any], *, ledger_summary: Sequence[Mapping[str, Any]]) -> str:
    """The run as one page that needs no network and no script.

    Args:
        results: what `results.json` holds.
        ledger_summary: for every silo, direction and kind the number of messages and their bytes.

    Raises:
        DataError: a key that every run has is missing; a number not measured is None instead.
    """
    view = _view(results)
    threshold = need(results, "threshold", "results")
    return (
        environment()
        .get_template("shared.html.j2")
        .render(
            **view,
            arms={clean(name): arm for name, arm in need(results, "arms", "results").items()},
            guessing=need(results, "guessing", "results"),
            strip=threshold_strip(threshold),
            ledger=_ledger_table(ledger_summary),
            meanings=ARM_MEANINGS,
            limits=LIMITS,
            dash=DASH,
        )
    )


def headline(results: Mapping[str, Any]) -> tuple[str, str]:
    """What the run found in one sentence, and how sure that is in another (may be empty)."""
    arms, silos = need(results, "arms", "results"), need(results, "silos", "results")
    if "clues" not in arms:
        return "This run made no selection, so there is nothing to compare.", ""
    chosen = arms["clues"]
    kept, rows = (count(arms.get(name, {}).get("kept")) for name in ("clues", "mixed"))
    of_rows = "" if rows == DASH else f" of {rows}"
    kept_rows = "rows" if kept == DASH else f"{kept}{of_rows} rows"
    start = f"The selection kept {kept_rows} in {len(silos)} silo{'' if len(silos) == 1 else 's'}"
    for key, verb, show, unit, sure in (
        (
            "knowledge_accuracy",
            "answered",
            _percent,
            f" of {_questions(results)} right",
            _certainty,
        ),
        ("heldout_loss", "had a held-out loss of", number, "", _lower_is_better),
    ):
        if chosen.get(key) is None:
            continue
        against = [
            f"{show(arms[name][key])} for {other}"
            for name, other in (
                ("mixed", "training on all rows"),
                ("random", "as many random rows"),
            )
            if arms.get(name, {}).get(key) is not None
        ]
        contrast = ", against " + " and ".join(against) if against else ""
        found = f"{start}; the model trained on them {verb} {show(chosen[key])}{unit}{contrast}."
        return found, sure(arms)
    return f"{start}; what the model learned from them was not measured.", ""


def arms_table(results: Mapping[str, Any]) -> Table:
    """One line per arm: rows trained on, detection where labels exist, loss, knowledge, time."""
    arms = need(results, "arms", "results")
    shown = [key for key in RATES if any(arm.get(key) is not None for arm in arms.values())]
    columns = (
        Column("arm", "Arm", "arm", numeric=False),
        Column("kept", "Rows", "rows"),
        Column("steps", "Steps", "steps"),
        *_rate_columns(shown),
        Column("heldout_loss", "Held-out loss", "loss"),
        Column("knowledge", "Knowledge", "knowledge"),
        Column("seconds", "Seconds", "seconds"),
    )
    rows: list[tuple[str, ...]] = []
    last = ("clues", "oracle")
    order = [name for name in ("mixed", "random") if name in arms]
    order += [name for name in arms if name not in ("mixed", "random", *last)]
    for name in [*order, *(name for name in last if name in arms)]:
        arm = arms[name]
        few = count(arm.get("kept")) == FEW
        rows.append(
            (
                clean(name),
                count(arm.get("kept")),
                number(arm.get("steps"), 0),
                *(FEW_ROWS if few else number(arm.get(key)) for key in shown),
                number(arm.get("heldout_loss")),
                _with_error(arm.get("knowledge_accuracy"), arm.get("knowledge_stderr")),
                number(arm.get("seconds"), 1),
            )
        )
    return Table(_arms_note(results, shown), columns, tuple(rows))


def silos_table(results: Mapping[str, Any]) -> Table:
    """One line per silo: rounded counts, a band for the keep rate, detection where labels exist."""
    silos = need(results, "silos", "results")
    shown = [key for key in RATES if any(silo.get(key) is not None for silo in silos.values())]
    columns = (
        Column("silo", "Silo", "silo", numeric=False),
        Column("domain", "Domain", "domain", numeric=False),
        Column("rows", "Rows", "rows"),
        Column("kept", "Kept", "kept"),
        Column("band", "Keep rate", "rate"),
        *_rate_columns(shown),
        Column("threshold", "Threshold", "cut"),
    )
    rows: list[tuple[str, ...]] = []
    for name, silo in silos.items():
        n_rows, n_kept = (need(silo, key, "a silo of results") for key in ("rows", "kept"))
        few = FEW in (count(n_rows), count(n_kept))
        rows.append(
            (
                clean(name),
                clean(silo.get("domain") or DASH),
                count(n_rows),
                count(n_kept),
                band(n_rows, n_kept),
                *(FEW_ROWS if few else number(silo.get(key)) for key in shown),
                number(silo.get("threshold")),
            )
        )
    note = "Counts are rounded to tens; the keep rate is a band of ten per cent."
    if any(FEW in row for row in rows):
        note += f" {FEW} and {FEW_ROWS}: fewer than ten rows, not shown."
    return Table(note, columns, tuple(rows))


def detection_table(results: Mapping[str, Any]) -> Table | None:
    """AUC of every score by silo and kind of damage; None where no labels were known."""
    found: list[tuple[str, Mapping[str, Any], str, Mapping[str, Any], Mapping[str, Any]]] = []
    for name, silo in need(results, "silos", "results").items():
        methods: Mapping[str, Mapping[str, Any]] = silo.get("detection") or {}
        for method, detection in methods.items():
            found.append((name, silo, method, detection, detection.get("auc_by_kind") or {}))
    if not found:
        return None
    kinds = sorted({kind for *_, by_kind in found for kind in by_kind})
    columns = (
        Column("silo", "Silo", "silo", numeric=False),
        Column("score", "Score", "score", numeric=False),
        Column("auc", "AUC", "AUC"),
        *(Column("kind", clean(kind), clean(kind)) for kind in kinds),
    )
    rows: list[tuple[str, ...]] = []
    for name, silo, method, detection, by_kind in found:
        values = (detection.get("auc"), *(by_kind.get(kind) for kind in kinds))
        few = FEW in (count(silo.get("rows")), count(silo.get("kept")))
        cells = (FEW_ROWS if few else number(value) for value in values)
        rows.append((clean(name), clean(method), *cells))
    note = (
        "AUC: how often a clean row scores above a damaged one; 0.500 is chance. "
        "The columns after it take one kind of damage each."
    )
    return Table(note, columns, tuple(rows))


def tasks_table(results: Mapping[str, Any]) -> Table | None:
    """Accuracy of every arm in every task, with its standard error; None without tasks."""
    tasks: Mapping[str, Mapping[str, Any]] = results.get("tasks") or {}
    if not tasks:
        return None
    columns = (
        Column("task", "Task", "task", numeric=False),
        Column("arm", "Arm", "arm", numeric=False),
        Column("questions", "Questions", "n"),
        Column("accuracy", "Accuracy", "accuracy"),
        Column("minus_mixed", "Minus mixed, 95 % interval", "minus mixed"),
        Column("raw", "Without length norm", "raw"),
    )
    rows: list[tuple[str, ...]] = []
    for name, task in tasks.items():
        parts = {name: task, **{f"{name}, {k}": part for k, part in task["languages"].items()}}
        for title, part in parts.items():
            rows += _task_rows(title, part, task["headline"])
    return Table(_tasks_note(tasks), columns, tuple(rows))


def _task_rows(name: str, part: Mapping[str, Any], headline: str) -> list[tuple[str, ...]]:
    questions = number(part["questions"], 0)
    rows = [(clean(name), "guessing", questions, number(part["guessing"]), DASH, DASH)]
    for arm, own in part["arms"].items():
        gap = own.get("minus_mixed")
        ends = f" ({number(gap['interval'][0])} to {number(gap['interval'][1])})" if gap else ""
        rows.append(
            (
                clean(name),
                clean(arm),
                questions,
                _with_error(own.get(headline), own.get(f"{headline}_stderr")),
                f"{number(gap['value'])}{ends}" if gap else DASH,
                DASH if headline == "acc" else _with_error(own.get("acc"), own.get("acc_stderr")),
            )
        )
    return rows


def _tasks_note(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    left_out = [
        f"{clean(name)} {n:,} ({clean(reason)})"
        for name, task in tasks.items()
        for reason, n in task["left_out"].items()
    ]
    cut = [f"{clean(name)} {task['cut']:,}" for name, task in tasks.items() if task["cut"]]
    foreign = [clean(f"{n} by {t['by']}") for n, t in tasks.items() if t["by"] != "built-in"]
    note = (
        "The model's answer is the choice with the highest log-likelihood a character (acc_norm; "
        "acc where a task has no other), with its standard error; the last column does not divide "
        "by length (acc). The difference to mixed is on the same questions; its interval comes "
        "from a bootstrap over them."
    )
    for said, found in (
        ("Measured otherwise", foreign),
        ("Left out", left_out),
        ("Questions cut in front to fit the model", cut),
    ):
        note += f" {said}: {'; '.join(found)}." if found else ""
    return note


def judge_table(results: Mapping[str, Any]) -> Table | None:
    """Mean score and win rate of every arm, as a judge sees them; None without a judge."""
    judge: Mapping[str, Any] = results.get("judge") or {}
    scores, pairs = judge.get("reference", {}), judge.get("pairwise", {})
    arms = list(dict.fromkeys([*scores, *pairs]))
    if not arms:
        return None
    columns = (
        Column("arm", "Arm", "arm", numeric=False),
        Column("score", "Score, 95 % interval", "score"),
        Column("win_rate", f"Wins against {judge['against']}, 95 % interval", "wins"),
        Column("won", "Won, tied, lost", "w/t/l"),
        Column("first", "First place wins", "first"),
        Column("invalid", "Invalid", "invalid"),
    )
    rows: list[tuple[str, ...]] = []
    for arm in arms:
        score, pair = scores.get(arm, {}), pairs.get(arm, {})
        won = "/".join(number(pair[k], 0) for k in ("wins", "ties", "losses")) if pair else DASH
        invalid = score.get("invalid", 0) + pair.get("invalid", 0)
        rows.append(
            (
                clean(arm),
                _with_interval(score.get("mean"), score.get("interval")),
                _with_interval(pair.get("win_rate"), pair.get("interval")),
                won,
                number(pair.get("first_place")),
                number(invalid, 0),
            )
        )
    too_long = f" {judge['too_long']} prompts are too long for it." if judge["too_long"] else ""
    note = (
        f"Judge: {clean(judge['model'])}, {judge['prompts']} held-out prompts.{too_long} Score: "
        "agreement with the reference answer, 0 to 1. Pairs are asked in both orders, and a tie "
        "is half a win; first place wins: 0.5 is fair. Invalid replies are in no figure. A judge "
        "is a model and can be wrong."
    )
    return Table(note, columns, tuple(rows))


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    ends = f" ({number(interval[0], 2)} to {number(interval[1], 2)})" if interval else ""
    return f"{number(value)}{ends}" if value is not None else DASH


def threshold_strip(threshold: Mapping[str, Any], *, width: int = 640) -> Strip | None:
    """Places of the anchors' quantiles, the interval and the threshold; None without quantiles."""
    pairs: Sequence[tuple[float, float]] = threshold.get("anchor_quantiles") or ()
    quantiles = dict(sorted(pairs))
    if not quantiles:
        return None
    value: float | None = threshold.get("value")
    interval: Sequence[float] = threshold.get("interval") or ()
    marks = [*quantiles.values(), *(() if value is None else (value,)), *interval]
    if not all(math.isfinite(mark) for mark in marks):
        return None
    low, margin = min(marks), 24
    scale = (width - 2 * margin) / ((max(marks) - low) or 1.0)

    def place(mark: float) -> float:
        return round(margin + (mark - low) * scale, 1)

    labels: list[Label] = []
    for quantile, mark in quantiles.items():
        # Closer than 44 pixels the texts run into each other.
        if not labels or place(mark) - labels[-1].x >= 44:
            labels.append(Label(place(mark), f"{100 * quantile:g} %", number(mark, 2)))
    quarters = 0.25 in quantiles and 0.75 in quantiles
    return Strip(
        width=width,
        cut=None if value is None else place(value),
        low=place(min(quantiles.values())),
        high=place(max(quantiles.values())),
        box=(place(quantiles[0.25]), place(quantiles[0.75])) if quarters else None,
        median=place(quantiles[0.5]) if 0.5 in quantiles else None,
        interval=(place(interval[0]), place(interval[1])) if interval else None,
        labels=tuple(labels),
    )


def need(mapping: Mapping[str, Any], key: str, where: str) -> Any:
    """The value under `key`, which may be None but must be there."""
    if key not in mapping:
        raise DataError(
            f"{where}: key '{key}' is missing. Run the last stage again; "
            "a number that was not measured is written as null."
        )
    return mapping[key]


def clean(text: object) -> str:
    """Text without control, line-break or direction-changing characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def number(value: float | None, decimals: int = 3) -> str:
    """A number as text, an en dash where it was not measured."""
    if value is None:
        return DASH
    return f"{value:,.{decimals}f}" if math.isfinite(value) else "not finite"


def count(n_rows: int | None) -> str:
    """A number of rows rounded to tens, '<10' below ten, an en dash where not measured."""
    if n_rows is None:
        return DASH
    return FEW if n_rows < 10 else f"{_tens(n_rows):,}"


def _tens(n_rows: int) -> int:
    return (n_rows + 5) // 10 * 10


def band(n_rows: int | None, n_kept: int | None) -> str:
    """The keep rate as a band of ten per cent, from rounded counts; an en dash for few rows."""
    if n_rows is None or n_kept is None or min(n_rows, n_kept) < 10:
        return DASH
    floor = min(10 * _tens(n_kept) // _tens(n_rows), 9) * 10
    return f"{floor}{DASH}{floor + 10} %"


def _with_error(value: float | None, stderr: float | None) -> str:
    error = "" if value is None or stderr is None else f" \N{PLUS-MINUS SIGN} {number(stderr)}"
    return number(value) + error


def _lower_is_better(_: Mapping[str, Any]) -> str:
    return "Lower is better."


def _percent(rate: float) -> str:
    return f"{number(100 * rate, 1)} %"


def _questions(results: Mapping[str, Any]) -> str:
    n_questions = need(results, "questions", "results")
    return "the questions" if n_questions is None else f"{n_questions:,} questions"


def _rate_columns(keys: Sequence[str]) -> tuple[Column, ...]:
    titles = {
        "precision": ("Precision", "prec."),
        "recall": ("Recall", "recall"),
        "f1": ("F1", "F1"),
        "auc": ("AUC", "AUC"),
    }
    return tuple(Column(key, *titles[key]) for key in keys)


def _arms_note(results: Mapping[str, Any], rates: Sequence[str]) -> str:
    guessing = number(need(results, "guessing", "results"))
    note = "Rows trained on, rounded to tens. "
    if rates:
        note += (
            "Precision: share of kept rows that are clean. "
            "Recall: share of clean rows that are kept. "
        )
    note += (
        "Held-out loss: lower is better. "
        f"Knowledge: share of {_questions(results)} answered right, with its standard error"
    )
    note += "." if guessing == DASH else f"; guessing would score {guessing}."
    return note + f" {DASH} means not measured."


def _certainty(arms: Mapping[str, Any]) -> str:
    """The differences in knowledge, in standard errors; arms taken as independent."""
    chosen, parts = arms["clues"], list[str]()
    for name in ("mixed", "random"):
        other = arms.get(name, {})
        errors = (chosen.get("knowledge_stderr"), other.get("knowledge_stderr"))
        if other.get("knowledge_accuracy") is None or not all(errors):
            continue
        gap = chosen["knowledge_accuracy"] - other["knowledge_accuracy"]
        side, n_errors = "above" if gap >= 0 else "below", abs(gap) / math.hypot(*errors)
        points = f"{100 * abs(gap):.1f} points {side} {name}"
        parts.append(f"{points} ({n_errors:.1f} standard errors)")
    if not parts:
        return ""
    return (
        f"That is {' and '.join(parts)}. "
        "Below two standard errors chance alone may explain a difference."
    )


def _view(results: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that both renderings say, as text."""
    detection = detection_table(results)
    tables = {"Arms": arms_table(results), "Silos": silos_table(results)}
    if tasks := tasks_table(results):
        tables["Tasks"] = tasks
    if judge := judge_table(results):
        tables["Judge"] = judge
    if detection:
        tables["Detection by score"] = detection
    facts = {key: clean(need(results, key, "results")) for key in ("name", "date", "recipe_hash")}
    return {
        **facts,
        "headline": headline(results),
        "tables": tables,
        "threshold": threshold_pairs(need(results, "threshold", "results")),
        "repeat": repeat_pairs(results),
    }


def threshold_pairs(threshold: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the threshold is, in which units, by which rule, and how sure: name and text."""
    value, rule, units = (
        need(threshold, key, "results.threshold") for key in ("value", "rule", "units")
    )
    interval = threshold.get("interval")
    ends = f"{number(interval[0])} to {number(interval[1])}" if interval else "not measured"
    return [
        ("Value", "not measured" if value is None else number(value)),
        ("Units", clean(units)),
        ("Rule", clean(rule)),
        ("Bootstrap interval", ends),
        *_assurance(threshold),
        ("Anchors", number(threshold.get("n_anchors"), 0)),
    ]


def _assurance(threshold: Mapping[str, Any]) -> list[tuple[str, str]]:
    assurance, share = threshold.get("assurance"), threshold.get("quantile")
    if assurance is None or share is None:
        return []
    text = f"{1 - share:.0%}, with probability {assurance:.1%}, if they score like the anchors"
    return [("Clean rows kept, at least", text)]


def repeat_pairs(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What somebody needs who wants the same run again: name and text."""

    def join(key: str, show: str = "{} {}") -> str:
        return ", ".join(show.format(*pair) for pair in need(results, key, "results").items())

    seconds = {name: number(s, 1) for name, s in need(results, "seconds", "results").items()}
    pairs = [
        ("Recipe hash", need(results, "recipe_hash", "results")),
        ("Seeds", ", ".join(str(seed) for seed in need(results, "seeds", "results"))),
        ("Base model", need(results, "base_model", "results")),
        ("Method", join("method", "{}: {}")),
        ("Versions", join("versions")),
        ("Machine", need(results, "machine", "results")),
        ("Date", need(results, "date", "results")),
        ("Seconds", ", ".join(f"{name} {s}" for name, s in seconds.items())),
    ]
    return [(key, clean(text) if text not in (None, "") else "not recorded") for key, text in pairs]


def _ledger_table(summary: Sequence[Mapping[str, Any]]) -> Table:
    columns = (
        Column("silo", "Silo", "silo", numeric=False),
        Column("direction", "Direction", "direction", numeric=False),
        Column("kind", "Kind", "kind", numeric=False),
        Column("messages", "Messages", "messages"),
        Column("bytes", "Size", "size"),
    )
    rows: list[tuple[str, ...]] = []
    for entry in summary:
        silo, direction, kind, messages, n_bytes = (
            need(entry, column.key, "ledger summary") for column in columns
        )
        names = (clean(silo), clean(direction), clean(kind))
        rows.append((*names, number(messages, 0), _size(n_bytes)))
    return Table("Every message in the ledger, by silo and kind.", columns, tuple(rows))


def _size(n_bytes: int | None) -> str:
    if n_bytes is None or n_bytes < 1000:
        return DASH if n_bytes is None else f"{n_bytes} B"
    power = min(int(math.log10(n_bytes)) // 3, 3)
    return f"{n_bytes / 1000**power:.1f} {('kB', 'MB', 'GB')[power - 1]}"


def markdown_table(table: Table) -> list[str]:
    """Lines of the table in Markdown, without its note."""
    rule = ["---:" if column.numeric else ":---" for column in table.columns]
    lines = [[escape(column.title) for column in table.columns], rule]
    lines += [[escape(cell) for cell in row] for row in table.rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def escape(text: str) -> str:
    """Text that Markdown shows as it is, also inside a table."""
    for mark in "\\`*[]|":
        text = text.replace(mark, "\\" + mark)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
