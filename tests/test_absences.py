"""A silo that goes missing in any stage of a whole run is left out, and everybody can read why."""

import json
import shutil
from pathlib import Path

import pytest
from federation_helpers import (
    open_micro,
    plain,
    run_micro,
    tiny_model,
    without_volatile,
    write_micro,
)

from clues.errors import QuorumError
from clues.pipeline import run_until
from clues.wall.messages import REQUESTS, from_bytes
from clues.wall.transport import Missing

pytestmark = pytest.mark.slow
SILOS = ("north", "south", "west")


class Lossy:
    """A transport that loses one silo from a kind of message on; may cut its replies instead."""

    def __init__(self, inner, silo: str, kind: str, *, cut: bool = False) -> None:
        self.inner, self.silo, self.kind, self.cut = inner, silo, kind, cut
        self.gone, self.silos = False, inner.silos
        self.asked: list[str] = []

    def exchange(self, requests, *, most):
        for name, reply in self.inner.exchange(requests, most=most):
            kind = from_bytes(requests[name], allowed=REQUESTS, sender="").kind
            if name == self.silo:
                self.asked.append(kind)
                self.gone = self.gone or kind == self.kind
            lost = name == self.silo and self.gone
            yield name, (reply[:-9] if self.cut else Missing("no answer")) if lost else reply


def lossy(run, silo: str, kind: str, **how) -> Lossy:
    run.coordinator.exchange.transport = Lossy(
        run.coordinator.exchange.transport, silo, kind, **how
    )
    return run.coordinator.exchange.transport


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("input")
    changes = {
        "evaluate": {"arms": ["mixed", "clues"]},
        "federation": {"quorum": 2},
        "combine": {"rounds": 2},
        "recipe": {"duplicates": {}},
    }
    return write_micro(folder / "in", tiny_model(folder / "model"), silos=SILOS, changes=changes)


@pytest.mark.walk
@pytest.mark.parametrize(
    ("kind", "cut"),
    [
        *((kind, False) for kind in ("hello", "leave", "train", "score", "select", "fit")),
        *((kind, True) for kind in ("train", "fit")),
    ],
)
def test_a_run_goes_on_without_a_silo_and_says_so(config, tmp_path, kind, cut):
    run = open_micro(config, tmp_path / "run")
    transport = lossy(run, "south", kind, cut=cut)
    results = plain(run_until(run).results)
    assert set(results["silos"]) == {"north", "west"}
    [absence] = results["absences"]
    expected = {"fit": "fit-mixed", "leave": "duplicates"}.get(kind, kind)
    assert (absence["silo"], absence["stage"]) == ("south", expected)
    assert ("not what was sent" if cut else "no answer") in absence["why"]
    assert transport.asked.count(kind) == 1, "it was asked again"
    assert results["arms"]["clues"]["silos"] == 2
    stages = tmp_path / "run" / "coordinator" / "stages"
    before = {p: p.stat().st_mtime_ns for p in stages.glob("*.json")}
    again = run_micro(config, tmp_path / "run")
    assert {p: p.stat().st_mtime_ns for p in stages.glob("*.json")} == before, "done again"
    assert without_volatile(again) == without_volatile(results), "it came back"


@pytest.mark.walk
def test_a_silo_that_goes_missing_at_the_very_end_has_only_no_diagnostics(config, tmp_path):
    run = open_micro(config, tmp_path / "run")
    # Nothing depends on that answer, so that not even a quorum of all stops for it.
    run.coordinator.attendance.quorum = None
    lossy(run, "south", "evaluate")
    results = plain(run_until(run).results)
    assert set(results["silos"]) == set(SILOS)
    assert "precision" not in results["silos"]["south"]
    assert "precision" in results["silos"]["north"]
    [absence] = results["absences"]
    assert (absence["silo"], absence["stage"]) == ("south", "evaluate")
    assert results["arms"]["clues"]["silos"] == 3
    again = run_micro(config, tmp_path / "run")
    assert again["absences"] == []
    assert "precision" in again["silos"]["south"], "it was not asked again"


@pytest.mark.walk
def test_a_run_without_a_silo_from_the_start_equals_one_that_lost_it_at_once(config, tmp_path):
    run = open_micro(config, tmp_path / "run")
    lossy(run, "south", "hello")
    found = plain(run_until(run).results)
    folder = shutil.copytree(config.parent, tmp_path / "two")
    text = (folder / "clues.yaml").read_text()
    start, end = text.index("- name: south"), text.index("- name: west")
    (folder / "clues.yaml").write_text(text[:start] + text[end:])
    # The domain of south stays in the recipe.
    expected = run_micro(folder / "clues.yaml", tmp_path / "two-run")
    for figure in ("arms", "silos", "threshold"):
        assert without_volatile(found[figure]) == without_volatile(expected[figure])


@pytest.mark.walk
def test_below_the_quorum_the_run_stops_and_a_rerun_asks_everyone(config, tmp_path):
    run = open_micro(config, tmp_path / "run")
    run.coordinator.attendance.quorum = 3
    lossy(run, "south", "score")
    with pytest.raises(QuorumError, match=r"stage score: 2 silos .* 3 .*\nsilo south: no answer"):
        run_until(run)
    record = json.loads((tmp_path / "run" / "coordinator" / "absences.json").read_text())
    assert [stop["silo"] for stop in record["stops"]] == ["south"]
    results = run_micro(config, tmp_path / "run")
    assert set(results["silos"]) == set(SILOS)
    assert results["absences"] == []
