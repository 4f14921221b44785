"""Numbers of rows as they may leave a silo: rounded, and with noise where its privacy asks for it."""

from collections.abc import Sequence

from clues.data.tokens import EncodedRow
from clues.rundir import hash_of
from clues.silo.budget import Budget
from clues.silo.workspace import Workspace
from clues.wall.messages import round_count

ALL, KEPT = "all", "kept"


def told_of_all(space: Workspace) -> int:
    """How many rows the silo has: all in the file, to the nearest ten.

    What a recipe makes of them (which are too long for it, say) does not change it.
    """
    return _told(space, len(space.rows().samples), what=ALL, of=space.data_token(), fewest=0)


def told_of_kept(space: Workspace, kept: Sequence[int]) -> int:
    """How many rows a selection keeps."""
    told = _told(space, len(kept), what=KEPT, of=_identity(space, kept), fewest=1)
    # With noise it could come out as more than all.
    return min(told, told_of_all(space))


def told_of_arm(space: Workspace, arm: str, rows: Sequence[EncodedRow]) -> int:
    """How many rows an arm trains on."""
    if arm == "mixed":
        return told_of_all(space)
    if arm in ("clues", "random"):
        # At random as many as are kept: the same number, told once.
        return told_of_kept(space, space.kept())
    positions = [row.row for row in rows]
    told = _told(space, len(rows), what=arm, of=_identity(space, positions), fewest=1)
    return min(told, told_of_all(space))


def _told(space: Workspace, n: int, *, what: str, of: str, fewest: int) -> int:
    if space.settings.privacy is None:
        return round_count(n)
    noised = Budget(space).count(n, what=what, of=of)
    # That fewer would have been refused is known; so this tells nothing more.
    return round_count(max(noised, space.settings.min_kept if fewest else 1))


def _identity(space: Workspace, rows: Sequence[int]) -> str:
    return hash_of([space.data_token(), sorted(rows)])
