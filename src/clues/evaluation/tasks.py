"""Named multiple-choice tasks by likelihood, with the two accuracies of lm-eval.

acc       the choice with the highest log-likelihood, summed over its tokens
acc_norm  the same divided by the choice's length in characters (the headline: choices of one
          question differ in length, and a sum favours the short ones)

The likelihood is that of the choice's own words after the prompt, without the token that ends a
text, so that a figure can stand beside one of lm-eval.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from clues.config import derived_seed
from clues.data.samples import Message, Sample
from clues.data.tokens import EncodedRow, RowEncoder
from clues.errors import DataError
from clues.evaluation.intervals import AGAINST, paired_difference, standard_error
from clues.evaluation.questions import Question, Task
from clues.model.adapters import AdapterState, LoraModel
from clues.results.tasks import TaskArm, TaskPart, TaskResult
from clues.scoring.perplexity import mean_losses

HEADLINE = "acc_norm"
METRICS = ("acc_norm", "acc")


@dataclass(frozen=True)
class EncodedTask:
    """A task as the model sees it.

    Attributes:
        name: of the task.
        options: of each question, one row a choice.
        lengths: of each question, the characters of its choices.
        answers: of each question, the position of the right choice.
        languages: of each question, None where the file does not say.
        left_out: how many rows are not asked, by reason.
    """

    name: str
    options: tuple[tuple[EncodedRow, ...], ...]
    lengths: tuple[tuple[int, ...], ...]
    answers: tuple[int, ...]
    languages: tuple[str | None, ...]
    left_out: dict[str, int]

    @property
    def n_rows(self) -> int:
        """Number of choices of all questions."""
        return sum(map(len, self.options))


class Answers(BaseModel):
    """What one model answered to the questions of a task, question by question.

    Attributes:
        figures: by name of a figure, one number per question; 1 where it is right, else 0.
        n_choices: of each question; None where its answer is no choice.
        languages: of each question, None where the file does not say.
        left_out: how many rows are not asked, by reason.
        by: who asked.
        headline: name of the figure that counts.
        cut: how many questions were cut in front to fit the model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    figures: Mapping[str, tuple[float, ...]]
    n_choices: tuple[int | None, ...]
    languages: tuple[str | None, ...]
    left_out: Mapping[str, int]
    by: str
    headline: str = HEADLINE
    cut: int = 0

    def content(self) -> dict[str, Any]:
        """Plain values for a stage's marker, the figures beside the rest."""
        return {**self.figures, **self.model_dump(exclude={"figures"})}

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Self:
        """Read what `content` gave."""
        known = {k: v for k, v in content.items() if k in cls.model_fields}
        figures = {k: v for k, v in content.items() if k not in cls.model_fields}
        return cls(figures=figures, **known)


def encode_task(task: Task, encoder: RowEncoder) -> EncodedTask:
    """Encode every choice; a question is left out whole if one of its choices does not fit.

    Raises:
        DataError: no question fits.
    """
    limit = encoder.settings.max_length
    fitting: list[tuple[Question, tuple[EncodedRow, ...]]] = []
    for question in task.questions:
        rows = [_encode_choice(question, choice, encoder) for choice in question.choices]
        # A cut choice would be another choice.
        if not any(row is None or row.truncated for row in rows):
            fitting.append((question, tuple(row for row in rows if row is not None)))
    if not fitting:
        raise DataError(
            f"task {task.name}: none of its {len(task.questions)} questions fits into {limit} "
            "tokens. Raise recipe.tokens.max_length, or leave the task out."
        )
    too_long = {f"longer than {limit} tokens": len(task.questions) - len(fitting)}
    return EncodedTask(
        name=task.name,
        options=tuple(rows for _, rows in fitting),
        lengths=tuple(tuple(len(choice) for choice in q.choices) for q, _ in fitting),
        answers=tuple(q.answer for q, _ in fitting),
        languages=tuple(q.language for q, _ in fitting),
        left_out={r: n for r, n in (Counter(task.left_out) + Counter(too_long)).items() if n},
    )


