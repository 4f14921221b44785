"""The ledger holds every message, and shows when somebody has touched it."""

import errno
import hashlib
import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from clues.cli import program as cli
from clues.errors import DataError, LedgerError, UsageError
from clues.wall.ledger import START, Entry, Ledger, compare, summary, verify

MESSAGES = (
    ("north", "in", "hello", b"recipe"),
    ("north", "out", "hello-reply", b"here"),
    ("south", "in", "hello", b"recipe"),
    ("south", "out", "hello-reply", b"here too"),
    ("north", "in", "hello", b"recipe again"),
)


@pytest.fixture
def ledger(tmp_path):
    """A ledger of five messages."""
    written = Ledger(tmp_path / "ledger.jsonl")
    for message in MESSAGES:
        written.record(*message)
    return written


def tamper(ledger, change):
    """Rewrite the file with `change` applied to its list of lines."""
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join(change(lines)))


def test_every_message_is_recorded_with_its_length_and_hash(ledger):
    entries = verify(ledger.path)
    assert [(e.silo, e.direction, e.kind) for e in entries] == [m[:3] for m in MESSAGES]
    for number, (entry, (*_, message)) in enumerate(zip(entries, MESSAGES, strict=True)):
        assert entry.n == number
        assert entry.n_bytes == len(message)
        assert entry.sha256 == hashlib.sha256(message).hexdigest()
    assert entries[0].previous == START
    assert [e.previous for e in entries[1:]] == [e.chain for e in entries[:-1]]


def test_a_flipped_bit_is_found_in_whatever_field_it_lies(ledger):
    original = ledger.path.read_bytes()
    content = json.loads(original.splitlines()[2])
    for name, value in content.items():
        changed = value + 1 if isinstance(value, int) else value[:-1] + chr(ord(value[-1]) ^ 1)
        line = json.dumps({**content, name: changed}, sort_keys=True).encode() + b"\n"
        tamper(ledger, lambda lines, line=line: [*lines[:2], line, *lines[3:]])
        with pytest.raises(LedgerError, match="line 3"):
            verify(ledger.path)
        ledger.path.write_bytes(original)
    assert len(verify(ledger.path)) == len(MESSAGES)


@pytest.mark.parametrize(
    ("what", "change", "line"),
    [
        ("first dropped", lambda lines: lines[1:], 1),
        ("middle dropped", lambda lines: [*lines[:2], *lines[3:]], 3),
        ("reordered", lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], 2),
        ("repeated", lambda lines: [*lines, lines[-1]], 6),
        ("not JSON", lambda lines: [*lines[:1], b"hello\n", *lines[1:]], 2),
        ("not an entry", lambda lines: [*lines, b"{}\n"], 6),
        ("a list", lambda lines: [*lines, b"[1]\n"], 6),
        ("an empty line", lambda lines: [*lines[:3], b"\n", *lines[3:]], 4),
    ],
)
def test_a_dropped_moved_or_foreign_line_is_found(ledger, what, change, line):
    tamper(ledger, change)
    with pytest.raises(LedgerError, match=f"line {line}"):
        verify(ledger.path)
    with pytest.raises(LedgerError):
        Ledger(ledger.path)


def test_a_forged_entry_at_the_end_is_found(ledger):
    last = verify(ledger.path)[-1]
    for forged in (
        replace(last, n=last.n + 1, kind="score"),
        replace(last, n=last.n + 1, previous=last.chain, chain="0" * 64),
        replace(last, n=last.n + 2, previous=last.chain, chain=""),
    ):
        entry = forged if forged.chain else replace(forged, chain=forged.expected_chain())
        line = json.dumps(asdict(entry), sort_keys=True).encode() + b"\n"
        tamper(ledger, lambda lines, line=line: [*lines[:5], line])
        with pytest.raises(LedgerError, match="line 6"):
            verify(ledger.path)


