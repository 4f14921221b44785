"""A person at the silo approves one selection: this threshold, on these scores, with these overrides.

A selection that waits is written down with what it would keep, so that the person sees what is
approved. Another threshold, other scores or other overrides wait for another approval.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from clues.config import Settings, validate
from clues.errors import UsageError
from clues.rundir import read_record, write_record
from clues.silo.overrides import FILE
from clues.wall.container import checksum_of
from clues.wall.messages import SelectRequest

_AGAIN = "Remove it, run again, and approve what then waits."
WAITING, APPROVAL = "waiting.json", "approval.json"


class Waiting(Settings):
    """A selection that waits for a person.

    Attributes:
        request: checksum of the message that asks for it.
        seen: hash of the scores and overrides that it decides about.
        recipe_hash: of the recipe.
        rule: of the threshold.
        value: of the threshold; null for rule `ratio`.
        ratio: share of the rows to keep, for rule `ratio` alone.
        rows: how many rows the silo has.
        kept: how many it would keep; null where the silo would refuse.
        refused: why it would refuse, else empty.
    """

    request: str
    seen: str
    recipe_hash: str
    rule: str
    value: float | None
    ratio: float | None
    rows: int
    kept: int | None
    refused: str = ""


class Approval(Settings):
    """What a person approved, and when."""

    time: str
    selection: Waiting


@dataclass(frozen=True)
class Approved:
    """A silo whose waiting selection is approved."""

    silo: str
    selection: Waiting


def wait(private: Path, request: SelectRequest, selection: Waiting) -> None:
    """Write down what waits, in place of what waited before."""
    assert selection.request == checksum_of(request.to_bytes())
    write_record(private / WAITING, selection.model_dump(mode="json"))


def is_approved(private: Path, request: SelectRequest) -> bool:
    """Whether a person has approved this very request on the scores and overrides as they are."""
    path = private / APPROVAL
    if not path.exists():
        return False
    approved = validate(Approval, read_record(path, advice=_AGAIN), where=str(path)).selection
    return (approved.request, approved.seen) == (
        checksum_of(request.to_bytes()),
        seen_hash(private),
    )


def _always(_: Sequence[Approved]) -> bool:
    return True


def approve(
    folder: Path, *, agreed: Callable[[Sequence[Approved]], bool] = _always
) -> list[Approved]:
    """Record a person's approval of the selections that wait.

    Args:
        folder: of a run or of one silo.
        agreed: is shown what waits, and says whether it is approved. What comes from the
            coordinator meanwhile is not.

    Returns:
        What was approved, by silo.

    Raises:
        UsageError: no selection waits there, the person does not agree, or it waits on other scores
            or overrides than those that are there now.
    """
    places = [folder] if (folder / "private").is_dir() else sorted(folder.glob("silos/*"))
    places = [place for place in places if (place / "private" / WAITING).exists()]
    if not places:
        raise UsageError(
            f"{folder}: no selection waits for an approval here. Run until one is asked for."
        )
    approved: list[Approved] = []
    for place in places:
        path = place / "private" / WAITING
        selection = validate(Waiting, read_record(path, advice=_AGAIN), where=str(path))
        if selection.seen != seen_hash(place / "private"):
            raise UsageError(
                f"{place}: the scores or overrides have changed since the selection was asked for. "
                "Run again, and approve what then waits."
            )
        approved.append(Approved(place.name, selection))
    if not agreed(approved):
        raise UsageError("Nothing was approved.")
    for entry, place in zip(approved, places, strict=True):
        now = datetime.now(UTC).isoformat(timespec="seconds")
        content = Approval(time=now, selection=entry.selection)
        write_record(place / "private" / APPROVAL, content.model_dump(mode="json"))
    return approved


def seen_hash(private: Path) -> str:
    """Hash of the scores and, if there are any, of the overrides: both decide what is kept."""
    path, overrides = private / "scores.parquet", private / FILE
    scores = path.read_bytes() if path.exists() else b""
    seen = hashlib.sha256(scores).digest()
    return hashlib.sha256(
        seen + (overrides.read_bytes() if overrides.exists() else b"")
    ).hexdigest()
