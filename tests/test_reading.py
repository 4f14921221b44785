"""Files from outside: what they are and how large is known before they are taken in."""

import json
import os
import socket
import tracemalloc
from pathlib import Path

import pytest

from clues.errors import ConfigError, DataError
from clues.reading import (
    MAX_DEPTH,
    Unreadable,
    check_depth,
    parse_json,
    read_bytes,
    read_json,
    visible,
)

SECRET = "marker-of-a-row"


def test_only_plain_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("/dev/zero")
    odd: list[tuple[str | Path, str]] = [
        (tmp_path, "a folder"),
        (tmp_path / "pipe", "a named pipe"),
        (tmp_path / "loop", "Too many levels of symbolic links"),
        (tmp_path / "link", "a device"),
        ("/dev/zero", "a device"),
        (tmp_path / "none", "no such file"),
        (tmp_path / "none" / "none", "no such file"),
        (tmp_path / ("x" * 300), "File name too long"),
        ("x" * 5000, "longer than 4096 bytes"),
        ("a\0b", "holds a zero byte"),
    ]
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        odd.append((tmp_path / "socket", "a socket"))
        for path, what in odd:
            with pytest.raises(DataError, match=what) as found:
                read_bytes(path)
            assert len(str(found.value)) < 800


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named_with_what_to_do(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    path.chmod(0)
    with pytest.raises(ConfigError, match=r"file: cannot be read \(Permission denied\)\. Give"):
        read_bytes(path, error=ConfigError)


def test_a_large_file_is_refused_before_it_is_in_memory(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(10**11)
    tracemalloc.start()
    with pytest.raises(
        DataError, match=r"has 100,000\.0 MB, and at most 1\.0 MB are read\. Cut it"
    ):
        read_bytes(path, limit=10**6, advice="Cut it.")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 200 + "]" * 200, "nested more than 100 deep"),
        ('{"a":' * 200 + "1" + "}" * 200, "nested more than 100 deep"),
        ("[" * 5000 + "]" * 5000, "too deep"),
        ("[" * 10**6, "too deep"),
        ("[" + "[]," * 1_000_001 + "[]]", "more than 2,000,000 values"),
        ("9" * 5000, "a number too long"),
        ('{"' + SECRET + '": }', "not valid JSON"),
        ("", "not valid JSON"),
        (b"\xff\xfe\xff", "no UTF-8"),
    ],
)
def test_json_is_bounded_and_its_text_stays_out_of_the_error(text, reason, tmp_path):
    with pytest.raises(Unreadable, match=reason) as found:
        parse_json(text)
    assert SECRET not in str(found.value)
    assert found.value.__context__ is None, "a JSON error holds the document"
    path = tmp_path / "odd.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=r"odd\.json.*(Mend it|Save it as UTF-8)\.") as wrapped:
        read_json(path, advice="Mend it.")
    assert SECRET not in str(wrapped.value)
    assert wrapped.value.__context__ is None


def test_what_is_as_deep_and_as_large_as_allowed_is_read(tmp_path):
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    (tmp_path / "deep.json").write_text("\ufeff" + text, encoding="utf-8")
    assert json.dumps(read_json(tmp_path / "deep.json")) == text


def test_values_in_a_circle_and_in_copies_of_copies_are_refused():
    circle: list = []
    circle.append(circle)
    copies: list = []
    for _ in range(60):
        copies = [copies] * 10
    for value in (circle, copies):
        with pytest.raises(Unreadable):
            check_depth(value)


def test_what_nobody_sees_becomes_an_escape():
    assert visible("a\u202eb\x1b[2J\u200f\ud800é") == "a\\u202eb\\u001b[2J\\u200f\\ud800é"
    assert visible("a\nb\tc", keep="\n") == "a\nb\\u0009c"
    assert visible("\U000e0001x") == "\\U000e0001x"
