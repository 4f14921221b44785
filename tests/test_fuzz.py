"""Whatever is in a file or a message: a value that packs again to an equal one, or one clear refusal.

Short in `make test`; `make fuzz N=10000 SEED=0` runs N inputs and writes their seeds to fuzz.log. An
input is made again from its kind and seed alone: `one(KIND, SEED, folder)`.
"""

import copy
import csv
import gzip
import io
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file

from clues.api.joint import merge
from clues.config import (
    CombineSettings,
    Recipe,
    TaskSettings,
    dump_yaml,
    load_config,
    load_shared,
    load_silo,
    validate,
)
from clues.data.formats import read_rows, write_rows
from clues.errors import CluesError
from clues.evaluation.judge.prompts import Inquiry, UnreadableError, read_verdict
from clues.evaluation.questions import read_tasks
from clues.model.adapters import Checkpoint, load_checkpoint, save_checkpoint
from clues.network.settings import load_coordinator, load_join
from clues.selection.threshold import Threshold
from clues.silo.overrides import read_overrides
from clues.wall.ledger import Entry, Ledger, compare, summary, verify
from clues.wall.messages import REPLIES, REQUESTS, from_bytes, kind_of
from tests.bounded import Overdue, within
from tests.test_messages import MESSAGES, by_hand, header_of, with_checksum

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a forked child has limits of its own"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning"),
]
MARKER = "ZQMARKROW"
SHORT, PER_CHILD = 240, 500
SECONDS, MEGABYTES = 3.0, 1_500  # of one input; of one child
LONGEST = 20_000  # characters of an error; twenty problems of a configuration, each with its key


def deep(n: int) -> Any:
    value: Any = []
    for _ in range(n):
        value = [value]
    return value


