"""What is too large, too deep or no file is one sentence, in a second and a little memory."""

import csv
import gzip
import json
import os
import re
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from clues.config import Recipe, load_config, load_silo, validate
from clues.errors import CluesError, ConfigError, DataError
from clues.silo.sizes import checked_public
from clues.wall.messages import (
    REPLIES,
    REQUESTS,
    HelloReply,
    TrainReply,
    from_bytes,
    kind_of,
    token_of,
)
from tests.bounded import within
from tests.test_messages import MESSAGES, by_hand, with_header

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a forked child has limits of its own"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning"),
]
MARKER = "ZQMARKROW"


def refusal(call, error: type[CluesError] = DataError) -> str:
    """The one sentence of a refusal; anything else, with its traceback, is what failed."""

    def attempt() -> str:
        try:
            call()
        except error as problem:
            return f"refused: {problem}"
        return "accepted"

    said = within(attempt, megabytes=700)
    assert said.startswith("refused: "), said
    assert MARKER not in said
    assert len(said) < 1500, "a sentence, not a page"
    return said


# --- rows


def repeated(path: Path, head: bytes, part: bytes, n: int, tail: bytes) -> Path:
    with path.open("wb") as file:
        file.write(head)
        for _ in range(n):
            file.write(part)
        file.write(tail)
    return path


def long_row(folder: Path) -> Path:
    head = b'{"instruction": "' + MARKER.encode() + b'", "output": "'
    return repeated(folder / "long.jsonl", head, b"word " * 20_000, 200, b'"}\n')


def long_text(folder: Path) -> Path:
    head = b'{"instruction": "' + MARKER.encode() + b'", "output": "'
    return repeated(folder / "text.jsonl", head, b"word " * 20_000, 30, b'"}\n')


def many_turns(folder: Path) -> Path:
    turns = [{"from": "human", "value": MARKER}, {"from": "gpt", "value": "b"}] * 600
    path = folder / "turns.jsonl"
    path.write_text(json.dumps({"conversations": turns}) + "\n")
    return path


def deep_row(folder: Path) -> Path:
    row = b'{"instruction": "a", "output": "b", "more": ' + b"[" * 500 + b"]" * 500 + b"}\n"
    return repeated(folder / "deep.jsonl", row, b"", 0, b"")


def brackets(folder: Path) -> Path:
    return repeated(folder / "brackets.json", b"[", b"[]," * 10_000, 2_100, b"[]]")


def many_lines(folder: Path) -> Path:
    return repeated(folder / "lines.csv", b"prompt,response\n", b"a,b\n" * 10_000, 1_001, b"")


def long_cell(folder: Path) -> Path:
    return repeated(folder / "cell.csv", b"prompt,response\na,", b"word " * 10_000, 1_000, b"\n")


def open_quote(folder: Path) -> Path:
    part = (MARKER + " word\n").encode() * 1_000
    return repeated(folder / "quote.csv", b'prompt,response\na,"', part, 1_500, b"")


def many_columns(folder: Path) -> Path:
    path = folder / "columns.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "response", *(f"c{n}" for n in range(100_000))])
        writer.writerow(["x"] * 100_002)
    return path


def equal_columns(folder: Path) -> Path:
    path = folder / "equal.csv"
    path.write_text("a," * 100_000 + "a\n" + "x," * 100_000 + "x\n")
    return path


def gzip_bomb(folder: Path) -> Path:
    with gzip.open(folder / "bomb.jsonl.gz", "wb") as file:
        for _ in range(200):
            file.write(b" " * 1_000_000)
    return folder / "bomb.jsonl.gz"


def gzip_bomb_in_members(folder: Path) -> Path:
    member = gzip.compress(b" " * 10_000_000)
    return repeated(folder / "members.jsonl.gz", b"", member, 15, b"")


