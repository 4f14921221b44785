"""Rows come in whole, go out untouched, and no error ever shows their text."""

import errno
import gzip
import json
import subprocess
import sys
import traceback
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clues.atomic import atomic_write_bytes, write_atomically
from clues.data.files import read_table
from clues.data.formats import SCHEMAS, read_rows, write_rows
from clues.data.samples import Message
from clues.errors import ConfigError, DataError, UsageError

MARKER = "SECRET-MARKER-73"
CONTAINERS = ("jsonl", "jsonl.gz", "json", "csv", "csv.gz", "parquet", "arrow", "arrow-stream")


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


ROWS = {
    "alpaca": [
        {"instruction": f"Say {i}.", "input": "" if i % 2 else "Now.", "output": f"Sí, {i}.\nOk"}
        for i in range(4)
    ],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": f"q{i}"}, {"from": "gpt", "value": f"a{i}"}]}
        for i in range(4)
    ],
    "messages": [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"q{i}"},
                {"role": "assistant", "content": f"a{i}"},
            ]
        }
        for i in range(4)
    ],
    "prompt_completion": [{"prompt": f"q{i}", "completion": f"a, {i}"} for i in range(4)],
    "preference": [{"prompt": f"q{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(4)],
    "multiple_choice": [
        {"question": f"q{i}", "choices": ["x", "y", "z"], "answer": i % 3} for i in range(4)
    ],
}
KEYED = {
    schema: [row | {"site": f"north {i}", "label": i} for i, row in enumerate(rows)]
    for schema, rows in ROWS.items()
}


def write_container(path: Path, container: str, rows: list[dict]) -> Path:
    """Write rows as another program would; returns the file."""
    kind = container.removesuffix(".gz")
    path = path / f"rows.{container.removesuffix('-stream')}"
    table = pa.Table.from_pylist(rows)
    if kind == "parquet":
        pq.write_table(table.replace_schema_metadata({"made": "elsewhere"}), path)
        return path
    if kind in ("arrow", "arrow-stream"):
        new = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
        with path.open("wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table)
        return path
    if kind == "jsonl":
        # Spaces, escapes and key order that a JSON writer of ours would not reproduce.
        text = "".join(json.dumps(row).replace('": ', '"  :') + "\r\n" for row in rows)
    elif kind == "json":
        text = json.dumps(rows, ensure_ascii=False, indent=2)
    else:
        cells = [list(rows[0])] + [[cell(value) for value in row.values()] for row in rows]
        text = "".join(";".join('"' + c.replace('"', '""') + '"' for c in r) + "\n" for r in cells)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if container.endswith(".gz") else data)
    return path


def cell(value: object) -> str:
    return json.dumps(value) if isinstance(value, list) else str(value)


def write_jsonl(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def error_of(source: str | Path, **options: str) -> DataError:
    with pytest.raises(DataError) as caught:
        read_rows(source, **options)
    return caught.value


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_schema_survives_every_container(schema, container, tmp_path):
    rows = read_rows(write_container(tmp_path, container, KEYED[schema]))
    assert (rows.schema, rows.container, rows.n_rows) == (schema, container, 4)
    assert rows.description == f"{schema} rows in {container}"
    assert rows.columns == ("site", "label")
    assert rows.column("site") == [f"north {i}" for i in range(4)]

    kept = write_rows(rows, [3, 1], tmp_path / "kept")
    assert kept == tmp_path / f"kept{rows.suffix}"
    again = read_rows(kept)
    assert again.description == rows.description
    assert [s.id for s in again.samples] == [rows.samples[3].id, rows.samples[1].id]
    assert [s.answer for s in again.samples] == [rows.samples[3].answer, rows.samples[1].answer]
    assert again.column("label") == [rows.column("label")[3], rows.column("label")[1]]
    assert again.table.columns == rows.table.columns
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("container", ["jsonl", "jsonl.gz", "csv", "csv.gz"])
def test_kept_lines_keep_their_very_bytes(container, tmp_path):
    path = write_container(tmp_path, container, KEYED["prompt_completion"])
    kept = write_rows(read_rows(path), [0, 2], tmp_path / "kept")

    def lines(file: Path) -> list[bytes]:
        data = file.read_bytes()
        return (gzip.decompress(data) if container.endswith("gz") else data).splitlines(True)

    head = lines(path)[:1] if container.startswith("csv") else []
    body = lines(path)[len(head) :]
    assert lines(kept) == [*head, body[0], body[2]]


@pytest.mark.parametrize("container", ["parquet", "arrow", "arrow-stream"])
def test_kept_tables_keep_their_pyarrow_schema(container, tmp_path):
    strange = pa.table(
        {
            "prompt": pa.array(["a", "b", "c"], pa.large_string()),
            "completion": pa.array(["d", "e", "f"]).dictionary_encode(),
            "when": pa.array([1, None, 3], pa.timestamp("us", tz="UTC")),
            "scan": pa.array([b"1", b"2", None], pa.binary()),
        },
        metadata={"owner": "north"},
    )
    path = tmp_path / f"rows.{container.removesuffix('-stream')}"
    if container == "parquet":
        pq.write_table(strange, path)
    else:
        new = pa.ipc.new_file if container == "arrow" else pa.ipc.new_stream
        with path.open("wb") as sink, new(sink, strange.schema) as writer:
            writer.write_table(strange)
    kept = write_rows(read_rows(path), [2, 0], tmp_path / "kept")
    table = read_table(kept)
    assert table.container == container
    assert table.arrow.schema.equals(strange.schema, check_metadata=True)
    assert table.arrow.equals(strange.take([2, 0]))


def test_json_keeps_objects_wrapper_and_indentation(tmp_path):
    path = tmp_path / "rows.json"
    outer = {"version": 2, "data": KEYED["alpaca"]}
    path.write_text(json.dumps(outer, indent=2, ensure_ascii=False))
    rows = read_rows(path)
    everything = write_rows(rows, range(4), tmp_path / "all.json")
    assert everything.read_text().rstrip() == path.read_text()
    one = json.loads(write_rows(rows, [2], tmp_path / "one").read_text())
    assert one == {"version": 2, "data": [KEYED["alpaca"][2]]}


def test_rows_of_json_keep_their_very_bytes(tmp_path):
    path = tmp_path / "rows.json"
    lines = [json.dumps(row).replace('": ', '"  :') for row in KEYED["alpaca"]]
    path.write_text("\ufeff[" + ",\n ".join(lines) + "]\n\n")
    some = write_rows(read_rows(path), [1, 3], tmp_path / "some")
    assert some.read_text() == f"\ufeff[{lines[1]},\n {lines[3]}]\n\n"


def test_a_last_line_without_end_gets_one_only_when_a_row_follows(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row) for row in ROWS["alpaca"][:2]]
    path.write_text("\n".join(lines))
    rows = read_rows(path)
    both = write_rows(rows, [0, 1], tmp_path / "both")
    turned = write_rows(rows, [1, 0], tmp_path / "turned")
    assert both.read_bytes() == path.read_bytes()
    assert turned.read_text() == f"{lines[1]}\n{lines[0]}\n"


def test_csv_cells_with_quotes_line_breaks_and_lengths_come_through(tmp_path):
    path = tmp_path / "rows.csv"
    long = "x" * 200_000
    path.write_text(
        f'prompt,completion,note\r\n"a ""b""\r\nc",d,\r\n\r\ne,{long},z\r\n', newline=""
    )
    rows = read_rows(path)
    assert rows.samples[0].messages == (user('a "b"\r\nc'), assistant("d"))
    assert rows.samples[1].response == long
    assert rows.table.place(1) == "line 5"
    kept = write_rows(rows, [0], tmp_path / "kept")
    assert kept.read_bytes() == b'prompt,completion,note\r\n"a ""b""\r\nc",d,\r\n'


@pytest.mark.parametrize("container", ["jsonl", "json", "csv"])
def test_a_byte_order_mark_is_accepted(container, tmp_path):
    path = write_container(tmp_path, container, ROWS["prompt_completion"])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    rows = read_rows(path)
    assert rows.samples[0].messages == (user("q0"), assistant("a, 0"))
    assert read_rows(write_rows(rows, [1], tmp_path / "kept")).samples[0].response == "a, 1"


@pytest.mark.parametrize(
    ("container", "name"),
    [
        ("jsonl.gz", "notes.jsonl"),
        ("jsonl", "notes.json"),
        ("json", "notes.jsonl"),
        ("parquet", "notes.csv"),
        ("arrow-stream", "notes.parquet"),
        ("jsonl", "notes"),
    ],
)
def test_what_a_file_is_follows_from_its_bytes_and_is_said_aloud(container, name, tmp_path):
    path = write_container(tmp_path, container, ROWS["alpaca"]).rename(tmp_path / name)
    rows = read_rows(path)
    assert rows.container == container
    assert rows.description == f"alpaca rows in {container} (named {name})"


# Folders and the hub


def test_shards_are_joined_in_order_and_written_as_said(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    write_jsonl(folder / "train-1.jsonl", *ROWS["alpaca"][2:])
    write_jsonl(folder / "train-0.jsonl", *ROWS["alpaca"][:2])
    (folder / "README.md").write_text("about")
    rows = read_rows(folder)
    assert rows.description == "alpaca rows in a folder of 2 jsonl files, written as jsonl.gz"
    assert [s.messages[0].content for s in rows.samples] == [
        "Say 0.\nNow.",
        "Say 1.",
        "Say 2.\nNow.",
        "Say 3.",
    ]
    assert rows.table.place(2) == "train-1.jsonl line 1"
    kept = write_rows(rows, [3], tmp_path / "kept")
    assert kept.name == "kept.jsonl.gz"
    assert gzip.decompress(kept.read_bytes()).decode() == json.dumps(ROWS["alpaca"][3]) + "\n"


@pytest.mark.parametrize("container", ["csv", "json", "parquet", "arrow"])
def test_shards_of_every_container_are_read(container, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in range(2):
        half = KEYED["prompt_completion"][2 * i : 2 * i + 2]
        path = write_container(folder, container, half)
        path.rename(folder / f"part{i}{path.suffix}")
    rows = read_rows(folder)
    expected = "jsonl.gz" if container in ("csv", "json") else "parquet"
    assert rows.container == expected
    again = read_rows(write_rows(rows, [0, 3], tmp_path / "kept"))
    assert [s.response for s in again.samples] == ["a, 0", "a, 3"]
    assert again.column("site") == ["north 0", "north 3"]


def test_a_folder_with_one_file_is_that_file(tmp_path):
    path = write_container(tmp_path, "csv", ROWS["prompt_completion"])
    assert (read_rows(tmp_path).path, read_rows(tmp_path).container) == (path, "csv")


def test_a_folder_of_different_data_sets_is_not_joined(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", *ROWS["alpaca"])
    write_jsonl(tmp_path / "test.jsonl", *ROWS["alpaca"])
    assert "test.jsonl, train.jsonl" in str(error_of(tmp_path))


def test_shards_with_different_columns_are_not_joined(tmp_path):
    for i, rows in enumerate((ROWS["alpaca"], KEYED["alpaca"])):
        write_container(tmp_path, "parquet", rows).rename(tmp_path / f"part{i}.parquet")
    assert "part1.parquet has other columns or types than part0.parquet" in str(error_of(tmp_path))


def test_a_folder_without_data_is_an_error(tmp_path):
    assert "holds no file that can be read" in str(error_of(tmp_path))


def test_a_saved_data_set_is_read_and_written_as_parquet(tmp_path):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(KEYED["sharegpt"]).select([2, 0, 1])
    saved.save_to_disk(str(tmp_path / "saved"))
    rows = read_rows(tmp_path / "saved")
    assert rows.description == "sharegpt rows in a saved data set, written as parquet"
    assert [s.response for s in rows.samples] == ["a2", "a0", "a1"]
    kept = write_rows(rows, [1], tmp_path / "kept")
    assert kept.suffix == ".parquet"
    assert read_table(kept).arrow.schema.equals(saved.data.schema)

    datasets.DatasetDict(train=saved, test=saved).save_to_disk(str(tmp_path / "both"))
    assert "holds the splits test, train" in str(error_of(tmp_path / "both"))


def test_columns_that_parquet_cannot_hold_are_written_as_jsonl(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [row | {"meta": {}} for row in ROWS["prompt_completion"]]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    found = read_rows(tmp_path / "saved")
    assert found.container in ("jsonl.gz", "parquet")
    assert found.description.endswith(f"written as {found.container}")
    again = read_rows(write_rows(found, [1], tmp_path / "kept"))
    assert again.column("meta") == [found.column("meta")[1]]


@pytest.fixture
def hub(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name, *, split):
        asked.append((name, split))
        if name == "owner/gone":
            raise datasets.exceptions.DatasetNotFoundError(f"{MARKER} {name}")
        return datasets.Dataset.from_list(KEYED["messages"])

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_a_hub_name_is_loaded_with_its_split(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = read_rows("owner/rows:test")
    assert read_rows("owner/rows").n_rows == 4
    assert hub == [("owner/rows", "test"), ("owner/rows", "train")]
    assert rows.description == (
        "messages rows in hub data set owner/rows, split test, written as parquet"
    )
    assert read_rows(write_rows(rows, [1], tmp_path / "kept")).column("label") == [1]


def test_a_hub_data_set_that_is_not_there_is_a_clear_error(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = error_of("owner/gone")
    assert "owner/gone: there is no such local file or folder" in str(error)
    assert MARKER not in everything_said(error)


@pytest.mark.parametrize("source", ["data/rows", "owner/rows.jsonl", "a/b/c", "rows"])
def test_a_missing_path_is_never_looked_up_on_the_hub(hub, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    error_of(source)
    error_of(Path("owner/rows"))
    assert hub == []


# Shapes


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        (
            {
                "instruction": "i",
                "input": None,
                "output": "o",
                "system": "s",
                "history": [["a", "b"]],
            },
            (Message("system", "s"), user("a"), assistant("b"), user("i"), assistant("o")),
        ),
        ({"instruction": "i", "input": "n", "output": "o"}, (user("i\nn"), assistant("o"))),
        ({"instruction": "", "input": "n", "output": "o"}, (user("n"), assistant("o"))),
        ({"prompt": "p", "response": "r"}, (user("p"), assistant("r"))),
        ({"question": "q", "answer": "a"}, (user("q"), assistant("a"))),
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "a"},
                    {"from": "assistant", "value": "b"},
                    {"from": "user", "value": "c"},
                    {"from": "gpt", "value": "d"},
                ]
            },
            (Message("system", "s"), user("a"), assistant("b"), user("c"), assistant("d")),
        ),
    ],
)
def test_a_row_becomes_these_turns(row, messages, tmp_path):
    assert read_rows(write_jsonl(tmp_path / "rows.jsonl", row)).samples[0].messages == messages


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "choices": ["x", "y", "z"], "answer": 1},
        {"question": "q", "options": ["x", "y", "z"], "answer": "B"},
        {"instruction": "q", "options": ["x", "y", "z"], "answer": " b"},
        {"question": "q", "choices": ["x", "y", "z"], "answer": "y"},
        {"question": "q", "choices": '["x", "y", "z"]', "answer": "1"},
        {"question": "q", "A": "x", "B": "y", "C": "z", "answer": "B"},
        {"question": "q", "A": "x", "B": "y", "C": "z", "D": None, "answer": 1},
    ],
)
def test_every_spelling_of_multiple_choice_is_one_sample(row, tmp_path):
    rows = read_rows(write_jsonl(tmp_path / "rows.jsonl", row))
    sample = rows.samples[0]
    assert rows.schema == "multiple_choice"
    assert (sample.choices, sample.answer) == (("x", "y", "z"), 1)
    assert sample.messages == (user("q"), assistant("y"))


