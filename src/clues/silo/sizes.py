"""How large a request may be, and which public files a silo takes; known before it is read."""

import re
from collections.abc import Mapping
from pathlib import PurePath

import torch
from torch import Tensor

from clues.config import MAX_PUBLIC_BYTES, MAX_PUBLIC_TOTAL, Recipe
from clues.errors import DataError
from clues.reading import megabytes
from clues.silo.workspace import Workspace
from clues.wall.messages import (
    FitRequest,
    HelloRequest,
    ScoreRequest,
    TrainRequest,
    kind_of,
    token_of,
)

# For names and numbers; the coordinator gives replies as much.
ROOM_BYTES = 16_000_000
# A SHA-256, and the ends of the file's name by which it is read.
TRAVEL_NAME = re.compile(r"[0-9a-f]{64}(\.[A-Za-z0-9_]{1,16}){0,2}")


def check_request_size(space: Workspace, data: bytes) -> None:
    """Refuse a request that is larger than any that the recipe in force can bring.

    Raises:
        DataError: it is; says how large it may be.
        RecipeMismatchError: a large one came before any hello.
    """
    if len(data) <= ROOM_BYTES:
        return
    kind = kind_of(data)
    most = ROOM_BYTES
    if kind == HelloRequest.kind:
        most += MAX_PUBLIC_TOTAL
    elif n_adapters := _n_adapters(kind, space):
        adapter = sum(tensor.nbytes for tensor in space.model().parameters().values())
        most += n_adapters * adapter
    if len(data) > most:
        raise DataError(
            f"silo {space.name}: a {kind} request has {megabytes(len(data))}, and under this recipe "
            f"at most {megabytes(most)} are taken. Ask the coordinator what it sends."
        )


def _n_adapters(kind: str, space: Workspace) -> int:
    """How many adapters, or what is as large, a request may hold."""
    if kind not in (TrainRequest.kind, ScoreRequest.kind, FitRequest.kind):
        return 0
    recipe = space.recipe()
    n_sets = max(
        len(public.validation) + (public.reject is not None) for public in recipe.public.values()
    )
    one_checkpoint = 1 + n_sets + 2
    found = {TrainRequest.kind: 1 + n_sets, FitRequest.kind: 1}
    return found.get(kind, recipe.train.checkpoints * one_checkpoint)


def checked_public(recipe: Recipe, sent: Mapping[str, Tensor], *, domain: str) -> dict[str, bytes]:
    """The public files of a hello, by name: those that the recipe names, whole, and no others.

    Raises:
        DataError: another file came, one is too large or not what its name says, or one of the
            silo's own domain is missing.
    """
    sets = recipe.public.values()
    named = {f.sha256 for public in sets for f in public.files}
    hashes = {name: PurePath(name).name.split(".")[0] for name in sent}
    if len(set(hashes.values())) < len(sent) or not set(hashes.values()) <= named:
        raise DataError(
            "the coordinator sent public rows that its recipe does not name, or one file twice."
        )
    if sum(content.nbytes for content in sent.values()) > MAX_PUBLIC_TOTAL:
        raise DataError(f"the public files have more than {megabytes(MAX_PUBLIC_TOTAL)}.")
    payloads: dict[str, bytes] = {}
    for name, content in sent.items():
        if content.nbytes > MAX_PUBLIC_BYTES:
            raise DataError(f"a public file has more than {megabytes(MAX_PUBLIC_BYTES)}.")
        plain = content.dtype == torch.uint8 and content.dim() == 1
        payload = bytes(content.numpy()) if plain else b""
        if not TRAVEL_NAME.fullmatch(name) or token_of(payload) != hashes[name]:
            raise DataError("the coordinator's public rows do not have the hash they claim.")
        payloads[name] = payload
    own = recipe.public[domain]
    if not {f.sha256 for f in own.files} <= set(hashes.values()):
        raise DataError("the coordinator left out public rows that its recipe names.")
    return payloads
