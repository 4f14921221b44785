"""Private files are for their owner alone, whatever the umask and whatever was there before."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from federation_helpers import files_of, open_micro, tiny_model, write_micro

from clues.atomic import (
    atomic_write_bytes,
    close_to_others,
    make_folder,
    make_private_folder,
    open_private,
    write_atomically,
)
from clues.errors import ApprovalError, CluesError, DataError, KeyFileError
from clues.model.cache import ModelCache
from clues.network.children import Child
from clues.network.keys import make_authority, make_node_key, make_server_certificate
from clues.network.secret import write_secret
from clues.pipeline import run_until
from clues.silo.approval import approve
from clues.silo.gate import Gate

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
PRIVATE = ("silos/north/private", "silos/north/outbox", "coordinator")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o277], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder that others may enter; pytest's own is closed, and what is in it would be too."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    return folder


def test_a_file_in_a_private_folder_is_closed_before_its_first_byte(place, umask):
    folder = place / "private"
    make_private_folder(folder)
    make_folder(folder / "of" / "many" / "parts")
    (folder / "rows.part").write_text("left by a process that was killed")
    (folder / "rows.part").chmod(0o666)
    seen = []

    def write(part: Path) -> None:
        seen.append((mode(part), part.read_bytes()))
        part.write_bytes(b"a row")

    write_atomically(folder / "rows", write)
    atomic_write_bytes(folder / "of" / "many" / "parts" / "rows", b"a row")
    with open_private(folder / "errors.log") as file:
        file.write("a row\n")
    assert seen == [(0o600, b"")]
    for path in (folder, *folder.rglob("*")):
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path.name


def test_what_is_not_private_follows_the_umask(place):
    before = os.umask(0o022)
    try:
        atomic_write_bytes(place / "results.json", b"{}")
        make_folder(place / "runs" / "demo")
        atomic_write_bytes(place / "ca.key", b"x", private=True)
    finally:
        os.umask(before)
    assert mode(place / "results.json") == 0o644
    assert mode(place / "runs") == mode(place / "runs" / "demo") == 0o755
    assert mode(place / "ca.key") == 0o600


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.slow
@pytest.mark.parametrize("trajectory", ["global", "crossfit", "inrun"])
def test_nothing_private_of_a_whole_run_is_open_to_others(model, place, trajectory):
    """Umask 000, an old folder that was open, every writer: tables, adapters, pages, logs."""
    steps = {"steps": 12} if trajectory == "inrun" else {}
    config = write_micro(
        place / "input",
        model,
        silos=("north",),
        changes={
            "recipe": {"score": {"trajectory": trajectory}, "train": steps},
            "evaluate": {"arms": ["clues"]},
        },
        silo_changes={"approval": True},
    )
    root = place / "run"
    before = os.umask(0)
    try:
        for name in PRIVATE:
            (root / name / "old").mkdir(parents=True)
            (root / name / "old" / "left.txt").write_text("of an earlier version")
        with pytest.raises(ApprovalError):
            run_until(open_micro(config, root, cache=ModelCache()))
        approve(root)
        run_until(open_micro(config, root, cache=ModelCache()))
        Gate("north", root / "silos/north", lambda: 1 / 0).answer(b"not a message")  # pyright: ignore
    finally:
        os.umask(before)
    found = [p for name in PRIVATE for p in (root / name, *(root / name).rglob("*"))]
    names = {p.name for p in found}
    assert {"kept.jsonl", "data.key", "scores.parquet", "errors.log", "report.html"} <= names
    assert {"left.txt", "approval.json", "adapter_model.safetensors", "files.json"} <= names
    odd = [f"{mode(p):o} {p}" for p in found if mode(p) != (0o700 if p.is_dir() else 0o600)]
    assert not odd
    assert mode(root / "results.json") == 0o666, "results are for whoever may enter the folder"
    assert not [p for p in files_of(root) if p.name.endswith(".part")]


def test_keys_are_closed_and_certificates_are_not(place, umask):
    folder = place / "keys"
    make_authority(folder)
    make_server_certificate(folder, ["here"], authority=folder)
    make_node_key(folder, "north")
    assert mode(folder) == 0o700
    assert {p.name for p in folder.iterdir() if mode(p) == 0o600} >= {
        *("ca.key", "server.key", "north.key"),
    }
    shutil.rmtree(folder)
    folder.mkdir()
    folder.chmod(0o755)
    make_authority(folder)
    assert mode(folder) == 0o755, "a folder of the user's own is not ours to close"
    assert mode(folder / "ca.key") == 0o600


def test_an_authority_that_others_can_read_signs_nothing(place):
    make_authority(place)
    (place / "ca.key").chmod(0o640)
    with pytest.raises(KeyFileError, match=r"ca\.key: other users can read this key.*chmod 600"):
        make_server_certificate(place, ["here"], authority=place)


def test_the_secret_of_the_processes_is_closed_also_where_an_old_one_was_open(place):
    (place / "tasks.secret").write_bytes(b"old")
    (place / "tasks.secret").chmod(0o666)
    path = write_secret(place)
    assert mode(path) == 0o600
    assert len(path.read_bytes()) == 32


def test_what_our_processes_write_is_closed(place):
    made = place / "made"
    before = os.umask(0)
    try:
        code = f"open({str(made)!r}, 'w').write('state')"
        with Child("a program", [sys.executable, "-c", code], log=place / "log") as child:
            child.process.wait(60)
    except subprocess.TimeoutExpired:
        pytest.fail("it did not end")
    finally:
        os.umask(before)
    assert mode(made) == mode(place / "log") == 0o600


def test_a_private_folder_of_somebody_else_is_refused_in_one_sentence(place, monkeypatch):
    folder = place / "private"
    folder.mkdir()
    folder.chmod(0o755)

    def refused(self: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refused)
    with pytest.raises(DataError, match=r"private: cannot be closed to other users") as caught:
        make_private_folder(folder)
    assert isinstance(caught.value, CluesError)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give away")
def test_root_does_not_write_into_what_another_user_owns(place):
    """Root can close such a folder, and its owner can still put files and links into it."""
    folder = place / "private"
    folder.mkdir(0o700)
    os.chown(folder, 65534, 65534)
    (place / "link").symlink_to(folder)
    for path in (folder, place / "link"):
        with pytest.raises(DataError, match="cannot be closed to other users"):
            make_private_folder(path)
    ours = place / "ours"
    make_private_folder(ours)
    (ours / "theirs").write_text("x")
    os.chown(ours / "theirs", 65534, 65534)
    with pytest.raises(DataError, match=r"theirs: cannot be closed"):
        close_to_others(ours)


def test_a_link_in_the_place_of_a_part_is_not_followed(place):
    victim = place / "victim"
    victim.write_text("as it was")
    for folder in (place, place / "closed"):
        make_folder(folder)
        (folder / "results.json.part").symlink_to(victim)
        atomic_write_bytes(folder / "results.json", b"new")
        assert (folder / "results.json").read_bytes() == b"new"
        assert not (folder / "results.json").is_symlink()
    assert victim.read_text() == "as it was"


@pytest.mark.parametrize("unit", ["clues-silo.service", "clues-coordinator.service"])
def test_units_close_what_they_write(unit):
    text = (Path(__file__).parents[1] / "deploy" / unit).read_text()
    assert "\nUMask=0077\n" in text
