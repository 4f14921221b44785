"""What a turn says where its content is a list of parts: text, thoughts and calls."""

from collections.abc import Sequence
from typing import Any

from clues.data.calls import read_call
from clues.data.tables import kind_of
from clues.data.values import BadRow, json_of, text_of, unread_keys

_TEXT = ("text", "input_text", "output_text")
_THOUGHT = ("reasoning", "thinking")
_CALL = ("tool_call", "tool_use", "function_call")
_MEDIA = ("image", "audio", "video", "file", "document")


def read_parts(
    parts: Sequence[Any], what: str, *, at: str, unread: set[str]
) -> tuple[str, str, list[dict[str, Any]]]:
    """Text, thought and calls of a content that is a list of parts.

    Args:
        parts: the list.
        what: the turn, for messages.
        at: where it stands, for the names of keys.
        unread: gets keys of parts that say something and are not read.

    Raises:
        BadRow: a part is none, or neither text nor thought nor call.
    """
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict):
            raise BadRow(f"{what} has a part that is {kind_of(part)}")
        kind = str(part.get("type") or "text").lower()
        if media := next((m for m in _MEDIA if m in kind or part.get(m) is not None), None):
            raise BadRow(f"{what} has a part of type {media}, and text alone is read")
        names = ("text", "value", "content", kind)
        key = next((name for name in names if part.get(name) is not None), "")
        inner = part.get(key)
        if key or kind not in _CALL:
            unread |= unread_keys(part, {"type", key}, at)
        if kind in _TEXT:
            texts.append(text_of(inner, what, empty=True))
        elif kind in _THOUGHT:
            thoughts.append(text_of(inner, f"{what}'s thought", empty=True))
        elif kind in _CALL:
            call = json_of(inner, what) if isinstance(inner, str) else inner if key else part
            calls.append(read_call(call, what, at=at, unread=unread))
        else:
            raise BadRow(f"{what} has a part of a type that is not known; text alone is read")
    return "".join(texts), "".join(thoughts), calls
