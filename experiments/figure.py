"""One figure an experiment: what each arm gains over mixed, and how well each score ranks."""

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from clues.atomic import atomic_write_bytes
from experiments.statistics import over_seeds, paired_bootstrap, silo_means
from experiments.stored import StoredRun, StoredSeed

# Okabe and Ito's colours tell apart for all common kinds of colour blindness.
OURS, OTHERS, CEILING = "#0072B2", "#8a8a8a", "#009E73"


def write_figure(seeds: Sequence[StoredSeed], path: Path) -> bool:
    """Draw the first variant's arms and scores as SVG; False where there is nothing to draw.

    Equal results give an equal file.
    """
    name = next(iter(seeds[0].variants))
    runs = [seed.variants[name] for seed in seeds]
    gains, ranks = _gains(runs), _ranks(runs)
    panels = [p for p in ((gains, "held-out loss below mixed, nats"), (ranks, "AUC")) if p[0]]
    if not panels:
        return False
    height = 0.6 + 0.26 * max(len(p[0]) for p in panels)
    with rc_context({"svg.hashsalt": "clues", "font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(4.2 * len(panels), height), layout="constrained")
        for axes, (rows, label) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            for y, (bar, value, low, high) in enumerate(reversed(rows)):
                colour = OURS if bar in ("clues", "selection score") else OTHERS
                colour = CEILING if bar == "oracle" else colour
                axes.plot([low, high], [y, y], color=colour, linewidth=1.5)
                axes.plot([value], [y], "o", color=colour, markersize=5)
            axes.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)])
            axes.axvline(0.5 if label == "AUC" else 0.0, color="#bbbbbb", linewidth=1, zorder=0)
            axes.set_xlabel(label)
            axes.spines[["top", "right"]].set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, buffer.getvalue())
    return True


def _gains(runs: Sequence[StoredRun]) -> list[tuple[str, float, float, float]]:
    """By arm: loss of mixed minus its own, with a paired bootstrap interval."""
    losses = [run.heldout_losses for run in runs]
    if not losses[0] or "mixed" not in losses[0]:
        return []
    rows: list[tuple[str, float, float, float]] = []
    for arm in losses[0]:
        if arm == "mixed":
            continue
        found = paired_bootstrap([x["mixed"] for x in losses], [x[arm] for x in losses])
        assert found.low is not None
        assert found.high is not None
        rows.append((arm, found.mean, found.low, found.high))
    return sorted(rows, key=lambda row: -row[1])


def _ranks(runs: Sequence[StoredRun]) -> list[tuple[str, float, float, float]]:
    """By score: AUC, mean over silos, lowest and highest seed."""
    rows: list[tuple[str, float, float, float]] = []
    names = {n for run in runs for silo in run.results.silos.values() for n in silo.detection}
    for name in names:
        if per_seed := silo_means(runs, name):
            mean = over_seeds(per_seed).mean
            rows.append((name, mean, min(per_seed), max(per_seed)))
    return sorted(rows, key=lambda row: (-row[1], row[0]))