@pytest.mark.parametrize("keys", [("instruction", "output"), ("prompt", "completion")])
def test_a_free_answer_beside_choices_keeps_its_text(keys, tmp_path):
    row = dict(zip(keys, ("q", "It is y."), strict=True)) | {"choices": ["x", "y"], "answer": 1}
    plain = row | {"choices": None, "answer": None}
    rows = read_rows(write_jsonl(tmp_path / "rows.jsonl", row, plain))
    assert [s.response for s in rows.samples] == ["It is y.", "It is y."]
    assert [(s.choices, s.answer) for s in rows.samples] == [(("x", "y"), 1), ((), None)]


def test_schema_overrides_what_the_columns_say(tmp_path):
    row = {"instruction": "i", "output": "o", "prompt": "p", "completion": "c"}
    path = write_jsonl(tmp_path / "rows.jsonl", row)
    error = str(error_of(path))
    assert "several schemas fit: alpaca (instruction, output), prompt_completion" in error
    assert "Found: instruction, output, prompt, completion." in error
    rows = read_rows(path, schema="prompt_completion")
    assert rows.samples[0].messages == (user("p"), assistant("c"))
    assert rows.columns == ("instruction", "output")
    assert "schema messages needs messages" in str(error_of(path, schema="messages"))
    with pytest.raises(ConfigError, match="Did you mean alpaca"):
        read_rows(path, schema="alpacca")


