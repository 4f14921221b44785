"""Files as people have them are read, or the reason is true and says what to do.

The shapes are those of public data sets; every sentence is written for these tests.
"""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import time
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_formats import assistant, error_of, everything_said, user, write_jsonl

from clues.config import SiloSettings, parse_columns, validate
from clues.data import packing
from clues.data.formats import read_rows, write_rows
from clues.data.samples import Message
from clues.errors import BadRowsError, ConfigError, DataError

MARKER = "SECRET-MARKER-73"
ROWS = [{"instruction": f"Name animal {i}.", "output": f"It is fox {i}."} for i in range(6)]
PLAIN = [(f"Name animal {i}.", f"It is fox {i}.") for i in range(6)]


def turns_of(rows) -> list[tuple[str, str]]:
    return [(s.messages[0].content, s.response) for s in rows.samples]


def read(tmp_path, *rows: dict, **options):
    return read_rows(write_jsonl(tmp_path / "rows.jsonl", *rows), **options)


# Shapes

WHO, ANN, CAME = "Who came?", "Ann.", "Ann came late."
SHAPES = {
    "dolly": (
        {"instruction": WHO, "context": CAME, "response": ANN, "category": "closed_qa"},
        (user(f"{WHO}\n{CAME}"), assistant(ANN)),
        {"category": 1},
    ),
    "dolly without context": (
        {"instruction": WHO, "context": "", "response": ANN},
        (user(WHO), assistant(ANN)),
        {},
    ),
    "orca": (
        {"id": "1", "system_prompt": "Be brief.", "question": WHO, "response": ANN},
        (Message("system", "Be brief."), user(WHO), assistant(ANN)),
        {"id": 1},
    ),
    "orca without system": (
        {"id": "1", "system_prompt": "", "question": WHO, "response": ANN},
        (user(WHO), assistant(ANN)),
        {"id": 1},
    ),
    "a passage": (
        {"question": WHO, "context": CAME, "answer": ANN},
        (user(f"{CAME}\n\n{WHO}"), assistant(ANN)),
        {},
    ),
    "squad": (
        {
            "context": CAME,
            "question": WHO,
            "answers": {"text": [ANN, ANN], "answer_start": [0, 0]},
            "title": "T",
        },
        (user(f"{CAME}\n\n{WHO}"), assistant(ANN)),
        {"title": 1, "answers.answer_start": 1},
    ),
    "several answers": (
        {"question": WHO, "answers": [ANN, "Ann did."]},
        (user(WHO), assistant(ANN)),
        {"answers after the first": 1},
    ),
    "a list with one answer": (
        {"question": WHO, "answer": [ANN]},
        (user(WHO), assistant(ANN)),
        {},
    ),
    "passages": (
        {"question": WHO, "context": {"contexts": [CAME, "It rained."]}, "answer": ANN},
        (user(f"{CAME}\nIt rained.\n\n{WHO}"), assistant(ANN)),
        {},
    ),
    "lists of messages": (
        {
            "prompt": [{"role": "user", "content": WHO}],
            "completion": [{"role": "assistant", "content": ANN}],
        },
        (user(WHO), assistant(ANN)),
        {},
    ),
    "a prompt of messages": (
        {"prompt": [{"role": "user", "content": WHO}], "completion": ANN},
        (user(WHO), assistant(ANN)),
        {},
    ),
    "query": ({"query": WHO, "response": ANN}, (user(WHO), assistant(ANN)), {}),
    "flan": ({"inputs": WHO, "targets": ANN}, (user(WHO), assistant(ANN)), {}),
    "input and output": ({"input": WHO, "output": ANN}, (user(WHO), assistant(ANN)), {}),
    "capitals": (
        {"Question": WHO, "Answer": ANN, "qtype": "x"},
        (user(WHO), assistant(ANN)),
        {"qtype": 1},
    ),
    "instruction and answer": (
        {"instruction": WHO, "answer": ANN},
        (user(WHO), assistant(ANN)),
        {},
    ),
    "conversation": (
        {"conversation": [{"role": "user", "content": WHO}, {"role": "assistant", "content": ANN}]},
        (user(WHO), assistant(ANN)),
        {},
    ),
    "exchanges": (
        {"conversation": [{"system": "Be brief.", "input": WHO, "output": ANN}]},
        (Message("system", "Be brief."), user(WHO), assistant(ANN)),
        {},
    ),
    "items": (
        {"id": "1", "items": [{"from": "human", "value": WHO}, {"from": "gpt", "value": ANN}]},
        (user(WHO), assistant(ANN)),
        {"id": 1},
    ),
    "texts by turns": (
        {"conversations": [WHO, ANN], "source": "x"},
        (user(WHO), assistant(ANN)),
        {"source": 1},
    ),
    "a thought in a column": (
        {"Question": WHO, "Response": ANN, "thinking": CAME},
        (user(WHO), Message("assistant", ANN, thought=CAME)),
        {},
    ),
    "calls as answers": (
        {"query": WHO, "answers": '[{"name": "look", "arguments": {"n": 1}}]', "tools": "[]"},
        (
            user(WHO),
            Message("assistant", "", calls='[{"name": "look", "arguments": {"n": 1}}]'),
        ),
        {},
    ),
    "an object of lists": (
        {"conversations": {"from": ["human", "gpt"], "value": [WHO, ANN]}},
        (user(WHO), assistant(ANN)),
        {},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_public_shape_is_read_with_all_that_belongs_to_it(shape, tmp_path):
    row, messages, unused = SHAPES[shape]
    rows = read(tmp_path, row)
    assert rows.samples[0].messages == messages
    assert rows.unused == unused


def test_an_answer_that_is_an_object_is_named(tmp_path):
    row = {"question": WHO, "answer": {"value": MARKER, "aliases": []}}
    error = error_of(write_jsonl(tmp_path / "rows.jsonl", row))
    assert "line 1: answer is an object, not text" in str(error)
    assert MARKER not in everything_said(error)


def test_a_thought_under_another_name_is_mapped(tmp_path):
    row = {"question": WHO, "response": ANN, "Complex_CoT": CAME}
    rows = read(tmp_path, row, columns={"thought": "Complex_CoT"})
    assert rows.samples[0].messages[-1] == Message("assistant", ANN, thought=CAME)
    assert read(tmp_path, row).unused == {"Complex_CoT": 1}


@pytest.mark.parametrize("name", ["human", "Human", "USER", "prompter"])
@pytest.mark.parametrize("other", ["gpt", "Assistant", "bing", "chatgpt", "model", "bard"])
def test_roles_of_other_tools_are_roles(name, other, tmp_path):
    row = {"conversations": [{"from": name, "value": WHO}, {"from": other, "value": ANN}]}
    assert read(tmp_path, row).samples[0].messages == (user(WHO), assistant(ANN))


def test_a_developer_is_the_system_and_a_speaker_has_a_role(tmp_path):
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"speaker": "user", "text": WHO},
            {"role": "assistant", "content": ANN},
        ]
    }
    assert read(tmp_path, row).samples[0].messages[0] == Message("system", "Be brief.")


