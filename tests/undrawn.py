"""What stands where a report draws a picture, for runs whose pictures nobody looks at."""

from clues.report import private, shared
from clues.report.histogram import Chart, score_range


def no_histogram(scores, *, cut, size, **how) -> Chart:
    """The place of a histogram: its size and range, and nothing in it."""
    low, high = score_range(scores, [cut])
    return Chart("<svg></svg>", *size, 0.0, size[0], 0.0, size[1], low, high)


def no_figures(results) -> dict[str, str]:
    """What the report's figures are where nothing was measured."""
    return {}


# Module, name, stand-in.
UNDRAWN = (
    (private, "score_histogram", no_histogram),
    *((shared, name, no_figures) for name in ("gains", "score_bands", "curves")),
)
