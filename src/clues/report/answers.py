"""What the arms' models answered: tasks by likelihood, and what a judge says."""

from collections.abc import Mapping
from typing import Any

from clues.report.cells import DASH, clean, number, with_error, with_interval
from clues.report.table import Column, Table


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
                with_error(own.get(headline), own.get(f"{headline}_stderr")),
                f"{number(gap['value'])}{ends}" if gap else DASH,
                DASH if headline == "acc" else with_error(own.get("acc"), own.get("acc_stderr")),
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
                with_interval(score.get("mean"), score.get("interval"), decimals=2),
                with_interval(pair.get("win_rate"), pair.get("interval"), decimals=2),
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