QUESTION = "Which helps against pain?"
A, B, C, D = "Aspirin", "Insulin", "Zinc", "Iron"
CHOICES = {
    "medqa": {"answer": B, "options": {"A": A, "B": B, "C": C, "D": D}, "answer_idx": "B"},
    "medqa as a list": {
        "options": [{"key": k, "value": v} for k, v in zip("ABCD", (A, B, C, D), strict=True)],
        "answer_idx": "B",
        "answer": B,
    },
    "medmcqa": {"opa": A, "opb": B, "opc": C, "opd": D, "cop": 1},
    "arc": {"choices": {"text": [A, B, C, D], "label": ["A", "B", "C", "D"]}, "answerKey": "B"},
    "arc by number": {
        "choices": {"text": [A, B, C, D], "label": ["1", "2", "3", "4"]},
        "answerKey": "2",
    },
    "json in a cell": {"options": json.dumps({"A": A, "B": B, "C": C, "D": D}), "answer": "B"},
}


@pytest.mark.parametrize("shape", CHOICES)
def test_a_public_shape_of_choices_is_read(shape, tmp_path):
    rows = [{"question": QUESTION, **CHOICES[shape]}]
    if shape == "medmcqa":
        rows.append(rows[0] | {"cop": 0})
    sample = read(tmp_path, *rows).samples[0]
    assert (sample.choices, sample.answer, sample.response) == ((A, B, C, D), 1, B)
    assert sample.prompt == (user(QUESTION),)


