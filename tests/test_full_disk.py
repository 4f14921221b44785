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

SCRIPT = '''
import json, subprocess, sys
from pathlib import Path
from clues.errors import CluesError
from clues.wall.ledger import verify
from federation_helpers import run_micro
from undrawn import UNDRAWN

def fill(config, root, place, size, step):
    """The errors of a run on a disk that grows by a part of itself, or by as much each time."""
    disk = root / place
    disk.mkdir(parents=True)
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
    subprocess.run(mounted, check=True)
    errors = []
    while size < 4000:
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
        try:
            run_micro(config, root)
            break
        except CluesError as error:
            errors.append([type(error).__name__, str(error)])
        size += step or size // 2
    verify(root / "ledger.jsonl")
    return {"errors": errors, "results": json.loads((root / "results.json").read_text())}

for module, name, stand_in in UNDRAWN:
    setattr(module, name, stand_in)
config, folder, step, *places = sys.argv[1:]
# Below the start not even the empty folders find room.
found = {
    place: fill(Path(config), Path(folder, str(n)), place, 40 if place == "." else 12, int(step))
    for n, place in enumerate(places)
}
Path(folder, "found.json").write_text(json.dumps(found))
'''


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


@pytest.mark.walk
@pytest.mark.skipif(not can_mount(), reason="no mount namespace for an own small disk here")
@pytest.mark.parametrize(
    "step", [0, pytest.param(20, marks=pytest.mark.long)], ids=["some sizes", "all sizes"]
)
def test_a_full_disk_is_named_and_with_room_the_run_ends_as_if_it_had_been_there(
    unbroken, tmp_path, step
):
    config, expected = unbroken
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent),
        "OMP_NUM_THREADS": "1",
    }
    places = ("silos/north", "coordinator", ".")
    command = ["unshare", "-rm", sys.executable, "-W", "ignore", "-c", SCRIPT, str(config)]
    command += [str(tmp_path), str(step), *places]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    for place in places:
        assert len(found[place]["errors"]) >= 3, f"{place}: the disk was never full"
        for kind, text in found[place]["errors"]:
            assert kind == "DataError", f"{place}: {text}"
            assert "No space left on device" in text
            assert "Free disk space" in text
        assert without_volatile(found[place]["results"]) == without_volatile(
            json.loads(json.dumps(expected))
        ), place
