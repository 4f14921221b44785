"""Turns as a chat template takes them: its own keys for what a turn holds, and its own order."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from clues.data.samples import Message

GAP = "\n\n"  # between texts that become one turn


_THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")


def with_thoughts(turns: Sequence[Message], template: str) -> list[Message]:
    """Turns whose thoughts stand where the template looks for them.

    A template that names no key of thoughts, but writes `<think>`, finds them in the content.
    """
    if _thought_keys(template) or "think>" not in template:
        return list(turns)
    return [
        replace(turn, content=turn.said, thought="") if turn.thought else turn for turn in turns
    ]


def as_template_reads(turns: Sequence[Message], template: str) -> list[dict[str, Any]]:
    """Turns as the objects that a chat template is given."""
    keys, wants_ids = _thought_keys(template), "tool_call_id" in template
    found: list[dict[str, Any]] = []
    waiting: list[str] = []
    for turn in turns:
        given: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.thought:
            given |= dict.fromkeys(keys, turn.thought)
        if turn.calls:
            given["tool_calls"] = calls = [_call(call) for call in json.loads(turn.calls)]
            # Some templates refuse calls without an id of nine letters and digits.
            for call in calls if wants_ids else ():
                call.setdefault(
                    "id", f"call{sum('tool_calls' in g for g in found):02d}{len(waiting):03d}"
                )
                waiting.append(call["id"])
        if turn.role == "tool":
            own = turn.call_id or (waiting.pop(0) if waiting else "")
            given |= {"tool_call_id": own} if own else {}
            given |= {"name": turn.name} if turn.name else {}
        found.append(given)
    return found


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": call["arguments"]}
    own = {"id": call["id"]} if "id" in call else {}
    return {**own, "type": "function", "function": function}


def _thought_keys(template: str) -> list[str]:
    return [key for key in _THOUGHT_KEYS if re.search(rf"[.'\"]{key}\b", template)]


def foldings(turns: Sequence[Message]) -> Iterator[tuple[Message, ...]]:
    """Yield what to try in place of refused turns, from the smallest change to the largest.

    First an assistant's turn that answers nobody is left out and neighbours of one role become one
    turn. Then the system's text stands in front of the user's, for a template without a system.
    """
    asked = next((i for i, turn in enumerate(turns) if turn.role == "user"), len(turns))
    led = [turn for turn in turns[:asked] if turn.role != "assistant"]
    joined = _joined([*led, *turns[asked:]])
    if joined != tuple(turns):
        yield joined
    if joined and joined[0].role == "system":
        yield _joined([Message("user", joined[0].content), *joined[1:]])


def _joined(turns: Sequence[Message]) -> tuple[Message, ...]:
    """Neighbours of one role as one turn."""
    found: list[Message] = []
    for turn in turns:
        before = found[-1] if found else None
        if before and _are_one(before, turn):
            found[-1] = replace(before, content=before.content + GAP + turn.content)
        else:
            found.append(turn)
    return tuple(found)


def _are_one(one: Message, other: Message) -> bool:
    """Whether two turns have nothing but their text apart; results of tools never are."""
    plain = replace(other, content="") == replace(one, content="")
    return plain and one.role != "tool" and not one.calls
