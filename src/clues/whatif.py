"""What another threshold, or a person's decisions, would change: nothing written, nothing sent."""

from collections.abc import Mapping
from dataclasses import dataclass

from clues.errors import DegenerateSelectionError
from clues.pipeline import Run
from clues.selection.threshold import Threshold
from clues.silo.overrides import Overrides


@dataclass(frozen=True)
class WhatIf:
    """What another threshold, or a person's decisions, would change in one silo.

    Attributes:
        rows: of the silo.
        kept_now: how many the threshold and the overrides in force keep.
        kept: how many would be kept; None where the silo would refuse.
        by_hand: how many of the decisions would be a person's.
        more: rows that would be kept and are not.
        fewer: rows that are kept and would not be.
        refused: why the silo would refuse, else empty.
    """

    rows: int
    kept_now: int
    kept: int | None
    by_hand: int
    more: int
    fewer: int
    refused: str = ""


def what_if(
    run: Run, in_force: Threshold, tried: Threshold, overrides: Mapping[str, Overrides]
) -> dict[str, WhatIf]:
    """Compare, silo by silo, what is in force with another threshold or other overrides.

    Writes nothing and sends nothing. A silo that would refuse is told as such.
    """
    found: dict[str, WhatIf] = {}
    for name, silo in run.silos.items():
        now = silo.select(in_force)
        before = set(now.kept)
        try:
            then = silo.select(tried, overrides.get(name))
        except DegenerateSelectionError as error:
            found[name] = WhatIf(len(now.decisions), len(before), None, 0, 0, 0, str(error))
            continue
        after = set(then.kept)
        by_hand = sum(d.by_hand for d in then.decisions)
        figures = (len(before), len(after), by_hand, len(after - before), len(before - after))
        found[name] = WhatIf(len(then.decisions), *figures)
    return found