def parquet_bomb(folder: Path) -> Path:
    """One text, named a million times by a dictionary: a few kB that unpack to terabytes."""
    text = pa.array(["word " * 200_000])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), text)
    table = pa.table({"prompt": column, "response": column}).replace_schema_metadata(None)
    pq.write_table(table, folder / "bomb.parquet", compression="zstd", store_schema=False)
    return folder / "bomb.parquet"


def parquet_of_nothing(folder: Path) -> Path:
    table = pa.table({"prompt": pa.nulls(30_000_000, pa.string())})
    pq.write_table(table, folder / "nulls.parquet", compression="zstd")
    return folder / "nulls.parquet"


def parquet_of_columns(folder: Path) -> Path:
    pq.write_table(pa.table({f"c{n}": ["x"] for n in range(3_000)}), folder / "wide.parquet")
    return folder / "wide.parquet"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.jsonl")
    return folder / "pipe.jsonl"


def zeros(folder: Path) -> Path:
    (folder / "zeros.jsonl").symlink_to("/dev/zero")
    return folder / "zeros.jsonl"


def circle(folder: Path) -> Path:
    (folder / "circle.jsonl").symlink_to("circle.jsonl")
    return folder / "circle.jsonl"


FILES = {
    long_row: "line 1: the row has 20.0 MB, and at most 16.0 MB are read",
    long_text: "its text has 3,000,009 characters, and at most 2,000,000 are read",
    many_turns: "it has 1,200 turns, and at most 1,000 are read",
    deep_row: "nested more than 100 deep",
    brackets: "lists and objects, and at most 20,000,000 are read. Split it",
    many_lines: "lines, and at most 10,000,000 are read. Split it",
    long_cell: "line 2: the row has 50.0 MB, and at most 16.0 MB are read",
    open_quote: "a quote is not closed or not doubled, or a cell has more than 16.0 MB",
    many_columns: "has 100,002 columns, and at most 2,000 are read",
    equal_columns: "columns, and at most 2,000 are read",
    gzip_bomb: "of gzip unpack to 101.* MB or more",
    gzip_bomb_in_members: "of gzip unpack to 101.0 MB or more",
    parquet_bomb: "unpacked more than|needs more memory",
    parquet_of_nothing: "has 30,000,000 rows, and at most 10,000,000 are read",
    parquet_of_columns: "has 3,000 columns, and at most 2,000 are read",
    pipe: "this is a named pipe, and only plain files are read",
    zeros: "this is a device, and only plain files are read",
    circle: "Too many levels of symbolic links",
}


@pytest.mark.slow
@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
def test_a_file_of_rows_that_is_no_file_or_a_bomb_is_refused_in_one_sentence(make, tmp_path):
    from clues.data.formats import read_rows

    path = make(tmp_path)
    assert re.search(FILES[make], refusal(lambda: read_rows(path)))


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5_000, "a\0b", "none/none", "a/" * 2_500 + "b"])
def test_a_path_that_is_none_is_refused_wherever_it_stands(name, tmp_path):
    from clues.data.formats import read_rows

    refusal(lambda: read_rows(name))
    refusal(lambda: read_rows(tmp_path / name))
    path, _ = run_of(tmp_path, silos=[{"name": "a", "domain": "m", "data": f"{name}.jsonl"}])
    if "x" in name:
        refusal(partial(load_config, path), ConfigError)
    for keys in (("evaluate", "heldout"), ("recipe", "public", "m", "anchor")):
        path, _ = run_of(tmp_path, at=keys, value=name)
        refusal(partial(load_config, path), ConfigError)


# --- settings


