"""Scores by name: those of `baselines`, and those that another installed package brings.

A package offers a scorer as an entry point of the group `clues.scorers`, whose name is
`package.scorer`. A recipe names it with the version of that package, `package.scorer@1.2`, so that
the recipe's hash covers it and all sides run the same. Only what the owner of a machine has
installed there runs; a message can name it and cannot bring it.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points

import numpy as np

from clues.config import ScoreSettings, is_installed
from clues.data.tokens import EncodedRow
from clues.errors import DataError, ExtraError
from clues.scoring.baselines import BASELINES, NEEDS_ROWS, Scene, Scorer

GROUP = "clues.scorers"


def is_baseline(name: str) -> bool:
    """Whether it is a score that looks at a scene, and neither an influence form nor in-run."""
    return name in BASELINES or is_installed(name)


def needs_rows(name: str) -> bool:
    """Whether an anchor's score may depend on the silo's rows; of installed ones nobody knows."""
    return name in NEEDS_ROWS or is_installed(name)


def scorer(name: str) -> Callable[[Scene], Scorer]:
    """The function that looks at the scene and returns a function from rows to scores.

    Args:
        name: of a baseline, or `package.scorer@version`.

    Raises:
        ExtraError: no installed package offers it in this version.
        DataError: later, where what it returns is not one number per row.
    """
    if name in BASELINES:
        return BASELINES[name]
    wanted, _, version = name.partition("@")
    found = [point for point in entry_points(group=GROUP) if point.name == wanted]
    if len(found) != 1:
        who = f"{len(found)} installed packages offer" if found else "no installed package offers"
        offered = ", ".join(sorted({p.name for p in entry_points(group=GROUP)})) or "none"
        raise ExtraError(
            f"score {name}: {who} {wanted} as an entry point of {GROUP}. Install the one that brings it "
            f"(here are: {offered})."
        )
    (point,) = found
    theirs = _version(point)
    if theirs != version:
        raise ExtraError(
            f"score {name}: version {theirs} is installed here. Install the version that the recipe "
            f"names, or write {wanted}@{theirs} in the recipe of all sides."
        )
    return _checked(name, point.load())


def refuse_missing(settings: ScoreSettings) -> None:
    """Look for every scorer of another package before anything heavy starts.

    Raises:
        ExtraError: one is not installed, or in another version.
    """
    for name in (settings.method, *settings.compare):
        if is_installed(name):
            scorer(name)


def _version(point: EntryPoint) -> str:
    return point.dist.version if point.dist else "unknown"


def _checked(name: str, build: Callable[[Scene], Scorer]) -> Callable[[Scene], Scorer]:
    """The same, with a look at what comes back: somebody else has written it."""

    def looking(scene: Scene) -> Scorer:
        score = build(scene)

        def checked(rows: Sequence[EncodedRow]) -> np.ndarray:
            found = np.asarray(score(rows), dtype=np.float64)
            finite = scene.skip_nonfinite or np.isfinite(found).all()
            if found.shape != (len(rows),) or not finite:
                raise DataError(
                    f"score {name}: it gave an array of shape {found.shape} for {len(rows)} rows, or "
                    "numbers that are not finite. One finite number per row is needed."
                )
            return found

        return checked

    return looking