def _encode_choice(question: Question, choice: str, encoder: RowEncoder) -> EncodedRow | None:
    sample = Sample(question.row, (*question.prompt, Message("assistant", choice)))
    try:
        return encoder.encode(sample, with_end=False)
    except DataError as error:
        if "after truncation" in str(error):
            return None
        raise


def log_likelihoods(
    model: LoraModel,
    task: EncodedTask,
    adapter: AdapterState,
    *,
    on_rows: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """Of each question, the log-likelihood of every choice in nats, summed over its tokens."""
    flat = [row for options in task.options for row in options]
    means = mean_losses(model, flat, adapter=adapter, on_rows=on_rows)
    sums = -means * np.array([row.n_response_tokens for row in flat])
    bounds = np.cumsum([0, *map(len, task.options)])
    return [sums[a:b] for a, b in pairwise(bounds)]


def answer_task(
    model: LoraModel,
    task: EncodedTask,
    adapter: AdapterState,
    *,
    on_rows: Callable[[int], None] | None = None,
) -> Answers:
    """Ask a model every question; the figures are those of `METRICS`."""
    found = log_likelihoods(model, task, adapter, on_rows=on_rows)
    pairs = list(zip(found, task.lengths, task.answers, strict=True))
    return Answers(
        figures={
            "acc": tuple(int(sums.argmax() == answer) for sums, _, answer in pairs),
            "acc_norm": tuple(
                int((sums / np.array(lengths)).argmax() == answer)
                for sums, lengths, answer in pairs
            ),
        },
        n_choices=tuple(len(options) for options in task.options),
        languages=task.languages,
        left_out=task.left_out,
        by="built-in",
    )


def arms_on_tasks(
    answers: Mapping[str, Mapping[str, Answers]], *, seed: int
) -> dict[str, TaskResult]:
    """Aggregate what every arm answered.

    Args:
        answers: by arm and task.
        seed: of the bootstrap.

    Returns:
        By task, with the difference of every arm's headline to mixed and to random on the same
        questions, and the same by language where there are several.
    """
    names = list(dict.fromkeys(name for tasks in answers.values() for name in tasks))
    return {
        name: _task({arm: tasks[name] for arm, tasks in answers.items()}, name, seed)
        for name in names
    }


def _task(arms: Mapping[str, Answers], name: str, seed: int) -> TaskResult:
    first = next(iter(arms.values()))
    languages = sorted({language for language in first.languages if language})
    parts = {code: np.array([x == code for x in first.languages]) for code in languages}
    whole = _part(arms, np.ones(len(first.n_choices), bool), name, seed)
    return TaskResult(
        by=first.by,
        headline=first.headline,
        left_out=first.left_out,
        cut=first.cut,
        questions=whole.questions,
        guessing=whole.guessing,
        arms=whole.arms,
        languages={
            code: _part(arms, mask, f"{name}/{code}", seed)
            for code, mask in parts.items()
            if len(languages) > 1
        },
    )


def _part(arms: Mapping[str, Answers], mask: np.ndarray, name: str, seed: int) -> TaskPart:
    first = next(iter(arms.values()))
    right = {arm: np.array(found.figures[first.headline])[mask] for arm, found in arms.items()}
    choices = np.array(first.n_choices, object)[mask]
    guessing = None if None in choices else float((1 / choices.astype(float)).mean())
    figures: dict[str, TaskArm] = {}
    for arm, found in arms.items():
        own: dict[str, Any] = {}
        for metric in dict.fromkeys((first.headline, *METRICS)):
            if metric in found.figures:
                values = np.array(found.figures[metric])[mask]
                own[metric] = float(values.mean())
                own[f"{metric}_stderr"] = standard_error(values)
        for other in (o for o in AGAINST if o in arms and o != arm):
            draw = derived_seed(seed, "task", name, arm, other)
            own[f"minus_{other}"] = paired_difference(right[arm], right[other], seed=draw)
        figures[arm] = TaskArm(**own)
    return TaskPart(questions=int(mask.sum()), guessing=guessing, arms=figures)
