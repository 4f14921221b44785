"""Figures of the shared report: gains of the arms, scores against the threshold, loss by round."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clues.report.arms import FIGURES, gap_of, in_order
from clues.report.cells import clean
from clues.report.drawing import (
    BOX,
    CHOSEN,
    CUT,
    DAMAGED,
    INK,
    OTHER,
    POINTS,
    SETTINGS,
    SOFT,
    THIRD,
    svg_of,
)
from clues.results.run import Results
from clues.results.silos import SiloResult

WIDTHS = {"wide": 820.0, "narrow": 420.0}  # of a page, and of a telephone's
MOST_SILOS = 40
# Lines differ by colour, dash and mark.
STYLES: tuple[tuple[str, Any, str, float], ...] = (
    (CHOSEN, "-", "o", 2.4),
    (SOFT, "--", "s", 1.6),
    (CUT, "-.", "^", 1.6),
    (DAMAGED, ":", "D", 1.8),
    (THIRD, "-", "v", 1.4),
)
GAINS = {
    "heldout_loss": "held-out loss below mixed, nats",
    "knowledge_accuracy": "knowledge above mixed, points",
}


def gains(results: Results) -> dict[str, str]:
    """What every arm gains over mixed, with 95 % intervals, by width; nothing if not measured."""
    arms = results.arms
    found: dict[str, list[tuple[str, float, float, float]]] = {}
    for key in FIGURES:
        # A lower loss is a gain.
        scale = -FIGURES[key][1] if key == "heldout_loss" else FIGURES[key][1]
        for name in in_order(arms):
            if gap := gap_of(arms[name], "mixed", key):
                low, high = sorted(scale * end for end in gap.interval)
                found.setdefault(key, []).append((clean(name), scale * gap.value, low, high))
    if not found:
        return {}
    label = "What every arm gains over mixed, with 95 % intervals; the table below has the numbers"
    return {name: _gains(found, width, label) for name, width in WIDTHS.items()}


def _gains(
    found: Mapping[str, Sequence[tuple[str, float, float, float]]], width: float, label: str
) -> str:
    n_arms = max(map(len, found.values()))
    across = len(found) if width > 600 else 1
    down = -(-len(found) // across)
    size = (width, down * (62 + 30 * n_arms))
    with matplotlib.rc_context(SETTINGS):
        figure = _figure(size)
        for axes, (key, bars) in zip(
            figure.subplots(down, across, squeeze=False).flat, found.items(), strict=True
        ):
            for y, (name, value, low, high) in enumerate(reversed(bars)):
                color, mark = {"clues": (CHOSEN, "o"), "oracle": (THIRD, "D")}.get(
                    name, (SOFT, "s")
                )
                axes.plot([low, high], [y, y], color=color, linewidth=2.2)
                axes.plot([value], [y], mark, color=color, markersize=8)
            axes.axvline(0, color=INK, linewidth=1)
            _rows_of(axes, [name for name, *_ in reversed(bars)])
            axes.set_xlabel(GAINS[key])
            axes.grid(axis="x")
        return svg_of(figure, label)


def score_bands(results: Results) -> dict[str, str]:
    """Anchors, and silos that share it, by score, against the threshold; by width.

    Of a silo's rows the line reaches from the lowest to the highest tenth; of the anchors, from
    the lowest to the highest.
    """
    threshold = results.threshold
    anchors = _quantiles(threshold.anchor_quantiles)
    if not anchors:
        return {}
    rows = {"anchors": anchors} | {
        clean(name): _quantiles(silo.score_bands)
        for name, silo in list(sharing(results).items())[:MOST_SILOS]
    }
    cut, interval = threshold.value, threshold.interval
    label = "Scores of the anchors and of the silos that share theirs, against the threshold"
    return {name: _bands(rows, cut, interval, width, label) for name, width in WIDTHS.items()}


def _quantiles(pairs: Sequence[Sequence[float]]) -> dict[float, float]:
    """Scores by the share of rows below; what is not finite is not drawn."""
    return {pair[0]: pair[1] for pair in pairs if math.isfinite(pair[1])}


def sharing(results: Results) -> dict[str, SiloResult]:
    """Silos that share between which scores their rows lie."""
    return {name: silo for name, silo in results.silos.items() if silo.score_bands}


def _bands(
    rows: Mapping[str, Mapping[float, float]],
    cut: float | None,
    interval: Sequence[float] | None,
    width: float,
    label: str,
) -> str:
    with matplotlib.rc_context(SETTINGS):
        figure = _figure((width, 64 + 28 * len(rows)))
        axes = figure.subplots()
        if interval and all(map(math.isfinite, interval)):
            axes.axvspan(interval[0], interval[1], color=CUT, alpha=0.16, linewidth=0)
        for y, quantiles in enumerate(reversed(list(rows.values()))):
            axes.plot([min(quantiles.values()), max(quantiles.values())], [y, y], color=OTHER)
            if {0.25, 0.75} <= quantiles.keys():
                low, high = quantiles[0.25], quantiles[0.75]
                axes.barh(y, high - low, left=low, height=0.56, color=BOX)
            if 0.5 in quantiles:
                axes.plot([quantiles[0.5]] * 2, [y - 0.28, y + 0.28], color=INK, linewidth=2)
        if cut is not None and math.isfinite(cut):
            axes.axvline(cut, color=CUT, linewidth=1.8)
        _rows_of(axes, list(reversed(list(rows))))
        axes.set_xlabel("score")
        axes.grid(axis="x")
        return svg_of(figure, label)


def curves(results: Results) -> dict[str, str]:
    """Loss of public rows along the rounds, one line an arm; by width."""
    lines = {clean(name): points for name, points in results.curves.items()}
    if not lines:
        return {}
    label = "Loss of public validation rows by rounds done, one line for each training"
    return {name: _curves(lines, width, label) for name, width in WIDTHS.items()}


def _curves(lines: Mapping[str, Sequence[tuple[float, float]]], width: float, label: str) -> str:
    with matplotlib.rc_context(SETTINGS):
        figure = _figure((width, 320))
        axes = figure.subplots()
        # Ours first: it takes the style that stands out.
        names = sorted(lines, key=lambda name: name != "clues")
        for name, (color, dash, mark, thick) in zip(names, itertools.cycle(STYLES)):
            xs, ys = zip(*lines[name], strict=True)
            how = {"color": color, "linestyle": dash, "marker": mark, "linewidth": thick}
            axes.plot(xs, ys, label=_short(name), markersize=5, **how)
        axes.grid(axis="y")
        axes.set_xlabel("rounds done")
        axes.set_ylabel("loss, nats")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        figure.legend(
            frameon=False,
            labelcolor=INK,
            loc="outside upper left",
            ncols=6 if width > 600 else 3,
            handlelength=3,
        )
        return svg_of(figure, label)


def _figure(size: tuple[float, float]) -> Figure:
    return Figure(figsize=(size[0] / POINTS, size[1] / POINTS), layout="constrained")


def _rows_of(axes: Axes, names: Sequence[str]) -> None:
    """One line of the figure for each name, from below."""
    axes.set_yticks(range(len(names)), [_short(name) for name in names], color=INK)
    axes.set_ylim(-0.7, len(names) - 0.3)


def _short(name: str) -> str:
    # Matplotlib reads dollar signs as mathematics.
    name = name.replace("$", "\\$")
    return name if len(name) <= 24 else f"{name[:23]}\N{HORIZONTAL ELLIPSIS}"
