"""Shapes of rows: which columns hold the prompt, the answer and the choices."""

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from clues.config.columns import CONVERSATIONS, MEDIA, PAIRED, PARTS, PROMPTS, RESPONSES

SCHEMAS = {
    "alpaca": "instruction, output; optional input, context, system, history, tools",
    "sharegpt": "conversations; optional system, tools",
    "messages": "messages; optional system, tools",
    "prompt_completion": "prompt, question, query or input; completion, response, answer, output or "
    "target; optional context, system",
    "preference": "chosen, rejected; optional prompt, question, instruction or conversations",
    "multiple_choice": "question or instruction; choices, options or A, B, ...; answer",
}
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
KNOWN_COLUMNS = {name for pair in PAIRS for name in pair} | {
    *("instruction", "input", "output", "system", "history", "choices", "options"),
    *(*CONVERSATIONS, *PAIRED),
}
_CONVERSATIONS = {
    "conversations": "sharegpt",
    "messages": "messages",
    # Only where neither of the two is there.
    **dict.fromkeys(("conversation", "dialogue", "dialog", "turns", "items"), "sharegpt"),
}
_PAIRED = (
    *((PAIRED), ("chosen_messages", "rejected_messages")),
    ("chosen_response", "rejected_response"),
)
_REJECTED = ("rejected", "rejected_response", "rejected_messages")
_SYSTEM, _TOOLS = ("system", "system_prompt"), ("tools", "functions")
_THOUGHTS = ("thought", "reasoning_content", "thinking", "reasoning")
_LABELS = ("label", "kto_tag")
_ANSWERS = ("answer_idx", "answer_index", "answerKey", "answer", "cop")
_CHOICES = ("choices", "options")
_LETTERED = (tuple(string.ascii_uppercase), tuple(f"op{letter}" for letter in "abcdefgh"))
# Every column that some layout reads.
READ_COLUMNS = frozenset(
    (
        *(*PARTS, *_CONVERSATIONS, *chain(*_PAIRED), *_REJECTED, *_SYSTEM, *_TOOLS, *_THOUGHTS),
        *(*_LABELS, *_ANSWERS, *_CHOICES, *chain(*_LETTERED)),
    )
)


@dataclass(frozen=True)
class Layout:
    """One way to read a file's columns as samples.

    Attributes:
        schema: a key of `SCHEMAS`.
        prompt: column of what is asked, or of the whole conversation; empty where `response`
            holds it too.
        response: column of the answer.
        choices: the column of choices, or one column for each.
        answers: columns that say which choice is right; the first decides.
        inputs: columns that belong to the prompt.
        history: column of earlier turns; as all others, empty where there is none.
        thought: of what the assistant thinks before it answers.
        system: of the system's text.
        tools: of the tools that the assistant may call.
        rejected: of the other answer of a pair.
        label: of truth values that say whether an answer is one to give.
        media: columns of pictures and sounds.
        first: number of the first choice where the answer is a number.
    """

    schema: str
    prompt: str
    response: str
    choices: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    history: str = ""
    thought: str = ""
    system: str = ""
    tools: str = ""
    rejected: str = ""
    label: str = ""
    media: tuple[str, ...] = ()
    first: int = 0

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that becomes part of a sample."""
        single = (self.history, self.thought, self.system, self.tools, self.rejected, self.label)
        names = (self.prompt, self.response, *self.choices, *self.answers, *self.inputs, *single)
        return tuple(dict.fromkeys(name for name in (*names, *self.media) if name))


def layouts_of(names: Sequence[str]) -> list[Layout]:
    """List every way to read these columns; the first of a schema is its preferred one."""
    found = _paired(names) or _usual(names) or _rarer(names)
    return [_completed(layout, names) for layout in found]


def _paired(names: Sequence[str]) -> list[Layout]:
    """Preference pairs: with a column of prompts, or with the prompt in both answers."""
    for chosen, rejected in _PAIRED:
        if chosen in names and rejected in names:
            prompts = [name for name in (*PROMPTS, *_CONVERSATIONS) if name in names]
            prompt = prompts[0] if prompts else ""
            return [Layout("preference", prompt, chosen, rejected=rejected)]
    return []


def _usual(names: Sequence[str]) -> list[Layout]:
    choices, answers = _choice_columns(names)
    found = []
    if "instruction" in names and "output" in names:
        found.append(Layout("alpaca", "instruction", "output", choices, answers))
    for column in CONVERSATIONS:
        if column in names:
            found.append(Layout(_CONVERSATIONS[column], column, column))
    for prompt, response in PAIRS:
        if prompt in names and response in names and not (response in answers and choices):
            found.append(Layout("prompt_completion", prompt, response, choices, answers))
    for prompt in ("question", "instruction"):
        if prompt in names and choices:
            found.append(Layout("multiple_choice", prompt, answers[0], choices, answers))
            break
    return found


def _rarer(names: Sequence[str]) -> list[Layout]:
    """Columns under other names; only where the usual ones are not there."""
    for column, schema in _CONVERSATIONS.items():
        if column in names:
            return [Layout(schema, column, column)]
    choices, answers = _choice_columns(names)
    prompts = [name for name in PROMPTS if name in names]
    # What is called input belongs to the instruction, where there is one.
    prompts = [name for name in prompts if name not in ("input", "inputs")] or prompts
    if choices:
        return [
            Layout("multiple_choice", prompt, answers[0], choices, answers) for prompt in prompts
        ]
    responses = [name for name in RESPONSES if name in names]
    return [
        Layout("prompt_completion", prompt, response)
        for prompt in prompts
        for response in responses
    ]


def _completed(layout: Layout, names: Sequence[str]) -> Layout:
    """A layout with what may stand beside prompt and answer."""
    taken = layout.columns

    def one(candidates: Sequence[str]) -> str:
        return next((name for name in candidates if name in names and name not in taken), "")

    talks = layout.prompt in _CONVERSATIONS
    inputs = tuple(
        name
        for name in ("input", "context")
        if name in names and name not in taken and not talks and layout.prompt
    )
    return replace(
        layout,
        inputs=inputs,
        history=one(("history",)) if layout.schema == "alpaca" else "",
        thought=one(_THOUGHTS) if layout.schema in ("alpaca", "prompt_completion") else "",
        system=one(_SYSTEM),
        tools=one(_TOOLS),
        rejected=layout.rejected or ("" if layout.choices else one(_REJECTED)),
        label="" if layout.choices or layout.rejected else one(_LABELS),
        media=tuple(name for name in MEDIA if name in names and name not in taken),
    )


def _choice_columns(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns of choices and those of the answer; two empty ones where either is missing."""
    answers = tuple(name for name in _ANSWERS if name in names)
    if answers:
        for name in _CHOICES:
            if name in names:
                return (name,), answers
        for letters in _LETTERED:
            n = next((i for i, name in enumerate(letters) if name not in names), len(letters))
            if n >= 2:
                return letters[:n], answers
    return (), ()
