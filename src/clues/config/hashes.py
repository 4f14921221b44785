"""Hashes of settings, and seeds made of them."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any


def content_hash(content: Any) -> str:
    """First 12 hex digits of the SHA-256 of plain values."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def built_in_folder() -> Path:
    """Folder of the base model that ships with the package."""
    return Path(str(files("clues") / "assets" / "base"))


def derived_seed(seed: int, *parts: object) -> int:
    """A seed for one use, independent of the seeds of all other uses."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
