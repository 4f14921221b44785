"""Records to samples: each shape of row as turns, with what the row says about itself."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from clues.config.columns import CONVERSATIONS
from clues.data.calls import call_json, read_call, read_tools
from clues.data.choices import read_choices
from clues.data.conversations import check_turns, read_turns, speaks
from clues.data.layouts import Layout
from clues.data.samples import Message, Sample
from clues.data.values import (
    BadRow,
    is_empty,
    json_of,
    optional_list,
    optional_text,
    text_of,
    unread_keys,
)

# Of one row, all its turns together: half a million tokens, more than any model reads at once. The
# tokenizer takes a hundred bytes for each of them.
MAX_CHARACTERS = 2_000_000
# A chat template is rendered once more for every answer: ten times the turns take a hundred times
# as long.
MAX_TURNS = 1_000
# Pairs of texts that hold the whole conversation, as the first public ones did.
_SEVERAL = ("answer", "answers")  # as sets of questions on passages have them
_SPOKEN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def parse_row(
    layout: Layout, record: dict[str, Any], row: int, unused: Counter[str] | None = None
) -> Sample:
    """Turn one record into a sample.

    The prompt of a multiple choice row is the question alone, its response the right choice.

    Args:
        layout: how to read it.
        record: its values by column.
        row: its zero-based position.
        unused: what of it is not read, beside whole columns, is counted here.

    Raises:
        BadRow: a value is missing, empty or of the wrong type.
    """
    unread: set[str] = set()
    _check_media(layout, record)
    choices, answer = read_choices(layout, record, unread)
    turns, rejected = _read_both(layout, record, unread)
    if layout.schema == "multiple_choice":
        if answer is None:
            raise BadRow(f"choices and {layout.answers[0]} are empty")
        turns.append(Message("assistant", choices[answer]))
    check_turns(turns, layout.prompt or layout.response)
    if rejected:
        check_turns(rejected, layout.rejected)
    if layout.system and (system := optional_text(record, layout.system)):
        own = turns[0].content if turns[0].role == "system" else None
        if own is not None and own.strip() != system.strip():
            raise BadRow(
                f"system is given both as a column ({layout.system}) and as the first turn"
            )
        first = [Message("system", system)] if own is None else []
        turns = [*first, *turns]
        rejected = [*first, *rejected] if rejected else []
    tools = read_tools(record.get(layout.tools), layout.tools) if layout.tools else ""
    _check_size([*turns, *rejected], (*choices, tools), len(turns))
    unwanted = truth_of(record.get(layout.label)) is False if layout.label else False
    if unused is not None:
        unused.update(unread)
    return Sample(row, tuple(turns), choices, answer, tools, tuple(rejected), unwanted)


def _check_media(layout: Layout, record: dict[str, Any]) -> None:
    for name in layout.media:
        if not is_empty(record.get(name)) and record[name] != "[]":
            raise BadRow(
                f"it has {name}, and text alone is read. The setting columns: {{{name}: null}} reads "
                "its text without them"
            )


def _read_both(
    layout: Layout, record: dict[str, Any], unread: set[str]
) -> tuple[list[Message], list[Message]]:
    """The conversation, and the one with the other answer where there is one."""
    if layout.schema == "preference":
        return _read_pair(layout, record, unread)
    turns = _PARSERS[layout.schema](layout, record, unread)
    return turns, _other_side(layout, turns[:-1], record, unread)


def truth_of(value: Any) -> bool | None:
    """A truth value, also as csv files have it; None for any other."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def _check_size(turns: Sequence[Message], more: Sequence[str], n_turns: int) -> None:
    n_characters = sum(map(len, more))
    for turn in turns:
        n_characters += len(turn.content) + len(turn.thought) + len(turn.calls)
    if n_characters > MAX_CHARACTERS:
        raise BadRow(
            f"its text has {n_characters:,} characters, and at most {MAX_CHARACTERS:,} are read"
        )
    if n_turns > MAX_TURNS:
        raise BadRow(f"it has {n_turns:,} turns, and at most {MAX_TURNS:,} are read")


