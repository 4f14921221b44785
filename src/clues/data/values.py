"""Single values of a row: text, lists and objects, or the reason why they cannot be used."""

from collections.abc import Collection, Mapping
from typing import Any

from clues.data.tables import kind_of, parse_json


class BadRow(Exception):
    """Why a row cannot be used, in words that hold none of its text."""


def text_of(value: Any, name: str, *, empty: bool = False) -> str:
    """A value that must be text.

    Args:
        value: as the file has it; bytes count as the UTF-8 that they are.
        name: of the value, for messages.
        empty: whether nothing but white space will do.

    Raises:
        BadRow: it is something else, or empty, or no Unicode.
    """
    # What nearly every value is, found out in a tenth of the time.
    if type(value) is str and value.isascii() and (empty or not (value.isspace() or not value)):
        return value
    if isinstance(value, bytes):
        value = _decoded(value, name)
    if not isinstance(value, str):
        raise BadRow(
            f"{name} is null"
            if value is None or value != value
            else f"{name} is {kind_of(value)}, not text"
        )
    if not empty and not value.strip():
        raise BadRow(f"{name} is empty")
    if not _is_unicode(value):
        raise BadRow(f"{name} holds half of a surrogate pair, which is no character")
    return value


def optional_text(record: dict[str, Any], name: str) -> str:
    """A text that may be missing, null or empty."""
    value = record.get(name)
    # NaN is how pandas writes that there is nothing.
    if value is None or value == "" or value != value:
        return ""
    text = text_of(value, name, empty=True)
    return "" if text.isspace() else text


def list_of(value: Any, name: str) -> list[Any]:
    """A list, or the JSON of one as csv files have it.

    Raises:
        BadRow: it is something else.
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        value = json_of(value, name)
    if not isinstance(value, list):
        raise BadRow(
            f"{name} is null" if value is None else f"{name} is {kind_of(value)}, not a list"
        )
    return value


def optional_list(record: dict[str, Any], name: str) -> list[Any]:
    """A list that may be missing, null or empty."""
    value = record.get(name)
    return [] if value is None or value == "" else list_of(value, name)


def json_of(text: str, name: str) -> Any:
    """What a text of JSON holds.

    Raises:
        BadRow: it is no JSON.
    """
    value, problem = parse_json(text)
    if problem is not None:
        raise BadRow(f"{name} is {problem}{_python(text)}")
    return value


def _python(text: str) -> str:
    """A hint where a list was printed by Python and not written as JSON."""
    printed = text.lstrip().startswith(("['", "[{'", "{'"))
    return "; it looks as Python prints it: write it with json.dumps" if printed else ""


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, NaN, an empty text, list or object."""
    return (
        value is None
        or value != value
        or (isinstance(value, str | list | dict | tuple) and not value)
    )


def unread_keys(value: Mapping[str, Any], read: Collection[str], at: str) -> set[str]:
    """Keys of an object that say something and are not read, with the place of the object."""
    return {f"{at}.{key}" for key in value if key not in read and not is_empty(value[key])}


def _decoded(value: bytes, name: str) -> str:
    text = value.decode(errors="replace")
    if text.encode() != value:
        raise BadRow(f"{name} is bytes, and no UTF-8")
    return text


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
