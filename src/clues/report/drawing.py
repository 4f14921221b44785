"""How Matplotlib's figures become pieces of a page, coloured by the page they stand in.

A figure is a piece of SVG whose colours are the page's CSS variables, so that it follows dark,
light and print without a script.
"""

import hashlib
import io
import re
from typing import Any

import matplotlib
from markupsafe import escape
from matplotlib.figure import Figure

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


def svg_of(figure: Figure, label: str, *, splits: bool = False) -> str:
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
