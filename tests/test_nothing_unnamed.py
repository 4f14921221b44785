"""Whatever a row holds is read, or listed as not read, or a reason to refuse the row by name."""

import base64
import copy
import datetime
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_cli import call
from test_formats import write_jsonl

from clues.api.rows import take_rows
from clues.data.formats import RowFile, read_rows
from clues.data.samples import Sample
from clues.errors import DataError
from clues.prepare.sampling import sample_page

# Words that say how a row is to be read, and are no part of its text.
SIGNS = {"role", "from", "type", "label", "weight", "answer", "answerKey", "id"}
ODD = ("zq odd", ["zq odd"], {"inner": "zq odd"}, [{"inner": "zq odd"}], 731)
KEYS = (
    *("note", "from", "role", "speaker", "value", "content", "text", "name", "tool_call_id"),
    *("reasoning_content", "reasoning", "thinking", "thought", "tool_calls", "function_call"),
    *("train", "loss_weight", "id", "type", "function", "arguments", "parameters", "input", "args"),
    *("output", "system", "label", "key", "description", "contexts", "cache_control", "index"),
)
COLUMNS = (
    *("note", "context", "input", "history", "system", "system_prompt", "tools", "functions"),
    *("reasoning_content", "thinking", "label", "rejected", "rejected_response", "choices"),
    *("options", "answer_idx", "answerKey", "answers", "response", "completion", "images", "A"),
    *("instruction", "prompt", "question", "output", "messages", "conversations", "kto_tag"),
)


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ROWS: dict[str, dict[str, Any]] = {
    "alpaca": {
        "instruction": "zq ask",
        "input": "zq given",
        "output": "zq answer",
        "history": [["zq first", "zq second"]],
        "system": "zq system",
    },
    "question and passage": {
        "question": "zq ask",
        "answers": {"text": ["zq answer"], "answer_start": [99]},
        "context": {"contexts": ["zq given"], "labels": ["zq label"]},
    },
    "lists of turns": {
        "prompt": [turn("user", "zq ask")],
        "completion": [turn("assistant", "zq answer", reasoning="zq thought")],
        "context": "zq given",
    },
    "a chat": {
        "messages": [
            turn("system", "zq system"),
            turn("user", [{"type": "text", "text": "zq ask"}]),
            turn(
                "assistant",
                [
                    {"type": "thinking", "thinking": "zq thought"},
                    {"type": "text", "text": "zq say"},
                ],
                tool_calls=[
                    {
                        "id": "zq id",
                        "type": "function",
                        "function": {"name": "zqlook", "arguments": {"at": "zq there"}},
                    }
                ],
            ),
            turn("tool", "zq result", name="zqlook", tool_call_id="zq id"),
            turn("assistant", "zq answer", weight=1),
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "zqlook", "parameters": {"type": "object"}},
            }
        ],
    },
    "older calls": {
        "conversations": [
            {"from": "human", "value": "zq ask"},
            {"from": "function_call", "value": {"name": "zqlook", "arguments": {"at": "zq there"}}},
            {"from": "observation", "value": "zq result"},
            {"from": "gpt", "value": "zq answer"},
        ],
        "tools": [{"name": "zqlook"}],
    },
    "exchanges": {
        "conversation": [
            {"system": "zq system", "input": "zq ask", "output": "zq answer"},
            {"input": "zq more", "output": "zq again"},
        ]
    },
    "an object of lists": {
        "conversations": {"from": ["human", "gpt"], "value": ["zq ask", "zq answer"]}
    },
    "choices": {
        "question": "zq ask",
        "choices": [{"label": "A", "text": "zq one"}, {"label": "B", "text": "zq two"}],
        "answer": "B",
    },
    "choices in lists": {
        "question": "zq ask",
        "choices": {"text": ["zq one", "zq two"], "label": ["A", "B"]},
        "answerKey": "B",
    },
    "a pair": {
        "prompt": "zq ask",
        "chosen": [turn("assistant", "zq answer")],
        "rejected": [turn("assistant", "zq wrong")],
    },
    "a pair of chats": {
        "chosen": [turn("user", "zq ask"), turn("assistant", "zq answer")],
        "rejected": [turn("user", "zq ask"), turn("assistant", "zq wrong")],
    },
    "calls as answers": {
        "query": "zq ask",
        "tools": [{"name": "zqlook"}],
        "answers": [{"name": "zqlook", "arguments": {"at": "zq there"}}],
    },
}