def run_of(folder: Path, *, at: tuple[str, ...] = (), value: object = None, **more: object):
    """A run's file with one value changed."""
    (folder / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (folder / "other.jsonl").write_text('{"instruction": "c", "output": "d"}\n')
    content: dict = {
        "recipe": {"public": {"m": {"validation": "rows.jsonl", "anchor": "other.jsonl"}}},
        "silos": [{"name": "a", "domain": "m", "data": "rows.jsonl"}],
        **more,
    }
    place = content
    for key in at[:-1]:
        place = place.setdefault(key, {})
    if at:
        place[at[-1]] = value
    path = folder / "clues.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path, content


NUMBERS = {
    "recipe.seed": (2**63, 10**30, -1, 1.5),
    "recipe.lora.rank": (10**7, 10**30, 0, 1025),
    "recipe.lora.alpha": (float("inf"), float("nan"), 1e300, 1e-300),
    "recipe.tokens.max_length": (10**9, 0),
    "recipe.train.steps": (10**9, 0),
    "recipe.train.epochs": (1e300, float("inf"), 1e-300),
    "recipe.train.rounds": (10**9,),
    "recipe.train.checkpoints": (10**9, 2.5),
    "recipe.train.batch_size": (10**9,),
    "recipe.train.learning_rate": (float("nan"), float("inf"), 1e300, 0, -1),
    "recipe.train.weight_decay": (float("inf"),),
    "recipe.score.layers": ([10**9], [-1]),
    "recipe.score.loss_weight": (float("inf"), float("nan"), 1e300),
    "recipe.score.refresh": (10**12,),
    "recipe.threshold.bootstrap": (10**12, 0),
    "recipe.threshold.quantile": (1e-300, 1e-9, 1.0, float("nan"), 0),
    "recipe.threshold.ratio": (1e-300, 1.0),
    "recipe.threshold.confidence": (1e-300, 1 - 1e-12),
    "recipe.threshold.preset": (float("nan"), float("inf"), 1e300, 10**400),
    "combine.rounds": (10**9,),
    "combine.local_steps": (10**12,),
    "combine.scale": (float("inf"),),
    "combine.proximal": (float("inf"),),
    "federation.wait_s": (1e300, float("inf"), 0),
    "federation.norm_bound": (float("inf"), float("nan")),
    "federation.max_rows": (10**30,),
    "federation.max_message_mb": (1e300, float("inf")),
    "name": ("x" * 100_000,),
    "license": ("x" * 100_000,),
    "recipe.model.name": ("x" * 100_000, "x" * 300, "a\0b"),
}


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_that_overflows_or_never_ends_is_refused_with_its_key(key, tmp_path):
    for value in NUMBERS[key]:
        path, _ = run_of(tmp_path, at=tuple(key.split(".")), value=value)
        with pytest.raises(ConfigError) as found:
            load_config(path)
        assert key == "recipe.model.name" or key in str(found.value)
        assert len(str(found.value)) < 700


def test_a_coordinators_recipe_is_bounded_at_the_silo_too(tmp_path):
    path, _ = run_of(tmp_path)
    content = load_config(path).recipe.model_dump(mode="json")
    for group, key, value in (("lora", "rank", 10**7), ("threshold", "bootstrap", 10**12)):
        changed = {**content, group: {**content[group], key: value}}
        with pytest.raises(ConfigError, match=f"{group}.{key}: Input should be less than"):
            validate(Recipe, changed, where="the coordinator's recipe")


LAUGHS = "a: &a [x, x]\n" + "\n".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]" for n in range(20)
)
YAMLS = {
    "name: " + "[" * 3_000 + "]" * 3_000: "nested more than 50 deep",
    "{a: " * 3_000: "nested more than 50 deep",
    "[" * 1_000_000: "nested more than 50 deep",
    "".join(f"{' ' * n}- \n" for n in range(1_000)): "nested more than 50 deep|not valid YAML",
    "name: " + "9" * 5_000: "a number or a date in it cannot be read",
    "name: 2024-13-45": "a number or a date in it cannot be read",
    LAUGHS: "more than 100,000 values",
    "a: &a [*a]": "nested more than 50 deep",
    "a: [" + "&x [], " + "*x, " * 300 + "]": "more than 200 references",
    "a: &a {b: 1}\nc: {<<: *a}": "merging with << is not read",
    "name: x\nname: y": "line 2: not valid YAML: key 'name' stands twice",
    "recipe: {seed: 1, seed: 2}": "key 'seed' stands twice",
    "name: !!python/object/apply:os.system [ls]": "values with a tag",
    "name: !!int ''": "values with a tag",
    "name: !!timestamp x": "values with a tag",
    "name: [" + "[]," * 150_000 + "]": "more than 100,000 values",
    "# " + "x" * 1_100_000: "has 1.1 MB, and at most 1.0 MB are read",
    "? [a]\n: b": "not valid YAML",
    "name: *x": "not valid YAML: found undefined alias",
    "%YAML 9.9\n---\na: b": "not valid YAML",
    "a: b\x07": "not valid YAML",
    "--- a: b\n--- c": "not valid YAML",
    "": "expected keys and values",
    "1: 2\nnull: 3": "",
    "\x1b[2J\u202e: 1": "",
}