def test_choices_in_parquet_have_no_letter_that_a_row_lacks(tmp_path):
    rows = [
        {"question": QUESTION, "options": {"A": A, "B": B}, "answer_idx": "B"},
        {"question": QUESTION, "options": {"A": A, "B": B, "C": C}, "answer_idx": "C"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert [s.choices for s in read_rows(tmp_path / "rows.parquet").samples] == [(A, B), (A, B, C)]


@pytest.mark.parametrize(("cops", "first"), [((1, 4), 1), ((0, 3), 0), ((2, -1), 0)])
def test_where_the_count_of_choices_starts_is_found_or_asked(cops, first, tmp_path):
    row = {"question": QUESTION, "opa": A, "opb": B, "opc": C, "opd": D}
    if -1 in cops:
        error = error_of(write_jsonl(tmp_path / "r.jsonl", *({**row, "cop": cop} for cop in cops)))
        assert "line 2: cop fits no choice" in str(error)
    else:
        samples = read(tmp_path, *({**row, "cop": cop} for cop in cops)).samples
        assert [sample.answer for sample in samples] == [cop - first for cop in cops]
    error = error_of(write_jsonl(tmp_path / "q.jsonl", {**row, "cop": 2}, {**row, "cop": 1}))
    assert "cop is never 0 and never 4, so nobody can tell" in str(error)


def test_two_answers_that_differ_are_refused(tmp_path):
    row = {"question": QUESTION, "options": {"A": MARKER, "B": B}, "answer": B, "answer_idx": "A"}
    error = error_of(write_jsonl(tmp_path / "rows.jsonl", row))
    assert "answer_idx and answer name different choices" in str(error)
    assert MARKER not in everything_said(error)


# Columns under other names


def test_columns_are_mapped_and_others_keep_their_names(tmp_path):
    row = {"question": WHO, "passage": CAME, "reply": ANN, "prompt": MARKER}
    path = write_jsonl(tmp_path / "rows.jsonl", row)
    rows = read_rows(path, columns=parse_columns("prompt=question,context=passage,response=reply"))
    assert rows.samples[0].messages == (user(f"{CAME}\n\n{WHO}"), assistant(ANN))
    assert rows.unused == {"prompt": 1}
    kept = write_rows(rows, [0], tmp_path / "kept")
    assert kept.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("container", ["csv", "parquet"])
def test_mapped_columns_are_read_from_every_container(container, tmp_path):
    table = pa.table({"frage": [WHO], "antwort": [ANN]})
    path = tmp_path / f"rows.{container}"
    if container == "csv":
        path.write_text(f"frage,antwort\n{WHO},{ANN}\n")
    else:
        pq.write_table(table, path)
    rows = read_rows(path, columns={"question": "frage", "answer": "antwort"})
    assert rows.samples[0].messages == (user(WHO), assistant(ANN))
    error = error_of(path, columns={"question": "frage", "answer": "gone"})
    assert "columns names gone, which is no column. Found: frage, antwort." in str(error) or (
        container == "csv" and "2 columns of unknown names" in str(error)
    )


def test_a_bad_row_is_named_with_the_files_own_column(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", {"q": MARKER, "a": " "})
    error = error_of(path, columns={"prompt": "q", "completion": "a"})
    assert "line 1: completion (column a) is empty" in str(error)
    assert MARKER not in everything_said(error)


def test_a_mapping_that_fits_no_schema_says_so(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", {"a": 1, "b": 2})
    error = error_of(path, columns={"chosen": "a", "history": "b"})
    assert "no schema has chosen, history together" in str(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("promt=question", "'promt' is no part of a row. Did you mean 'prompt'?"),
        ("prompt", "write PART=COLUMN"),
        ("prompt=a,prompt=b", "each part once"),
        ("prompt=a,answer=a", "two parts of a row are read from one column"),
    ],
)
def test_a_mapping_that_is_none_is_refused(text, said):
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        parse_columns(text)
    entries = dict(pair.partition("=")[::2] for pair in text.split(",") if "=" in pair)
    if len(entries) == text.count("=") and entries:
        content = {"name": "a", "data": "b", "domain": "c", "columns": entries}
        with pytest.raises(ConfigError, match="columns"):
            validate(SiloSettings, content, where="a.yaml")


def test_labels_of_an_experiment_are_no_labels_of_answers():
    settings = SiloSettings(name="a", data="b", domain="c", labels="label")
    assert settings.read_columns == {"label": None}
    assert "columns" not in settings.agreed(), "runs of before go on"
    mapped = settings.model_copy(update={"columns": {"prompt": "q"}})
    assert mapped.agreed() != settings.agreed(), "what is read is part of what is agreed"


# Packed and foreign files

LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "json"])
@pytest.mark.parametrize("ending", PACKERS)
def test_packed_rows_are_read_and_written_packed(ending, kind, tmp_path):
    data = {
        "jsonl": LINES,
        "csv": b"prompt,completion\r\na,b\r\nc,d\r\n",
        "json": json.dumps(ROWS, indent=1).encode(),
    }[kind]
    path = tmp_path / f"rows.{kind}{ending}"
    path.write_bytes(PACKERS[ending](data))
    rows = read_rows(path)
    assert rows.container == f"{kind}{ending}"
    kept = write_rows(rows, range(rows.n_rows), tmp_path / "kept")
    assert kept.name == f"kept.{kind}{ending}"
    assert packing.unpack(kept, kept.read_bytes(), ending) == data
    again = write_rows(rows, range(rows.n_rows), tmp_path / "again")
    assert again.read_bytes() == kept.read_bytes()


@pytest.mark.parametrize("ending", PACKERS)
def test_packed_data_that_is_cut_or_grows_too_far_is_refused(ending, tmp_path, monkeypatch):
    path = tmp_path / f"rows.jsonl{ending}"
    whole = PACKERS[ending](LINES * 50)
    path.write_bytes(whole[:-9])
    assert "ends too early" in str(error_of(path)) or "is damaged" in str(error_of(path))
    if ending != ".zst":  # a frame need not have a checksum
        broken = bytearray(whole)
        broken[len(whole) // 2] ^= 0xFF
        path.write_bytes(bytes(broken))
        assert "data is damaged" in str(error_of(path)) or "too early" in str(error_of(path))
    monkeypatch.setattr(packing, "FREE_BYTES", 1000)
    monkeypatch.setattr(packing, "PIECE_BYTES", 1000)
    path.write_bytes(PACKERS[ending](b" " * 50_000_000))
    assert "at most 60 times the size" in str(error_of(path))


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
def test_packed_pieces_one_after_another_are_one_file(ending, tmp_path):
    path = tmp_path / f"rows.jsonl{ending}"
    half = LINES.find(b"\n", len(LINES) // 2) + 1
    path.write_bytes(PACKERS[ending](LINES[:half]) + PACKERS[ending](LINES[half:]))
    assert turns_of(read_rows(path)) == PLAIN


def foreign_files() -> dict[str, tuple[bytes, str]]:
    def zipped(name: str) -> bytes:
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w") as file:
            file.writestr(name, LINES)
        return sink.getvalue()

    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:
        entry = tarfile.TarInfo("rows.jsonl")
        entry.size = len(LINES)
        file.addfile(entry, io.BytesIO(LINES))
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64
    return {
        "lfs": (pointer + b"\nsize 123456\n", "a Git LFS pointer.*git lfs pull"),
        "annex": (b"/annex/objects/SHA256E-s1--a.jsonl\n", "git annex get"),
        "xlsx": (zipped("xl/workbook.xml"), "an Excel file. Export the sheet as CSV"),
        "docx": (zipped("word/document.xml"), "an Office document"),
        "zip": (zipped("rows.jsonl"), "a zip archive. Unpack it with unzip"),
        "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "older Excel.*CSV"),
        "tar": (tar.getvalue(), "a tar archive"),
        "tar.gz": (gzip.compress(tar.getvalue()), "a tar archive"),
        "7z": (b"7z\xbc\xaf\x27\x1c" + b"\0" * 50, "a 7z archive"),
        "lz4": (b"\x04\x22\x4d\x18" + b"\0" * 50, "lz4 -d"),
        "sqlite": (b"SQLite format 3\0" + b"\0" * 50, "an SQLite database"),
        "pickle": (
            b"\x80\x04\x95" + b"\0" * 50,
            "a file of Python objects, which can run any program",
        ),
        "pdf": (b"%PDF-1.7\n", "a PDF"),
        "html": (b"\n<!DOCTYPE html>\n<html>", "a page of HTML"),
        "avro": (b"Obj\x01\x04", "an Avro file"),
        "orc": (b"ORC\x00", "an ORC file"),
        "hdf5": (b"\x89HDF\r\n", "an HDF5 file"),
    }


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv", "rows"])
@pytest.mark.parametrize("kind", foreign_files())
def test_a_file_that_holds_no_rows_is_named_for_what_it_is(kind, name, tmp_path):
    data, said = foreign_files()[kind]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=said) as error:
        read_rows(path)
    assert "iconv" not in str(error.value)


# JSON

BY_ID = {f"id{i}": row for i, row in enumerate(ROWS)}
COLUMNS = {name: [row[name] for row in ROWS] for name in ("instruction", "output")}
PANDAS = {name: {str(i): row[name] for i, row in enumerate(ROWS)} for name in COLUMNS}
SPLIT = {
    "columns": list(COLUMNS),
    "index": list(range(6)),
    "data": [list(r.values()) for r in ROWS],
}
OUTER = {"version": 1.0, "data": ROWS, "about": {"name": "x"}}
JSON_FILES = {
    "a list": (ROWS, [ROWS[4], ROWS[1]]),
    "in an object": (OUTER, OUTER | {"data": [ROWS[4], ROWS[1]]}),
    "by id": (BY_ID, {"id4": ROWS[4], "id1": ROWS[1]}),
    "by columns": (COLUMNS, {n: [c[4], c[1]] for n, c in COLUMNS.items()}),
    "of pandas": (PANDAS, {n: {"4": c["4"], "1": c["1"]} for n, c in PANDAS.items()}),
    "split": (SPLIT, SPLIT | {"index": [4, 1], "data": [SPLIT["data"][4], SPLIT["data"][1]]}),
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("shape", JSON_FILES)
def test_rows_of_every_shape_of_json_come_in_and_go_out_in_it(shape, indent, tmp_path):
    content, some = JSON_FILES[shape]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(content, indent=indent))
    rows = read_rows(path)
    assert turns_of(rows) == PLAIN
    kept = write_rows(rows, [4, 1], tmp_path / "kept.json")
    assert json.loads(kept.read_text()) == some
    assert turns_of(read_rows(kept)) == [PLAIN[4], PLAIN[1]]
    everything = write_rows(rows, range(6), tmp_path / "all.json")
    assert json.loads(everything.read_text()) == content


@pytest.mark.parametrize("shape", ["a list", "in an object", "by id"])
def test_rows_of_json_are_cut_out_and_never_written_anew(shape, tmp_path):
    text = json.dumps(JSON_FILES[shape][0], indent=3)
    # As no writer of ours would have it: numbers, escapes and spaces.
    text = (
        text.replace("fox 2.", r"f\u006fx 2.\/").replace('": ', '"\t:  ').replace("1.0", "1.00e0")
    )
    path = tmp_path / "rows.json"
    path.write_text(text)
    rows = read_rows(path)
    assert write_rows(rows, range(6), tmp_path / "all.json").read_text() == text
    kept = write_rows(rows, [2], tmp_path / "kept.json").read_text()
    assert r"f\u006fx 2.\/" in kept
    assert kept in text.replace(",", ",") or len(kept) < len(text)


@pytest.mark.parametrize(
    "of", [{"q": [WHO, WHO], "a": [ANN, ANN]}, {"q": {"0": WHO}, "a": {"0": ANN}}]
)
def test_columns_of_json_may_be_mapped(of, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(of))
    rows = read_rows(tmp_path / "rows.json", columns={"question": "q", "answer": "a"})
    assert set(turns_of(rows)) == {(WHO, ANN)}


def test_splits_in_one_json_are_named(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps({"train": ROWS, "test": ROWS[:2]}))
    error = str(error_of(tmp_path / "rows.json"))
    assert "2 lists of rows: train (6 rows), test (2 rows). Write the one that is meant" in error


def test_a_list_that_python_printed_is_recognised(tmp_path):
    text = "conversations\n\"[{'from': 'human', 'value': 'hi'}]\"\n"
    (tmp_path / "rows.csv").write_text(text)
    assert "it looks as Python prints it: write it with json.dumps" in str(
        error_of(tmp_path / "rows.csv")
    )


def test_nan_is_nothing_as_pandas_writes_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a", "input": NaN, "output": "b", "id": NaN}\n')
    rows = read_rows(path)
    assert (turns_of(rows), rows.unused) == ([("a", "b")], {})
    path.write_text('{"instruction": "a", "output": NaN}\n')
    assert "line 1: output is null" in str(error_of(path))


def test_a_system_that_is_said_twice_counts_once(tmp_path):
    turns = [
        {"role": r, "content": c} for r, c in (("system", "S"), ("user", "a"), ("assistant", "b"))
    ]
    sample = read(tmp_path, {"messages": turns, "system": "S "}).samples[0]
    assert [m.role for m in sample.messages] == ["system", "user", "assistant"]


# Folders and arrow


def test_a_folder_of_the_hub_is_its_data(tmp_path):
    hub = tmp_path / "hub"
    (hub / "data").mkdir(parents=True)
    (hub / "README.md").write_text("about")
    (hub / ".gitattributes").write_text("*.parquet filter=lfs")
    (hub / "dataset_infos.json").write_text("{}")
    for i, part in enumerate((ROWS[:3], ROWS[3:])):
        table = pa.Table.from_pylist(part)
        pq.write_table(table, hub / "data" / f"train-0000{i}-of-00002.parquet")
    assert turns_of(read_rows(hub)) == PLAIN
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), hub / "data" / "test-00000-of-00001.parquet")
    assert f"such as {hub / 'data'}:test" in str(error_of(hub))
    assert turns_of(read_rows(f"{hub}:train")) == PLAIN
    assert turns_of(read_rows(f"{hub}:test")) == PLAIN[:1]
    assert "of split dev that" in str(error_of(f"{hub}:dev"))