def objects(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Places of all objects in a value, below the row itself."""
    if isinstance(value, dict) and path:
        yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(part, dict | list):
            yield from objects(part, (*path, key))


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Texts and numbers of a row, each with the names of where it stands and of what is around."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            here = path[-1] if path else ""
            name = f"{here}.{key}" if here and isinstance(value, dict) else key
            yield from leaves(part, (*path, name if isinstance(value, dict) else f"{here}[]"))
    elif value is not None:
        yield path, value


def words_of(sample: Sample) -> str:
    """All that a sample holds."""
    turns = [*sample.messages, *sample.rejected]
    said = [t for m in turns for t in (m.content, m.thought, m.calls, m.name, m.call_id)]
    return "\n".join([*said, *sample.choices, sample.tools])


def unnamed(row: dict[str, Any], rows: RowFile) -> list[str]:
    """What of a row is neither in its sample nor listed."""
    held, listed = words_of(rows.samples[0]), {name.partition(" ")[0] for name in rows.unused}
    return [
        path[-1]
        for path, value in leaves(row)
        if str(value) not in held
        and not listed & set(path)
        and path[-1].rpartition(".")[2].removesuffix("[]") not in SIGNS
    ]


def put(row: dict[str, Any], path: tuple[str | int, ...], key: str, value: Any) -> dict[str, Any]:
    """A copy of a row in which the object at a place has one more key."""
    changed = copy.deepcopy(row)
    inner: Any = changed
    for step in path:
        inner = inner[step]
    inner[key] = value
    return changed


@pytest.mark.parametrize("name", ROWS)
def test_every_text_of_a_row_is_read_or_listed(name, tmp_path):
    for row in (ROWS[name], ROWS[name] | {"note": "zq note"}):
        rows = read_rows(write_jsonl(tmp_path / "rows.jsonl", row))
        assert not unnamed(row, rows)
        try:
            table = pa.Table.from_pylist([row])
        except pa.ArrowInvalid:  # content that is text here and a list there has no type
            continue
        pq.write_table(table, tmp_path / "rows.parquet")
        assert not unnamed(row, read_rows(tmp_path / "rows.parquet"))


@pytest.mark.parametrize("name", ROWS)
def test_another_key_anywhere_is_read_or_listed_or_a_reason_to_refuse(name, tmp_path):
    row, lost, n_read = ROWS[name], [], 0
    columns = [c for c in COLUMNS if c not in row]
    places = [((), key) for key in columns]
    places += [(path, key) for path in objects(row) for key in KEYS if key not in _at(row, path)]
    for path, key in places:
        for odd in ODD:
            changed = put(row, path, key, odd)
            try:
                rows = read_rows(write_jsonl(tmp_path / "rows.jsonl", changed))
            except DataError:
                continue
            n_read += 1
            lost += [(path, key, odd, name) for name in unnamed(changed, rows)]
    assert n_read > len(places), "most odd keys leave a row readable"
    assert not lost


def _at(row: dict[str, Any], path: tuple[str | int, ...]) -> dict[str, Any]:
    inner: Any = row
    for step in path:
        inner = inner[step]
    return inner


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"instruction": "a", "output": "b", "from": "bob", "messages": []},
            "several schemas fit",
        ),
        (
            {"messages": [{"role": "user", "from": "gpt", "content": "a"}, turn("assistant", "b")]},
            "turn 1 has two roles: from, role",
        ),
        (
            {
                "items": [
                    {"input": "a", "output": "b"},
                    {"system": "c", "input": "a", "output": "b"},
                ]
            },
            "turn 2 has a system, which only the first turn may have",
        ),
    ],
)
def test_what_says_two_things_is_refused_by_name(row, said, tmp_path):
    with pytest.raises(DataError, match=said):
        read_rows(write_jsonl(tmp_path / "rows.jsonl", row))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_key_that_stands_twice_counts_by_its_last_place_and_is_listed(name, tmp_path):
    doubled = '{"instruction": "a", "output": "b", "output": "c", "input": {}}'.replace("{}", '""')
    text = f"{doubled}\n" if name.endswith("l") else f"[{doubled}]"
    (tmp_path / name).write_text(text)
    rows = read_rows(tmp_path / name)
    assert rows.samples[0].response == "c"
    assert rows.unused == {"output before its last place": 1}


def test_values_that_are_no_json_are_read_listed_or_refused(tmp_path):
    day = datetime.date(2026, 11, 27)
    row = {"instruction": b"ask", "output": "answer", "context": "given"}
    given = take_rows([row | {"seen": day, "price": Decimal(3)}], "rows", tmp_path)
    assert given.rows.samples[0].messages[0].content == "ask\ngiven"
    assert given.rows.unused == {"seen": 1, "price": 1}
    told = {"messages": [turn("user", "ask", at=day), turn("assistant", "answer")]}
    assert take_rows([told], "rows", tmp_path).rows.unused == {"messages[].at": 1}
    for column in ("context", "Context", "history", "tools", "label", "thinking"):
        odd = {k: v for k, v in row.items() if k != "context"} | {column: Decimal(3)}
        with pytest.raises(DataError, match=rf"rows\[0\]: {column} is of type Decimal"):
            take_rows([odd], "rows", tmp_path)
    inner = {"messages": [turn("user", Decimal(3)), turn("assistant", "answer")]}
    with pytest.raises(DataError, match=r"messages holds something of type Decimal"):
        take_rows([inner], "rows", tmp_path)
    mapped = {"prompt": "frage", "label": None}
    own = {"frage": "ask", "answer": "so", "label": Decimal(3)}
    assert take_rows([own], "rows", tmp_path, columns=mapped).rows.unused == {"label": 1}


def test_one_file_without_a_check_says_what_is_not_read(tmp_path, capsys):
    rows = [{"instruction": f"Ask {n}?", "output": f"Answer {n}.", "note": "x"} for n in range(12)]
    path = write_jsonl(tmp_path / "rows.jsonl", *rows)
    assert call("clean", str(path), "--out", str(tmp_path / "out"), "--json")[0] == 0
    said = capsys.readouterr()
    assert "note: not read: note (12 rows). --map says what a column holds." in said.err
    assert json.loads(said.out)["not_read"] == {"note": 12}


def test_a_page_to_check_shows_thoughts_and_calls(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS["a chat"])
    sample_page(str(path), tmp_path / "page.html", n=10, seed=1)
    shown = re.findall(r"[A-Za-z0-9+/=]{200,}", (tmp_path / "page.html").read_text())
    (turns,) = [row["turns"] for row in json.loads(base64.b64decode(shown[0]))]
    said = "\n".join(text for _, text in turns)
    assert all(word in said for word in ("zq thought", "zqlook", "zq there", "zq result"))
