"""Hashes of settings and of base models, and seeds made of them."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from clues.config.base import BUILT_IN
from clues.errors import ConfigError
from clues.reading import is_folder


def content_hash(content: Any) -> str:
    """First 12 hex digits of the SHA-256 of plain values."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def built_in_folder() -> Path:
    """Folder of the base model that ships with the package."""
    return Path(str(files("clues") / "assets" / "base"))


def weights_sha256(name: str) -> str | None:
    """Hash of a base model on disk: weights, configuration, tokenizer. None for a hub name."""
    folder = built_in_folder() if name == BUILT_IN else Path(name)
    if not is_folder(folder, error=ConfigError):
        return None
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        with file.open("rb") as opened:
            digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def derived_seed(seed: int, *parts: object) -> int:
    """A seed for one use, independent of the seeds of all other uses."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
