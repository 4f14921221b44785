"""A silo's rows by score, above the public anchors: the figure of the private report."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from clues.report.drawing import CUT, DAMAGED, INK, POINTS, SETTINGS, SOFT, SPLIT, svg_of


@dataclass(frozen=True)
class Chart:
    """A figure and where its data area lies.

    Attributes:
        svg: to be put into a page.
        width: of the view box.
        height: of the view box.
        left: of the data area, in units of the view box.
        right: likewise.
        top: likewise.
        bottom: likewise.
        low: score at `left`.
        high: score at `right`.
    """

    svg: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    low: float
    high: float


def score_range(scores: NDArray[np.float64], marks: Sequence[float]) -> tuple[float, float]:
    """Scores that a histogram shows: the marks, and all rows but the outermost half per cent."""
    low, high = np.quantile(scores, [0.005, 0.995]) if len(scores) else (0.0, 0.0)
    shown = [m for m in marks if np.isfinite(m)]
    low, high = float(min([low, *shown])), float(max([high, *shown]))
    margin = 0.03 * (high - low) or 0.5
    return low - margin, high + margin


def score_histogram(
    scores: NDArray[np.float64],
    *,
    anchors: Sequence[float],
    cut: float,
    interval: tuple[float, float] | None,
    damaged: NDArray[np.bool_] | None,
    label: str,
    size: tuple[float, float],
    n_bins: int,
) -> Chart:
    """Rows by score, coloured at the threshold, above a strip of the anchors' scores.

    Rows outside of the range stand in the outermost bars. The bars' colour is a gradient with the
    id `split`, which the page moves.

    Args:
        scores: of the rows.
        anchors: scores in the same units.
        cut: the threshold in force.
        interval: its bootstrap interval.
        damaged: which rows are known to be damaged; None where nobody knows.
        label: what the figure shows, for who cannot see it.
        size: width and height in points.
        n_bins: bars.
    """
    low, high = score_range(
        scores, [*np.quantile(anchors, [0.02, 0.98]), cut] if len(anchors) else [cut]
    )
    edges = np.linspace(low, high, n_bins + 1)
    inside = np.clip(scores, low, np.nextafter(high, low))
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(size[0] / POINTS, size[1] / POINTS))
        upper, lower = figure.subplots(
            2, 1, sharex=True, height_ratios=[1, 0.13], gridspec_kw={"hspace": 0.05}
        )
        upper.hist(inside, bins=list(edges), color=SPLIT, edgecolor="none", rwidth=0.86)
        if damaged is not None and damaged.any():
            counts, _ = np.histogram(inside[damaged], bins=edges)
            upper.stairs(counts, edges, color=DAMAGED, linewidth=1.6)
        for axes in (upper, lower):
            if interval and np.isfinite(interval).all():
                axes.axvspan(*interval, color=CUT, alpha=0.16, linewidth=0)
            if low <= cut <= high:
                axes.axvline(cut, color=CUT, linewidth=1.6)
        upper.grid(axis="y")
        upper.tick_params(axis="x", length=0, labelbottom=False)
        upper.spines["bottom"].set_visible(False)
        upper.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        upper.set_ylabel("rows")
        _rug(lower, anchors)
        lower.set_xlim(low, high)
        lower.set_xlabel("score")
        for place, side, text in (
            (0.0, "left", "\N{LEFTWARDS ARROW} worse"),
            (1.0, "right", "better \N{RIGHTWARDS ARROW}"),
        ):
            lower.annotate(
                text,
                (place, 0),
                xycoords=("axes fraction", lower.xaxis.label),
                ha=side,
                va="bottom",
                color=SOFT,
            )
        figure.subplots_adjust(
            left=66 / size[0], right=1 - 14 / size[0], top=1 - 8 / size[1], bottom=40 / size[1]
        )
        box, strip = upper.get_position(), lower.get_position()
        svg = svg_of(figure, label, splits=True)
    return Chart(
        svg,
        size[0],
        size[1],
        left=float(box.x0 * size[0]),
        right=float(box.x1 * size[0]),
        top=float((1 - box.y1) * size[1]),
        bottom=float((1 - strip.y0) * size[1]),
        low=low,
        high=high,
    )


def _rug(axes: Axes, anchors: Sequence[float]) -> None:
    """One mark an anchor; of many, their quantiles."""
    shown = np.asarray(anchors, float)
    if len(shown) > 400:
        shown = np.quantile(shown, np.linspace(0, 1, 400))
    # One path for all marks: as single markers they would be most of the page.
    axes.vlines(shown, 0.15, 0.85, color=INK, linewidth=1, alpha=0.55)
    axes.set_ylim(0, 1)
    axes.set_yticks([0.5], ["checked"])