def _parse_alpaca(layout: Layout, record: dict[str, Any], unread: set[str]) -> list[Message]:
    turns = []
    for number, pair in enumerate(optional_list(record, layout.history), start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow(f"history {number} is not a pair of question and answer")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append(Message(role, text_of(text, f"history {number}")))
    return [*turns, *_parse_pair(layout, record, unread)]


def _parse_pair(layout: Layout, record: dict[str, Any], unread: set[str]) -> list[Message]:
    prompt = record.get(layout.prompt)
    if isinstance(prompt, list):
        asked = read_turns(prompt, layout.prompt, unread)
        # Nobody can tell before which of the turns it belongs.
        unread |= _unread_inputs(layout, record)
    else:
        asked = [Message("user", _prompt(layout, record, unread))]
    answer = _answer(record, layout.response, unread)
    if layout.thought and (thought := optional_text(record, layout.thought)):
        own = answer[-1].thought or thought
        unread |= {layout.thought} if own != thought else set()
        answer[-1] = replace(answer[-1], thought=own)
    return [*asked, *answer]


def _parse_question(layout: Layout, record: dict[str, Any], unread: set[str]) -> list[Message]:
    return [Message("user", _prompt(layout, record, unread))]


def _parse_turns(layout: Layout, record: dict[str, Any], unread: set[str]) -> list[Message]:
    return read_turns(record.get(layout.prompt), layout.prompt, unread)


def _read_pair(
    layout: Layout, record: dict[str, Any], unread: set[str]
) -> tuple[list[Message], list[Message]]:
    """The conversation with either answer."""
    prompt = record.get(layout.prompt) if layout.prompt else None
    if is_empty(prompt):
        asked = []
    elif isinstance(prompt, list | dict) or layout.prompt in CONVERSATIONS:
        asked = read_turns(prompt, layout.prompt, unread)
        unread |= _unread_inputs(layout, record)
    else:
        asked = [Message("user", _prompt(layout, record, unread))]
    chosen = _with_side(asked, record, layout.response, unread)
    return chosen, _other_side(layout, asked, record, unread)


def _unread_inputs(layout: Layout, record: dict[str, Any]) -> set[str]:
    return {name for name in layout.inputs if not is_empty(record.get(name))}


def _other_side(
    layout: Layout, asked: Sequence[Message], record: dict[str, Any], unread: set[str]
) -> list[Message]:
    """The conversation with the answer that was rejected; empty where there is none."""
    name = layout.rejected
    if not name or is_empty(record.get(name)):
        return []
    found: set[str] = set()
    turns = _with_side(asked, record, name, found)
    # A key that is not read counts once for a row, and not for either side.
    unread |= {k for k in found if layout.response + k.removeprefix(name) not in unread}
    return turns


def _with_side(
    asked: Sequence[Message], record: dict[str, Any], name: str, unread: set[str]
) -> list[Message]:
    """What was asked and one side's answer; a side may repeat what was asked, or alone hold it."""
    value = record.get(name)
    if isinstance(value, str) and not asked:
        return _spoken(value, name)
    turns = _answer(record, name, unread)
    if not asked or turns[0].role in ("assistant", "tool"):
        return [*asked, *turns]
    said = [turn.content.strip() for turn in turns]
    before = [turn.content.strip() for turn in asked]
    if said[: len(before)] == before or (len(before) == 1 and before[0] in said):
        return turns
    raise BadRow(f"{name} begins with another prompt than the one beside it")


def _spoken(text: str, name: str) -> list[Message]:
    """Turns of a text that marks them with Human: and Assistant:."""
    pieces = _SPOKEN.split(text_of(text, name).strip())
    if len(pieces) < 3 or pieces[0].strip():
        raise BadRow(f"{name} is text without turns, and no column holds the prompt")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        Message(roles[role], text_of(words.strip(), f"a turn of {name}"))
        for role, words in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def _answer(record: dict[str, Any], name: str, unread: set[str]) -> list[Message]:
    """An answer: text, turns, or the first of several texts."""
    if name not in record:
        raise BadRow(f"{name} is missing")
    value = record[name]
    if name in _SEVERAL:
        value = _first_text(value, name, unread)
    parts = [value] if isinstance(value, dict) else value
    if isinstance(parts, list) and parts and all(isinstance(part, dict) for part in parts):
        if any(speaks(part) for part in parts):
            return read_turns(parts, name, unread)
        if all("name" in part for part in parts):
            calls = [read_call(p, name, at=f"{name}[]", unread=unread) for p in parts]
            return [Message("assistant", "", calls=call_json(calls))]
    return [Message("assistant", text_of(value, name))]


def _first_text(value: Any, name: str, unread: set[str]) -> Any:
    """The first of several answers; that there are others is said."""
    if isinstance(value, str) and name == "answers" and value.lstrip().startswith(("[", "{")):
        value = json_of(value, name)
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        unread |= unread_keys(value, {"text"}, name)
        value = value["text"]
    if not isinstance(value, list):
        return value
    if not value:
        raise BadRow(f"{name} is empty")
    if any(other != value[0] for other in value) and isinstance(value[0], str):
        unread.add(f"{name} after the first")
    return value[0] if isinstance(value[0], str) else value


def _prompt(layout: Layout, record: dict[str, Any], unread: set[str]) -> str:
    asked = layout.prompt
    if asked not in record:
        raise BadRow(f"{asked} is missing")
    given = [text for name in layout.inputs if (text := _given(record, name, unread))]
    if not given and not layout.inputs:
        return text_of(record[asked], asked)
    question = text_of(record[asked], asked, empty=True)
    if not given and question and not question.isspace():
        return question
    # Joined as LLaMA-Factory joins an instruction and its input; a passage comes before a question.
    instructs = asked == "instruction" or "context" not in layout.inputs
    parts = [question, *given] if instructs else [*given, question]
    prompt = ("\n" if instructs else "\n\n").join([part for part in parts if part.strip()])
    if not prompt:
        raise BadRow(f"the prompt ({' and '.join((asked, *layout.inputs))}) is empty")
    return prompt


def _given(record: dict[str, Any], name: str, unread: set[str]) -> str:
    """A passage or an input: text, texts, or an object that holds texts."""
    value = record.get(name)
    if isinstance(value, str):
        return optional_text(record, name)
    if isinstance(value, dict):
        key = next((key for key in ("contexts", "text") if key in value), None)
        if key is not None:
            unread |= unread_keys(value, {key}, name)
            value = value[key]
    if isinstance(value, list) and name == "context":
        return "\n".join(text_of(part, name, empty=True) for part in value)
    return optional_text({name: value}, name)


_PARSERS: dict[str, Callable[[Layout, dict[str, Any], set[str]], list[Message]]] = {
    "alpaca": _parse_alpaca,
    "sharegpt": _parse_turns,
    "messages": _parse_turns,
    "prompt_completion": _parse_pair,
    "multiple_choice": _parse_question,
}