def test_half_a_last_line_is_dropped_and_the_ledger_goes_on(ledger):
    whole = ledger.path.read_bytes()
    for n_torn in (1, 40, 200):
        ledger.path.write_bytes(whole + whole.splitlines()[0][:n_torn])
        continued = Ledger(ledger.path)
        assert ledger.path.read_bytes() == whole, "half a line stays and breaks the chain"
        assert continued.n_entries == len(MESSAGES)
    continued.record("south", "in", "train", b"adapter")
    assert [e.kind for e in verify(ledger.path)][-2:] == ["hello", "train"]


def test_a_ledger_that_is_opened_again_continues_its_chain(ledger):
    again = Ledger(ledger.path)
    assert (again.n_entries, again.last) == (ledger.n_entries, ledger.last)
    again.record("north", "out", "hello-reply", b"here")
    assert len(verify(ledger.path)) == len(MESSAGES) + 1


def test_the_first_line_torn_leaves_an_empty_ledger(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"n": 0, "ti')
    ledger = Ledger(path)
    ledger.record("north", "in", "hello", b"")
    assert len(verify(path)) == 1


def test_the_summary_adds_up(ledger):
    rows = summary(verify(ledger.path))
    assert sum(row["messages"] for row in rows) == len(MESSAGES)
    assert sum(row["bytes"] for row in rows) == sum(len(m[3]) for m in MESSAGES)
    north_in = next(r for r in rows if (r["silo"], r["direction"]) == ("north", "in"))
    assert north_in["messages"] == 2
    assert north_in["bytes"] == len(b"recipe") + len(b"recipe again")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            None,
            r"ledger\.jsonl: no ledger can be read here \(No such file.* Name the folder of a run",
        ),
        (b"\xff\xfe\x00\n", r"ledger\.jsonl: not a ledger but other bytes\. Do not trust"),
        (
            b'{"n": 0}\n',
            r"ledger\.jsonl line 1: not a ledger entry; .* compare a copy that is whole",
        ),
        (b"zqx\n", r"ledger\.jsonl line 1: not a ledger entry; .* compare a copy that is whole"),
    ],
)
def test_what_is_no_ledger_is_named_with_its_place_and_what_to_do(tmp_path, content, says):
    path = tmp_path / "ledger.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LedgerError, match=says):
        verify(path)


def test_a_broken_ledger_ends_the_program_with_exit_code_5():
    assert LedgerError("").exit_code == 5


