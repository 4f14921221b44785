"""Tools and calls of tools, in the spellings of the programs that write them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from clues.data.values import BadRow, is_empty, json_of, list_of, text_of, unread_keys

_ARGUMENTS = ("arguments", "parameters", "input", "args")


def read_call(value: Any, what: str, *, at: str, unread: set[str]) -> dict[str, Any]:
    """One call as `{"name": ..., "arguments": ...}`, with an `id` where it has one.

    Args:
        value: of OpenAI's form, older or newer, or an object with name and arguments.
        what: the turn, for messages.
        at: where the call stands, for the names of keys.
        unread: gets keys of the call that say something and are not read.

    Raises:
        BadRow: it is no call.
    """
    inner = value.get("function") if isinstance(value, dict) else None
    call = inner if isinstance(inner, dict) else value
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        raise BadRow(f"{what} has a call of a tool that names none: give name and arguments")
    given = next((key for key in _ARGUMENTS if call.get(key) is not None), "")
    arguments = call.get(given, {})
    kept = {"id"} | ({"type"} if isinstance(value.get("type"), str) else set())
    unread |= unread_keys(value, kept | ({"name", given} if call is value else {"function"}), at)
    if call is not value:
        unread |= unread_keys(call, {"name", given}, f"{at}.function")
    if isinstance(arguments, str):
        # Templates write objects as they like, and texts as they are: an object is meant.
        arguments = json_of(arguments, f"a call's arguments in {what}") if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise BadRow(f"{what} has a call of a tool whose arguments are no object")
    found = {"name": call["name"], "arguments": arguments}
    own = value.get("id")
    if own and not isinstance(own, str):
        unread.add(f"{at}.id")
    return found | ({"id": own} if isinstance(own, str) and own else {})


def call_json(calls: Sequence[Mapping[str, Any]]) -> str:
    """Calls as a message keeps them; empty where there are none."""
    if not calls:
        return ""
    return text_of(json.dumps(list(calls), ensure_ascii=False), "a call of a tool")


def read_tools(value: Any, name: str) -> str:
    """Definitions of tools as JSON in OpenAI's form; empty where there are none.

    Args:
        value: a list, or the JSON of one; each entry a function, or an object around one.
        name: of the column, for messages.

    Raises:
        BadRow: it is no list of tools.
    """
    if isinstance(value, str):
        value = json_of(value, name) if value.strip() else None
    if isinstance(value, dict):
        value = [value]
    if is_empty(value):
        return ""
    found = []
    for tool in list_of(value, name):
        tool = json_of(tool, name) if isinstance(tool, str) else tool
        inner = tool.get("function") if isinstance(tool, dict) else None
        function = inner if isinstance(inner, dict) else tool
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow(f"{name} holds something that is no tool: each needs a name")
        around = tool if isinstance(inner, dict) else {}
        kind = around.get("type") or "function"
        # All that stands beside a function is a template's to write or to leave out.
        found.append({**around, "type": kind, "function": function})
    return text_of(json.dumps(found, ensure_ascii=False), name)
