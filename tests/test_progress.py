"""What a long step says: a bar on a terminal, lines elsewhere, and never more rows than it has."""

import io
from collections import defaultdict
from contextlib import contextmanager

import pytest
from federation_helpers import write_micro
from rich.console import Console

from clues.config import load_config
from clues.pipeline import open_run, run_until
from clues.progress import Terminal


def test_a_slow_step_says_every_minute_what_is_left_and_a_quick_one_nothing(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("clues.progress.time.perf_counter", lambda: now[0])
    written = io.StringIO()
    terminal = Terminal(Console(file=written, force_terminal=False, width=100))
    with terminal.task("north: score", 100) as advance:
        for _ in range(100):
            now[0] += 3.0
            advance(1)
    with terminal.task("north: quick", 3) as advance:
        now[0] += 1.0
        advance(3)
    lines = written.getvalue().splitlines()
    assert lines[0] == "north: score: 20 of 100, about 4 min left"
    assert [line.split(",")[0] for line in lines[1:4]] == [
        f"north: score: {n} of 100" for n in (40, 60, 80)
    ]
    assert lines[-1] == "north: score: 300 s"
    assert len(lines) == 5


class Counted:
    """Adds up what every step reports."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.done: dict[str, int] = defaultdict(int)

    @contextmanager
    def task(self, description: str, total: int):
        self.totals[description] = total

        def advance(n: int) -> None:
            self.done[description] += n

        yield advance


@pytest.mark.walk
def test_every_pass_over_rows_has_a_bar_that_reaches_its_end(micro_model, tmp_path) -> None:
    """The coordinator's anchors, their damaged copies and compared scores took minutes, unseen."""
    score = {"compare": ["sgd", "cosine", "length", "base_perplexity"], "alignment_weight": "auto"}
    config = write_micro(tmp_path / "in", micro_model, changes={"recipe": {"score": score}})
    counted = Counted()
    run_until(open_run(load_config(config), tmp_path / "run", progress=counted), "score")
    names = {name.split(",")[0] for name in counted.totals}
    assert names >= {
        *(f"coordinator: {what}" for what in ("directions", "anchors", "damaged copies")),
        *("coordinator: compared scores", "north: loss before training", "north: score"),
        "north: compared scores",
    }
    for name, total in counted.totals.items():
        assert counted.done[name] == total, name