def test_an_entry_holds_names_and_hashes_and_nothing_of_the_message(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    entry = ledger.record("north", "out", "fit-reply", b"zqxsecret weights")
    assert isinstance(entry, Entry)
    assert "zqxsecret" not in ledger.path.read_text()


def both_sides(tmp_path, change=lambda messages: messages):
    """The coordinator's ledger, and that of silo north as written after `change`."""
    coordinator, north = Ledger(tmp_path / "c.jsonl"), Ledger(tmp_path / "n.jsonl")
    for message in MESSAGES:
        coordinator.record(*message)
    for message in change([m for m in MESSAGES if m[0] == "north"]):
        north.record(*message)
    return verify(coordinator.path), verify(north.path)


def test_two_sides_that_saw_the_same_agree(tmp_path):
    ours, theirs = both_sides(tmp_path)
    assert compare(ours, theirs) == compare(theirs, ours) == {"north": 3}


@pytest.mark.parametrize(
    ("what", "change", "number"),
    [
        ("a flipped bit", lambda m: [m[0], (*m[1][:3], b"herd"), m[2]], 2),
        ("one dropped", lambda m: [m[0], m[2]], 2),
        ("the last dropped", lambda m: m[:2], 3),
        ("two swapped", lambda m: [m[1], m[0], m[2]], 1),
        ("one added", lambda m: [*m, m[0]], 4),
        ("another kind", lambda m: [m[0], (*m[1][:2], "fit-reply", m[1][3]), m[2]], 2),
        ("another direction", lambda m: [("north", "out", *m[0][2:]), *m[1:]], 1),
    ],
)
def test_sides_that_differ_are_told_apart_though_both_chains_hold(tmp_path, what, change, number):
    ours, theirs = both_sides(tmp_path, change)
    for pair in ((ours, theirs), (theirs, ours)):
        with pytest.raises(LedgerError, match=f"silo north, its message {number}:"):
            compare(*pair)


def verify_both(tmp_path, capsys) -> tuple[int, str]:
    """What `clues ledger OURS THEIRS --verify` ends with and says; the one side is a folder."""
    ours = tmp_path / "run"
    ours.mkdir()
    (tmp_path / "c.jsonl").rename(ours / "ledger.jsonl")
    arguments = ["clues", "ledger", str(ours), str(tmp_path / "n.jsonl"), "--verify"]
    before, sys.argv = sys.argv, arguments
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    said = capsys.readouterr()
    return code, said.out + said.err


def test_the_command_compares_both_sides(tmp_path, capsys):
    both_sides(tmp_path)
    code, said = verify_both(tmp_path, capsys)
    assert code == 0
    assert "north: both sides have the same 3 messages." in said


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (lambda m: [m[0], (*m[1][:3], b"herd"), m[2]], 2),
        (lambda m: [m[0], m[2]], 2),
        (lambda m: m[:2], 3),
        (lambda m: [m[1], m[0], m[2]], 1),
    ],
    ids=["a flipped bit", "one dropped", "the last dropped", "two swapped"],
)
def test_the_command_finds_what_a_ledger_written_anew_hides(tmp_path, capsys, change, number):
    both_sides(tmp_path, change)
    code, said = verify_both(tmp_path, capsys)
    assert code == 5
    assert f"silo north, its message {number}:" in said


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: [lines[0].replace(b'"hello"', b'"hellp"'), *lines[1:]], 1),
        (lambda lines: [lines[0], lines[2]], 2),
        (lambda lines: [lines[1], lines[0], lines[2]], 1),
    ],
    ids=["a flipped bit", "one dropped", "two swapped"],
)
def test_the_command_finds_where_one_sides_file_was_touched(tmp_path, capsys, change, line):
    both_sides(tmp_path)
    theirs = tmp_path / "n.jsonl"
    theirs.write_bytes(b"".join(change(theirs.read_bytes().splitlines(keepends=True))))
    code, said = verify_both(tmp_path, capsys)
    assert code == 5
    assert f"n.jsonl line {line}: the chain breaks here" in said


def test_ledgers_without_a_common_silo_cannot_be_compared(tmp_path):
    ours, _ = both_sides(tmp_path)
    with pytest.raises(LedgerError, match="no silo in common"):
        compare(ours, [])


ASKED, ANSWERED = ("north", "in", "train", b"adapter"), ("north", "out", "train-reply", b"mine")
LOST_ONE = ("north", "lost", "train", b"adapter")


@pytest.mark.parametrize(
    ("what", "theirs"),
    [
        ("never arrived", [ASKED, ANSWERED]),
        ("arrived, and the silo died", [ASKED, ASKED, ANSWERED]),
        ("arrived, and the answer got lost", [ASKED, ANSWERED, ASKED, ANSWERED]),
    ],
)
def test_what_the_coordinator_calls_lost_may_stand_on_the_other_side_or_not(tmp_path, what, theirs):
    ours = write(tmp_path / "ours.jsonl", [*MESSAGES, ASKED, LOST_ONE, ASKED, ANSWERED])
    other = write(tmp_path / "theirs.jsonl", [m for m in MESSAGES if m[0] == "north"] + theirs)
    assert "north" in compare(ours, other)
    assert "north" in compare(other, ours)


