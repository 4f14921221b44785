"""How time and memory grow with rows and with checkpoints."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.clock import ratio, take_turns
from benchmarks.memory import Resident
from benchmarks.scene import Scene
from benchmarks.speed import products
from benchmarks.table import NOT_MEASURED, Row
from clues.config import ScoreSettings
from clues.model.adapters import AdapterState
from clues.scoring.trajectory import score_rows

FACTORS = (2, 4)
TOLERANCE = 1.1  # above this, 4 n rows cost more than 4.4 x n


def growth_rows(scene: Scene, n_rows: int, n_turns: int) -> list[Row]:
    """Time for n, 2n and 4n rows, and for 1, 2 and 4 checkpoints."""
    direction = scene.directions(1)
    by_rows = {k: partial(products, scene, scene.repeated(k * n_rows), direction) for k in _all()}
    by_checkpoints = {k: partial(_trajectory, scene, n_rows, direction[0], k) for k in _all()}
    return [
        _growth(f"time for {_sizes(n_rows)} rows", by_rows, scene, n_turns),
        _growth(f"time for {_sizes(1)} checkpoints, {n_rows} rows", by_checkpoints, scene, n_turns),
    ]


def long_rows(found: Sequence[Resident]) -> list[Row]:
    """Time and peak memory of one process for more and more short rows."""
    first, last = found[0], found[-1]
    times = (last.seconds / last.n_rows) / (first.seconds / first.n_rows)
    seconds = ", ".join(f"{c.seconds:.1f}" for c in found)
    counts = ", ".join(f"{c.n_rows}" for c in found)
    return [
        Row(
            f"time for {counts} short rows",
            f"linear: a row of the last at most {TOLERANCE} x one of the first",
            f"{seconds} s, {times:.2f} x",
            times <= TOLERANCE,
        ),
        _memory_row(found),
    ]


def draw(found: Sequence[Resident], path: Path) -> None:
    """Time and peak memory by number of rows, as SVG; needs matplotlib."""
    from matplotlib.figure import Figure

    rows = [c.n_rows for c in found]
    figure = Figure(figsize=(7.0, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.loglog(rows, [c.seconds for c in found], "o-", color="#0072b2")
    left.set(xlabel="rows", ylabel="seconds", title="time")
    right.semilogx(rows, [c.peak / 1e6 for c in found], "o-", color="#d55e00")
    right.set(xlabel="rows", ylabel="MB", title="peak resident memory", ylim=(0, None))
    for axes in (left, right):
        axes.grid(visible=True, color="#dddddd")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _memory_row(found: Sequence[Resident]) -> Row:
    what = f"peak resident memory for {', '.join(f'{c.n_rows}' for c in found)} short rows"
    target = f"flat: last at most {TOLERANCE} x first"
    if not all(c.peak for c in found):
        return Row(what, target, NOT_MEASURED, None)
    peaks = ", ".join(f"{c.peak / 1e6:.0f}" for c in found)
    flat = found[-1].peak <= TOLERANCE * found[0].peak
    return Row(what, target, f"{peaks} MB", flat)


def _all() -> tuple[int, ...]:
    return (1, *FACTORS)


def _sizes(n: int) -> str:
    return ", ".join(str(k * n) for k in _all())


def _growth(
    what: str, calls: Mapping[int, Callable[[], object]], scene: Scene, n_turns: int
) -> Row:
    named = {str(k): call for k, call in calls.items()}
    seconds = take_turns(named, n_turns, device=scene.model.device)
    found = {k: ratio(seconds[str(k)], seconds["1"]) for k in FACTORS}
    return Row(
        what,
        "linear: at most " + " and ".join(f"{TOLERANCE * k:.1f} x" for k in FACTORS),
        ", ".join(map(str, found.values())),
        all(r.median <= TOLERANCE * k for k, r in found.items()),
    )


def _trajectory(
    scene: Scene, n_rows: int, direction: AdapterState, n_checkpoints: int
) -> Mapping[str, object]:
    checkpoints = [dataclasses.replace(scene.checkpoint, step=n + 1) for n in range(n_checkpoints)]
    sets = [{"all": direction}] * n_checkpoints
    settings = ScoreSettings(form="sgd")
    rows = scene.repeated(n_rows)
    return score_rows(scene.model, rows, checkpoints, sets, settings=settings).raw
