"""Numbers of rows as they may leave a silo: rounded, and with noise where its privacy asks for it."""

from collections.abc import Sequence

from clues.data.tokens import EncodedRow
from clues.silo.budget import Budget
from clues.silo.crowd import identity
from clues.silo.workspace import Workspace
from clues.wall.messages import round_count

ALL, KEPT = "all", "kept"


def told_of_all(space: Workspace) -> int:
    """How many rows the silo has: all in the file, to the nearest ten.

    What a recipe makes of them (which are too long for it, say) does not change it.
    """
    return _told(space, len(space.rows().samples), what=ALL, of=space.data_token(), at_least=1)


def told_of_kept(space: Workspace, kept: Sequence[int]) -> int:
    """How many rows a selection keeps."""
    return _told_of_some(space, kept, what=KEPT)


def told_of_arm(space: Workspace, arm: str, rows: Sequence[EncodedRow]) -> int:
    """How many rows an arm trains on."""
    if arm == "mixed":
        return told_of_all(space)
    if arm in ("clues", "random"):
        # At random as many as are kept: the same number, told once.
        return told_of_kept(space, space.kept())
    return _told_of_some(space, [row.row for row in rows], what=arm)


def _told_of_some(space: Workspace, rows: Sequence[int], *, what: str) -> int:
    # Fewer than that would have been refused, which everybody knows, so it tells nothing more.
    at_least = space.settings.min_kept
    told = _told(space, len(rows), what=what, of=identity(space, rows), at_least=at_least)
    # With noise it could come out as more than all.
    return min(told, told_of_all(space))


def _told(space: Workspace, n: int, *, what: str, of: str, at_least: int) -> int:
    if space.settings.privacy is None:
        return round_count(n)
    return round_count(max(Budget(space).count(n, what=what, of=of), at_least))
