"""What a silo permits a coordinator: a bounded number of recipes, and one threshold per recipe.

A coordinator that tries threshold after threshold, or direction after direction, can find the
score of a single row by bisection. A coordinator that asks for an update of few rows can read the
rows out of the update. So the silo counts what was asked, on its own disk and whoever asks. It can
also make every selection wait for a person.
"""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clues.errors import DataError, RecipeMismatchError, UsageError
from clues.rundir import file_hash, hash_of, read_record, write_record
from clues.silo.overrides import FILE
from clues.silo.workspace import Workspace
from clues.wall.container import checksum_of
from clues.wall.messages import ScoreReply, SelectRequest

PROPOSAL = " proposal"


def admit(space: Workspace, recipe_hash: str) -> None:
    """Count the recipes that are used on the rows; refuse more than the silo allows.

    Raises:
        DataError: as many recipes as the silo allows have been used on the rows.
    """
    met = _met(space)
    known = {key.removesuffix(PROPOSAL) for key in met}
    limit = space.settings.max_selections
    if recipe_hash not in known and len(known) >= limit:
        raise DataError(
            f"silo {space.name}: {len(known)} recipes have come to these rows, and max_selections "
            f"is {limit}. Raise it in the silo file if you trust the coordinator."
        )
    if recipe_hash not in known:
        # Before the work: a request that is refused half-way has told something too.
        _remember(space, {recipe_hash: ""})


def admit_threshold(space: Workspace, request: SelectRequest) -> None:
    """Refuse a second threshold per recipe, and the first threshold once the scores are others.

    Raises:
        DataError: nothing is scored yet.
        RecipeMismatchError: under this recipe another threshold has already decided, or the same
            threshold has decided about other scores.
    """
    space.scores()
    earlier = _met(space).get(request.recipe_hash)
    if earlier and earlier != _decision(space, request):
        raise RecipeMismatchError(
            f"silo {space.name}: a threshold has already decided here under recipe "
            f"{request.recipe_hash}, and this is another one or decides about other scores. One "
            "recipe gets one; if all agree on a new one, start the run in a new folder."
        )


def remember_threshold(space: Workspace, request: SelectRequest) -> None:
    """Note a threshold before it decides about the rows, because a refusal tells something too."""
    _remember(space, {request.recipe_hash: _decision(space, request)})


def admit_proposal(space: Workspace, reply: ScoreReply) -> ScoreReply:
    """Let one proposed threshold per recipe leave the silo, because it is made of private scores.

    Raises:
        RecipeMismatchError: the rows were scored again and now propose another threshold.
    """
    if space.recipe().threshold.rule != "mixture":
        return reply
    key, value = reply.recipe_hash + PROPOSAL, repr(reply.proposal)
    if _met(space).get(key, value) != value:
        raise RecipeMismatchError(
            f"silo {space.name}: under recipe {reply.recipe_hash} a cut has already been proposed, "
            "from other scores. One recipe gets one; start the run in a new folder."
        )
    _remember(space, {key: value})
    return reply


def check_crowd(space: Workspace, n_rows: int, *, n_steps: int, what: str) -> None:
    """Refuse an update that would be made of fewer rows than `min_kept`.

    Args:
        space: the silo.
        n_rows: number of rows that could be trained on.
        n_steps: training steps until the update leaves the silo.
        what: name of the training, for the error.

    Raises:
        DataError: there are too few rows or steps, or the batches are too small.
    """
    n_seen = min(n_rows, n_steps * space.recipe().train.batch_size)
    if n_seen < space.settings.min_kept:
        raise DataError(
            f"silo {space.name}: {what} would train on {n_seen} rows before its update leaves, and "
            f"min_kept is {space.settings.min_kept}. An update of so few rows can give them away. "
            "More local steps or larger batches make it more."
        )


def approve(folder: Path) -> list[str]:
    """Record a person's approval of the scores and overrides as they are now.

    Args:
        folder: of a run or of one silo.

    Returns:
        Names of the silos that were approved.

    Raises:
        UsageError: no silo with scores is there.
    """
    places = [folder] if (folder / "private").is_dir() else sorted(folder.glob("silos/*"))
    scored = [place for place in places if (place / "private" / "scores.parquet").exists()]
    if not scored:
        raise UsageError(f"{folder}: no silo here has scores yet. Approve after scoring.")
    for place in scored:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"time": now, "scores": _seen_hash(place / "private")}
        write_record(place / "private" / "approval.json", content)
    return [place.name for place in scored]


def is_approved(private: Path) -> bool:
    """Whether a person has approved these very scores and overrides."""
    path = private / "approval.json"
    if not path.exists():
        return False
    return read_record(path, advice="Approve again.").get("scores") == _seen_hash(private)


def _met(space: Workspace) -> dict[str, str]:
    """Recipes used on these rows, each with its decision; that is empty before its threshold."""
    return _stored(space).get(space.data_token(), {})


def _remember(space: Workspace, more: dict[str, str]) -> None:
    met = {**_met(space), **more}
    write_record(_record(space), {**_stored(space), space.data_token(): met})


def _record(space: Workspace) -> Path:
    return space.private / "thresholds.json"


def _stored(space: Workspace) -> dict[str, Any]:
    path = _record(space)
    advice = "It says which thresholds have decided: put it back, or start the run in a new folder."
    return read_record(path, advice=advice) if path.exists() else {}


def _decision(space: Workspace, request: SelectRequest) -> str:
    """A threshold together with the scores that it decides about.

    Overrides are not in it: a person may change them, and only the silo itself can.
    """
    scores = file_hash(space.private / "scores.parquet")
    return hash_of([checksum_of(request.to_bytes()), scores])


def _seen_hash(private: Path) -> str | None:
    """Hash of the scores and, if there are any, of the overrides: both decide what is kept."""
    path, overrides = private / "scores.parquet", private / FILE
    if not path.exists():
        return None
    seen = path.read_bytes() + (overrides.read_bytes() if overrides.exists() else b"")
    return hashlib.sha256(seen).hexdigest()
