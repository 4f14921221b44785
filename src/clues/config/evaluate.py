"""What the joint models are measured on, as settings."""

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from clues.config.base import Count, Name, Seconds, Settings, Steps
from clues.config.rowsfile import RowsFile
from clues.config.score import BASELINE_NAMES, FORMS, Baseline, Form, Installed, one_of
from clues.printable import is_printable

ARMS = ("mixed", "random", "clues", "oracle")
# Whose rows a model is trained on; a score's name stands for what that score would select.
Arm = Annotated[
    Literal["mixed", "random", "clues", "oracle", Form, Baseline, "inrun"] | Installed,
    one_of(*ARMS, *FORMS, *BASELINE_NAMES, "inrun"),
]


class TaskSettings(RowsFile):
    """A file of multiple-choice questions.

    Attributes:
        path: any file of rows; each has choices and an answer, or lists its choices in the prompt.
        name: name of the task; null makes one task per value of the column `source`, or one task
            with the name of the file.
        style: `as_written` leaves prompt and choices as they stand in the file; `cloze` takes a
            listing of the choices out of the prompt, and the marks off the choices.
        where: only rows whose columns have these values, such as `split: test`.
        limit: the most questions per task, drawn at random, the same ones in every run.
    """

    name: Name | None = None
    style: Literal["as_written", "cloze"] = "as_written"
    where: dict[str, str] = Field(default_factory=dict)
    limit: Count | None = None


class LmEvalSettings(Settings):
    """A task of lm-eval (extra `eval` (`pip install '.[eval]'` in the source folder)).

    Attributes:
        task: name of the task, or a YAML file that describes it; `pubmedqa` is ours and needs
            `data`.
        data: a local file for the task's split `test`, instead of the task's own data.
        limit: the most questions; the first ones of the task are taken.
        num_fewshot: examples in front of each question; null leaves it to the task.
    """

    task: str
    data: Path | None = None
    limit: Count | None = None
    num_fewshot: int | None = Field(default=None, ge=0, le=1000)

    @model_validator(mode="after")
    def _data_needs_a_description(self) -> "LmEvalSettings":
        own = self.task == "pubmedqa" or self.task.endswith((".yaml", ".yml"))
        if self.data is not None and not own:
            raise ValueError("data goes with task: pubmedqa, or with a task that is a YAML file")
        return self


class JudgeSettings(Settings):
    """A model behind an OpenAI-compatible endpoint that judges answers (extra `judge` (`pip install '.[judge]'` in the source folder)).

    Attributes:
        base_url: address of the endpoint, such as `https://host/v1`; plain http only on this
            machine.
        model: name of the model there.
        api_key_env: environment variable that holds the key; null where none is needed.
        mode: `reference` scores an answer from 0 to 1 against the row's own. `pairwise` asks which
            of two arms' answers is better, in both orders.
        arms: the arms whose answers are judged; those that the run does not have are left out.
        against: the arm that every other is compared with in pairs.
        n_prompts: number of held-out prompts, drawn at random, the same ones in every run.
        prompts: another file of rows than `evaluate.heldout`; needs `--allow-private-prompts`.
        max_calls: the most requests per `clues judge`, repairs and retries included.
        concurrency: requests under way at a time.
        timeout_s: seconds for one request, from its start to its last byte.
        retries: how often a request that got no answer is made again, by the openai client: after
            half a second, then after twice as long each time, up to eight; or when the endpoint
            says, up to two minutes.
        max_answer_tokens: the most tokens of an answer of ours.
        max_reply_tokens: the most tokens of a reply of the judge.
        allow_http: allow key and rows to go unencrypted to another machine.
    """

    base_url: str
    model: str = Field(min_length=1)
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    mode: tuple[Literal["reference", "pairwise"], ...] = ("reference", "pairwise")
    arms: tuple[Arm, ...] = ARMS
    against: Arm = "mixed"
    n_prompts: Count = 100
    prompts: Path | None = None
    max_calls: Count = 2000
    concurrency: int = Field(default=4, ge=1, le=64)
    timeout_s: Seconds = 60.0
    retries: int = Field(default=4, ge=0, le=10)
    max_answer_tokens: Steps = 256
    max_reply_tokens: Steps = 300
    allow_http: bool = False

    @property
    def loopback(self) -> bool:
        """Whether the endpoint is on this machine."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return host == "localhost" or ip_address(host).is_loopback
        except ValueError:
            return False

    @model_validator(mode="after")
    def _endpoint_is_safe(self) -> "JudgeSettings":
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("base_url must look like https://host/v1")
        if url.username or url.password or url.query or url.fragment:
            raise ValueError("base_url must hold no key; name its variable in api_key_env")
        if url.scheme == "http" and not self.loopback and not self.allow_http:
            raise ValueError(
                "base_url sends rows and key unencrypted to another machine. Use https, or set "
                "allow_http: true"
            )
        return self


def _check_kind(kind: str) -> str:
    if not kind or not is_printable(kind, 40):
        raise ValueError("a kind has 1 to 40 characters, all of which can be printed")
    return kind


MAX_KINDS = 32
Kind = Annotated[str, AfterValidator(_check_kind)]


class EvaluateSettings(Settings):
    """What the joint models are measured on. All of it is public.

    Attributes:
        heldout: file of rows for the held-out loss; those with choices are also asked. A path, or
            `{path: ..., schema: ..., columns: ...}`.
        tasks: files of multiple-choice questions; a bare path will do.
        lm_eval: tasks of lm-eval; a bare name will do.
        arms: the joint models to train and compare, named after their rows: `mixed` (all),
            `random` (as many as selected), `clues` (the selection), `oracle` (those known clean).
            The name of a score in `recipe.score.compare` trains on what that score would select,
            with its own anchors and the recipe's rule. This is for experiments: every silo must
            share diagnostics, since each such arm tells how many rows another threshold keeps. An
            empty list stops after the selection.
        kinds: labels of damage that are named in the results, where a silo shares how well damage
            was found. Rows with any other label are counted together as `other`: labels are free
            text, and a silo sends none that is not in this list.
        judge: a model that judges answers; null is off.
    """

    heldout: RowsFile | None = None
    tasks: tuple[TaskSettings, ...] = ()
    lm_eval: tuple[LmEvalSettings, ...] = ()
    arms: tuple[Arm, ...] = ARMS
    kinds: tuple[Kind, ...] = Field(default=("cut", "delete", "swap", "mix"), max_length=MAX_KINDS)
    judge: JudgeSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """Accept a bare path for rows, and a bare name for a task of lm-eval."""
        if not isinstance(value, dict):
            return value
        value = dict(value)
        if isinstance(value.get("heldout"), str | Path):
            value["heldout"] = {"path": value["heldout"]}
        for key, name in (("tasks", "path"), ("lm_eval", "task")):
            if isinstance(entries := value.get(key), list | tuple):
                value[key] = [{name: e} if isinstance(e, str | Path) else e for e in entries]
        return value
