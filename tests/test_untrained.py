"""A row says itself which of its turns are not trained, and every reader of rows obeys."""

import csv
import io
import json

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from test_formats import write_jsonl

from clues.data.formats import read_rows, write_rows
from clues.data.untrained import mark_untrained


def said(role, text, **more):
    return {"role": role, "content": text, **more}


def of(who, text, **more):
    return {"from": who, "value": text, **more}


CALL = {"name": "look_up", "arguments": {"city": "Kyiv"}}
TALK = [said("user", "a"), said("assistant", "b"), said("user", "é"), said("assistant", "d")]
# By name: a row, a turn that is not to be trained, and the objects that say so then.
ROWS = {
    "messages": ({"messages": TALK}, 1, {"train": False}),
    "a system column comes first": ({"system": "s", "messages": TALK}, 2, {"train": False}),
    "a weight": (
        {"messages": [*TALK[:3], said("assistant", "d", weight=1)]},
        3,
        {"weight": 0},
    ),
    "text of a number": (
        {"conversations": [of("human", "a"), of("gpt", "b", loss="1"), *TALK[2:]]},
        1,
        {"loss": "0"},
    ),
    "sharegpt": (
        {"conversations": [of("human", "a"), of("gpt", "b"), of("human", "c"), of("gpt", "d")]},
        1,
        {"train": False},
    ),
    "a call that is a turn of its own": (
        {
            "conversations": [
                of("human", "a"),
                of("gpt", "Wait."),
                of("function_call", json.dumps(CALL)),
                of("observation", "-3"),
                of("gpt", "Cold."),
            ]
        },
        1,
        {"train": False},
    ),
    "question and answer in one": (
        {"conversation": [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]},
        1,
        {"train": False},
    ),
    "text of JSON": ({"messages": json.dumps(TALK, ensure_ascii=False)}, 1, {"train": False}),
    "prompt and completion": ({"prompt": TALK[:3], "completion": TALK[3:]}, 1, {"train": False}),
    "chosen and rejected": (
        {"chosen": TALK, "rejected": [*TALK[:3], said("assistant", "x")]},
        1,
        {"train": False},
    ),
}
every_row = pytest.mark.parametrize("name", ROWS)


def untrained(sample):
    return [i for i, turn in enumerate(sample.messages) if not turn.trained]


def plain(sample):
    return [(t.role, t.content, t.calls) for t in sample.messages]


@every_row
def test_the_reader_takes_the_turn_as_untrained_and_all_else_as_it_was(name, tmp_path):
    row, turn, says = ROWS[name]
    rows = read_rows(write_jsonl(tmp_path / "rows.jsonl", row | {"x": 1}, row | {"x": 2}))
    changes = mark_untrained(rows, {1: [turn]})
    kept = write_rows(rows, [0, 1], tmp_path / "kept.jsonl", changes=changes)
    found = read_rows(kept)
    assert [untrained(sample) for sample in found.samples] == [[], [turn]]
    assert [plain(s) for s in found.samples] == [plain(s) for s in rows.samples]
    before, after = ((tmp_path / n).read_bytes().splitlines() for n in ("rows.jsonl", "kept.jsonl"))
    assert after[0] == before[0], "a row without a mark keeps its bytes"
    assert json.loads(after[1])["x"] == 2
    assert json.dumps(says)[1:-1] in after[1].decode().replace('\\"', '"')


def test_a_row_without_a_place_for_the_mark_is_left_out(tmp_path):
    pairs = {"instruction": "c", "output": "d", "history": [["a", "b"]]}
    rows = read_rows(write_jsonl(tmp_path / "rows.jsonl", pairs))
    assert mark_untrained(rows, {0: [1]}) == {}
    texts = {"conversation": ["a", "b", "c", "d"]}
    rows = read_rows(write_jsonl(tmp_path / "texts.jsonl", texts))
    assert mark_untrained(rows, {0: [1]}) == {}


