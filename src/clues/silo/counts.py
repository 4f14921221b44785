"""Numbers of rows as they may leave a silo: rounded, and with noise where its privacy asks for it.

A coordinator chooses thresholds. If everybody knew at which numbers a count is rounded up, it could
put a threshold on the score of one row, then just above it, and see the count change. So the silo's
own key draws for every recipe whether a count is rounded up from 1, from 5 or from 9 on, and how
many rows a selection must keep beyond those that min_kept asks for: one row more changes an answer
once in ten times, and nobody knows when.
"""

from collections.abc import Sequence

from clues.data.tokens import EncodedRow
from clues.silo.budget import Budget
from clues.silo.crowd import identity, secret_seed
from clues.silo.workspace import Workspace
from clues.wall.messages import round_count

ALL, KEPT = "all", "kept"
TENS = 10


def told_of_all(space: Workspace) -> int:
    """How many rows the silo has: all in the file, to the nearest ten.

    What a recipe makes of them (which are too long for it, say) does not change it.
    """
    return _told(space, len(space.rows().samples), what=ALL, of=space.data_token(), at_least=1)


def told_of_left_out(space: Workspace, n: int) -> int:
    """How many rows are left out because another silo keeps their question."""
    return round_count(n, up=draw_of_ten(space, "left out", space.recipe().hash, str(n)))


def draw_of_ten(space: Workspace, *purpose: str) -> int | None:
    """A number from 0 to 9 that the silo's key draws for a purpose; None where nothing is secret."""
    return None if space.order_seed() is not None else secret_seed(space, *purpose) % TENS


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
    # Under another recipe the same rows are rounded in another way.
    of = identity(space, rows) if space.settings.privacy else _drawn_for(space, rows)
    told = _told(space, len(rows), what=what, of=of, at_least=at_least)
    # With noise it could come out as more than all.
    return min(told, told_of_all(space))


def _drawn_for(space: Workspace, rows: Sequence[int]) -> str:
    return f"{space.recipe().hash} {identity(space, rows)}"


def _told(space: Workspace, n: int, *, what: str, of: str, at_least: int) -> int:
    if space.settings.privacy is None:
        return round_count(n, up=draw_of_ten(space, what, of))
    return round_count(max(Budget(space).count(n, what=what, of=of), at_least))
