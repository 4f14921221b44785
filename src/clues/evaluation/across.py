"""Several runs beside each other: means over seeds, and paired differences with intervals. No torch."""

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import count
from typing import Literal

import numpy as np

from clues.errors import DataError
from clues.evaluation.intervals import interval_over_seeds
from clues.printable import MAX_TEXT, printable
from clues.results.arms import ArmResult, Gap
from clues.results.run import Results

# Figures of an arm, and whether a higher one is better.
MEASURES = {
    "heldout_loss": False,
    "knowledge_accuracy": True,
    "auc": True,
    "recall": True,
    "precision": True,
}
SHARES = frozenset(MEASURES) - {"heldout_loss"}  # between 0 and 1
FEW_SEEDS = 3
PAIRED = ("heldout_loss", "knowledge_accuracy")
Over = Literal["seeds", "rows", ""]


@dataclass(frozen=True)
class Line:
    """One figure of one arm, or the difference of two.

    Attributes:
        group: runs that differ in their seed alone.
        arm: name of the joint model.
        measure: a key of `MEASURES`.
        against: what it is the difference to: another arm, or the same arm of another group as
            `GROUP: ARM`; empty where `value` is the mean of the figure itself.
        n: seeds.
        value: mean over seeds; of a difference, positive where this arm's figure is higher.
        low: lower end of the 95 % interval, no lower than the figure can be; None for one seed,
            where nothing is known of others, and where all seeds have the same value.
        high: its upper end.
        over: what the interval is over: `seeds` (Student's t on one value per seed, paired by
            seed where it is a difference), `rows` (a bootstrap over the held-out rows of the one
            run), or empty where there is none.
    """

    group: str
    arm: str
    measure: str
    against: str
    n: int
    value: float
    low: float | None
    high: float | None
    over: Over


@dataclass(frozen=True)
class Comparison:
    """What several runs say together.

    Attributes:
        seeds: by group.
        lines: figures and differences.
        notes: what makes them compare less well than it looks.
    """

    seeds: Mapping[str, tuple[int, ...]]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def compare_runs(runs: Iterable[Results], *, against: str = "random") -> Comparison:
    """Group runs that differ in their seed alone, and compare arms within and between groups.

    Within a group each arm is compared with the arm `against` of the same seed. The first group is
    then compared with by all others, arm by arm, over the seeds that both have.

    Args:
        runs: what `clues run` found; their order decides which group is the first.
        against: name of an arm.

    Raises:
        DataError: there is no run, one has no joint models, or two of a group have the same seed.
    """
    groups = _groups(runs)
    if not groups:
        raise DataError("there is no run to compare. Name folders of runs, such as runs/demo.")
    lines: list[Line] = []
    for name, by_seed in groups.items():
        lines += _figures(name, by_seed)
        lines += _within(name, by_seed, against)
    first, *others = groups
    for name in others:
        lines += _between(name, groups[name], first, groups[first])
    seeds = {name: tuple(sorted(by_seed)) for name, by_seed in groups.items()}
    return Comparison(seeds, tuple(lines), tuple(_notes(groups)))


def _groups(runs: Iterable[Results]) -> dict[str, dict[int, Results]]:
    found: dict[str, dict[int, Results]] = {}
    names: dict[str, str] = {}
    for run in runs:
        if not run.arms:
            raise DataError(
                f"run {run.name}: it has no joint models, so there is nothing to compare. Let "
                "evaluate.arms name them."
            )
        settings = {k: v for k, v in run.recipe.items() if k != "seed"}
        # Of the method only what the recipe does not have: weights that were found differ by seed.
        joined = [run.method.combine, run.method.aggregation]
        key = json.dumps([run.name, run.base_model, settings, joined], sort_keys=True)
        if key not in names:
            names[key] = _new_name(run.name, set(names.values()))
        by_seed = found.setdefault(names[key], {})
        (seed,) = run.seeds[:1] or (0,)
        if seed in by_seed:
            raise DataError(
                f"run {run.name}: two runs have seed {seed} and the same recipe. Name one of them."
            )
        by_seed[seed] = run
    return found


def _new_name(name: str, taken: Set[str]) -> str:
    """A run's name, cut; recipes of one name are told apart by number, whatever others are called."""
    short = printable(name, MAX_TEXT)
    numbered = (short if n == 1 else f"{short} ({n})" for n in count(1))
    return next(found for found in numbered if found not in taken)


