"""Figures of the reports: drawn by Matplotlib, coloured by the page they stand in.

A figure is a piece of SVG whose colours are the page's CSS variables, so that it follows dark,
light and print without a script.
"""

import hashlib
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

# Stand-ins that Matplotlib can parse; each becomes a CSS variable or, for bars, a gradient.
PALETTE = {
    "#010101": "var(--ink)",
    "#020202": "var(--soft)",
    "#030303": "var(--rule)",
    "#040404": "var(--chosen)",
    "#050505": "var(--other)",
    "#060606": "var(--cut)",
    "#070707": "url(#split)",
    "#080808": "var(--damaged)",
    "#090909": "var(--box)",
    "#0a0a0a": "var(--third)",
}
INK, SOFT, RULE, CHOSEN, OTHER, CUT, SPLIT, DAMAGED, BOX, THIRD = PALETTE
POINTS = 72.0  # Matplotlib's SVG has 72 units an inch
SETTINGS: Any = {  # Any: Matplotlib has a type for every key
    "svg.fonttype": "none",
    "font.size": 13,
    "axes.edgecolor": RULE,
    "axes.labelcolor": SOFT,
    "axes.linewidth": 1,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 4,
    "ytick.major.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}


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
        figure.subplots_adjust(
            left=66 / size[0], right=1 - 14 / size[0], top=1 - 8 / size[1], bottom=40 / size[1]
        )
        box, strip = upper.get_position(), lower.get_position()
        svg = _svg(figure, label, splits=True)
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
    axes.set_yticks([0.5], ["anchors"])


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    label: str,
    y_label: str,
    size: tuple[float, float],
) -> str:
    """Loss along the rounds, one line an arm; lines differ by colour, dash and mark."""
    styles = [
        (CHOSEN, "-", "o", 2.4),
        (OTHER, "--", "s", 1.6),
        (CUT, "-.", "^", 1.6),
        (DAMAGED, ":", "D", 1.8),
        (THIRD, "-", "v", 1.4),
    ]
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(size[0] / POINTS, size[1] / POINTS))
        axes = figure.subplots()
        for (name, points), (color, dash, mark, width) in zip(
            lines.items(), itertools.cycle(styles)
        ):
            xs, ys = zip(*points, strict=True)
            axes.plot(
                xs,
                ys,
                color=color,
                linestyle=dash,
                marker=mark,
                markersize=4,
                linewidth=width,
                label=name,
            )
        axes.grid(axis="y")
        axes.set_xlabel("round")
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.legend(frameon=False, labelcolor=INK, loc="upper right")
        figure.subplots_adjust(
            left=54 / size[0], right=1 - 12 / size[0], top=1 - 10 / size[1], bottom=42 / size[1]
        )
        return _svg(figure, label, splits=False)


def _svg(figure: Figure, label: str, *, splits: bool) -> str:
    """The figure as a piece of a page: labelled, without a size of its own, in the page's colours."""
    buffer = io.StringIO()
    # Ids are made from the salt: two figures of one page must not share one.
    salt = f"{label}{figure.get_size_inches()}"
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # What is left has ids that something in the figure refers to.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    # One family for the page; what Matplotlib names need not be there.
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    for stand_in, real in PALETTE.items():
        svg = svg.replace(stand_in, real)
    own = f"split-{hashlib.sha256(salt.encode()).hexdigest()[:8]}"
    svg = svg.replace("url(#split)", f"url(#{own})")
    view = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg {view.group(0) if view else ""} role="img" aria-label="{escape(label)}" focusable="false"'
    rest = svg[svg.index(">") :]
    return head + (rest.replace(">", f">{_gradient(own)}", 1) if splits else rest)


def _gradient(name: str) -> str:
    return (
        f'<defs><linearGradient id="{name}" class="split" gradientUnits="userSpaceOnUse" y1="0" y2="0">'
        '<stop offset="0.5" style="stop-color: var(--dropped)"/>'
        '<stop offset="0.5" style="stop-color: var(--chosen)"/></linearGradient></defs>'
    )
