"""The secret between Flower's processes and ours."""

import secrets
from pathlib import Path

from clues.atomic import atomic_write_bytes


def write_secret(folder: Path) -> Path:
    """A new random secret in a file that only we can read."""
    path = folder / "tasks.secret"
    atomic_write_bytes(path, secrets.token_bytes(32), private=True)
    return path
