"""Time, memory and bytes of the coordinator as silos grow: python benchmarks/federation.py.

Simulated silos answer a fit request with a random adapter, in this process; no model is trained.
What is measured is the coordinator alone: reading, judging, storing and joining the replies.
Writes a table for docs/benchmarks.md to the terminal.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from clues.config import CombineSettings, FederationSettings, Recipe
from clues.coordinator.attendance import Attendance
from clues.coordinator.curve import Watch
from clues.coordinator.exchange import Exchange
from clues.coordinator.fit import Fitting
from clues.wall.messages import FitReply, id_of

RANK = 8
RECIPE = Recipe(public={})
RULES = {
    "mean, ffa": {},
    "mean, svd": {"aggregation": "svd"},
    "stack": {"aggregation": "stack"},
    "median, ffa": {"rule": "median"},
    "trimmed mean, ffa": {"rule": "trimmed_mean"},
    "krum, ffa": {"rule": "krum"},
}
# Okabe and Ito: told apart with all common kinds of colour blindness.
COLORS = ("#0072B2", "#56B4E9", "#D55E00", "#009E73", "#E69F00", "#CC79A7")
HEADING = "| rule | silos | seconds a round | memory above the start, MB | MB in | MB out |"


@dataclass
class Simulated:
    """Silos that send what they were given with another B."""

    names: tuple[str, ...]
    base: dict[str, torch.Tensor]
    n_in: int = 0
    n_out: int = 0
    seconds: float = 0.0

    @property
    def silos(self) -> tuple[str, ...]:
        """Names of all silos."""
        return self.names

    def exchange(
        self, requests: Mapping[str, bytes], *, most: Mapping[str, int]
    ) -> Iterator[tuple[str, bytes]]:
        """Answer each request when the coordinator asks for the next reply."""
        for number, name in enumerate(requests):
            # Not held here: what a silo has in memory is not the coordinator's.
            yield name, self._reply(number, requests[name])

    def _reply(self, number: int, request: bytes) -> bytes:
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(number)
        moved = {
            n: torch.randn(t.shape, generator=generator) if ".lora_B." in n else t
            for n, t in self.base.items()
        }
        answer = FitReply(
            recipe_hash=RECIPE.hash, answers=id_of(request), weight=100, adapter=moved
        )
        reply = answer.to_bytes()
        self.n_in, self.n_out = self.n_in + len(reply), self.n_out + len(request)
        self.seconds += time.perf_counter() - started
        return reply


def measure(rule: str, n_silos: int, *, width: int, n_modules: int) -> str:
    """One row of the table; memory is the peak of this process, so one row a process."""
    base = {}
    for k in range(n_modules):
        base[f"m{k}.lora_A.weight"] = torch.randn(RANK, width)
        base[f"m{k}.lora_B.weight"] = torch.zeros(width, RANK)
    names = tuple(f"silo-{k:04}" for k in range(n_silos))
    silos = Simulated(names, base)
    combine = CombineSettings.model_validate({"rounds": 1, **RULES[rule]})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        attendance = Attendance(path / "absences.json", recipe_hash=RECIPE.hash, quorum=None)
        attendance.members = {n: {"domain": "d", "n_rows": 100, "token": n} for n in names}
        exchange = Exchange(silos, attendance, recipe_hash=RECIPE.hash)
        fitting = Fitting(
            RECIPE, combine, FederationSettings(), exchange, base, _no_loss, Watch(lambda _: 0.0)
        )
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        fitting.run("clues", path, token="")
        seconds = time.perf_counter() - started - silos.seconds
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return (
        f"| {rule} | {n_silos} | {seconds:.2f} | {memory:.0f} | {silos.n_in / 1e6:.1f} "
        f"| {silos.n_out / 1e6:.1f} |"
    )


def draw(page: Path, figure: Path) -> None:
    """Draw the page's first table: memory and seconds by silos, one line a rule."""
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in RULES:
            n_silos, seconds, memory = (float(cell) for cell in cells[1:4])
            lines.setdefault(cells[0], []).append((int(n_silos), seconds, memory))
    with rc_context({"svg.hashsalt": "clues", "svg.fonttype": "none", "font.size": 10}):
        drawn = Figure(figsize=(8.2, 3.7), layout="constrained")
        memory, seconds = drawn.subplots(1, 2)
        for (rule, points), mark, color in zip(lines.items(), "os^Dv*", COLORS, strict=True):
            xs = [point[0] for point in points]
            how = {"marker": mark, "color": color, "linewidth": 1.6, "label": rule}
            memory.plot(xs, [point[2] for point in points], **how)
            seconds.plot(xs, [point[1] for point in points], **how)
        for axes, label in ((memory, "memory above the start, MB"), (seconds, "seconds a round")):
            axes.set(xscale="log", yscale="log", xlabel="silos", title=label)
            axes.set_xticks([20, 100, 1000], ["20", "100", "1000"])
            axes.minorticks_off()
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(visible=True, color="#d9dad5", linewidth=0.6)
        handles, names = memory.get_legend_handles_labels()
        drawn.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
        drawn.patch.set_facecolor("#fcfcfa")  # readable on a dark page as well
        drawn.savefig(figure, format="svg", metadata={"Date": None, "Creator": None})


def _no_loss(_: Mapping[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    raise AssertionError("no rule here needs a loss")


def main() -> None:
    """Measure every rule at every number of silos, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--silos", type=int, nargs="*", default=[20, 100, 1000])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--modules", type=int, default=8)
    parser.add_argument("--one", help="measure this rule here and now")
    parser.add_argument("--figure", action="store_true", help="draw the page's table, no more")
    given = parser.parse_args()
    if given.figure:
        docs = Path(__file__).parent.parent / "docs"
        draw(docs / "benchmarks-federation.md", docs / "images" / "coordinator.svg")
        return
    if given.one:
        torch.set_num_threads(1)
        row = measure(given.one, given.silos[0], width=given.width, n_modules=given.modules)
        print(row)
        return
    print(HEADING + "\n| :--- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    size = ["--width", str(given.width), "--modules", str(given.modules)]
    for rule in RULES:
        for n in given.silos:
            command = [sys.executable, __file__, "--one", rule, "--silos", str(n), *size]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
