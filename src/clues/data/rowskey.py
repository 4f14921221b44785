"""The key that silos share to hide their questions from the coordinator; a file on each machine."""

import secrets
from pathlib import Path

from clues.atomic import atomic_write_bytes, make_private_folder
from clues.errors import KeyFileError
from clues.reading import read_bytes

N_BYTES = 32  # the fewest that are taken, and how many random ones are written
MAX_BYTES = 4096
FEWEST_DIFFERENT = 8  # of 32 random bytes, and of their digits in base 16, more are different
OTHERS = 0o077
_ADVICE = "`clues keys rows FILE` makes a good one; all silos need the same."


def make_rows_key(path: Path) -> Path:
    """Write a new key, as 64 digits in base 16, for its owner alone.

    Raises:
        KeyFileError: there is such a file already.
    """
    if path.exists():
        raise KeyFileError(f"{path}: exists already. Remove it first, if nobody uses it.")
    # A folder that was there before may hold other things, and stays as open as it is.
    if not path.parent.exists():
        make_private_folder(path.parent)
    atomic_write_bytes(path, f"{secrets.token_hex(N_BYTES)}\n".encode(), private=True)
    return path


def read_rows_key(path: Path) -> bytes:
    """Read a key; white space at its end does not count, because editors add it.

    Raises:
        KeyFileError: it is missing, too short, not random, or others on this machine can read it.
    """
    key = read_bytes(path, limit=MAX_BYTES, advice=_ADVICE, error=KeyFileError).strip()
    if path.stat().st_mode & OTHERS:
        raise KeyFileError(f"{path}: other users can read this key. Call: chmod 600 {path}")
    if len(key) < N_BYTES:
        raise KeyFileError(
            f"{path}: the key has {len(key)} bytes, and at least {N_BYTES} are needed. {_ADVICE}"
        )
    if len(set(key)) < FEWEST_DIFFERENT:
        raise KeyFileError(f"{path}: the key repeats a few characters. {_ADVICE}")
    return key