@pytest.mark.parametrize("text", YAMLS, ids=range(len(YAMLS)))
def test_odd_yaml_is_one_configuration_error_in_every_file(text, tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_bytes(text.encode())
    for load in (load_config, load_silo):
        said = refusal(lambda load=load: load(path), ConfigError)
        assert re.search(YAMLS[text], said), said
        assert "\x1b" not in said
        assert "\u202e" not in said


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b"name: \xff\xfe"), "not UTF-8 at byte offset 6"),
        (lambda p: p.mkdir(), "this is a folder"),
        (os.mkfifo, "this is a named pipe"),
        (lambda p: p.symlink_to("/dev/zero"), "this is a device"),
        (lambda p: p.symlink_to(p.name), "Too many levels of symbolic links"),
        (lambda p: None, "there is no such file"),
    ],
)
def test_a_configuration_that_is_no_file_is_one_sentence(make, message, tmp_path):
    make(tmp_path / "odd.yaml")
    assert message in refusal(lambda: load_config(tmp_path / "odd.yaml"), ConfigError)


def test_a_public_file_that_no_silo_would_take_is_refused_at_the_coordinator(tmp_path):
    path, _ = run_of(tmp_path)
    with (tmp_path / "other.jsonl").open("wb") as file:
        file.truncate(60_000_000)
    assert "has 60.0 MB, and at most 50.0 MB" in refusal(lambda: load_config(path), ConfigError)


# --- messages


@pytest.mark.parametrize("n_bytes", [3_900_000, 15_000_000, 63_000_000])
@pytest.mark.parametrize("body", [b"[],", b'"a":0,', b"{},", b'"' + b"x" * 97 + b'",'])
def test_a_header_is_no_larger_than_what_it_describes(n_bytes, body):
    inner = body * (n_bytes // len(body))
    head = b'{"__metadata__":{"sha256":"' + b"0" * 64 + b'","clues":"{}"},"0":[' + inner + b"0]}"
    data = len(head).to_bytes(8, "little") + head

    def both() -> None:
        assert kind_of(data) == "unreadable"
        from_bytes(data, allowed={**REQUESTS, **REPLIES}, sender="silo a")

    assert "silo a: " in refusal(both)


def test_the_header_of_a_large_adapter_is_far_below_the_limit():
    """LoRA of rank 16 on every layer of 70 billion weights: the names are real, the weights one each."""
    ends = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    names = [
        f"base_model.model.model.layers.{n}.{part}.{end}.lora_{factor}.weight"
        for n in range(80)
        for part, end in zip(["self_attn"] * 4 + ["mlp"] * 3, ends, strict=True)
        for factor in "AB"
    ]
    one = {name: torch.zeros(1) for name in names}
    reply = TrainReply(
        recipe_hash="a",
        weight=10,
        learning_rate=0.1,
        adapter=one,
        first_moment=one,
        second_moment=one,
    )
    data = reply.to_bytes()
    n_header = int.from_bytes(data[:8], "little")
    assert n_header < 1_000_000, "measured: 0.7 MB, where the three hold 2.5 GB of weights"
    assert from_bytes(data, allowed=REPLIES, sender="silo a").weight == 10


UNFIT = "holds text that is longer than 300 characters or cannot be printed"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 10**4000}, "too large"),
        ({"a": [2**63]}, "too large"),
        ({"a": -(2**63) - 1}, "too large"),
        ({"x" * 301: 1}, UNFIT),
        ({"\x1b]0;x\x07": 1}, UNFIT),
        ({"a": {"\u202e": 1}}, UNFIT),
        ({"a": "x" * 5_000}, UNFIT),
        ({"a": "\ud800"}, UNFIT),
        ({"a": json.loads("[" * 150 + "]" * 150)}, "not a message"),
    ],
)
def test_numbers_and_texts_of_a_message_are_bounded(value, message):
    reply = next(m for m in MESSAGES if m.kind == "evaluate-reply")
    with pytest.raises(DataError, match=message) as found:
        from_bytes(with_header(reply, diagnostics=value), allowed=REPLIES, sender="silo a")
    assert found.value.args[0].isprintable()


