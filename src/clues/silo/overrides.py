"""Rows about which a person decided against the score, or with it; the silo's own business.

The private report exports them as a file with content ids and no row text. They are kept on the
silo's disk by recipe: a rerun finds them again, and under another recipe none of them counts
until somebody has looked at the new scores.
"""

import hmac
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, StrictBool, StringConstraints

from clues.config import Settings, short, validate
from clues.errors import DataError, RecipeMismatchError
from clues.reading import read_json, shown
from clues.rundir import hash_of, read_record, write_record
from clues.selection.decisions import Ruling
from clues.silo.workspace import Workspace

FILE = "overrides.json"
# Reasons of decisions that the files of `clues clean` bring, and no reader of the page.
CHECKED, REJECTED = "a checked row", "a rejected row"
_EXPORT = "Export the overrides from the private report."
_N_SHOWN = 3
Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


class Override(Settings):
    """One decision of a person; every row of this very text follows it.

    A repetition that is set aside as one stays aside where the text is to be kept.
    """

    id: Id
    keep: StrictBool
    reason: Reason = Field(repr=False)


class Reading(Settings):
    """A row that a person has read, and whether it is kept as this person leaves it."""

    id: Id
    kept: StrictBool


class Wish(Settings):
    """A threshold that a person would like better, and how many rows of the silo it would keep.

    It puts nothing in force: one recipe has one threshold for all silos.
    """

    threshold: FiniteFloat
    in_force: FiniteFloat
    kept: Annotated[int, Field(ge=0)]
    kept_in_force: Annotated[int, Field(ge=0)]


class Overrides(Settings):
    """All decisions of a silo under one recipe; a file replaces those that were in force.

    Attributes:
        reviewer: name or initials of who decided; may be empty.
        overrides: the decisions.
        read: every row that was read, decided about or not.
        wish: another threshold, if one is wished for.
    """

    format: Literal["clues-overrides"] = "clues-overrides"
    version: Literal[1] = 1
    silo: str
    recipe_hash: str
    reviewer: Annotated[str, StringConstraints(max_length=100)] = Field(default="", repr=False)
    overrides: tuple[Override, ...]
    read: tuple[Reading, ...] = Field(default=(), repr=False)
    wish: Wish | None = None

    @property
    def rulings(self) -> dict[str, Ruling]:
        """By content id."""
        return {o.id: Ruling(o.keep, o.reason) for o in self.overrides}


def read_overrides(path: Path) -> Overrides:
    """Read an exported file, and check what needs no rows.

    Raises:
        DataError: it is missing, unreadable or names a row twice.
        ConfigError: a key is missing, unknown or of another type.
    """
    # A JSON error holds the document, and reasons may quote rows: `read_json` shows neither.
    content = read_json(path, advice=_EXPORT)
    if not isinstance(content, dict):
        raise DataError(f"{shown(path)}: cannot be read as overrides (not an object). {_EXPORT}")
    overrides = validate(Overrides, content, where=path.name, keys_are_public=False)
    by_id: dict[str, set[bool]] = {}
    twice: list[str] = []
    for override in overrides.overrides:
        if override.id in by_id:
            twice.append(override.id)
        by_id.setdefault(override.id, set()).add(override.keep)
    contrary = [id_ for id_, ways in by_id.items() if len(ways) == 2]
    if contrary:
        raise DataError(
            f"{path.name}: {_ids(contrary)} to be kept and to be dropped. Decide, and leave one "
            "entry for each."
        )
    if twice:
        raise DataError(f"{path.name}: {_ids(twice)} named twice. Leave one entry for each.")
    return overrides


def check_overrides(space: Workspace, overrides: Overrides) -> None:
    """Whether they are of this silo, this recipe and these rows.

    Raises:
        DataError: of another silo, or a row is not there.
        RecipeMismatchError: of another recipe.
    """
    if overrides.silo != space.name:
        raise DataError(f"silo {space.name}: these overrides are of silo {overrides.silo[:63]!r}.")
    if overrides.recipe_hash != space.recipe().hash:
        raise RecipeMismatchError(
            f"silo {space.name}: the overrides were made under recipe "
            f"{short(overrides.recipe_hash)}, and this run is under {short(space.recipe().hash)}: a person "
            "has not seen these scores. Select without them, open the new private report, where "
            "they wait, and export them again."
        )
    known = {sample.id for sample in space.rows().samples}
    unknown = [o.id for o in overrides.overrides if o.id not in known]
    if unknown:
        raise DataError(
            f"silo {space.name}: {_ids(unknown)} not among its rows. The rows have changed, or "
            "the overrides are of other data. Export them again from this run's private report."
        )


def store(space: Workspace, overrides: Overrides) -> None:
    """Put them in force for their recipe; those of other recipes stay where they are."""
    stored = _stored(space) | {overrides.recipe_hash: overrides.model_dump(mode="json")}
    write_record(space.private / FILE, stored)


def in_force(space: Workspace, recipe_hash: str) -> dict[str, Ruling]:
    """What a person decided under this recipe, about rows that are still there."""
    return _of_these_rows(space, _under(space, recipe_hash))


def waiting(space: Workspace, recipe_hash: str) -> dict[str, Ruling]:
    """What a person decided under other recipes about these rows: not in force, not forgotten."""
    found: dict[str, Ruling] = {}
    for other in _stored(space):
        found |= _under(space, other) if other != recipe_hash else {}
    now = _under(space, recipe_hash)
    return _of_these_rows(space, {id_: r for id_, r in found.items() if id_ not in now})


def overrides_token(space: Workspace, recipe_hash: str) -> str:
    """Changes with the overrides in force, and tells nobody without the silo's key what they are.

    Empty where there are none.
    """
    rulings = in_force(space, recipe_hash)
    if not rulings:
        return ""
    content = hash_of({id_: [r.keep, r.reason] for id_, r in sorted(rulings.items())})
    return hmac.new(space.secret(), f"overrides {content}".encode(), "sha256").hexdigest()[:16]


def _of_these_rows(space: Workspace, rulings: dict[str, Ruling]) -> dict[str, Ruling]:
    if not rulings:
        return {}
    known = {sample.id for sample in space.rows().samples}
    return {id_: ruling for id_, ruling in rulings.items() if id_ in known}


def _under(space: Workspace, recipe_hash: str) -> dict[str, Ruling]:
    content: Mapping[str, Any] | None = _stored(space).get(recipe_hash)
    if content is None:
        return {}
    where = f"silo {space.name}, {FILE}"
    return validate(Overrides, content, where=where, keys_are_public=False).rulings


def _stored(space: Workspace) -> dict[str, Any]:
    path = space.private / FILE
    advice = "Restore the file, or remove it and select again."
    return read_record(path, advice=advice) if path.exists() else {}


def _ids(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:_N_SHOWN]) + (", ..." if len(ids) > _N_SHOWN else "")
    return f"{len(ids)} {'id is' if len(ids) == 1 else 'ids are'} ({shown})"
