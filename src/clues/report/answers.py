"""What the arms' models answered: tasks by likelihood, and what a judge says."""

from collections.abc import Mapping

from clues.report.cells import DASH, clean, number, with_error, with_interval
from clues.report.table import Column, Table
from clues.results.run import Results
from clues.results.tasks import TaskPart, TaskResult


def tasks_table(results: Results) -> Table | None:
    """Accuracy of every arm in every task, with its standard error; None without tasks."""
    tasks = results.tasks
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
        parts: dict[str, TaskResult | TaskPart] = {name: task}
        parts |= {f"{name}, {code}": part for code, part in task.languages.items()}
        for title, part in parts.items():
            rows += _task_rows(title, part, task.headline)
    return Table(_tasks_note(tasks), columns, tuple(rows))


def _task_rows(name: str, part: TaskResult | TaskPart, headline: str) -> list[tuple[str, ...]]:
    questions = number(part.questions, 0)
    rows = [(clean(name), "guessing", questions, number(part.guessing), DASH, DASH)]
    for arm, own in part.arms.items():
        gap = own.minus_mixed
        ends = f" ({number(gap.interval[0])} to {number(gap.interval[1])})" if gap else ""
        rows.append(
            (
                clean(name),
                clean(arm),
                questions,
                with_error(own.figure(headline), own.figure(f"{headline}_stderr")),
                f"{number(gap.value)}{ends}" if gap else DASH,
                DASH if headline == "acc" else with_error(own.acc, own.acc_stderr),
            )
        )
    return rows


def _tasks_note(tasks: Mapping[str, TaskResult]) -> str:
    left_out = [
        f"{clean(name)} {n:,} ({clean(reason)})"
        for name, task in tasks.items()
        for reason, n in task.left_out.items()
    ]
    cut = [f"{clean(name)} {task.cut:,}" for name, task in tasks.items() if task.cut]
    foreign = [clean(f"{n} by {t.by}") for n, t in tasks.items() if t.by != "built-in"]
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


def judge_table(results: Results) -> Table | None:
    """Mean score and win rate of every arm, as a judge sees them; None without a judge."""
    judge = results.judge
    arms = list(dict.fromkeys([*judge.reference, *judge.pairwise])) if judge else []
    if judge is None or not arms:
        return None
    columns = (
        Column("arm", "Arm", "arm", numeric=False),
        Column("score", "Score, 95 % interval", "score"),
        Column("win_rate", f"Wins against {judge.against}, 95 % interval", "wins"),
        Column("won", "Won, tied, lost", "w/t/l"),
        Column("first", "First place wins", "first"),
        Column("invalid", "Invalid", "invalid"),
    )
    rows: list[tuple[str, ...]] = []
    for arm in arms:
        score, pair = judge.reference.get(arm), judge.pairwise.get(arm)
        won = f"{pair.wins:,}/{pair.ties:,}/{pair.losses:,}" if pair else DASH
        invalid = sum(found.invalid for found in (score, pair) if found)
        rows.append(
            (
                clean(arm),
                with_interval(score.mean, score.interval, decimals=2) if score else DASH,
                with_interval(pair.win_rate, pair.interval, decimals=2) if pair else DASH,
                won,
                number(pair.first_place if pair else None),
                number(invalid, 0),
            )
        )
    too_long = f" {judge.too_long} prompts are too long for it." if judge.too_long else ""
    note = (
        f"Judge: {clean(judge.model)}, {judge.prompts} held-out prompts.{too_long} Score: "
        "agreement with the reference answer, 0 to 1. Pairs are asked in both orders, and a tie "
        "is half a win; first place wins: 0.5 is fair. Invalid replies are in no figure. A judge "
        "is a model and can be wrong."
    )
    return Table(note, columns, tuple(rows))
