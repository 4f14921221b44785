"""What a silo does first at every hello: close its folders, take the recipe, look at its files.

Also where the answer itself comes from the outbox: files may have changed in between.
"""

import hashlib
import json
import logging
from pathlib import Path

from clues import __version__
from clues.atomic import atomic_write_bytes, close_to_others, make_private_folder
from clues.config import Recipe, validate
from clues.errors import DataError, RecipeMismatchError
from clues.rundir import hash_if_there
from clues.silo.budget import check_private
from clues.silo.questions import Questions
from clues.silo.sizes import checked_public
from clues.silo.whole import first_to_repeat
from clues.silo.workspace import Workspace
from clues.wall.messages import HelloRequest

log = logging.getLogger("clues")


def settle(space: Workspace, request: HelloRequest) -> str:
    """Take recipe and public rows, and see whether what lies here is whole.

    Returns:
        The first stage that has to be asked again; empty where all stands.

    Raises:
        RecipeMismatchError: another version, or another base model than the recipe's.
        DataError: the request's parts do not fit together, there is no such domain, or too many
            recipes have come to these rows.
    """
    n_open = sum(close_to_others(folder) for folder in (space.private, space.outbox))
    if n_open:
        log.warning(
            "silo %s: %d private files and folders were open to other users of this machine; now "
            "they are closed.",
            *(space.name, n_open),
        )
    recipe = _checked_recipe(space, request)
    payloads = checked_public(recipe, request.public_files, domain=space.settings.domain)
    space.memory.clear()
    # Before anything here changes: a recipe too many leaves the one in force as it is.
    Questions(space).admit(request)
    public = space.private / "public"
    make_private_folder(public)
    for name, payload in payloads.items():
        _keep(public / name, payload)
    content = json.dumps(recipe.model_dump(mode="json"), indent=2, ensure_ascii=False)
    _keep(space.private / "recipe.json", content.encode())
    if space.settings.labels:
        # Labels are read after the last training; a missing column must not wait for that.
        space.rows().column(space.settings.labels)
    return first_to_repeat(space)


def _checked_recipe(space: Workspace, request: HelloRequest) -> Recipe:
    if request.version != __version__:
        raise RecipeMismatchError(
            f"silo {space.name}: the coordinator runs clues {request.version[:20]}, and "
            f"here is {__version__}. Install the same version on both sides."
        )
    recipe = validate(Recipe, request.recipe, where="the coordinator's recipe")
    space.check_model(recipe)
    if recipe.hash != request.recipe_hash:
        raise RecipeMismatchError("the coordinator's recipe does not have the hash it claims.")
    domain = space.settings.domain
    if domain not in recipe.public:
        raise DataError(
            f"silo {space.name}: domain {domain!r} has no public set "
            f"in the recipe, which lists: {', '.join(sorted(recipe.public))}."
        )
    check_private(space, recipe)
    return recipe


def _keep(path: Path, data: bytes) -> None:
    """Write a file where it is missing or another one."""
    if hash_if_there(path) != hashlib.sha256(data).hexdigest():
        atomic_write_bytes(path, data)
