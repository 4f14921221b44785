"""Multiple-choice questions out of files of rows, one task a source.

A row has its choices in columns, or lists them at the end of its prompt ("A. ..." on a line of
its own, or "1." or "a)") and names the right one by its mark.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from clues.config import TaskSettings, derived_seed
from clues.data.formats import RowFile, read_file
from clues.data.samples import Message, Sample
from clues.errors import DataError
from clues.printable import rows_in_words

SEVERAL, UNCLEAR = "several right answers", "no clear list of choices"
_MARKED = re.compile(r"\s*\(?(?P<mark>[A-Za-z]|\d{1,2})[.)]\s*(?P<text>\S.*)")
_FIRST = ("A", "a", "1")


@dataclass(frozen=True)
class Question:
    """A prompt, its choices and the position of the right one. Text never shows in `repr`."""

    row: int
    prompt: tuple[Message, ...] = field(repr=False)
    choices: tuple[str, ...] = field(repr=False)
    answer: int
    language: str | None = None


@dataclass(frozen=True)
class Task:
    """Questions with one name.

    Attributes:
        name: of the task.
        questions: in the order of their file.
        left_out: how many rows are no question that can be asked, by reason.
    """

    name: str
    questions: tuple[Question, ...]
    left_out: dict[str, int] = field(default_factory=dict)


def read_tasks(settings: Sequence[TaskSettings]) -> list[Task]:
    """Read every task file.

    Raises:
        DataError: a file cannot be read, holds no question, lacks a column that `where` names,
            or two tasks have one name.
    """
    tasks = [task for each in settings for task in _read_file(each)]
    twice = [name for name, n in Counter(task.name for task in tasks).items() if n > 1]
    if twice:
        raise DataError(
            f"evaluate.tasks: {len(twice)} names stand for two tasks each, first {twice[0]}. "
            "Give each file its own name with `name`."
        )
    return tasks


def asked_rows(settings: TaskSettings) -> list[Sample]:
    """The rows that a task is made of, to be compared with other sets.

    Raises:
        DataError: as `read_tasks`.
    """
    rows = read_file(settings)
    return [rows.samples[row] for row in _wanted(rows, settings)]


def _read_file(settings: TaskSettings) -> list[Task]:
    rows = read_file(settings)
    wanted = _wanted(rows, settings)
    mapped = {"answer": (settings.columns or {}).get("answer") or "answer"}
    columns = {
        name: rows.column(mapped.get(name, name))
        if mapped.get(name, name) in rows.table.columns
        else [None] * rows.n_rows
        for name in ("answer", "source", "language")
    }
    found: dict[str, list[Question]] = defaultdict(list)
    left_out: dict[str, Counter[str]] = defaultdict(Counter)
    for row in wanted:
        source = columns["source"][row]
        name = settings.name or (str(source) if source else settings.path.name.split(".")[0])
        question = _question(rows.samples[row], columns["answer"][row], settings.style)
        if isinstance(question, str):
            left_out[name][question] += 1
            continue
        language = columns["language"][row]
        found[name].append(replace(question, language=str(language) if language else None))
    if not found:
        reasons = ", ".join(f"{n}: {r}" for c in left_out.values() for r, n in c.items())
        raise DataError(
            f"{settings.path}: no question in {rows_in_words(len(wanted))} ({reasons}). A question has "
            "`choices` and `answer`, or a prompt that ends in a list of choices such as 'A. ...' "
            "and an `answer` that is one of the marks."
        )
    return [
        Task(name, _drawn(name, questions, settings.limit), dict(left_out[name]))
        for name, questions in found.items()
    ]


def _wanted(rows: RowFile, settings: TaskSettings) -> list[int]:
    keep = np.ones(rows.n_rows, bool)
    for column, value in settings.where.items():
        keep &= np.array([str(v) == value for v in rows.column(column)])
        if not keep.any():
            raise DataError(f"{settings.path}: `where` leaves no row: {column} never fits.")
    return [int(row) for row in np.flatnonzero(keep)]


def _drawn(name: str, questions: list[Question], limit: int | None) -> tuple[Question, ...]:
    if limit is None or limit >= len(questions):
        return tuple(questions)
    # Not the run's seed: runs with other seeds must answer the same questions.
    draw = np.random.default_rng(derived_seed(0, "task", name))
    return tuple(questions[i] for i in sorted(draw.permutation(len(questions))[:limit]))


def _question(sample: Sample, answer: object, style: str) -> Question | str:
    """A question, or why the row is none."""
    if sample.answer is not None:
        return Question(sample.row, sample.prompt, sample.choices, sample.answer)
    marks = [mark.strip() for mark in str(answer or "").split(",")]
    if len(marks) > 1:
        return SEVERAL
    listed = _listing(sample.prompt[-1].content)
    right = [i for i, (mark, _, _) in enumerate(listed.choices) if mark == marks[0]]
    # The response says which choice is meant; where it does not fit, the list was read wrongly.
    if len(right) != 1 or not _same(sample.response, listed.choices[right[0]]):
        return UNCLEAR
    if style == "as_written":
        written = tuple(whole for _, _, whole in listed.choices)
        return Question(sample.row, sample.prompt, written, right[0])
    if not listed.stem:
        return UNCLEAR
    prompt = (*sample.prompt[:-1], replace(sample.prompt[-1], content=listed.stem))
    return Question(sample.row, prompt, tuple(text for _, text, _ in listed.choices), right[0])


@dataclass(frozen=True)
class _Listing:
    """What stands before a list, and the list as (mark, text, the line as written)."""

    stem: str
    choices: tuple[tuple[str, str, str], ...]


def _listing(prompt: str) -> _Listing:
    """The last list of choices in a prompt, to its end; empty where there is none."""
    lines = prompt.split("\n")
    parsed = [_MARKED.fullmatch(line) for line in lines]
    starts = [i for i, m in enumerate(parsed) if m and m["mark"] in _FIRST]
    for start in reversed(starts):
        choices: list[tuple[str, str, str]] = []
        following = parsed[start]["mark"]  # pyright: ignore[reportOptionalSubscript]
        for line, match in zip(lines[start:], parsed[start:], strict=True):
            if match and match["mark"] == following:
                choices.append((following, match["text"].strip(), line.strip()))
                following = _next(following)
            elif choices and line.strip():  # a choice over several lines
                mark, text, whole = choices[-1]
                choices[-1] = (mark, f"{text}\n{line.strip()}", f"{whole}\n{line.strip()}")
        if len(choices) > 1:
            return _Listing("\n".join(lines[:start]).strip(), tuple(choices))
    return _Listing(prompt, ())


def _next(mark: str) -> str:
    return str(int(mark) + 1) if mark.isdigit() else chr(ord(mark) + 1)


def _same(response: str, choice: tuple[str, str, str]) -> bool:
    said = " ".join(response.split())
    return said in {" ".join(form.split()) for form in choice}
