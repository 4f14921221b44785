"""When a silo lets a threshold at its rows: once a recipe, few times in all, maybe after a person.

A coordinator that may try threshold after threshold can find single rows' scores by bisection,
and one that moves it until few rows are kept can read them out of the next adapter. Both need
many selections; what was selected stays on the silo's disk, whoever asks.
"""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

from clues.errors import DataError, RecipeMismatchError, UsageError
from clues.federation.messages import SelectRequest, token_of
from clues.federation.overrides import FILE
from clues.federation.workspace import Workspace
from clues.rundir import write_json


def admit(space: Workspace, request: SelectRequest) -> None:
    """Refuse a second threshold under one recipe, and more recipes than the silo allows.

    Raises:
        RecipeMismatchError: another threshold has come under this recipe.
        DataError: the rows have met as many thresholds as they may.
    """
    met = _met(space)
    earlier = met.get(request.recipe_hash)
    if earlier not in (None, token_of(request.to_bytes())):
        raise RecipeMismatchError(
            f"silo {space.name}: a threshold has already decided here under recipe "
            f"{request.recipe_hash}, and this is another one. One recipe gets one; if all agree "
            "on a new one, start the run in a new folder."
        )
    limit = space.settings.max_selections
    if earlier is None and len(met) >= limit:
        raise DataError(
            f"silo {space.name}: {len(met)} thresholds have decided about these rows, and "
            f"max_selections is {limit}. Raise it in the silo file if you trust the coordinator."
        )


def remember(space: Workspace, request: SelectRequest) -> None:
    """Note that a threshold comes to the rows; before it decides, as a refusal tells something."""
    met = _met(space) | {request.recipe_hash: token_of(request.to_bytes())}
    path = space.private / "thresholds.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, {**stored, space.data_token(): met})


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
    """Thresholds that these rows have met, as recipe hash and hash of the request."""
    path = space.private / "thresholds.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    return stored.get(space.data_token(), {})


def _seen_hash(private: Path) -> str | None:
    """Of the scores, and of the overrides where there are some: both decide what is kept."""
    path, overrides = private / "scores.parquet", private / FILE
    if not path.exists():
        return None
    seen = path.read_bytes() + (overrides.read_bytes() if overrides.exists() else b"")
    return hashlib.sha256(seen).hexdigest()
