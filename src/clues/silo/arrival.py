"""What a silo does first at every hello: close its folders, take the recipe, look at its files.

Also where the answer itself comes from the outbox: files may have changed in between.
"""

import hashlib
import json
import logging
from pathlib import Path

from clues import __version__
from clues.atomic import atomic_write_bytes, close_to_others, make_private_folder
from clues.config import Recipe, validate, weights_sha256
from clues.errors import DataError, RecipeMismatchError
from clues.rundir import hash_if_there
from clues.silo.whole import first_to_repeat
from clues.silo.workspace import Workspace
from clues.wall.messages import HelloRequest, token_of

log = logging.getLogger("clues")


def settle(space: Workspace, request: HelloRequest) -> str:
    """Take recipe and public rows, and see whether what lies here is whole.

    Returns:
        The first stage that has to be asked again; empty where all stands.

    Raises:
        RecipeMismatchError: another version, or another base model than the recipe's.
        DataError: the request's parts do not fit together, or there is no such domain.
    """
    n_open = sum(close_to_others(folder) for folder in (space.private, space.outbox))
    if n_open:
        log.warning(
            "silo %s: %d private files and folders were open to other users of this machine; now "
            "they are closed.",
            *(space.name, n_open),
        )
    _take_recipe(space, request)
    space.memory.clear()
    return first_to_repeat(space)


def _take_recipe(space: Workspace, request: HelloRequest) -> None:
    if request.version != __version__:
        raise RecipeMismatchError(
            f"silo {space.name}: the coordinator runs clues {request.version[:20]}, and "
            f"here is {__version__}. Install the same version on both sides."
        )
    recipe = validate(Recipe, request.recipe, where="the coordinator's recipe")
    if recipe.hash != request.recipe_hash:
        raise RecipeMismatchError("the coordinator's recipe does not have the hash it claims.")
    domain = space.settings.domain
    if domain not in recipe.public:
        raise DataError(
            f"silo {space.name}: domain {domain!r} has no public set "
            f"in the recipe, which lists: {', '.join(sorted(recipe.public))}."
        )
    own = space.own_model(recipe)
    mine = weights_sha256(own.model.name)
    if mine != recipe.model.weights_sha256:
        raise RecipeMismatchError(
            f"silo {space.name}: the base model here is not the one of the recipe "
            f"({str(mine)[:12]}, expected {str(recipe.model.weights_sha256)[:12]}). Fetch "
            "the same weights, or set model_path in the silo file."
        )
    _take_public_rows(space, recipe, request)
    content = json.dumps(own.model_dump(mode="json"), indent=2, ensure_ascii=False)
    _keep(space.private / "recipe.json", content.encode())


def _take_public_rows(space: Workspace, recipe: Recipe, request: HelloRequest) -> None:
    public = space.private / "public"
    make_private_folder(public)
    for name, content in request.public_files.items():
        payload = bytes(content.numpy())
        if token_of(payload) != name.split(".")[0] or Path(name).name != name:
            raise DataError("the coordinator's public rows do not have the hash they claim.")
        _keep(public / name, payload)
    own_set = recipe.public[space.settings.domain]
    sent = {name.split(".")[0] for name in request.public_files}
    if not {f.sha256 for f in (own_set.anchor, *own_set.validation.values())} <= sent:
        raise DataError("the coordinator left out public rows that its recipe names.")


def _keep(path: Path, data: bytes) -> None:
    """Write a file where it is missing or another one."""
    if hash_if_there(path) != hashlib.sha256(data).hexdigest():
        atomic_write_bytes(path, data)