def _values(by_seed: Mapping[int, Results], arm: str, measure: str) -> dict[int, float]:
    """By seed, where it was measured."""
    found = {
        seed: getattr(run.arms[arm], measure) for seed, run in by_seed.items() if arm in run.arms
    }
    return {seed: value for seed, value in found.items() if value is not None}


def _arms(by_seed: Mapping[int, Results]) -> list[str]:
    return list(dict.fromkeys(arm for run in by_seed.values() for arm in run.arms))


def _line(group: str, arm: str, measure: str, against: str, values: Sequence[float]) -> Line:
    # Equal values say that the figure is coarse, and not that it is sure.
    ends = interval_over_seeds(values) if np.ptp(values) > 0 else None
    low, high = ends or (None, None)
    if ends and measure in SHARES:
        least = -1.0 if against else 0.0
        low, high = max(ends[0], least), min(ends[1], 1.0)
    over: Over = "seeds" if ends else ""
    return Line(group, arm, measure, against, len(values), float(np.mean(values)), low, high, over)


def _figures(group: str, by_seed: Mapping[int, Results]) -> Iterable[Line]:
    for arm in _arms(by_seed):
        for measure in MEASURES:
            if values := _values(by_seed, arm, measure):
                yield _line(group, arm, measure, "", list(values.values()))


def _within(group: str, by_seed: Mapping[int, Results], against: str) -> Iterable[Line]:
    for arm in _arms(by_seed):
        for measure in PAIRED if arm != against else ():
            ours, theirs = (_values(by_seed, name, measure) for name in (arm, against))
            both = sorted(ours.keys() & theirs.keys())
            if not both:
                continue
            line = _line(group, arm, measure, against, [ours[s] - theirs[s] for s in both])
            gap = _gap(by_seed[both[0]].arms[arm], against, measure)
            if len(both) == 1 and gap is not None:
                line = Line(group, arm, measure, against, 1, line.value, *gap.interval, over="rows")
            yield line


def _gap(arm: ArmResult, against: str, measure: str) -> Gap | None:
    found = arm.against.get(against)
    return getattr(found, measure) if found else None


def _between(
    name: str, ours: Mapping[int, Results], first: str, theirs: Mapping[int, Results]
) -> Iterable[Line]:
    for arm in [arm for arm in _arms(ours) if arm in _arms(theirs)]:
        for measure in MEASURES:
            one, other = (_values(by_seed, arm, measure) for by_seed in (ours, theirs))
            both = sorted(one.keys() & other.keys())
            if both:
                gaps = [one[seed] - other[seed] for seed in both]
                yield _line(name, arm, measure, f"{first}: {arm}", gaps)


def _notes(groups: Mapping[str, Mapping[int, Results]]) -> Iterable[str]:
    runs = [run for by_seed in groups.values() for run in by_seed.values()]
    for what, values in (
        ("machines", {run.machine for run in runs}),
        ("versions of clues", {run.versions.get("clues", "") for run in runs}),
        ("base models", {run.base_model for run in runs}),
    ):
        if len(values) > 1:
            shown = ", ".join(printable(value, MAX_TEXT) for value in sorted(values))
            yield f"the runs are of different {what}: {shown}."
    for name, by_seed in groups.items():
        if len(by_seed) == 1:
            yield f"{name}: one seed says nothing about another; give three or more (--seeds)."
        elif len(by_seed) < FEW_SEEDS:
            yield (
                f"{name}: {len(by_seed)} seeds; an interval over so few hangs on what is assumed of the "
                "others. Give three or more (--seeds)."
            )
        unequal = sorted({arm for run in by_seed.values() for arm in _of_other_size(run)})
        if unequal:
            yield (
                f"{name}: {', '.join(unequal)} and the selection are trained on different numbers of "
                f"rows. {_equal(by_seed)}"
            )


def _equal(by_seed: Mapping[int, Results]) -> str:
    """How budgets become equal, or why they are not."""
    if all(run.method.rule == "ratio" for run in by_seed.values()):
        return "Of rows with equal scores at the cut all are kept, so such a score keeps more."
    return "For equal budgets, the fair setting, set recipe.threshold.rule: ratio."


def _of_other_size(run: Results) -> Iterable[str]:
    """Arms of other scores that do not train on as many rows as the selection, to one in a hundred."""
    kept = run.arms["clues"].kept if "clues" in run.arms else None
    for name, arm in run.arms.items():
        if name in ("mixed", "random", "clues", "oracle") or arm.kept is None or kept is None:
            continue
        if abs(arm.kept - kept) > max(10, kept / 100):
            yield name
