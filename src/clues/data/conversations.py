"""Turns of a conversation, in the spellings of the tools that write them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from clues.data.calls import call_json, read_call
from clues.data.parts import read_parts
from clues.data.samples import Message
from clues.data.tables import kind_of
from clues.data.values import BadRow, is_empty, json_of, list_of, text_of, unread_keys

_ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bing", "bard", "claude", "model", "bot", "ai"),
    "tool": (
        *("tool", "function", "observation", "ipython"),
        *("function_response", "tool_response", "tool_result"),
    ),
    "call": ("function_call", "tool_call"),
}
_ROLE_OF = {spelling: role for role, spellings in _ROLES.items() for spelling in spellings}
# The first key of each group that says something counts.
_SPEAKER, _WORDS = ("from", "role", "speaker"), ("value", "content", "text")
_THOUGHT = ("reasoning_content", "reasoning", "thinking", "thought")
TRAINED = ("weight", "train", "trainable", "loss", "loss_weight")
_CALLS = ("tool_calls", "function_call")
_RESULT = ("name", "tool_call_id")
_PARTIAL = ("train_detail", "train_details")
_KNOWN = frozenset((*_SPEAKER, *_WORDS, *_THOUGHT, *TRAINED, *_CALLS, *_RESULT, *_PARTIAL))


def read_turns(value: Any, name: str, unread: set[str]) -> list[Message]:
    """Read a list of turns.

    Args:
        value: a list of objects; or an object of lists, as some libraries store the same.
        name: of the column, for messages.
        unread: gets keys that say something and are not read.

    Raises:
        BadRow: with the number of the turn.
    """
    if isinstance(value, dict):
        value = _unfolded(value, name, unread)
    turns: list[Message] = []
    missing: set[str] = set()  # without the column's name
    given_turns = list_of(value, name)
    # Texts alone are question and answer by turns.
    if given_turns and all(isinstance(given, str) for given in given_turns):
        roles = ("user", "assistant")
        return [
            Message(roles[i % 2], text_of(text, f"turn {i + 1}"))
            for i, text in enumerate(given_turns)
        ]
    for number, given in enumerate(given_turns, start=1):
        turn = dict(given) if _is_pairs(given) else given
        if not isinstance(turn, dict):
            raise BadRow(f"turn {number} is not an object but {kind_of(turn)}")
        if _first(turn, _SPEAKER) is None and "output" in turn:
            turns += _exchange(turn, number, missing)
            continue
        missing |= {key for key in turn.keys() - _KNOWN if not is_empty(turn[key])}
        message, is_call = _read_turn(turn, number, missing)
        before = turns[-1] if turns else None
        # A call that is a turn of its own belongs to what the assistant has just said.
        if is_call and before and before.role == "assistant" and before.trained == message.trained:
            calls = call_json([*json.loads(before.calls or "[]"), *json.loads(message.calls)])
            turns[-1] = replace(before, calls=calls)
        else:
            turns.append(message)
    unread |= {f"{name}[].{key}" for key in missing}
    return turns


def speaks(turn: dict[str, Any]) -> bool:
    """Whether an object is a turn: it has a role, or question and answer."""
    return _first(turn, _SPEAKER) is not None or "output" in turn


def check_turns(turns: Sequence[Message], name: str) -> None:
    """See that a conversation asks something, and ends with an answer.

    Raises:
        BadRow: it does not.
    """
    if not turns:
        raise BadRow(f"{name} is empty")
    if turns[-1].role != "assistant":
        raise BadRow("the last turn is not the assistant's")
    if all(turn.role != "user" for turn in turns):
        raise BadRow("the prompt is empty: no turn is the user's")


def _read_turn(turn: dict[str, Any], number: int, missing: set[str]) -> tuple[Message, bool]:
    """One turn, and whether it is a call that stands by itself."""
    what = f"turn {number}"
    role = _speaker(turn, number, missing)
    if role == "system" and number > 1:
        raise BadRow(f"{what} has role system, which only the first turn may have")
    _refuse_partial(turn, what)
    words, calls = _first(turn, _WORDS), _calls(turn, what, missing)
    key = next((key for key in _WORDS if turn.get(key) is not None), "")
    missing |= _others(turn, _WORDS, words)
    if role == "call":
        given = json_of(text_of(words, what), what) if isinstance(words, str) else words
        given = given if isinstance(given, list) else [given]
        calls += [read_call(call, what, at=key, unread=missing) for call in given]
        words = None
    text, thought, more = words, "", []
    if isinstance(words, list):
        text, thought, more = read_parts(words, what, at=f"{key}[]", unread=missing)
    calls += more
    if calls and role not in ("assistant", "call"):
        raise BadRow(f"{what} calls a tool and is not the assistant's")
    trained = _is_trained(turn, what)
    if role in ("assistant", "call"):
        missing |= {key for key in _RESULT if not is_empty(turn.get(key))}
        own = next((turn[key] for key in _THOUGHT if not is_empty(turn.get(key))), None)
        thought = thought or ("" if own is None else text_of(own, f"{what}'s thought"))
        missing |= _others(turn, _THOUGHT, thought)
        content = text if calls and text is None else text_of(text, what, empty=bool(calls))
        message = Message("assistant", content or "", thought, call_json(calls), trained=trained)
        return message, role == "call"
    missing |= {f"{key} of other turns" for key in TRAINED if turn.get(key)}
    missing |= {f"{key}[].text of a thought"} if thought else set()
    missing |= {key for key in _THOUGHT if not is_empty(turn.get(key))}
    if role != "tool":
        missing |= {key for key in _RESULT if not is_empty(turn.get(key))}
        return Message(role, text_of(text, what)), False
    # A tool may give back nothing, or something that is no text.
    if not isinstance(text, str):
        text = "" if text is None else json.dumps(text, ensure_ascii=False)
    name, call_id = (_optional(turn.get(key), what, key) for key in _RESULT)
    return Message("tool", text_of(text, what, empty=True), name=name, call_id=call_id), False


def _speaker(turn: dict[str, Any], number: int, missing: set[str]) -> str:
    """The role of a turn.

    Raises:
        BadRow: it has none that is known, or two.
    """
    role = _role(_first(turn, _SPEAKER), number)
    for key in _SPEAKER:
        other = turn.get(key)
        known = _ROLE_OF.get(other.strip().lower()) if isinstance(other, str) else None
        if known not in (None, role):
            raise BadRow(
                f"turn {number} has two roles: {', '.join(k for k in _SPEAKER if k in turn)}"
            )
        if known is None and not is_empty(other):
            missing.add(key)
    return role


def _others(turn: dict[str, Any], names: Sequence[str], read: Any) -> set[str]:
    """Keys of a group of which the first counts, where they say something else."""
    return {name for name in names if not is_empty(turn.get(name)) and turn[name] != read}


def _refuse_partial(turn: dict[str, Any], what: str) -> None:
    for key in _PARTIAL:
        if not is_empty(turn.get(key)):
            raise BadRow(
                f"{what} has {key}: parts of a turn that are not trained are not supported"
            )


def _optional(value: Any, what: str, key: str) -> str:
    return "" if value is None else text_of(value, f"{key} of {what}", empty=True)


def _role(value: Any, number: int) -> str:
    if not isinstance(value, str):
        raise BadRow(f"turn {number} has a role that is {kind_of(value)}")
    role = _ROLE_OF.get(value.strip().lower())
    if role is None:
        raise BadRow(
            f"turn {number} has a role that is not known. Roles: system, user, assistant, tool, and "
            f"their other names {', '.join(_ROLE_OF)}"
        )
    return role


def _is_trained(turn: dict[str, Any], what: str) -> bool:
    """Whether no key says that a turn is not to be trained.

    Raises:
        BadRow: a weight between: a row's loss is the mean over the tokens that are trained.
    """
    trained = True
    for key in TRAINED:
        value = turn.get(key)
        if isinstance(value, str):
            value = {"true": 1, "1": 1, "false": 0, "0": 0}.get(value.strip().lower(), value)
        if value is None or value == "":
            continue
        if not isinstance(value, int | float):
            raise BadRow(f"{what} has a {key} that is {kind_of(value)}; give true or false")
        if value not in (0, 1):
            raise BadRow(
                f"{what} has a {key} other than 0 and 1, and a turn is trained whole or not at all"
            )
        trained = trained and value == 1
    return trained


def _calls(turn: dict[str, Any], what: str, missing: set[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for key in _CALLS:
        value = turn.get(key)
        if isinstance(value, str) and value.strip():
            value = json_of(value, f"{key} of {what}")
        if is_empty(value):
            continue
        at = f"{key}[]" if isinstance(value, list) else key
        value = value if isinstance(value, list) else [value]
        found += [read_call(call, what, at=at, unread=missing) for call in value]
    return found


def _exchange(turn: dict[str, Any], number: int, missing: set[str]) -> list[Message]:
    """Question and answer that are one object."""
    what = f"turn {number}"
    system = text_of(turn.get("system") or "", what, empty=True)
    asked = text_of(turn.get("input") or "", what, empty=True)
    if system.strip() and number > 1:
        raise BadRow(f"{what} has a system, which only the first turn may have")
    _refuse_partial(turn, what)
    read = ("system", "input", "output", *_SPEAKER, *TRAINED)
    missing |= {key for key in turn.keys() - set(read) if not is_empty(turn[key])}
    turns = [Message("system", system)] if system.strip() else []
    turns += [Message("user", asked)] if asked.strip() else []
    trained = _is_trained(turn, what)
    return [*turns, Message("assistant", text_of(turn["output"], what), trained=trained)]


def _first(values: dict[str, Any], names: Sequence[str]) -> Any:
    """The first value that is there; parquet fills in null for keys that a row does not have."""
    return next((values[name] for name in names if values.get(name) is not None), None)


def _is_pairs(value: Any) -> bool:
    """Whether a value is an arrow map: pairs of key and value."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value)
    )


def _unfolded(value: dict[str, Any], name: str, unread: set[str]) -> list[Any]:
    """Objects from an object of lists."""
    columns = {key: part for key, part in value.items() if isinstance(part, list)}
    lengths = {len(part) for part in columns.values()}
    if len(lengths) != 1 or not columns.keys() & {*_SPEAKER, *_WORDS}:
        raise BadRow(f"{name} is an object, not a list")
    unread |= unread_keys(value, columns, name)
    return [{key: part[i] for key, part in columns.items()} for i in range(lengths.pop())]