@pytest.mark.parametrize(
    ("what", "theirs"),
    [
        ("the answer differs", [ASKED, (*ANSWERED[:3], b"other")]),
        ("one answer too many", [ASKED, ANSWERED, ASKED, ANSWERED, ASKED, ANSWERED]),
        ("nothing at all", []),
        ("another request in its place", [("north", "in", "fit", b"adapter"), ASKED, ANSWERED]),
    ],
)
def test_nothing_else_is_excused_by_a_lost_message(tmp_path, what, theirs):
    ours = write(tmp_path / "ours.jsonl", [ASKED, LOST_ONE, ASKED, ANSWERED])
    other = write(tmp_path / "theirs.jsonl", [("north", "in", "hello", b""), *theirs])
    ours = [*write(tmp_path / "hello.jsonl", [("north", "in", "hello", b"")]), *ours]
    with pytest.raises(LedgerError, match="silo north"):
        compare(ours, other)


def write(path, messages):
    """A ledger of these messages, as its entries."""
    ledger = Ledger(path)
    for message in messages:
        ledger.record(*message)
    return verify(path)


def test_an_entry_that_finds_no_room_leaves_the_chain_whole(ledger, monkeypatch):
    before = ledger.path.read_bytes()

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "")

    with monkeypatch.context() as patched:
        patched.setattr("clues.atomic.os.fsync", full)
        with pytest.raises(DataError, match=r"No space left .* Free disk space"):
            ledger.record("north", "in", "train", b"adapter")
    assert ledger.path.read_bytes() == before, "half an entry would break the chain"
    ledger.record("north", "in", "train", b"adapter")
    assert len(verify(ledger.path)) == len(MESSAGES) + 1


HOLDER = """
import subprocess
import sys
from pathlib import Path
from clues.wall.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held_elsewhere(tmp_path):
    """A ledger that another process is writing to, and that process."""
    path = tmp_path / "ledger.jsonl"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        yield path, other
        other.kill()


def test_two_processes_cannot_write_to_one_ledger(held_elsewhere):
    path, _other = held_elsewhere
    half = b'{"n": 0, "ti'
    path.write_bytes(half)
    with pytest.raises(UsageError, match="another process runs here"):
        Ledger(path)
    assert path.read_bytes() == half, "a line that the other is writing was cut"


def test_a_killed_process_leaves_its_ledger_free(held_elsewhere):
    path, other = held_elsewhere
    other.kill()
    other.wait()
    Ledger(path).record("north", "in", "hello", b"")
    assert len(verify(path)) == 1


def test_one_process_may_open_its_ledger_twice(ledger):
    assert Ledger(ledger.path).n_entries == ledger.n_entries


def test_a_lock_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "ledger.jsonl.lock").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        Ledger(tmp_path / "ledger.jsonl")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("n_bytes", v) for v in ("7", None, -1, 1.5, True, 2**63, [1])],
        *[
            ("silo", v)
            for v in (["north"], {"a": 1}, None, 7, "no\x1b[2Jrth", "\u202e", "x" * 5000)
        ],
        *[("kind", "\x1b]0;x\x07"), ("kind", 1), ("direction", "up"), ("n", "0"), ("time", None)],
    ],
)
def test_an_entry_of_an_odd_type_is_none_even_where_the_chain_holds(tmp_path, field, value):
    path = tmp_path / "ledger.jsonl"
    entry = Ledger(path).record("north", "in", "hello", b"")
    odd = replace(entry, **{field: value, "chain": ""})
    line = asdict(odd) | {"chain": odd.expected_chain()}
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(LedgerError, match="line 1: not a ledger entry"):
        verify(path)


def test_a_name_in_brackets_is_a_name_and_no_style(tmp_path, capsys):
    Ledger(tmp_path / "ledger.jsonl").record("north", "out", "K[/red]", b"")
    for more in ([], ["--messages"], ["--messages"]):
        cli.app(["ledger", str(tmp_path), *more], standalone_mode=False)
    assert capsys.readouterr().out.count("K[/red]") == 3