@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string(), pa.binary(), pa.string()])
@pytest.mark.parametrize("container", ["parquet", "arrow"])
def test_every_type_of_text_comes_in_and_goes_out(kind, container, tmp_path):
    def texts(values):
        return pa.array([v.encode() if kind == pa.binary() else v for v in values], kind)

    table = pa.table({name: texts([row[name] for row in ROWS]) for name in COLUMNS})
    path = tmp_path / f"rows.{container}"
    if container == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    rows = read_rows(path)
    assert turns_of(rows) == PLAIN
    for order in ([4, 5, 1], [], [0]):
        kept = write_rows(rows, order, tmp_path / "kept")
        found = pq.read_table(kept) if container == "parquet" else pa.ipc.open_file(kept).read_all()
        assert found.schema.equals(rows.table.arrow.schema)
        assert found.to_pylist() == [table.to_pylist()[i] for i in order]


def test_bytes_that_are_no_text_are_named(tmp_path):
    pq.write_table(pa.table({"prompt": [b"\xff\xfe"], "completion": ["a"]}), tmp_path / "r.parquet")
    assert "row 1: prompt is bytes, and no UTF-8" in str(error_of(tmp_path / "r.parquet"))


def test_turns_of_two_spellings_in_parquet_are_read_as_in_jsonl(tmp_path):
    rows = [
        {"conversations": [{"from": "human", "value": WHO}, {"from": "gpt", "value": ANN}]},
        {
            "conversations": [
                {"role": "user", "content": WHO},
                {"role": "assistant", "content": ANN},
            ]
        },
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b", "weight": 0},
            ]
        },
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = read_rows(tmp_path / "rows.parquet")
    assert found.samples == read(tmp_path, *rows).samples
    assert [s.messages[-1].trained for s in found.samples] == [True, True, False]
    maps = pa.array(
        [[[("role", "user"), ("content", WHO)], [("role", "assistant"), ("content", ANN)]]],
        pa.list_(pa.map_(pa.string(), pa.string())),
    )
    pq.write_table(pa.table({"messages": maps}), tmp_path / "maps.parquet")
    assert read_rows(tmp_path / "maps.parquet").samples[0].messages == (user(WHO), assistant(ANN))


