"""Shapes of rows: which columns hold the prompt, the answer and the choices."""

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from clues.data.samples import ROLES, Message, Sample
from clues.data.tables import kind_of, parse_json

# Of one row, all its turns together: half a million tokens, more than any model reads at once. The
# tokenizer takes a hundred bytes for each of them.
MAX_CHARACTERS = 2_000_000
# A chat template is rendered once more for every answer: ten times the turns take a hundred times
# as long.
MAX_TURNS = 1_000

SCHEMAS = {
    "alpaca": "instruction, output; optional input, system, history",
    "sharegpt": "conversations; optional system",
    "messages": "messages; optional system",
    "prompt_completion": "prompt and completion or response, or question and answer",
    "multiple_choice": "question or instruction; choices, options or A, B, ...; answer",
}
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
_ROLE_OF = {"human": "user", "gpt": "assistant"} | {role: role for role in ROLES}
# Names that may be shown; any other value of a role may be a row's text.
_TOOL_ROLES = ("tool", "function", "function_call", "function_response", "observation", "ipython")
KNOWN_COLUMNS = {name for pair in PAIRS for name in pair} | {
    "instruction",
    "input",
    "output",
    "system",
}
KNOWN_COLUMNS |= {"history", "conversations", "messages", "choices", "options"}


