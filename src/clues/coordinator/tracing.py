"""Numbers that are not finite are traced to the silo that brought them, and cost nobody else."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from clues.coordinator.attendance import Attendance
from clues.coordinator.inbox import Update
from clues.errors import NumericsError

Joined = TypeVar("Joined")


def join_finite(
    found: Mapping[str, Update],
    *,
    join: Callable[[Mapping[str, Update]], Joined],
    alone: Callable[[Update], Joined],
    look: Callable[[Joined], None],
    stage: str,
    attendance: Attendance,
) -> tuple[dict[str, Update], Joined]:
    """Join updates, and leave out those with which the coordinator can compute nothing.

    Every single update has passed the guards, so it is finite; what a model makes of it need not
    be. Only when the joint adapter fails is each silo's looked at alone.

    Args:
        found: updates by silo.
        join: makes one adapter of all.
        alone: the same of one silo's update.
        look: computes with it what the run needs.
        stage: for the record of absences.
        attendance: who takes part.

    Returns:
        The updates that were joined, and what was made of them.

    Raises:
        NumericsError: each silo's update alone is fine, and together they are not.
        QuorumError: too few silos are left.
    """
    try:
        joint = join(found)
        look(joint)
    except NumericsError as error:
        bad = {name: why for name, u in found.items() if (why := _why(name, u, alone, look))}
        if not bad:
            raise
        # Members without a row for this training count as well.
        attendance.leave_out(stage, bad, n_left=len(attendance.members) - len(bad))
        if len(bad) == len(found):
            raise NumericsError(f"no silo's update can be used. {error}") from None
        rest = {name: update for name, update in found.items() if name not in bad}
        joint = join(rest)
        look(joint)
        return rest, joint
    return dict(found), joint


def _why(
    name: str,
    update: Update,
    alone: Callable[[Update], Joined],
    look: Callable[[Joined], None],
) -> str:
    """Why a silo's update cannot be used; empty if it can."""
    try:
        look(alone(update))
    except NumericsError as error:
        return f"silo {name}: with what it sent, public rows have no finite score. {error}"
    return ""