# Bad rows


def test_lines_and_rows_that_are_bad_are_all_named_at_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    good, empty = json.dumps(ROWS[0]), json.dumps({"instruction": MARKER, "output": ""})
    path.write_text("\n".join([good, "{" + MARKER, empty, good, *[empty] * 4, "7"]) + "\n")
    with pytest.raises(BadRowsError) as caught:
        read_rows(path)
    places = [place for place, _ in caught.value.rows]
    assert sorted(places) == sorted(f"line {n}" for n in (2, 3, 5, 6, 7, 8, 9))
    said = str(caught.value)
    assert "7 bad rows" in said
    assert "By reason: 5 rows: output is empty; 1 row: not valid JSON (character 2);" in said
    assert MARKER not in everything_said(caught.value)


@pytest.mark.slow
def test_one_bad_row_in_very_many_is_found_in_a_moment(tmp_path):
    path = tmp_path / "rows.jsonl"
    line = json.dumps(ROWS[0]) + "\n"
    path.write_text(line * 60_000 + '{"instruction": "a"\n' + line * 60_000)
    started = time.process_time()
    assert "1 bad row; line 60001: not valid JSON" in str(error_of(path))
    assert time.process_time() - started < 12, "a million rows would take minutes"


ONE = json.dumps(ROWS[0])
TALK = [{"role": "user", "content": WHO}, {"role": "assistant", "content": ANN}]
TEXT = json.dumps(TALK)
NEARLY_JSON = {
    "a comma after every row": ("rows.jsonl", (ONE + ",\n") * 2, "line 1: * a comma after the end"),
    "a comma after the last": ("rows.json", f"[{ONE},\n{ONE},\n]", "(line * a comma before"),
    "a comma within": ("rows.jsonl", ONE + "\n" + ONE[:-1] + ",}\n", "line 2: * a comma before"),
    "rows without lines": ("rows.jsonl", ONE * 3, "line 1: its rows are JSON objects one * jq -c"),
    "rows over lines": (
        "rows.jsonl",
        "\n".join(json.dumps(row, indent=1) for row in ROWS),
        "line 1: its rows are JSON objects one after another, * jq -c . rows.jsonl > NEW.jsonl",
    ),
    "documents": (
        "rows.json",
        "\n".join(json.dumps(row, indent=1) for row in ROWS),
        "(line 5, character 1: another value begins, * jq -c . does it",
    ),
    "a text with a comma": (
        "rows.jsonl",
        json.dumps({"messages": TEXT[:-1] + ",]"}),
        "line 1: messages is not valid JSON (*: a comma before the closing bracket; remove it)",
    ),
    "a text of documents": (
        "rows.jsonl",
        json.dumps({"messages": "\r".join(map(json.dumps, TALK))}),
        "line 1: messages is not valid JSON (*: another value begins, and one is read here)",
    ),
    "a text with a break in a text": (
        "rows.jsonl",
        json.dumps({"messages": TEXT.replace(WHO, "Who\rcame?")}),
        "line 1: messages is not valid JSON (*: a line break or a tab within a text; JSON writes",
    ),
    "a cell of csv with a comma": (
        "rows.csv",
        'x,messages\n1,"' + TEXT.replace("}]", "},]").replace('"', '""') + '"\n',
        "line 2: messages is not valid JSON (*: a comma before the closing bracket; remove it)",
    ),
}


