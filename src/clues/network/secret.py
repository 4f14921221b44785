"""The secret between Flower's processes and ours."""

import secrets
from pathlib import Path


def write_secret(folder: Path) -> Path:
    """A new random secret in a file that only we can read."""
    path = folder / "tasks.secret"
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(secrets.token_bytes(32))
    return path