@dataclass(frozen=True)
class Layout:
    """One way to read a file's columns as samples."""

    schema: str
    prompt: str
    response: str
    choices: tuple[str, ...] = ()
    optional: tuple[str, ...] = ("system",)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that becomes part of a sample."""
        answer = ("answer",) if self.choices else ()
        names = (self.prompt, self.response, *self.choices, *answer, *self.optional)
        return tuple(dict.fromkeys(names))


class BadRow(Exception):
    """Why a row cannot be used, in words that hold none of its text."""


def layouts_of(names: Sequence[str]) -> list[Layout]:
    """List every way to read these columns; the first of a schema is its preferred one."""
    choices = _choice_columns(names)
    found = []
    if "instruction" in names and "output" in names:
        optional = ("input", "system", "history")
        found.append(Layout("alpaca", "instruction", "output", choices, optional))
    for column, schema in (("conversations", "sharegpt"), ("messages", "messages")):
        if column in names:
            found.append(Layout(schema, column, column))
    for prompt, response in PAIRS:
        if prompt in names and response in names and not (response == "answer" and choices):
            found.append(Layout("prompt_completion", prompt, response, choices))
    for prompt in ("question", "instruction"):
        if prompt in names and choices:
            optional = ("system",) if prompt == "question" else ("input", "system")
            found.append(Layout("multiple_choice", prompt, "answer", choices, optional))
            break
    return found


def _choice_columns(names: Sequence[str]) -> tuple[str, ...]:
    if "answer" not in names:
        return ()
    for name in ("choices", "options"):
        if name in names:
            return (name,)
    n_letters = next((i for i, a in enumerate(string.ascii_uppercase) if a not in names), 26)
    return tuple(string.ascii_uppercase[:n_letters]) if n_letters >= 2 else ()


def parse_row(layout: Layout, record: dict[str, Any], row: int) -> Sample:
    """Turn one record into a sample.

    The prompt of a multiple choice row is the question alone, its response the right choice.

    Raises:
        BadRow: a value is missing, empty or of the wrong type.
    """
    turns = _PARSERS[layout.schema](layout, record)
    if "system" in record and (system := _optional_text(record, "system")):
        if turns[0].role == "system":
            raise BadRow("system is given both as a column and as the first turn")
        turns = [Message("system", system), *turns]
    choices, answer = _read_choices(layout, record)
    _check_size([*(turn.content for turn in turns), *choices], len(turns))
    if layout.schema == "multiple_choice":
        if answer is None:
            raise BadRow("choices and answer are empty")
        turns.append(Message("assistant", choices[answer]))
    return Sample(row, tuple(turns), choices, answer)


def _check_size(texts: Sequence[str], n_turns: int) -> None:
    n_characters = sum(len(text) for text in texts)
    if n_characters > MAX_CHARACTERS:
        raise BadRow(
            f"its text has {n_characters:,} characters, and at most {MAX_CHARACTERS:,} are read"
        )
    if n_turns > MAX_TURNS:
        raise BadRow(f"it has {n_turns:,} turns, and at most {MAX_TURNS:,} are read")


def _parse_alpaca(layout: Layout, record: dict[str, Any]) -> list[Message]:
    turns = []
    for number, pair in enumerate(_optional_list(record, "history"), start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow(f"history {number} is not a pair of question and answer")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append(Message(role, _as_text(text, f"history {number}")))
    prompt = _prompt(layout, record)
    return [*turns, Message("user", prompt), Message("assistant", _text(record, layout.response))]


def _parse_pair(layout: Layout, record: dict[str, Any]) -> list[Message]:
    return [
        Message("user", _text(record, layout.prompt)),
        Message("assistant", _text(record, layout.response)),
    ]


def _parse_question(layout: Layout, record: dict[str, Any]) -> list[Message]:
    return [Message("user", _prompt(layout, record))]


def _prompt(layout: Layout, record: dict[str, Any]) -> str:
    if "input" not in layout.optional:
        return _text(record, layout.prompt)
    parts = [_text(record, layout.prompt, empty=True), _optional_text(record, "input")]
    # Joined as LLaMA-Factory joins them.
    prompt = "\n".join(part for part in parts if part.strip())
    if not prompt:
        raise BadRow(f"the prompt ({layout.prompt} and input) is empty")
    return prompt


def _parse_turns(layout: Layout, record: dict[str, Any]) -> list[Message]:
    turns = []
    for number, turn in enumerate(_list(record.get(layout.prompt), layout.prompt), start=1):
        if not isinstance(turn, dict):
            raise BadRow(f"turn {number} is not an object but {kind_of(turn)}")
        # Files mix the two spellings, so both are read under both schemas.
        role = _role(turn.get("from", turn.get("role")), number)
        if turn.get("tool_calls"):
            raise BadRow(f"turn {number} has tool_calls, and tools are not supported")
        if role == "system" and number > 1:
            raise BadRow(f"turn {number} has role system, which only the first turn may have")
        text = turn["value"] if "value" in turn else turn.get("content")
        turns.append(Message(role, _as_text(text, f"turn {number}")))
    if not turns:
        raise BadRow(f"{layout.prompt} is empty")
    if turns[-1].role != "assistant":
        raise BadRow("the last turn is not the assistant's")
    if all(turn.role != "user" for turn in turns):
        raise BadRow("the prompt is empty: no turn is the user's")
    return turns


def _role(value: Any, number: int) -> str:
    if not isinstance(value, str):
        raise BadRow(f"turn {number} has a role that is {kind_of(value)}")
    if value in _ROLE_OF:
        return _ROLE_OF[value]
    if value in _TOOL_ROLES:
        raise BadRow(f"turn {number} has role {value}, and tools are not supported")
    raise BadRow(f"turn {number} has a role that is not system, user, human, assistant or gpt")


def _read_choices(layout: Layout, record: dict[str, Any]) -> tuple[tuple[str, ...], int | None]:
    if len(layout.choices) > 1:  # A, B, C, ...; a row may have fewer than the widest one
        values = [record.get(name) for name in layout.choices]
        while values and values[-1] in (None, ""):
            values.pop()
    else:
        values = [value for name in layout.choices for value in _optional_list(record, name)]
    answer = record.get("answer") if layout.choices else None
    if not values and answer in (None, ""):
        return (), None
    choices = tuple(_as_text(value, f"choice {i}") for i, value in enumerate(values, start=1))
    if len(choices) < 2:
        raise BadRow(f"{len(choices)} choices, and two or more are needed")
    return choices, _answer_index(answer, choices)


def _answer_index(value: Any, choices: tuple[str, ...]) -> int:
    found: set[int] = set()
    if isinstance(value, int) and not isinstance(value, bool):
        found = {value}
    elif isinstance(value, str):
        text = value.strip()
        found = {i for i, choice in enumerate(choices) if choice.strip() == text}
        if len(text) == 1:
            found.add(string.ascii_uppercase.find(text.upper()))
        if re.fullmatch(r"[0-9]{1,3}", text):
            found.add(int(text))
    else:
        raise BadRow(f"answer is {kind_of(value)}, not an index, a letter or the text of a choice")
    found &= set(range(len(choices)))
    if len(found) > 1:
        raise BadRow("answer fits several choices; give it as a number, from 0 on")
    if not found:
        last = len(choices) - 1
        letter = string.ascii_uppercase[min(last, 25)]
        raise BadRow(f"answer fits no choice (index 0 to {last}, letter A to {letter}, or text)")
    return found.pop()


def _text(record: dict[str, Any], name: str, *, empty: bool = False) -> str:
    if name not in record:
        raise BadRow(f"{name} is missing")
    return _as_text(record[name], name, empty=empty)


def _optional_text(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    text = "" if value is None else _as_text(value, name, empty=True)
    return text if text.strip() else ""


def _as_text(value: Any, name: str, *, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise BadRow(
            f"{name} is null" if value is None else f"{name} is {kind_of(value)}, not text"
        )
    if not empty and not value.strip():
        raise BadRow(f"{name} is empty")
    if not _is_unicode(value):
        raise BadRow(f"{name} holds half of a surrogate pair, which is no character")
    return value


def _optional_list(record: dict[str, Any], name: str) -> list[Any]:
    value = record.get(name)
    return [] if value is None or value == "" else _list(value, name)


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _list(value: Any, name: str) -> list[Any]:
    if isinstance(value, str) and value.lstrip().startswith("["):  # a list in a csv cell
        value, problem = parse_json(value)
        if problem is not None:
            raise BadRow(f"{name} is {problem}")
    if not isinstance(value, list):
        raise BadRow(
            f"{name} is null" if value is None else f"{name} is {kind_of(value)}, not a list"
        )
    return value


_PARSERS: dict[str, Callable[[Layout, dict[str, Any]], list[Message]]] = {
    "alpaca": _parse_alpaca,
    "sharegpt": _parse_turns,
    "messages": _parse_turns,
    "prompt_completion": _parse_pair,
    "multiple_choice": _parse_question,
}