@pytest.mark.parametrize("case", NEARLY_JSON)
def test_what_is_nearly_json_is_named_with_its_place_and_the_way_out(case, tmp_path):
    name, text, expected = NEARLY_JSON[case]
    path = tmp_path / name
    path.write_text(text)
    said = str(error_of(path))
    start = 0
    for part in expected.split("*"):
        start = said.index(part.strip(), start)
    assert ANN not in said.replace(name, "")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows", "rows.csv"])
def test_lines_that_end_in_carriage_returns_alone_are_read_and_kept(name, tmp_path):
    lines = [json.dumps(row) for row in ROWS]
    if name == "rows.csv":
        lines = ["instruction,output", *(",".join(row.values()) for row in ROWS)]
    path = tmp_path / name
    path.write_bytes("".join(line + "\r" for line in lines).encode().rstrip())
    rows = read_rows(path)
    assert turns_of(rows) == PLAIN
    kept = write_rows(rows, [5, 1], tmp_path / "kept").read_bytes()
    head = lines[:-6]
    assert kept == "\r".join([*head, lines[-1], lines[-5]]).encode() + b"\r"
    text = json.dumps({"messages": TEXT.replace(", ", ",\r")})
    assert read(tmp_path, json.loads(text)).samples[0].messages == (user(WHO), assistant(ANN))


def test_a_column_that_is_a_number_in_half_of_the_rows_is_one_reason(tmp_path):
    rows = [{"prompt": "1 + 1?", "completion": "2" if i % 2 else 2} for i in range(2000)]
    error = str(error_of(write_jsonl(tmp_path / "rows.jsonl", *rows)))
    assert "1,000 bad rows; line 1: completion is a number, not text; line 3:" in error
    assert "By reason: 1,000 rows: completion is a number, not text." in error
    assert len(error) < 700
