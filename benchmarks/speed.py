"""Time of the side branch against its limit, against other ways, and with several directions."""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.clock import Ratio, ratio, take_turns
from benchmarks.scene import Scene, large_shapes, random_scene
from benchmarks.table import NOT_MEASURED, Row
from benchmarks.ways import activation_pass, published_scores, relative_difference, vmap_scores
from clues.data.tokens import EncodedRow
from clues.model.adapters import AdapterState
from clues.scoring.forms import form_scores
from clues.scoring.influence import influence_scores

# Largest relative difference to the other way's numbers, by the base model's precision.
AGREEMENT = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.05}
N_SETS = (2, 4, 8)
N_LARGE_ROWS = 64
WAYS = (
    ("published way: one row at a time, gradients on disk", "published", 3.0),
    ("vmap(grad)", "vmap", 1.5),
)


def speed_rows(scene: Scene, rows: Sequence[EncodedRow], n_turns: int) -> list[Row]:
    """Limit, other ways, and several directions; the other ways' numbers are compared first."""
    device = scene.model.device
    directions = {k: scene.directions(k) for k in (1, *N_SETS)}
    calls: dict[str, Callable[[], object]] = {
        "limit": lambda: activation_pass(scene, rows),
        **{f"{k}": partial(products, scene, rows, d) for k, d in directions.items()},
        "published": lambda: published_products(scene, rows, directions[1][0]),
        "vmap": lambda: vmap_scores(scene, rows, directions[1][0]),
        "less": partial(default_products, scene, rows, directions[1]),
    }
    calls["limit"]()
    _check_ways(scene, rows, directions[1][0])
    limit = take_turns({n: calls[n] for n in ("1", "limit")}, n_turns, device=device)
    others = take_turns({n: calls[n] for n in ("1", "published", "vmap")}, n_turns, device=device)
    default = take_turns({n: calls[n] for n in ("1", "less")}, n_turns, device=device)
    sets = take_turns({n: calls[n] for n in map(str, (1, *N_SETS))}, n_turns, device=device)
    against_limit = ratio(limit["1"], limit["limit"])
    found = [
        Row(
            "time against the limit: forward, and backward through activations alone",
            "at most 1.15 x",
            str(against_limit),
            against_limit.median <= 1.15,
        )
    ]
    for what, name, target in WAYS:
        faster = ratio(others[name], others["1"])
        found.append(faster_row(f"{what}; same numbers", target, faster))
    found.append(Row("Bergson's `score`", "at least 1.5 x faster", "by `make peers`", None))
    found.append(
        Row(
            "form `less` (the default; gradients of single rows) instead of the side branch",
            "-",
            f"{ratio(default['less'], default['1'])} the time",
            None,
        )
    )
    shares = {k: each_set(sets[str(k)], sets["1"], k) for k in N_SETS}
    found.append(
        Row(
            f"{_listed(N_SETS)} directions instead of one: each further one",
            "less than 5 % of the first",
            ", ".join(f"{100 * share:.1f} %" for share in shares.values()),
            max(shares.values()) < 0.05,
        )
    )
    return found


def large_rows(device: torch.device, n_turns: int) -> list[Row]:
    """The published way at the shapes of large models, where there is a GPU."""
    found = []
    for shape in large_shapes():
        what = f"published way, {shape.name} weights on a GPU; same numbers"
        if device.type != "cuda":
            found.append(Row(what, "at least 10 x faster", NOT_MEASURED, None))
            continue
        scene = random_scene(shape, device=str(device))
        rows, direction = scene.repeated(N_LARGE_ROWS), scene.directions(1)[0]
        _compare("published", published_products(scene, rows, direction), scene, rows, direction)
        calls: dict[str, Callable[[], object]] = {
            "1": partial(products, scene, rows, [direction]),
            "published": partial(published_products, scene, rows, direction),
        }
        seconds = take_turns(calls, n_turns, device=device)
        found.append(faster_row(what, 10.0, ratio(seconds["published"], seconds["1"])))
        del scene, calls
        torch.cuda.empty_cache()
    return found


def products(
    scene: Scene, rows: Sequence[EncodedRow], directions: Sequence[AdapterState]
) -> np.ndarray:
    """Inner products by the side branch, (rows, K)."""
    adapter = scene.checkpoint.adapter
    return influence_scores(scene.model, rows, adapter=adapter, directions=directions).products


def default_products(
    scene: Scene, rows: Sequence[EncodedRow], directions: Sequence[AdapterState]
) -> np.ndarray:
    """Scores by the default form `less`, (rows, K)."""
    point = scene.checkpoint
    found = form_scores(scene.model, rows, point, directions, form="less", way="gradients")
    return found.products


def faster_row(what: str, target: float, faster: Ratio) -> Row:
    """A row for a way that the side branch is to beat."""
    met = faster.median >= target
    return Row(what, f"at least {target:g} x faster", f"{faster} faster", met)


def each_set(seconds: Sequence[float], one: Sequence[float], n_sets: int) -> float:
    """What every direction after the first costs, as a share of scoring with one."""
    return (ratio(seconds, one).median - 1) / (n_sets - 1)


def published_products(
    scene: Scene, rows: Sequence[EncodedRow], direction: AdapterState
) -> np.ndarray:
    """Inner products by the published way, with its files in a folder that goes again, (rows,)."""
    with tempfile.TemporaryDirectory() as folder:
        return published_scores(scene, rows, direction, folder=Path(folder)).products


def _check_ways(scene: Scene, rows: Sequence[EncodedRow], direction: AdapterState) -> None:
    _compare("published", published_products(scene, rows, direction), scene, rows, direction)
    _compare("vmap", vmap_scores(scene, rows, direction), scene, rows, direction)


def _compare(
    name: str,
    found: np.ndarray,
    scene: Scene,
    rows: Sequence[EncodedRow],
    direction: AdapterState,
) -> None:
    difference = relative_difference(found, products(scene, rows, [direction])[:, 0])
    limit = AGREEMENT[next(scene.model.peft.get_base_model().parameters()).dtype]
    assert difference < limit, f"{name} gives other numbers: relative difference {difference:.1e}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
