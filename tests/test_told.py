"""A privacy officer asks what one message held."""

import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from test_messages import MESSAGES

from clues.cli import program as cli
from clues.errors import DataError, UsageError
from clues.wall.ledger import Ledger, verify
from clues.wall.messages import Reply
from clues.wall.told import ASKED, FIELDS, SENT, find_reply, told, what_is_told

REPLIES = [message for message in MESSAGES if isinstance(message, Reply)]


def call(*arguments: str | Path) -> None:
    old, sys.argv = sys.argv, ["clues", "ledger", *map(str, arguments)]
    try:
        cli.app(standalone_mode=False)
    finally:
        sys.argv = old


@pytest.fixture
def run(tmp_path) -> Path:
    """A run's folder with a request, every kind of reply in the outbox, and one that was removed."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.record("north", "in", "train", b"x")
    outbox = tmp_path / "silos/north/outbox"
    (outbox / "earlier").mkdir(parents=True)
    for n, reply in enumerate(REPLIES):
        data = reply.to_bytes()
        ledger.record("north", "out", reply.kind, data)
        folder = outbox / "earlier" if n % 2 else outbox
        (folder / f"{reply.kind}-{n}.clues").write_bytes(data)
    ledger.record("north", "out", "failure", b"removed")
    return tmp_path


def test_every_field_of_every_reply_has_a_meaning():
    named = {spec.name for kind in SENT.values() for spec in fields(kind)}
    assert named == set(FIELDS)
    assert not SENT.keys() & ASKED.keys()


@pytest.mark.parametrize("message", REPLIES, ids=lambda m: m.kind)
def test_a_reply_is_told_field_by_field_and_no_number_of_a_tensor_is_shown(message):
    found = {name: value for name, value, _ in told(message.to_bytes(), sender="silo north")}
    assert set(found) == {spec.name for spec in fields(message)}
    if message.kind == "train-reply":
        assert found["adapter"] == "2 tensors of 12 numbers in all (2x3; 3x2)"


def test_other_bytes_are_refused():
    with pytest.raises(DataError, match="silo north"):
        told(b"no message", sender="silo north")


def test_each_message_is_found_by_its_hash_and_said_in_words(run, capsys):
    for n, reply in enumerate(REPLIES, 1):
        call(run, "--show", n)
        said = " ".join(capsys.readouterr().out.split())
        assert f"a {reply.kind} left silo north" in said
        assert " ".join(type(reply).reveals.split()) in said
        assert "all of its fields" in said


def test_what_is_not_there_is_said(run, capsys):
    call(run, "--show", 0)
    assert "Requests are not stored" in capsys.readouterr().out
    call(run / "ledger.jsonl", "--show", len(REPLIES) + 1)
    assert "not in the silo's outbox" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no message 99"):
        call(run, "--show", 99)


def test_a_changed_file_is_not_shown_as_what_left(run):
    path = next((run / "silos/north/outbox").rglob("select-reply-*"))
    ledger = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    number = next(e["n"] for e in ledger if e["kind"] == "select-reply")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert find_reply(run, verify(run / "ledger.jsonl")[number]) is None


def test_in_json_each_field_has_value_and_meaning(run, capsys):
    call(run, "--show", 1, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "hello-reply"
    assert found["fields"]["n_rows"] == {"value": "20", "is": FIELDS["n_rows"]}


def test_the_list_has_headings_and_totals(run, capsys):
    call(run)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["silo", "way", "kind", "messages", "bytes"]
    total = next(line for line in lines if line.startswith("all silos") and " out " in line)
    assert total.split()[3] == str(len(REPLIES) + 1)


def test_a_kind_that_nobody_knows_tells_what_nobody_knows(tmp_path):
    entry = Ledger(tmp_path / "ledger.jsonl").record("north", "out", "unknown", b"")
    assert what_is_told(entry).startswith("nobody knows")
