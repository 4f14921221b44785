"""A disk that fills up at any place stops a run with a clear error; with room, it goes on.

The disk is a real one: a file system in memory of a few kilobytes, in a mount namespace of its own.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from federation_helpers import run_micro, without_volatile, write_micro

SCRIPT = """
import json, subprocess, sys
from pathlib import Path
from clues.errors import CluesError
from federation_helpers import run_micro

config, root, place, start = *map(Path, sys.argv[1:4]), int(sys.argv[4])
disk = root / place
disk.mkdir(parents=True)
mounted = ["mount", "-t", "tmpfs", "-o", f"size={start}k", "tmpfs", str(disk)]
subprocess.run(mounted, check=True)
errors = []
size = start
while size < 4000:
    subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
    try:
        run_micro(config, root)
        break
    except CluesError as error:
        errors.append([type(error).__name__, str(error)])
    size = size + 20 if sys.argv[6] == "all" else size * 3 // 2
results = json.loads((root / "results.json").read_text())
(Path(sys.argv[5])).write_text(json.dumps({"errors": errors, "results": results}))
from clues.wall.ledger import verify
verify(root / "ledger.jsonl")
"""


def can_mount() -> bool:
    """Whether this machine lets us mount a disk of our own, as root or in a user namespace."""
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", "/mnt"]
    return subprocess.run(probe, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def unbroken(micro_model, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("unbroken")
    changes = {"evaluate": {"arms": ["mixed", "clues"]}}
    config = write_micro(folder / "input", micro_model, changes=changes)
    return config, run_micro(config, folder / "run")


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="no mount namespace for an own small disk here")
@pytest.mark.parametrize("place", ["silos/north", "coordinator", "."])
@pytest.mark.parametrize("sizes", ["some", pytest.param("all", marks=pytest.mark.long)])
def test_a_full_disk_is_named_and_with_room_the_run_ends_as_if_it_had_been_there(
    unbroken, tmp_path, place, sizes
):
    config, expected = unbroken
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent),
        "OMP_NUM_THREADS": "1",
    }
    # Below the start not even the empty folders find room.
    start = {".": "40"}.get(place, "12")
    found = tmp_path / "found.json"
    command = ["unshare", "-rm", sys.executable, "-W", "ignore", "-c", SCRIPT, str(config)]
    command += [str(tmp_path / "run"), place, start, str(found), sizes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    content = json.loads(found.read_text())
    assert len(content["errors"]) >= 3, "the disk was never full"
    for kind, text in content["errors"]:
        assert kind == "DataError", text
        assert "No space left on device" in text
        assert "Free disk space" in text
    assert without_volatile(content["results"]) == without_volatile(
        json.loads(json.dumps(expected))
    )
