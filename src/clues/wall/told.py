"""A message in words, for whoever wants to know what left a silo."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from clues.errors import DataError
from clues.reading import read_bytes
from clues.wall.ledger import Entry
from clues.wall.messages import (
    REPLIES,
    REQUESTS,
    Envelope,
    Failure,
    Refusal,
    WhoReply,
    WhoRequest,
    from_bytes,
)

SENT: dict[str, type[Envelope]] = {**REPLIES, **{c.kind: c for c in (Refusal, Failure, WhoReply)}}
ASKED: dict[str, type[Envelope]] = {**REQUESTS, WhoRequest.kind: WhoRequest}
# What each field of a reply is.
FIELDS = {
    "recipe_hash": "hash of the shared settings",
    "answers": "which request it answers",
    "silo": "the silo's name",
    "domain": "the silo's domain",
    "n_rows": "rows of its file, rounded to tens",
    "data_token": "changes with the rows; tells nothing without the silo's key",
    "version": "version of clues",
    "overrides_token": "changes when a person overrules rows; empty if nobody has",
    "oracle_token": "changes with the labels; empty without labels",
    "again": "stage from which the silo must be asked again; empty if none",
    "key_token": "same in all silos that share a key",
    "sketches": "sketches of questions, and random ones among them",
    "n_left_out": "rows left out, rounded to tens",
    "weight": "rows it was trained on, rounded to tens",
    "learning_rate": "of the last step; follows from the shared settings",
    "adapter": "LoRA weights after the training",
    "second_moment": "running mean of the squares of the rows' gradients",
    "first_moment": "running mean of the rows' gradients",
    "anchor_scores": "scores of public anchor rows; empty with the default score",
    "proposal": "a threshold that the silo proposes; none but with rule mixture",
    "n_kept": "kept rows, rounded to tens",
    "diagnostics": "exact figures; empty unless the silo shares them",
    "reference": "random; the reason stays in the silo's log",
}
LONG = 300  # characters of a value


def told(data: bytes, *, sender: str) -> list[tuple[str, str, str]]:
    """Every field of a reply: its name, its value as text, and what it is.

    Numbers of a tensor are counted and not shown: a person can tell nothing by them.

    Raises:
        DataError: the bytes are no reply of a silo.
    """
    message = from_bytes(data, allowed=SENT, sender=sender)
    return [(s.name, _value(getattr(message, s.name)), FIELDS[s.name]) for s in fields(message)]


def what_is_told(entry: Entry) -> str:
    """What the receiver learns from a message of this kind."""
    types = {**ASKED, **SENT}
    known = types.get(entry.kind)
    return known.reveals if known else "nobody knows: it is of no kind that this program has"


def find_reply(folder: Path, entry: Entry) -> bytes | None:
    """The bytes of a reply that left, from the silo's outbox; None where it is not there any more.

    Args:
        folder: of a run, or of a silo.
        entry: of the ledger; its hash says which file it is.
    """
    for outbox in (folder / "silos" / entry.silo / "outbox", folder / "outbox"):
        for path in sorted(outbox.rglob("*.clues")):
            if path.stat().st_size != entry.n_bytes:
                continue
            data = read_bytes(path, limit=entry.n_bytes, error=DataError)
            if hashlib.sha256(data).hexdigest() == entry.sha256:
                return data
    return None


def _value(value: Any) -> str:
    tensors = list(_tensors(value))
    if tensors:
        n = sum(tensor.numel() for tensor in tensors)
        shapes = "; ".join(dict.fromkeys("x".join(map(str, t.shape)) for t in tensors))
        shown = shapes if len(shapes) <= LONG else f"{shapes[:LONG]} ..."
        return f"{len(tensors)} tensors of {n:,} numbers in all ({shown})"
    if value in ("", {}, [], None):
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= LONG else f"{text[:LONG]} ... ({len(text):,} characters)"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
