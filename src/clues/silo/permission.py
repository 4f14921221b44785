"""When a silo lets a coordinator at its rows: few recipes in all, one threshold each, maybe a person.

A coordinator that may try threshold after threshold, or direction after direction, can find single
rows' scores by bisection, and one that asks for an update of few rows can read them out of it.
What was asked stays on the silo's disk, whoever asks.
"""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clues.errors import DataError, RecipeMismatchError, UsageError
from clues.rundir import hash_of, write_json
from clues.silo.overrides import FILE
from clues.silo.workspace import Workspace
from clues.wall.container import checksum_of
from clues.wall.messages import ScoreReply, SelectRequest

PROPOSAL = " proposal"


def admit(space: Workspace, recipe_hash: str) -> None:
    """Count a recipe that comes to the rows; refuse more of them than the silo allows.

    Raises:
        DataError: the rows have met as many recipes as they may.
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
        # Before the work: what is refused half-way has told something too.
        _remember(space, {recipe_hash: ""})


def admit_threshold(space: Workspace, request: SelectRequest) -> None:
    """Refuse a second threshold under one recipe, and the first one on other scores.

    Raises:
        DataError: nothing is scored yet.
        RecipeMismatchError: another threshold has come under this recipe, or the same one when
            the rows had other scores.
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
    """Note that a threshold comes to the rows; before it decides, as a refusal tells something."""
    _remember(space, {request.recipe_hash: _decision(space, request)})


def admit_proposal(space: Workspace, reply: ScoreReply) -> ScoreReply:
    """Let one proposed cut a recipe out: it is made of private scores.

    Raises:
        RecipeMismatchError: scored again, the rows propose another one.
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
    """Refuse an update that fewer rows would make than the silo keeps at least.

    Args:
        space: the silo.
        n_rows: rows that could be trained on.
        n_steps: steps until the update leaves.
        what: for the error.

    Raises:
        DataError: rows, steps or batches are too few.
    """
    n_seen = min(n_rows, n_steps * space.recipe().train.batch_size)
    if n_seen < space.settings.min_kept:
        raise DataError(
            f"silo {space.name}: {what} would train on {n_seen} rows before its update leaves, and "
            f"min_kept is {space.settings.min_kept}. An update of so few rows can give them away. "
            "More local steps or larger batches make it more."
        )


def approve(folder: Path) -> list[str]:
    """Let the next selection go on, for the scores as they are now.

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
        write_json(place / "private" / "approval.json", content)
    return [place.name for place in scored]


def is_approved(private: Path) -> bool:
    """Whether a person has approved these very scores and overrides."""
    path = private / "approval.json"
    return path.exists() and json.loads(path.read_text())["scores"] == _seen_hash(private)


def _met(space: Workspace) -> dict[str, str]:
    """Recipes that these rows have met, and what each has decided; empty before a threshold."""
    return _stored(space).get(space.data_token(), {})


def _remember(space: Workspace, more: dict[str, str]) -> None:
    met = {**_met(space), **more}
    write_json(_record(space), {**_stored(space), space.data_token(): met})


def _record(space: Workspace) -> Path:
    return space.private / "thresholds.json"


def _stored(space: Workspace) -> dict[str, Any]:
    path = _record(space)
    return json.loads(path.read_text()) if path.exists() else {}


def _decision(space: Workspace, request: SelectRequest) -> str:
    """A threshold together with the scores that it decides about.

    Overrides are not in it: a person may change them, and only the silo itself can.
    """
    scores = hashlib.sha256((space.private / "scores.parquet").read_bytes()).hexdigest()
    return hash_of([checksum_of(request.to_bytes()), scores])


def _seen_hash(private: Path) -> str | None:
    """Of the scores, and of the overrides where there are some: both decide what is kept."""
    path, overrides = private / "scores.parquet", private / FILE
    if not path.exists():
        return None
    seen = path.read_bytes() + (overrides.read_bytes() if overrides.exists() else b"")
    return hashlib.sha256(seen).hexdigest()
