"""The identity of a base model: the hash of every file of its folder that can change an answer.

A path says nothing about what lies there, and a hash of the weights alone says nothing about the
tokenizer or the chat template. So every file counts but those listed below.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from clues.errors import DataError

# What cannot change an answer: pages for people, pictures, and weights in formats that we never
# open. Names are compared in lower case; the hub's client takes the same patterns.
WITHOUT_EFFECT = (
    *("*.md", "readme*", "license*", "licence*", "notice*", "*.pdf", "*.html"),
    *("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp", "*.ico"),
    *("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.onnx"),
    *("*.onnx_data", "*.gguf", "*.ggml", "*.msgpack", "*.h5", "*.ot", "*.tflite", "*.npz"),
    *("*.mlmodel", "*.nemo", "*.tar", "*.gz", "*.zip", "*.pyc", "events.out.tfevents.*"),
)
MAX_FILES, MAX_NAME = 1000, 200
# Everything but weights; the largest tokenizers have 40 MB.
MAX_BYTES = 512 * 2**20


def counts(name: str, *, code: bool) -> bool:
    """Whether a file can change an answer.

    Args:
        name: of the file in the model's folder, parts separated by `/`.
        code: whether the model may run code of its own; else `.py` files are not read.
    """
    parts = name.lower().split("/")
    # .git, .cache and what editors leave.
    if any(part.startswith(".") or part == "__pycache__" for part in parts):
        return False
    if parts[-1].endswith(".py"):
        return code
    return not any(fnmatchcase(parts[-1], pattern) for pattern in WITHOUT_EFFECT)


def model_files(folder: Path, *, code: bool) -> dict[str, str]:
    """The SHA-256 of every file that can change an answer, by its name in the folder.

    Args:
        folder: with a model.
        code: whether the model may run code of its own.

    Raises:
        DataError: a link that leads out of the folder, something that is no plain file, too many
            files, or a name that cannot cross.
    """
    found: dict[str, str] = {}
    for name, path in _walk(folder.resolve()):
        if not counts(name, code=code):
            continue
        if len(found) == MAX_FILES:
            raise DataError(f"{folder}: over {MAX_FILES} files. Give a folder with a model alone.")
        if len(name) > MAX_NAME or not name.isprintable():
            raise DataError(f"{folder}: the name of file {len(found) + 1} is too long or odd.")
        found[name] = _hash(path, folder, name)
    return found


def differing(mine: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """Say which files of two models are not the same; empty where all are."""
    kinds = {
        "differ": [n for n in mine if n in theirs and mine[n] != theirs[n]],
        "only here": [n for n in mine if n not in theirs],
        "not here": [n for n in theirs if n not in mine],
    }
    return "; ".join(f"{kind}: {_few(sorted(names))}" for kind, names in kinds.items() if names)


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    def unreadable(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}).") from None

    for root, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__pycache__")
        for name in folders:
            if (Path(root) / name).is_symlink():
                raise DataError(f"{Path(root) / name}: a link to a folder. Copy the folder itself.")
        for name in sorted(files):
            path = Path(root) / name
            yield path.relative_to(folder).as_posix(), path


def _homes(folder: Path) -> tuple[Path, ...]:
    """Where links of this folder may lead; the hub's cache keeps the bytes of a snapshot apart."""
    if folder.parent.name == "snapshots":
        return folder, folder.parent.parent / "blobs"
    return (folder,)


def _hash(path: Path, folder: Path, name: str) -> str:
    try:
        target = path.resolve(strict=True)
        if not any(target.is_relative_to(home) for home in _homes(folder.resolve())):
            raise DataError(f"{path}: a link that leads out of the model's folder. Copy the file.")
        status = target.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: no plain file. A model's folder holds files alone.")
        if status.st_size > MAX_BYTES and not name.endswith(".safetensors"):
            size = status.st_size // 2**20
            raise DataError(
                f"{path}: {size} MB, and {MAX_BYTES // 2**20} are the most beside weights."
            )
        with target.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or "links in a circle"
        raise DataError(f"{path}: cannot be read ({why}).") from None