ODD: tuple[Callable[[], Any], ...] = tuple(
    (lambda value=value: copy.deepcopy(value))
    for value in (
        *(None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**30),
        *(10**400, 10**4200, 0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf")),
        *("", " ", "0", "null", "1e999", "nan", "=", "<<", "[red]", "[/red]", "2024-13-45", "~"),
        *("x" * 5_000, "\0", "\x1b]0;x\x07", "\u202e", "\ud800", "\ufeff", "a\u0301" * 40, "../.."),
        *("/dev/zero", "/", "/etc/passwd", "built-in", "x" * 300, "a/b", "-", "é", "\U0001f600"),
        *(
            [],
            {},
            [[]],
            [{}],
            {"": ""},
            {"\x1b[2J": 1},
            [1] * 300,
            ["a", 1, None],
            {"a": {"b": []}},
        ),
        *(deep(20), deep(60), deep(120), {"x" * 400: 1}),
    )
)
PIECES = (
    *(
        b"[",
        b"]",
        b"{",
        b"}",
        b'"',
        b"'",
        b",",
        b":",
        b"\n",
        b"\r",
        b"\0",
        b"\\",
        b"#",
        b"&a ",
        b"*a",
    ),
    *(b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\xe2\x80\xa8", b"\\ud800", b"NaN"),
    *(b"1e999", b"-Infinity", b"[" * 2_000, b'{"a":' * 500, b"9" * 5_000, b"x" * 3_000, b"\n\n\n"),
    *(b"\x1f\x8b\x08", b"PAR1", b"ARROW1", b"!!int ", b"<<: ", b"\t", b"\x1b[2J", b"\xe2\x80\xae"),
)


# --- mutations


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in plain values."""
    found: list[tuple[Any, Any]] = []
    left = [value]
    while left:
        part = left.pop()
        keys = list(part) if isinstance(part, dict) else range(len(part))
        for key in keys:
            found.append((part, key))
            if isinstance(part[key], dict | list):
                left.append(part[key])
    return found


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy with one to three changes of type, size, number, name or order."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = copy.deepcopy(value)  # a part that stands twice is changed once
        found = places(value)
        if not found:
            return rng.choice(ODD)()
        part, key = rng.choice(found)
        change = rng.randrange(9)
        if change <= 2:
            part[key] = rng.choice(ODD)()
        elif change == 3:
            del part[key]
        elif change == 4 and isinstance(part, list):
            part.extend([part[key]] * rng.choice((1, 2, 100)))
        elif change == 5 and isinstance(part, dict):
            name = rng.choice(
                (f"{key}x", str(key).upper(), f"{MARKER} text", "\u202e", "", "x" * 300)
            )
            part[name] = part.pop(key) if rng.random() < 0.5 else part[key]
        elif change == 6:
            part[key] = [part[key]] if rng.random() < 0.5 else {"a": part[key]}
        elif change == 7:
            part[key] = str(part[key]) if rng.random() < 0.7 else bool(part[key])
        else:
            other, place = rng.choice(found)
            if place in other if isinstance(other, dict) else place < len(other):
                part[key] = json.loads(json.dumps(other[place]))
    return value


def broken(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to three changes: flipped, cut, doubled, removed, put in."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not data:
            return rng.choice(PIECES)
        i = rng.randrange(len(data))
        j = min(len(data), i + rng.choice((1, 4, 30, 300)))
        data = rng.choice(
            (
                lambda: data[:i] + bytes([data[i] ^ (1 << rng.randrange(8))]) + data[i + 1 :],  # noqa: B023
                lambda: data[:i],  # noqa: B023
                lambda: data[:j] + data[i:j] * rng.choice((1, 3, 50)) + data[j:],  # noqa: B023
                lambda: data[:i] + data[j:],  # noqa: B023
                lambda: data[:i] + rng.choice(PIECES) + data[i:],  # noqa: B023
                lambda: data[:i] + rng.choice(PIECES) + data[j:],  # noqa: B023
            )
        )()
    return data


def written(value: Any, rng: random.Random, dump: Callable[[Any], str]) -> bytes:
    """A changed value as a file: changed in its structure, in its bytes, or both."""
    how = rng.random()
    changed = mutated(value, rng) if how < 0.75 else value
    data = dump(changed).encode("utf-8", "surrogatepass")
    return broken(data, rng) if how > 0.6 else data


def as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


# --- what is read, by kind; each says nothing, or raises what is not allowed

RUN = {
    "name": "t",
    "recipe": {
        "seed": 1,
        "lora": {"rank": 2, "alpha": 2, "target_modules": ["q_proj"]},
        "tokens": {"max_length": 64, "overlong": "drop"},
        "train": {"learning_rate": 0.01, "batch_size": 2, "steps": 2, "rounds": 2},
        "score": {"method": "influence", "layers": [0, 1], "compare": ["length"]},
        "threshold": {"rule": "preset", "preset": -1.5, "quantile": 0.1, "bootstrap": 10},
        "public": {"m": {"validation": {"en": "a.jsonl"}, "anchor": {"path": "b.jsonl"}}},
    },
    "combine": {
        "method": "fedavg",
        "rounds": 2,
        "local_steps": 1,
        "server": {"optimizer": "fedadam"},
    },
    "evaluate": {"heldout": "a.jsonl", "tasks": ["q.jsonl"], "arms": ["clues"]},
    "federation": {"quorum": 1, "timeouts": {"hello": 5}, "wait_s": 3},
    "silos": [{"name": "s", "data": "b.jsonl", "domain": "m", "labels": "damage"}],
}
ROWS: dict[str, list[dict[str, Any]]] = {
    "alpaca": [{"instruction": "Ask", "input": "", "output": "Say", "history": [["a", "b"]]}],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": "Ask"}, {"from": "gpt", "value": "Say"}]}
    ],
    "messages": [
        {
            "messages": [
                {"role": "system", "content": "Be"},
                {"role": "user", "content": "Ask"},
                {"role": "assistant", "content": "Say"},
            ]
        }
    ],
    "prompt_completion": [{"prompt": "Ask", "completion": "Say", "source": "x"}],
    "multiple_choice": [{"question": "Ask", "choices": ["one", "two"], "answer": 1}],
    "letters": [{"question": "Ask", "A": "one", "B": "two", "answer": "A"}],
}


def rows_of(schema: str) -> list[dict[str, Any]]:
    """Three rows, with the marker in every text."""

    def marked(value: Any, n: int) -> Any:
        if isinstance(value, dict):
            return {k: v if k in ("from", "role") else marked(v, n) for k, v in value.items()}
        if isinstance(value, list):
            return [marked(part, n) for part in value]
        return f"{MARKER} {value} {n}" if isinstance(value, str) and len(value) > 1 else value

    return [marked(row, n) for n in range(3) for row in ROWS[schema]]


def prepare(folder: Path) -> None:
    """What configurations name, once."""
    for name, schema in (("a", "alpaca"), ("b", "prompt_completion"), ("q", "multiple_choice")):
        lines = [json.dumps(row) for row in rows_of(schema)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "run.yaml").write_text(as_yaml({k: v for k, v in RUN.items() if k != "silos"}))
    (folder / "silo.yaml").write_text(as_yaml(RUN["silos"][0]))


def fuzz_run(rng: random.Random, folder: Path) -> None:
    path = folder / "clues.yaml"
    path.write_bytes(written(RUN, rng, as_yaml))
    config = load_config(path)
    path.write_text(dump_yaml(config), encoding="utf-8")
    assert load_config(path) == config


def fuzz_shared(rng: random.Random, folder: Path) -> None:
    path = folder / "shared.yaml"
    path.write_bytes(written({k: v for k, v in RUN.items() if k != "silos"}, rng, as_yaml))
    load_shared(path)


def fuzz_silo(rng: random.Random, folder: Path) -> None:
    path = folder / "one.yaml"
    silo = {**RUN["silos"][0], "privacy": {"epsilon": 8, "delta": 1e-5}, "min_kept": 3}
    path.write_bytes(written(silo, rng, as_yaml))
    config = load_silo(path)
    path.write_text(dump_yaml(config), encoding="utf-8")
    assert load_silo(path) == config


def fuzz_coordinator(rng: random.Random, folder: Path) -> None:
    path = folder / "coordinator.yaml"
    content = {"run": "run.yaml", "public": "127.0.0.1:8000", "silos": ["s"], "insecure": True}
    path.write_bytes(written(content, rng, as_yaml))
    load_coordinator(path)


def fuzz_join(rng: random.Random, folder: Path) -> None:
    path = folder / "join.yaml"
    silo = rng.choice(("silo.yaml", RUN["silos"][0]))
    content = {"silo": silo, "coordinator": "127.0.0.1:8000", "insecure": True, "folder": "x"}
    path.write_bytes(written(content, rng, as_yaml))
    load_join(path)


def fuzz_rows(rng: random.Random, folder: Path) -> None:
    container = rng.choice(
        ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "jsonl.gz", "csv.gz")
    )
    rows = rows_of(rng.choice(tuple(ROWS)))
    if rng.random() < 0.75:
        changed = mutated(rows, rng)
        rows = changed if isinstance(changed, list) else [changed]
    data = contained(rows, container, rng)
    if rng.random() < 0.35:
        data = broken(data, rng)
    if container.endswith(".gz"):
        data = gzip.compress(data) if rng.random() < 0.6 else broken(gzip.compress(data), rng)
    path = folder / f"rows.{container}"
    path.write_bytes(data)
    found = read_rows(path)
    again = folder / f"again{found.suffix}"
    write_rows(found, range(found.n_rows), again)
    assert [s.id for s in read_rows(again, schema=found.schema).samples] == [
        s.id for s in found.samples
    ]


def contained(rows: list[Any], container: str, rng: random.Random) -> bytes:
    """Rows as the bytes of a container; what it cannot hold is left out."""
    kind = container.removesuffix(".gz")
    plain = [row if isinstance(row, dict) else {"instruction": row} for row in rows] or [{}]
    if kind in ("jsonl", "json"):
        end = rng.choice(("\n", "\r\n", "\n\n"))
        text = (
            json.dumps(rows, indent=rng.choice((None, 1)))
            if kind == "json"
            else "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + end for row in rows)
        )
        return text.encode("utf-8", "surrogatepass")
    if kind in ("csv", "tsv"):
        out = io.StringIO()
        writer = csv.writer(out, delimiter="\t" if kind == "tsv" else rng.choice(",;|"))
        writer.writerow(list(plain[0]))
        for row in plain:
            writer.writerow([v if isinstance(v, str) else json.dumps(v) for v in row.values()])
        return out.getvalue().encode("utf-8", "surrogatepass")
    try:
        table = pa.Table.from_pylist(plain)
        sink = io.BytesIO()
        if kind == "parquet":
            pq.write_table(table, sink, compression=rng.choice(("snappy", "zstd", "none")))
        else:
            with pa.ipc.new_file(sink, table.schema) as file:
                file.write_table(table)
        return sink.getvalue()
    except (pa.ArrowException, TypeError, ValueError, OverflowError, UnicodeEncodeError):
        return json.dumps(rows).encode()


def fuzz_questions(rng: random.Random, folder: Path) -> None:
    path = folder / "questions.jsonl"
    rows = rows_of(rng.choice(("multiple_choice", "letters", "alpaca")))
    for row in rows:
        if "instruction" in row:
            row["instruction"] += "\nA. one\nB. two"
            row["output"] = "A"
    path.write_bytes(written(rows, rng, lambda v: "".join(json.dumps(r) + "\n" for r in v or ())))
    for task in read_tasks([TaskSettings(path=path)]):
        assert all(0 <= q.answer < len(q.choices) for q in task.questions)


def fuzz_overrides(rng: random.Random, folder: Path) -> None:
    path = folder / "overrides.json"
    content = {
        "format": "clues-overrides",
        "version": 1,
        "silo": "s",
        "recipe_hash": "0" * 12,
        "overrides": [{"id": f"{n:016x}", "keep": n == 0, "reason": MARKER} for n in range(2)],
    }
    path.write_bytes(written(content, rng, json.dumps))
    found = read_overrides(path)
    path.write_text(found.model_dump_json(), encoding="utf-8")
    assert read_overrides(path) == found


def fuzz_ledger(rng: random.Random, folder: Path) -> None:
    path = folder / "ledger.jsonl"
    path.unlink(missing_ok=True)
    ledger = Ledger(path)
    for n, kind in enumerate(("hello", "hello-reply", "train", "train-reply")):
        ledger.record("s", "out" if n % 2 else "in", kind, kind.encode())
    whole = verify(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if rng.random() < 0.5:
        path.write_bytes(
            written(lines, rng, lambda v: "".join(json.dumps(x) + "\n" for x in v or ()))
        )
    else:
        path.write_bytes("".join(json.dumps(x) + "\n" for x in chained(lines, rng)).encode())
    found = verify(path)
    assert all(isinstance(row["bytes"], int) for row in summary(found))
    assert all(e.silo.isprintable() and e.kind.isprintable() for e in found)
    compare(whole, found)


def chained(lines: list[Any], rng: random.Random) -> Iterator[Any]:
    """Changed entries with a chain that holds, as the other side may write them."""
    previous = "0" * 64
    for line in mutated(lines, rng) or ():
        if not isinstance(line, dict) or set(line) != set(Entry.__dataclass_fields__):
            yield line
            continue
        entry = Entry(**{**line, "previous": previous, "chain": ""})
        try:
            previous = entry.expected_chain()
        except (TypeError, ValueError, RecursionError):
            previous = "0" * 64
        yield {**line, "previous": entry.previous, "chain": previous}


def fuzz_message(rng: random.Random, folder: Path) -> None:
    message = rng.choice(MESSAGES)
    data = message.to_bytes()
    how = rng.random()
    if how < 0.5:
        header = mutated(header_of(data), rng)
        if rng.random() < 0.5 and isinstance(header, dict):
            header["protocol"], header["kind"] = 1, message.kind
        text = json.dumps(header)
        tensors = {str(n): torch.zeros(2, 3) for n in range(rng.choice((0, 2, 12)))}
        data = by_hand(
            tensors, broken(text.encode(), rng).decode(errors="replace") if how < 0.1 else text
        )
    else:
        data = broken(data, rng)
        if rng.random() < 0.7:
            data = with_checksum(data)
    assert kind_of(data).isprintable()
    found = from_bytes(data, allowed={**REQUESTS, **REPLIES}, sender="s")
    packed = found.to_bytes()
    again = from_bytes(packed, allowed={**REQUESTS, **REPLIES}, sender="s")
    assert again.to_bytes() == packed
    assert kind_of(packed) == found.kind
    if found.kind == "select":
        Threshold.from_json(found.threshold)
    if found.kind == "hello":
        validate(Recipe, found.recipe, where="the coordinator's recipe")
    if found.kind == "fit":
        validate(CombineSettings, found.combine, where="the fit request")


THRESHOLD = {
    "recipe_hash": "0" * 12,
    "rule": "anchor_mean",
    "value": -1.5,
    "ratio": None,
    "units": {"m": {"parts": {"v": [0.5, 1.5]}, "weights": {"v": 1.0}, "kind": "anchor"}},
    "units_kind": "anchor",
    "assurance": 0.9,
    "interval": [-2.0, -1.0],
    "confidence": 0.95,
    "n_anchors": 5,
    "anchor_quantiles": [[0.5, 0.0], [0.9, 1.0]],
}


def fuzz_recipe(rng: random.Random, folder: Path) -> None:
    """What a coordinator's hello holds, as a silo reads it."""
    recipe = load_config(folder / "good.yaml").recipe.model_dump(mode="json")
    found = validate(Recipe, mutated(recipe, rng), where="the coordinator's recipe")
    assert validate(Recipe, found.model_dump(mode="json"), where="again").hash == found.hash


def fuzz_adapter(rng: random.Random, folder: Path) -> None:
    place = folder / "adapter"
    place.mkdir(exist_ok=True)
    state = {f"q.lora_{f}.weight": torch.ones(shape) for f, shape in (("A", (2, 3)), ("B", (3, 2)))}
    config = {"r": 2, "lora_alpha": 4, "peft_type": "LORA", "target_modules": ["q"]}
    save_file(state, place / "adapter_model.safetensors")
    (place / "adapter_config.json").write_text(json.dumps(config))
    if rng.random() < 0.5:
        (place / "adapter_config.json").write_bytes(written(config, rng, json.dumps))
    else:
        file = place / "adapter_model.safetensors"
        file.write_bytes(broken(file.read_bytes(), rng))
    merge([place, place])


def fuzz_checkpoint(rng: random.Random, folder: Path) -> None:
    place = folder / "checkpoint"
    one = {"q.lora_B.weight": torch.ones(3, 2)}
    good = Checkpoint(
        step=1,
        learning_rate=0.1,
        adapter=one,
        second_moment=one,
        first_moment=one,
        optimizer_steps=1,
    )
    save_checkpoint(good, place)
    names = ("state.json", "adapter.safetensors", "first_moment.safetensors")
    file = place / rng.choice((names[0], *names))
    if file.suffix == ".json":
        file.write_bytes(written(json.loads(file.read_text()), rng, json.dumps))
    else:
        file.write_bytes(broken(file.read_bytes(), rng))
    load_checkpoint(place)


def fuzz_judge(rng: random.Random, folder: Path) -> None:
    mode = rng.choice(("reference", "pairwise"))
    content = {"reason": MARKER, "score": 0.5} if mode == "reference" else {"better": "tie"}
    text = written(content, rng, json.dumps).decode(errors="replace")
    if rng.random() < 0.3:
        text = f"```json\n{text}\n```"
    try:
        value = read_verdict(Inquiry(mode, 0, "clues", "first", []), text)
    except UnreadableError as error:
        # As one of ours, so that its words are looked at: a judge may repeat a row.
        raise CluesError(str(error)) from None
    assert 0 <= value <= 1


def fuzz_completion(rng: random.Random, folder: Path) -> None:
    from clues.evaluation.judge.client import _completion

    words = {"message": {"content": MARKER}}
    body = written({"choices": [words], "usage": {"total_tokens": 7}}, rng, json.dumps)
    found = _completion(body)
    assert isinstance(found, str) or isinstance(found["content"], str)
    assert not isinstance(found, str) or MARKER not in found


KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    name.removeprefix("fuzz_"): function
    for name, function in list(globals().items())
    if name.startswith("fuzz_")
}
# Messages and rows come from others most, and have the most to go wrong.
WEIGHTS = {"message": 6, "rows": 6, "run": 3}
PUBLIC_KEYS = {"run", "shared", "silo", "coordinator", "join", "recipe"}


def one(kind: str, seed: int, folder: Path) -> str:
    """Try one input; empty where it was accepted or refused as it must be, else what went wrong."""
    rng = random.Random(f"{kind} {seed}")
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        KINDS[kind](rng, folder)
    except CluesError as error:
        said = str(error)
        if MARKER in said and kind not in PUBLIC_KEYS:
            return "row text in its error"
        if len(said) > LONGEST or "\x1b" in said or "\u202e" in said:
            return f"an error that cannot be shown: {said[:300]!r}"
        return ""
    except Overdue:
        return f"longer than {SECONDS} s"
    except MemoryError:
        return "out of memory"
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return f"{type(error).__name__}: {str(error)[:200]!r} at {_where(error)}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return ""


def _where(error: BaseException) -> str:
    trace, places = error.__traceback__, []
    while trace:
        places.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " ".join(places[-4:])


def inputs(n: int, seed: int) -> list[tuple[str, int]]:
    """Kinds and seeds of n inputs."""
    names = [name for name in KINDS for _ in range(WEIGHTS.get(name, 1))]
    return [(names[i % len(names)], seed * 1_000_003 + i) for i in range(n)]


def faults(wanted: list[tuple[str, int]], folder: Path) -> list[str]:
    """What went wrong, a line an input, from children with a limit of memory."""
    prepare(folder)
    (folder / "good.yaml").write_text(as_yaml(RUN))
    found: list[str] = []
    for start in range(0, len(wanted), PER_CHILD):
        part = wanted[start : start + PER_CHILD]

        def look(part: list[tuple[str, int]] = part) -> str:
            lines = [
                f"{kind} {seed}: {why}" for kind, seed in part if (why := one(kind, seed, folder))
            ]
            return "\n".join(["looked", *lines])

        limit = SECONDS * PER_CHILD
        said = within(look, seconds=limit, megabytes=MEGABYTES).splitlines()
        found += said[1:] if said[:1] == ["looked"] else [f"{part[0]} and after: {said[-1]}"]
    return found


# What a long search has found: a process that died in arrow, and what somebody else had called a
# field or a protocol, repeated as it was; an adapter with one factor of two.
FOUND = [
    *[("rows", 4278), ("rows", 8274), ("adapter", 23), ("adapter", 7004418)],
    *[("message", 639), ("message", 721)],
]


@pytest.mark.parametrize(("kind", "seed"), FOUND)
def test_what_was_found_is_found_no_more(kind, seed, tmp_path):
    assert faults([(kind, seed)], tmp_path) == []


@pytest.mark.slow
def test_odd_inputs_of_every_kind_are_read_whole_or_refused_in_words(tmp_path):
    assert faults(inputs(SHORT, seed=0), tmp_path) == []


@pytest.mark.slow
def test_the_search_finds_what_is_planted(tmp_path, monkeypatch):
    """A reader that breaks, repeats a row, hangs or fills the memory is found."""

    def breaks(rng: random.Random, folder: Path) -> None:
        raise KeyError(rng.random())

    def tells(rng: random.Random, folder: Path) -> None:
        raise CluesError(f"row: {MARKER}")

    def hangs(rng: random.Random, folder: Path) -> None:
        while True:
            pass

    def fills(rng: random.Random, folder: Path) -> None:
        bytes(10**10)

    monkeypatch.setattr("tests.test_fuzz.SECONDS", 0.2)
    for planted, why in (
        (breaks, "KeyError"),
        (tells, "row text"),
        (hangs, "longer than"),
        (fills, "out of memory"),
    ):
        monkeypatch.setitem(KINDS, "rows", planted)
        assert why in " ".join(faults([("rows", 1)], tmp_path))


@pytest.mark.long
def test_a_long_search_finds_nothing(tmp_path):
    n, seed = int(os.environ.get("N", "10000")), int(os.environ.get("SEED", "0"))
    wanted = inputs(n, seed)
    found = faults(wanted, tmp_path)
    log = [f"seed {seed}: {n} inputs, {len(found)} faults", *found]
    Path("fuzz.log").write_text("\n".join(log) + "\n", encoding="utf-8")
    assert found == []
