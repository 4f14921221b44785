"""Hashes of settings, and seeds made of them."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

SHOWN = 12  # digits of a hash that people compare by eye


def content_hash(content: Any) -> str:
    """SHA-256 of plain values.

    Whole: of its first 12 digits two equal ones were found in four minutes, by trying seeds.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def short(hash_: str) -> str:
    """A hash as people are shown it; nothing is decided by it."""
    return hash_[:SHOWN]


def built_in_folder() -> Path:
    """Folder of the base model that ships with the package."""
    return Path(str(files("clues") / "assets" / "base"))


def derived_seed(seed: int, *parts: object) -> int:
    """A seed for one use, independent of the seeds of all other uses."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
