"""The first screen of a private report in numbers: how many rows went, and why."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

LOW, UNSCORED = "low score", "without a score"
A_MINUTE = 2  # rows that a person reads


class Reason(NamedTuple):
    """Why rows are not kept: its number among all reasons from 1 on, and its share of the longest bar."""

    code: int
    name: str
    n: int
    share: float


class Outcome(NamedTuple):
    """What the first screen says."""

    headline: str
    rest: str
    reasons: list[Reason]
    n_first: int
    minutes: int


def outcome(why: Sequence[str], *, n_rulings: int, n_first: int, n_judged: int = 0) -> Outcome:
    """How many rows were set aside and why, and how many to read first.

    Args:
        why: for each row why it is not kept, `UNSCORED` where it has no score; empty for a kept row.
        n_rulings: decisions of a person that are in force.
        n_first: rows to read first.
        n_judged: rows that follow the files of checked and rejected rows.
    """
    counts = Counter(reason for reason in why if reason).most_common()
    n_unscored = dict(counts).get(UNSCORED, 0)
    n_aside = sum(n for _, n in counts) - n_unscored
    rest = f"{len(why) - n_aside - n_unscored:,} are kept"
    if n_unscored:
        rest += f"; {n_unscored:,} without a score {'is' if n_unscored == 1 else 'are'} neither"
    if n_rulings:
        said = "decision of a person is" if n_rulings == 1 else "decisions of a person are"
        rest += f"; {n_rulings:,} {said} in force"
    if n_judged:
        rest += f"; {n_judged:,} {'was' if n_judged == 1 else 'were'} checked or rejected before"
    most = max((n for _, n in counts), default=1)
    return Outcome(
        headline=f"{n_aside:,} of {len(why):,} rows {'was' if n_aside == 1 else 'were'} set aside",
        rest=f"{rest}.",
        reasons=[Reason(code, name, n, n / most) for code, (name, n) in enumerate(counts, 1)],
        n_first=n_first,
        minutes=max(1, round(n_first / A_MINUTE)),
    )
