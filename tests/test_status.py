"""`clues status` says how far a run is, from its folder alone."""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from test_cli import call

from clues.errors import DataError, UsageError
from clues.scoring.watch import Watch
from clues.underway import PROGRESS, read_status, run_in
from tests.bounded import within


@pytest.fixture
def root(tmp_path) -> Path:
    """A run with one finished stage and a silo that has done three of eight shards."""
    (tmp_path / "coordinator/stages").mkdir(parents=True)
    marker = {"stage": "train", "result": {"seconds": 12.25}}
    (tmp_path / "coordinator/stages/train.json").write_text(json.dumps(marker))
    private = tmp_path / "silos/north/private"
    private.mkdir(parents=True)
    watch = Watch(private / PROGRESS, "ray")
    watch.begin("losses", part="shard", n_parts=8, n_rows=80)
    watch.took(10, found=True)
    for _ in range(2):
        watch.took(10)
    watch.state["began"] -= 4.0
    watch.workers(2, "a worker on b is lost; its shards go to others")
    return tmp_path


def change(root: Path, **changes) -> None:
    path = root / "silos/north/private" / PROGRESS
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_done_and_open_is_counted(root):
    found = read_status(root)
    assert found.stages == {"train": 12.25}
    north = found.silos["north"]
    assert (north.state, north.what, north.part) == ("running", "losses", "shard")
    assert (north.parts, north.parts_done, north.parts_open) == (8, 3, 5)
    assert (north.rows, north.rows_done, north.workers) == (80, 30, 2)
    # Twenty rows in four seconds: the ten that were found cost nothing.
    assert north.rows_per_s == pytest.approx(5.0, rel=0.1)
    assert north.seconds_left == pytest.approx(10, abs=1)
    assert "is lost" in north.last_error


def test_who_is_gone_and_who_works_elsewhere_is_told_apart(root):
    # A number that no process has.
    change(root, pid=2**22 + 1)
    assert read_status(root).silos["north"].state == "stopped"
    assert read_status(root).silos["north"].seconds_left is None
    change(root, host="another")
    assert read_status(root).silos["north"].state == "elsewhere"
    change(root, parts_done=8)
    assert read_status(root).silos["north"].state == "done"


def test_a_silos_own_folder_is_a_run_too(root):
    assert set(read_status(root / "silos/north").silos) == {"north"}


def test_what_clean_has_written_is_looked_into(root, tmp_path_factory):
    cleaned = tmp_path_factory.mktemp("cleaned")
    (cleaned / "kept.json").write_text("[]")
    shutil.copytree(root, cleaned / "run")
    assert run_in(cleaned) == cleaned / "run"
    assert read_status(cleaned) == read_status(cleaned / "run")
    assert run_in(cleaned / "run") == cleaned / "run"
    assert run_in(root) == root


def test_nothing_and_rubbish_are_one_line(tmp_path, root):
    with pytest.raises(UsageError, match="no run's folder"):
        read_status(tmp_path / "silos/north/private")
    (root / "coordinator/stages/half.json").write_text('{"stage": "ha')
    assert set(read_status(root).stages) == {"train"}
    change(root, parts="many")
    with pytest.raises(DataError, match="damaged"):
        read_status(root)


DEEP = b"[" * 200_000
HUGE = 10**400
ODD = (None, True, -1, 0.5, HUGE, "x", [], {}, float("nan"), float("inf"), 1e308)


@pytest.mark.parametrize("field", ["pid", "parts", "rows_done", "began", "updated", "what", "host"])
def test_a_note_of_odd_values_is_one_line(root, field):
    for value in ODD:
        change(root, **{field: value})
        with contextlib.suppress(DataError):
            assert read_status(root).silos["north"].state in ("running", "stopped", "elsewhere")
            json.dumps(read_status(root).to_json(), allow_nan=False)


@pytest.mark.parametrize(
    "raw",
    [
        DEEP,
        b"null",
        b"",
        b'{"stage": "a", "result": {"seconds": 1e999}}',
        b'{"stage": "a", "result": {"seconds": %d}}' % HUGE,
        b'{"stage": [], "result": {"seconds": 1}}',
        b'{"stage": "a", "result": {"seconds": NaN}}',
        b'{"stage": "a", "result": {"seconds": "9"}}',
    ],
    ids=["deep", "null", "empty", "infinite", "huge", "list", "nan", "text"],
)
def test_a_damaged_marker_is_no_finished_stage(root, raw):
    (root / "coordinator/stages/odd.json").write_bytes(raw)
    assert read_status(root).stages == {"train": 12.25}
    (root / "silos/north/private" / PROGRESS).write_bytes(raw)
    with pytest.raises(DataError, match="damaged"):
        read_status(root)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    "place", ["coordinator/stages/train.json", "silos/north/private/progress.json"]
)
@pytest.mark.parametrize("what", ["pipe", "device", "itself", "nowhere", "folder"])
def test_what_is_no_plain_file_is_not_waited_for(root, place, what):
    path = root / place
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "itself": path, "nowhere": root / "no"}[what])

    def look() -> str:
        try:
            return str(read_status(root).stages)
        except DataError:
            return "refused"

    assert within(look) in ({"{}"} if "stages" in place else {"refused", "{'train': 12.25}"})


def test_text_in_a_note_is_cut_and_can_be_printed(root, capsys):
    change(root, what="\x1b[2J\u202e" + "x" * 100_000, last_error="y" * 100_000)
    assert call("status", root)[0] == 0
    out = capsys.readouterr().out
    assert len(out) < 4_000
    assert all(c.isprintable() or c == "\n" for c in out)


def test_the_verb_says_it_in_lines_and_as_json(root, capsys):
    assert call("status", root)[0] == 0
    out = capsys.readouterr().out.replace("\n", " ")
    assert "finished stages: train (12 s)" in out
    assert "north: losses, running: 3 of 8 shards, 30 of 80 rows, 5 rows/s, about 0 min" in out
    assert "2 workers" in out
    assert "last error: a worker on b is lost" in out
    assert call("status", root, "--json")[0] == 0
    assert json.loads(capsys.readouterr().out)["silos"]["north"]["parts_open"] == 5
    assert call("status", root / "coordinator")[0] == 2


def test_the_note_is_private_and_written_once_a_second(tmp_path):
    tmp_path.chmod(0o700)
    watch = Watch(tmp_path / PROGRESS)
    watch.begin("losses", part="shard", n_parts=3, n_rows=3)
    before = (tmp_path / PROGRESS).read_bytes()
    assert (tmp_path / PROGRESS).stat().st_mode & 0o777 == 0o600
    watch.took(1)
    assert (tmp_path / PROGRESS).read_bytes() == before, "a second has not passed"
    watch.written = time.time() - 2
    watch.took(1)
    assert json.loads((tmp_path / PROGRESS).read_bytes())["parts_done"] == 2
    assert json.loads((tmp_path / PROGRESS).read_bytes())["pid"] == os.getpid()