@pytest.mark.parametrize("shape", ["list", "wrapped", "ids", "columns", "split"])
def test_json_of_any_shape_keeps_it(shape, tmp_path):
    talks = [{"messages": TALK, "x": n} for n in range(3)]
    columns = {"messages": [TALK] * 3, "x": [0, 1, 2]}
    split = {
        "columns": ["messages", "x"],
        "index": [7, 8, 9],
        "data": [[TALK, n] for n in range(3)],
    }
    ids = {f"id {n}": row for n, row in enumerate(talks)}
    wrapped = {"version": 1, "data": talks}
    value = {"list": talks, "wrapped": wrapped, "ids": ids, "columns": columns, "split": split}
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(value[shape], indent=1))
    rows = read_rows(path)
    kept = write_rows(
        rows, [2, 0], tmp_path / "kept.json", changes=mark_untrained(rows, {2: [3], 1: [1]})
    )
    found = read_rows(kept)
    assert [untrained(sample) for sample in found.samples] == [[3], []]
    assert [record["x"] for record in found.table.records] == [2, 0]
    assert type(json.loads(kept.read_text())) is type(value[shape])
    if shape == "ids":
        assert list(json.loads(kept.read_text())) == ["id 2", "id 0"]


def test_csv_keeps_its_delimiter_and_other_cells(tmp_path):
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter=";", lineterminator="\r\n")
    writer.writerows([["messages", "x"], [json.dumps(TALK), 'a;"b'], [json.dumps(TALK), "c"]])
    path = tmp_path / "rows.csv"
    path.write_bytes(sink.getvalue().encode())
    rows = read_rows(path)
    kept = write_rows(rows, [0, 1], tmp_path / "kept.csv", changes=mark_untrained(rows, {0: [1]}))
    found = read_rows(kept)
    assert [untrained(sample) for sample in found.samples] == [[1], []]
    assert found.column("x") == ['a;"b', "c"]
    assert (
        kept.read_bytes().splitlines(keepends=True)[2]
        == path.read_bytes().splitlines(keepends=True)[2]
    )


@pytest.mark.parametrize("container", ["parquet", "arrow"])
def test_tables_gain_one_key_and_keep_the_rest_of_their_types(container, tmp_path):
    talks = [{"messages": TALK, "x": n} for n in range(3)]
    table = pa.Table.from_pylist(talks).replace_schema_metadata({"huggingface": "{}", "own": "1"})
    path = tmp_path / f"rows.{container}"
    if container == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as sink:
            sink.write_table(table)
    rows = read_rows(path)
    changes = mark_untrained(rows, {1: [1], 2: [3]})
    found = read_rows(write_rows(rows, [1, 2, 0], tmp_path / f"kept.{container}", changes=changes))
    assert [untrained(sample) for sample in found.samples] == [[1], [3], []]
    assert found.table.arrow.schema.metadata == {b"own": b"1"}, "datasets would refuse the file"
    keys = found.table.arrow.schema.field("messages").type.value_type
    assert {keys.field(n).name for n in range(3)} == {"role", "content", "train"}
    plain_again = write_rows(rows, [0], tmp_path / f"plain.{container}", changes=changes)
    assert read_rows(plain_again).table.arrow.schema.equals(rows.table.arrow.schema)


def test_a_weight_of_a_table_is_set_to_zero_in_its_own_type(tmp_path):
    weighed = [*TALK[:3], said("assistant", "d", weight=1.0)]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"messages": weighed}, {"messages": TALK}]), path)
    rows = read_rows(path)
    # Arrow has made a weight for every turn, empty where the row has none.
    changes = mark_untrained(rows, {0: [3], 1: [1]})
    kept = write_rows(rows, [0, 1], tmp_path / "kept.parquet", changes=changes)
    found = read_rows(kept)
    assert [untrained(sample) for sample in found.samples] == [[3], [1]]
    assert found.table.arrow.schema.equals(rows.table.arrow.schema)
