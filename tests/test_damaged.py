"""A finished run whose files are damaged: made again from what stands, or one sentence; no more."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from federation_helpers import (
    files_of,
    open_micro,
    plain,
    tiny_model,
    without_volatile,
    write_micro,
)

from clues.atomic import read_bytes
from clues.errors import CluesError
from clues.model.cache import ModelCache
from clues.network.keys import check_private_key
from clues.pipeline import run_until
from clues.rundir import file_hash, read_record
from clues.scoring.job import Job
from tests.bounded import within

CHANGES = {"evaluate": {"arms": ["clues"]}, "combine": {"server": {"optimizer": "fedadam"}}}
DEEP = b"[" * 100_000
DAMAGES = {
    "emptied": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "garbage": lambda data: bytes(range(256)) * 4,
    "flipped": lambda data: flipped(data, len(data) // 2),
    "flipped near its end": lambda data: flipped(data, len(data) - 3),
    "null": lambda data: b"null",
    "a list": lambda data: b"[]",
    "an object": lambda data: b"{}",
    "a number": lambda data: b"0",
    "deep": lambda data: DEEP + DEEP.replace(b"[", b"]"),
    "an object of its keys": lambda data: b'{"inputs": 1, "result": 2, "recipe_hash": 3}',
}
OF_ANY_FILE = ("emptied", "cut", "garbage", "flipped", "flipped near its end")
# Locks hold nothing; what helper processes left is not read.
NOT_READ = (".lock",)
# What cannot be made again says so; a silo must not forget what it has decided or spent.
REFUSED = ("asked.json", "decided.json", "data.key", "ledger.jsonl")


def flipped(data: bytes, at: int) -> bytes:
    at = max(0, min(at, len(data) - 1))
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


class World:
    def __init__(self, folder: Path) -> None:
        self.cache, self.root = ModelCache(), folder / "run"
        self.config = write_micro(folder / "input", tiny_model(folder / "model"), changes=CHANGES)
        self.results = self.run(self.root)
        self.files = [p.relative_to(self.root).as_posix() for p in files_of(self.root)]
        self.files = [name for name in self.files if not name.endswith(NOT_READ)]

    def run(self, root: Path) -> dict[str, Any]:
        results = run_until(open_micro(self.config, root, cache=self.cache)).results
        return without_volatile(plain(results))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("damaged"))


def products(root: Path) -> dict[str, bytes]:
    """What a user takes out of a run, byte by byte."""
    found = [*root.glob("coordinator/a*/**/*.safetensors"), *root.glob("silos/*/private/*.jsonl")]
    found += [*root.glob("silos/*/private/decisions.csv"), *root.glob("silos/*/private/*.parquet")]
    found += [*root.glob("silos/*/private/report.html"), *root.glob("silos/*/private/select*")]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in found}


def check(world: World, root: Path, name: str) -> bool:
    """Run again; True if it was made again, False if it was refused with one sentence."""
    try:
        results = world.run(root)
    except CluesError as error:
        text = str(error)
        assert "Traceback" not in text
        return False
    assert results == world.results, f"{name}: exit 0 and another result"
    expected = products(world.root)
    assert len(expected) >= 10
    assert products(root) == expected, f"{name}: a product stays damaged"
    return True


def damage(world: World, root: Path, name: str, how: str) -> None:
    shutil.copytree(world.root, root)
    path = root / name
    path.write_bytes(DAMAGES[how](path.read_bytes()))


SAMPLE = [
    ("silos/north/private/kept.jsonl", "flipped"),
    ("silos/north/private/decisions.csv", "emptied"),
    ("silos/south/private/scores.parquet", "flipped"),
    ("silos/north/private/selection.json", "a list"),
    ("silos/north/private/files.json", "deep"),
    ("silos/north/private/recipe.json", "null"),
    ("coordinator/stages/measure-clues.json", "flipped"),
    ("coordinator/stages/train.json", "deep"),
    ("coordinator/arms/clues/adapter_model.safetensors", "flipped"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), SAMPLE)
def test_a_damaged_file_is_made_again(world, tmp_path, name, how):
    damage(world, tmp_path / "run", name, how)
    assert check(world, tmp_path / "run", name), "nothing was lost that cannot be made again"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("what", ["pipe", "device"])
@pytest.mark.parametrize(
    "read",
    [
        read_bytes,
        file_hash,
        lambda path: read_record(path, advice=""),
        lambda path: Job.read(path.parent),
        check_private_key,
    ],
    ids=["bytes", "hash", "record", "job", "key"],
)
def test_what_is_no_plain_file_is_refused_and_not_waited_for(tmp_path, what, read):
    path = tmp_path / "job.safetensors"
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")

    def look() -> str:
        try:
            return str(read(path))
        except CluesError:
            return "refused"

    assert within(look, seconds=2) == "refused"


@pytest.mark.slow
def test_damaged_weights_of_the_parts_are_no_fault_of_the_coordinator(world, tmp_path):
    damage(world, tmp_path / "run", "silos/north/private/weights.json", "an object")
    for old in (tmp_path / "run").glob("silos/north/outbox/select-*"):
        old.unlink()
    (tmp_path / "run/coordinator/stages/select.json").unlink()
    assert world.run(tmp_path / "run") == world.results
    weights = json.loads((tmp_path / "run/silos/north/private/weights.json").read_text())
    assert set(weights) == {"loss", "alignment"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["emptied", "an object", "deep"])
def test_what_a_silo_must_not_forget_is_refused_if_it_is_damaged(world, tmp_path, how):
    damage(world, tmp_path / "run", "silos/north/private/asked.json", how)
    for old in (tmp_path / "run").glob("silos/north/outbox/select-*"):
        old.unlink()
    (tmp_path / "run/coordinator/stages/select.json").unlink()
    with pytest.raises(CluesError, match=r"asked\.json: damaged"):
        world.run(tmp_path / "run")


def test_an_empty_key_is_no_key(world, tmp_path):
    damage(world, tmp_path / "run", "silos/north/private/data.key", "emptied")
    with pytest.raises(CluesError, match=r"data\.key: not a key"):
        world.run(tmp_path / "run")


@pytest.mark.slow
def test_a_file_of_another_owner_in_place_of_ours_is_found(world, tmp_path):
    """Whole, with a checksum of its own, and not the one that this stage wrote."""
    root = shutil.copytree(world.root, tmp_path / "run")
    [rounds] = (root / "coordinator/rounds").iterdir()
    other = min(rounds.glob("server-*.safetensors"))
    shutil.copy(other, root / "coordinator/arms/clues/adapter_model.safetensors")
    shutil.copy(root / "silos/south/private/kept.jsonl", root / "silos/north/private/kept.jsonl")
    assert check(world, root, "files of others")


def continued(world: World, root: Path) -> list[str]:
    """What a run that lost all stages' markers finds on the coordinator's disk."""
    kept = ("coordinator/trajectory/", "coordinator/rounds/")
    return [name for name in world.files if name.startswith(kept)]


@pytest.mark.walk
def test_a_round_that_is_damaged_before_the_run_goes_on_is_done_again(world, tmp_path):
    names = continued(world, world.root)
    assert any("round-1.safetensors" in n for n in names)
    assert any("server-0.safetensors" in n for n in names)
    for number, name in enumerate(names):
        root = tmp_path / str(number)
        damage(world, root, name, "flipped")
        shutil.rmtree(root / "coordinator/stages")
        assert check(world, root, name)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_files_that_their_owner_cannot_read_are_opened_or_named(world, tmp_path):
    """As a user who is not root, for whom permissions count."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else for a while")
    names = [n for n in world.files if "/stages/" in n or "/north/private/" in n] + ["ledger.jsonl"]
    place = tmp_path / "theirs"
    nobody = 65534
    inputs = world.config.parents[1]
    for path in (tmp_path, *tmp_path.parents[:2], inputs, *inputs.rglob("*")):
        path.chmod(0o755)
    for number, name in enumerate(names[::4]):
        root = place / str(number)
        shutil.copytree(world.root, root)
        (root / name).chmod(0)
        for path in (place, root, *root.rglob("*")):
            os.chown(path, nobody, nobody)
        os.seteuid(nobody)
        try:
            check(world, root, name)
        finally:
            os.seteuid(0)


@pytest.mark.long
def test_every_file_with_every_damage(world, tmp_path):
    """All files of a run, all damages: the whole matrix, and how much of it is made again."""
    wrong: list[str] = []
    refused: set[str] = set()
    n_cases = 0
    for name in world.files:
        kinds = DAMAGES if name.endswith((".json", ".jsonl")) else OF_ANY_FILE
        for how in kinds:
            for killed in (False, True):
                root = tmp_path / "run"
                shutil.rmtree(root, ignore_errors=True)
                damage(world, root, name, how)
                if killed:
                    shutil.rmtree(root / "coordinator/stages")
                n_cases += 1
                try:
                    if not check(world, root, name):
                        refused.add(Path(name).name)
                except Exception as error:  # noqa: BLE001 - all that is wrong at once
                    wrong.append(f"{name}, {how}, killed {killed}: {type(error).__name__} {error}")
    assert not wrong, f"{len(wrong)} of {n_cases}:\n" + "\n".join(w[:300] for w in wrong[:40])
    assert refused <= set(REFUSED), f"refused, and could be made again: {refused}"