def test_columns_that_fit_no_schema_are_listed_with_the_schemas_known(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", {"body": MARKER, f"a {MARKER} b": 1})
    error = str(error_of(path))
    assert "no schema fits. Found: body, 1 not shown." in error
    assert all(schema in error for schema in SCHEMAS)
    assert MARKER not in error


def test_a_csv_without_a_header_does_not_show_its_first_row(tmp_path):
    for i in range(2):
        (tmp_path / f"rows{i}.csv").write_text("Aspirin,Paracetamol\nb,c\n")
    for source in (tmp_path / "rows0.csv", tmp_path):
        error = str(error_of(source))
        assert "2 columns of unknown names; does the first line hold the names?" in error
        assert "Aspirin" not in error


def test_repr_shows_no_text(tmp_path):
    row = {"instruction": MARKER, "output": MARKER, "choices": [MARKER, "x"], "answer": 0}
    rows = read_rows(write_jsonl(tmp_path / "rows.jsonl", row))
    assert MARKER not in repr(rows) + repr(rows.table) + repr(rows.samples)


def test_an_unknown_user_column_is_an_error_that_lists_the_columns(tmp_path):
    rows = read_rows(write_jsonl(tmp_path / "rows.jsonl", *KEYED["alpaca"]))
    with pytest.raises(DataError, match=r"no column sites\. Found: instruction, .*site"):
        rows.column("sites")


# Errors

GOOD = json.dumps({"instruction": MARKER, "output": MARKER})
T = f"{MARKER} text"


def turns(*pairs: tuple[object, object]) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


BAD_ROWS = {
    "malformed JSON": ('{"instruction": "' + T, "line 2: not valid JSON (character 17)"),
    "nested too deep": ("[" * 100_000, "line 2: not readable JSON"),
    "a list": (json.dumps([T]), "line 2: not a JSON object but a list"),
    "a bare text": (json.dumps(T), "line 2: not a JSON object but text"),
    "missing": ({"instruction": T}, "line 2: output is missing"),
    "missing prompt": ({"output": T}, "line 2: instruction is missing"),
    "null": ({"instruction": T, "output": None}, "line 2: output is null"),
    "wrong type": ({"instruction": T, "output": [T]}, "line 2: output is a list, not text"),
    "number": ({"instruction": T, "output": 7}, "line 2: output is a number, not text"),
    "empty response": ({"instruction": T, "output": " \n\t"}, "line 2: output is empty"),
    "empty prompt": (
        {"instruction": " ", "input": "", "output": T},
        "line 2: the prompt (instruction and input) is empty",
    ),
    "input": ({"instruction": T, "input": [T], "output": T}, "line 2: input is a list, not text"),
    "history": (
        {"instruction": T, "output": T, "history": [[T]]},
        "line 2: history 1 is not a pair",
    ),
    "surrogate": ({"instruction": T, "output": T + "\ud800"}, "line 2: output holds half"),
    "system": ({"instruction": T, "output": T, "system": {T: T}}, "system is an object, not text"),
}
BAD_TURNS = {
    "unknown role": (turns((T, T), ("assistant", T)), "turn 1 has a role that is not known"),
    "role type": (turns(([T], T), ("assistant", T)), "turn 1 has a role that is a list"),
    "last turn": (turns(("user", T), ("assistant", T), ("user", T)), "the last turn is not the"),
    "no prompt": (turns(("system", T), ("assistant", T)), "no turn is the user's"),
    "late system": (turns(("user", T), ("system", T), ("assistant", T)), "turn 2 has role system"),
    "empty turn": (turns(("user", T), ("assistant", " ")), "turn 2 is empty"),
    "null turn": (turns(("user", T), ("assistant", None)), "turn 2 is null"),
    "parts": (turns(("user", [[T]]), ("assistant", T)), "turn 1 has a part that is a list"),
    "no turns": ({"messages": []}, "messages is empty"),
    "text": ({"messages": T}, "messages is text, not a list"),
    "broken list": ({"messages": "[" + T}, "messages is not valid JSON"),
    "turn type": ({"messages": [T, 7]}, "turn 1 is not an object but text"),
    "texts": ({"messages": [T]}, "the last turn is not the assistant's"),
    "two systems": (
        turns(("system", T), ("user", T), ("assistant", T)) | {"system": T + T},
        "system is given both",
    ),
}
BAD_CHOICES = {
    "no such text": ({"choices": [T, "x"], "answer": MARKER}, "answer fits no choice (index 0 to"),
    "index too high": ({"choices": [T, "x"], "answer": 2}, "answer fits no choice"),
    "negative index": ({"choices": [T, "x"], "answer": -1}, "answer fits no choice"),
    "letter too high": ({"choices": [T, "x"], "answer": "C"}, "answer fits no choice"),
    "truth value": ({"choices": [T, "x"], "answer": True}, "answer is a truth value"),
    "null answer": ({"choices": [T, "x"], "answer": None}, "answer is null"),
    "two meanings": ({"choices": ["1", "2", T], "answer": "1"}, "answer fits several choices"),
    "twice": ({"choices": [T, T], "answer": T}, "answer fits several choices"),
    "one choice": ({"choices": [T], "answer": 0}, "1 choices, and two or more are needed"),
    "empty choice": ({"choices": [T, ""], "answer": 0}, "choice 2 is empty"),
    "no choices": ({"choices": None, "answer": None}, "choices and answer are empty"),
    "choices text": ({"choices": T, "answer": 0}, "choices is text, not a list"),
}
EVERY_BAD_ROW = (
    [("alpaca", *case) for case in BAD_ROWS.values()]
    + [("messages", *case) for case in BAD_TURNS.values()]
    + [("multiple_choice", {"question": T} | row, said) for row, said in BAD_CHOICES.values()]
)
GOOD_ROW = {
    "alpaca": GOOD,
    "messages": json.dumps(turns(("user", T), ("assistant", T))),
    "multiple_choice": json.dumps({"question": T, "choices": [T, "x"], "answer": 0}),
}


def everything_said(error: BaseException) -> str:
    """All that an error and its causes and contexts would print, hidden ones included."""
    said, todo = [], [error]
    while todo:
        current = todo.pop()
        said += [str(current), repr(current), repr(getattr(current, "__dict__", ""))]
        said += [str(getattr(current, "doc", "")), str(getattr(current, "object", ""))]
        said += traceback.format_exception_only(current)
        todo += [link for link in (current.__cause__, current.__context__) if link is not None]
    return "\n".join(said)


@pytest.mark.parametrize(("schema", "row", "said"), EVERY_BAD_ROW)
def test_a_bad_row_is_named_by_line_and_never_shown(schema, row, said, tmp_path):
    path = tmp_path / "rows.jsonl"
    line = row if isinstance(row, str) else json.dumps(row)
    path.write_text(f"{GOOD_ROW[schema]}\n{line}\n")
    error = error_of(path)
    assert f"{path}: 1 bad row; line 2: " in str(error)
    assert said in str(error)
    assert MARKER not in everything_said(error)


@pytest.mark.parametrize("container", ["json", "parquet", "arrow", "csv"])
def test_other_containers_name_the_bad_row_too(container, tmp_path):
    path = write_container(
        tmp_path, container, [{"prompt": T, "completion": T}, {"prompt": T, "completion": " "}]
    )
    error = error_of(path)
    place = "line 3" if container == "csv" else "row 2"
    assert f"1 bad row; {place}: completion is empty" in str(error)
    assert MARKER not in everything_said(error)


def test_many_bad_rows_become_one_error_with_the_first_five(tmp_path):
    bad = {"instruction": T, "output": ""}
    path = write_jsonl(tmp_path / "notes.jsonl", json.loads(GOOD), *[bad] * 12)
    error = str(error_of(path))
    assert "notes.jsonl: 12 bad rows; line 2: output is empty; line 3:" in error
    assert "line 6: output is empty; ...." in error
    assert "line 7" not in error


def damaged_files() -> dict[str, tuple[str, bytes, str]]:
    packed = gzip.compress((GOOD + "\n").encode() * 50)
    parquet = pa.BufferOutputStream()
    pq.write_table(pa.table({"prompt": [T] * 9, "completion": [T] * 9}), parquet)
    parquet = parquet.getvalue().to_pybytes()
    arrow = pa.BufferOutputStream()
    data = pa.table({"prompt": [T], "completion": [T]})
    with pa.ipc.new_file(arrow, data.schema) as writer:
        writer.write_table(data)
    arrow = arrow.getvalue().to_pybytes()
    not_utf8 = pa.Array.from_buffers(
        pa.string(),
        1,
        [
            None,
            pa.array([0, 18], pa.int32()).buffers()[1],
            pa.py_buffer(b"\xff" * 2 + MARKER.encode()),
        ],
    )
    broken = pa.BufferOutputStream()
    pq.write_table(pa.table({"prompt": not_utf8, "completion": [T]}), broken)
    twice = pa.BufferOutputStream()
    pq.write_table(pa.table([[T], [T]], names=["prompt", "prompt"]), twice)
    latin = f'{GOOD}\n{{"instruction": "{T} '.encode() + b'\xe9"}\n'
    return {
        "truncated gzip": ("a.jsonl.gz", packed[:-9], "the gzip data ends too early"),
        "damaged gzip": ("a.jsonl.gz", packed[:20] + b"\0" * 9 + packed[29:], "gzip data"),
        "gzip of parquet": ("a.gz", gzip.compress(parquet), "parquet inside gzip"),
        "truncated parquet": ("a.parquet", parquet[:-20], "parquet data is cut off or damaged"),
        "parquet of text": ("a.parquet", T.encode(), "is not a readable parquet file"),
        "truncated arrow": ("a.arrow", arrow[:-40], "arrow data is cut off or damaged"),
        "bytes in text": ("a.parquet", broken.getvalue().to_pybytes(), "text that is not UTF-8"),
        "parquet names": ("a.parquet", twice.getvalue().to_pybytes(), "column 2 has the name"),
        "empty": ("a.jsonl", b"", "the file is empty"),
        "blank": ("a.jsonl", b"\xef\xbb\xbf\n \n", "the file is empty"),
        "empty list": ("a.json", b"[]", "the file has no rows"),
        "header alone": ("a.csv", b"prompt,completion\n", "the file has no rows"),
        "latin-1": (
            "a.jsonl",
            latin,
            f"line 2: not UTF-8 at byte offset {latin.index(0xE9)}. Save",
        ),
        "latin-1 csv": ("a.csv", f"prompt\n{T}".encode() + b"\xe9", "line 2: not UTF-8"),
        "utf-16": ("a.jsonl", GOOD.encode("utf-16"), "UTF-16 at byte offset 0. Save"),
        "cut json": ("a.json", f'[{{"prompt": "{T}'.encode(), "not valid JSON (character 13)"),
        "cut pretty json": ("a.json", f'[\n{{"prompt": "{T}'.encode(), "(line 2, character 12)"),
        "json text": ("a.json", json.dumps(T).encode(), "neither a list nor an object"),
        "no list": ("a.json", json.dumps({"a": T}).encode(), "the object holds 0 lists"),
        "two lists": ("a.json", json.dumps({"a": [T], "b": []}).encode(), "holds 2 lists"),
        "list of text": ("a.json", json.dumps([T]).encode(), "row 1: not a JSON object but text"),
        "unknown": ("a.txt", T.encode(), "is none of .jsonl"),
        "ragged": ("a.csv", f"prompt,completion\n{T}\n".encode(), "line 2: 1 cells for 2 columns"),
        "long row": ("a.csv", f"prompt,completion\n{T},b,c\n".encode(), "3 cells for 2 columns"),
        "open quote": ("a.csv", f'prompt,completion\na,"{T}\n'.encode(), "line 2: a quote is not"),
        "bad quote": ("a.csv", f'prompt,completion\na,"{T}"b\n'.encode(), "line 2: a quote is not"),
        "open header": ("a.csv", f'"prompt,completion\n{T}\n'.encode(), "header has a quote"),
        "csv names": ("a.csv", f"{T},{T}\na,b\n".encode(), "column 2 has the name"),
    }


@pytest.mark.parametrize("case", damaged_files())
def test_a_damaged_file_is_a_clear_error_without_its_text(case, tmp_path):
    name, data, said = damaged_files()[case]
    path = tmp_path / name
    path.write_bytes(data)
    error = error_of(path)
    assert str(error).startswith(str(path))
    assert said in str(error)
    assert MARKER not in everything_said(error)


def test_a_missing_file_suggests_its_neighbours(tmp_path):
    write_jsonl(tmp_path / "notes.jsonl", *ROWS["alpaca"])
    assert "Did you mean notes.jsonl?" in str(error_of(tmp_path / "note.jsonl"))
    assert "there is no folder" in str(error_of(tmp_path / "gone" / "notes.jsonl"))


def test_a_file_that_may_not_be_read_is_a_data_error(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "rows.jsonl", *ROWS["alpaca"])

    def refuse(self, *_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "cannot be read (Permission denied)" in str(error_of(path))


# Writing


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_full_disk_leaves_the_old_file_and_no_part(container, tmp_path, monkeypatch):
    rows = read_rows(write_container(tmp_path, container, KEYED["alpaca"]))
    kept = tmp_path / f"kept{rows.suffix}"
    kept.write_bytes(b"old")

    class Full:
        closed = False

        def __init__(self, handle):
            self.handle = handle

        def __getattr__(self, name):
            return getattr(self.handle, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.handle.close()

        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    real = Path.open

    def open_full(self, mode="r", *rest, **options):
        handle = real(self, mode, *rest, **options)
        return Full(handle) if self.suffix == ".part" and mode == "wb" else handle

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(DataError) as caught:
        write_rows(rows, [0], kept)
    said = str(caught.value)
    assert "cannot be written (No space left on device)" in said
    assert "The file that was there is unchanged. Free disk space" in said
    assert kept.read_bytes() == b"old"
    assert not list(tmp_path.glob("*.part"))


def test_an_interrupted_write_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "kept.jsonl"
    atomic_write_bytes(path, b"old")

    def write(part):
        part.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept.jsonl"]


def test_writing_into_a_folder_that_is_not_there_is_a_data_error(tmp_path):
    rows = read_rows(write_jsonl(tmp_path / "rows.jsonl", *ROWS["alpaca"]))
    with pytest.raises(DataError, match="No such file or directory"):
        write_rows(rows, [0], tmp_path / "gone" / "kept.jsonl")


def test_a_wrong_name_or_index_is_refused_before_anything_is_written(tmp_path):
    rows = read_rows(write_jsonl(tmp_path / "rows.jsonl", *ROWS["alpaca"]))
    with pytest.raises(UsageError, match=r"written as jsonl\. Use \.jsonl"):
        write_rows(rows, [0], tmp_path / "kept.parquet")
    for row in (4, -1):
        with pytest.raises(UsageError, match=f"no row {row}; there are 4"):
            write_rows(rows, [row], tmp_path / "kept")
    assert len(list(tmp_path.iterdir())) == 1


def test_no_rows_can_be_written_and_reading_them_says_so(tmp_path):
    rows = read_rows(write_jsonl(tmp_path / "rows.jsonl", *ROWS["alpaca"]))
    assert "the file is empty" in str(error_of(write_rows(rows, [], tmp_path / "kept")))


def test_reading_needs_neither_torch_nor_datasets():
    code = (
        "import sys, clues.data.formats, clues.data.damage;"
        "sys.exit(bool({'torch', 'datasets', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