def test_a_kind_that_is_none_of_ours_does_not_get_into_the_ledger():
    hello = next(m for m in MESSAGES if m.kind == "hello-reply")
    for kind in ("\x1b[2J\x1b[31mK[/red]", "x" * 10_000, 7, None, ["hello"], HelloReply):
        kind = "type" if kind is HelloReply else kind
        assert kind_of(with_header(hello, kind=kind)) == "unknown"
    assert kind_of(hello.to_bytes()) == "hello-reply"
    assert kind_of(by_hand({}, json.dumps({"kind": {"a": 1}}))) == "unknown"


def test_a_silo_takes_the_public_files_that_the_recipe_names_and_no_others(tmp_path):
    path, _ = run_of(tmp_path)
    recipe = load_config(path).recipe

    def packed(data: bytes) -> torch.Tensor:
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)

    files = {p: (tmp_path / f"{p}.jsonl").read_bytes() for p in ("rows", "other")}
    good = {f"{token_of(data)}.jsonl": packed(data) for data in files.values()}
    assert set(checked_public(recipe, good, domain="m").values()) == set(files.values())
    first, second = good
    big = b"x" * 50_000_001
    odd: dict[str, dict[str, torch.Tensor]] = {
        "does not name": {**good, f"{token_of(b'x')}.jsonl": packed(b"x")},
        "one file twice": {**good, first.replace(".jsonl", ".csv"): good[first]},
        "more than 50.0 MB": {first: good[first], second: packed(big)},
        "left out": {first: good[first]},
        "hash they claim": {**good, first: good[first].float()},
    }
    for name in ("../" + first, first + "\0", first + "x" * 400, "/" + first, first + "/x"):
        odd[f"hash they claim|does not name#{name[:5]}{len(name)}"] = {
            name: good[first],
            second: good[second],
        }
    for message, sent in odd.items():
        with pytest.raises(DataError, match=message.split("#")[0]):
            checked_public(recipe, sent, domain="m")


def test_a_large_request_is_refused_before_it_is_taken_apart(tmp_path, monkeypatch):
    from clues.silo import sizes

    class Space:
        name = "a"

        def recipe(self) -> Recipe:
            return load_config(run_of(tmp_path)[0]).recipe

        def model(self):
            return self

        def parameters(self) -> dict[str, torch.Tensor]:
            return {"w": torch.zeros(1000)}

    space, read = Space(), []
    monkeypatch.setattr(sizes, "ROOM_BYTES", 1_000)
    for kind, most in {"hello": 200_001_000, "train": 9_000, "fit": 5_000, "score": 17_000}.items():
        monkeypatch.setattr(sizes, "kind_of", lambda data, kind=kind: read.append(kind) or kind)
        sizes.check_request_size(space, memoryview(bytes(most)))  # type: ignore
        with pytest.raises(DataError, match=f"silo a: a {kind} request has"):
            sizes.check_request_size(space, memoryview(bytes(most + 1)))  # type: ignore
    monkeypatch.setattr(sizes, "kind_of", lambda data: "select")
    with pytest.raises(DataError, match="select request"):
        sizes.check_request_size(space, bytes(1_001))  # type: ignore
