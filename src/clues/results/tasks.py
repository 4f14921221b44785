"""What the arms' models answered: tasks by likelihood, and what a judge says."""

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, SerializerFunctionWrapHandler, model_serializer

from clues.results.arms import Gap
from clues.results.base import Figures


class TaskArm(Figures):
    """One arm's answers to the questions of a task.

    A task of lm-eval may have a figure of another name than the two accuracies. It is there under
    its own name, with its standard error under the name and `_stderr`.

    Attributes:
        acc_norm: share answered right, by the log-likelihood of a choice per character.
        acc_norm_stderr: its standard error.
        acc: share answered right, by the log-likelihood of a choice.
        acc_stderr: its standard error; null for fewer than two questions.
        minus_mixed: difference of the headline figure to that of arm `mixed`.
        minus_random: difference of the headline figure to that of arm `random`.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None]  # pyright: ignore[reportIncompatibleVariableOverride]

    acc_norm: float | None = None
    acc_norm_stderr: float | None = None
    acc: float | None = None
    acc_stderr: float | None = None
    minus_mixed: Gap | None = None
    minus_random: Gap | None = None

    def figure(self, name: str) -> float | None:
        """The figure of this name, or its standard error; None where there is none."""
        return getattr(self, name, None)

    @model_serializer(mode="wrap")
    def _differences_last(self, inner: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = inner(self)
        last = [key for key in ("minus_mixed", "minus_random") if key in found]
        return found | {key: found.pop(key) for key in last}


class TaskPart(Figures):
    """The questions of a task in one language.

    Attributes:
        questions: number of questions.
        guessing: share that guessing answers right; null where it is not known.
        arms: what each arm's model answered, by the arm's name.
    """

    questions: int
    guessing: float | None
    arms: Mapping[str, TaskArm]


class TaskResult(Figures):
    """One task.

    Attributes:
        by: who asked: `built-in`, or lm-eval with its version.
        headline: name of the figure that counts.
        left_out: number of rows that were not asked, by reason.
        cut: number of questions that were cut in front to fit the model.
        questions: number of questions.
        guessing: share that guessing answers right; null where it is not known.
        arms: what each arm's model answered, by the arm's name.
        languages: the same by language, where there are several.
    """

    by: str
    headline: str
    left_out: Mapping[str, int]
    cut: int
    questions: int
    guessing: float | None
    arms: Mapping[str, TaskArm]
    languages: Mapping[str, TaskPart]


class Reference(Figures):
    """How far one arm's answers agree with the reference answers, as a judge sees it.

    Attributes:
        n: number of answers with a valid verdict.
        mean: mean score from 0 to 1; null where no verdict is valid.
        interval: its 95 % interval; null for fewer than two verdicts.
        invalid: number of replies without a valid verdict.
        repaired: number of replies that were asked for again.
        problems: number of invalid replies, by what is wrong with them.
    """

    n: int
    mean: float | None
    interval: tuple[float, float] | None
    invalid: int
    repaired: int
    problems: Mapping[str, int]


class Pairs(Figures):
    """How often a judge prefers one arm's answer to that of the arm it is compared with.

    Attributes:
        n: number of prompts that count.
        win_rate: share of them that are won, a tie for half; null where none counts.
        interval: its 95 % interval, after Wilson.
        wins: number of prompts won.
        ties: number of prompts that nobody won.
        losses: number of prompts lost.
        identical: number of prompts where both answers are the same; nobody was asked.
        first_place: how often the answer that stands first is preferred; 0.5 is fair.
        contradictory: number of prompts where the same place won in both orders.
        invalid: number of replies without a valid verdict.
        repaired: number of replies that were asked for again.
        problems: number of invalid replies, by what is wrong with them.
    """

    n: int
    win_rate: float | None
    interval: tuple[float, float] | None
    wins: int
    ties: int
    losses: int
    identical: int
    first_place: float | None
    contradictory: int
    invalid: int
    repaired: int
    problems: Mapping[str, int]


class JudgeResult(Figures):
    """What a judge, a language model, says about the answers to held-out prompts.

    Attributes:
        model: name of the judge.
        prompts: number of prompts that were asked.
        too_long: number of prompts that are too long to be asked.
        against: the arm that the others are compared with in pairs.
        reference: agreement with the reference answers, by arm; there in mode `reference`.
        pairwise: comparisons in pairs, by arm; there in mode `pairwise`.
    """

    model: str
    prompts: int
    too_long: int
    against: str
    reference: Mapping[str, Reference] = {}
    pairwise: Mapping[str, Pairs] = {}
