"""Choices of a question, and which of them is right."""

import re
import string
from typing import Any

from clues.data.layouts import Layout
from clues.data.tables import kind_of
from clues.data.values import BadRow, is_empty, json_of, optional_list, text_of, unread_keys

_TEXTS, _MARKS = ("text", "value", "content"), ("label", "key", "id")


def read_choices(
    layout: Layout, record: dict[str, Any], unread: set[str]
) -> tuple[tuple[str, ...], int | None]:
    """The choices of a row and the index of the right one; empty and None where it has none.

    Args:
        layout: how to read it.
        record: its values by column.
        unread: gets keys of the choices that say something and are not read.

    Raises:
        BadRow: there is one choice, or the answer fits none or several.
    """
    if not layout.choices:
        return (), None
    values, marks = _values(layout, record, unread)
    answers = [(name, record.get(name)) for name in layout.answers]
    given = [(name, value) for name, value in answers if value not in (None, "")]
    if not values and not given:
        return (), None
    choices = tuple(text_of(value, f"choice {i}") for i, value in enumerate(values, start=1))
    if len(choices) < 2:
        raise BadRow(f"{len(choices)} choices, and two or more are needed")
    found = {
        name: _index(value, name, layout.first, choices, marks)
        for name, value in given or answers[:1]
    }
    if len(set(found.values())) > 1:
        raise BadRow(f"{' and '.join(found)} name different choices")
    return choices, next(iter(found.values()), None)


def _values(
    layout: Layout, record: dict[str, Any], unread: set[str]
) -> tuple[list[Any], list[str]]:
    """Texts of the choices, and their marks where they have some of their own."""
    if len(layout.choices) > 1:  # a row may have fewer than the widest one
        values = [record.get(name) for name in layout.choices]
        while values and values[-1] in (None, ""):
            values.pop()
        return values, []
    for name in layout.choices:
        value = record.get(name)
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = json_of(value, name)
        if isinstance(value, dict):
            return _from_object(value, name, unread)
        values = optional_list(record, name)
        if values and all(isinstance(entry, dict) for entry in values):
            for entry in values:
                unread |= unread_keys(entry, _names(entry), f"{name}[]")
            return [_part(v, _TEXTS) for v in values], [str(_part(v, _MARKS)) for v in values]
        return values, []
    return [], []


def _part(entry: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((entry[name] for name in names if entry.get(name) is not None), None)


def _names(entry: dict[str, Any]) -> set[str]:
    """The keys that text and mark of a choice are read from."""
    keys = (next((n for n in names if entry.get(n) is not None), "") for names in (_TEXTS, _MARKS))
    return set(keys)


def _from_object(value: dict[str, Any], name: str, unread: set[str]) -> tuple[list[Any], list[str]]:
    """Choices by letter, or texts and marks as two lists."""
    texts, marks = _part(value, _TEXTS), _part(value, _MARKS)
    if isinstance(texts, list):
        unread |= unread_keys(value, _names(value), name)
        return texts, [str(mark) for mark in marks] if isinstance(marks, list) else []
    filled = {mark: text for mark, text in value.items() if not is_empty(text)}
    if not all(isinstance(text, str) for text in filled.values()):
        raise BadRow(f"{name} is an object that is neither choices by letter nor a list of texts")
    return list(filled.values()), list(filled)


def _index(value: Any, name: str, first: int, choices: tuple[str, ...], marks: list[str]) -> int:
    found: set[int] = set()
    text = value.strip() if isinstance(value, str) else str(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise BadRow(f"{name} is {kind_of(value)}, not an index, a letter or the text of a choice")
    if text in marks:
        found = {marks.index(text)}
    elif isinstance(value, int):
        found = {value - first}
    else:
        found = {i for i, choice in enumerate(choices) if choice.strip() == text}
        if len(text) == 1:
            found.add(string.ascii_uppercase.find(text.upper()))
        if re.fullmatch(r"[0-9]{1,3}", text):
            found.add(int(text) - first)
    found &= set(range(len(choices)))
    if len(found) > 1:
        raise BadRow(f"{name} fits several choices; give it as a number, from 0 on")
    if not found:
        last = len(choices) - 1
        letter = string.ascii_uppercase[min(last, 25)]
        raise BadRow(
            f"{name} fits no choice (index {first} to {last + first}, letter A to {letter}, or text)"
        )
    return found.pop()
