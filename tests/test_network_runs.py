"""Whole runs with real processes. Minutes each: make federation-tests."""

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed: clues[flower]")

from clues.network.children import Child
from clues.wall.ledger import compare, verify
from deploy.rehearsal import (
    ONE_THREAD,
    Hospitals,
    clues,
    differences,
    finish,
    run_in_one_process,
    run_on_machines,
    write_hospitals,
)

pytestmark = pytest.mark.federation
HERE = Path(__file__).parent
SILO = "south-clinic"


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Hospitals:
    """The run in one process, with every file that the other ways need."""
    hospitals = write_hospitals(tmp_path_factory.mktemp("reference"))
    run_in_one_process(hospitals)
    return hospitals


def beside(reference: Hospitals, folder: Path, *, tls: bool = True) -> Hospitals:
    """New hospitals with the same rows, to be compared with the same run in one process."""
    hospitals = write_hospitals(folder, tls=tls)
    (folder / "one-process").symlink_to(reference.one_process)
    return hospitals


def children_of(pid: int, what: str) -> list[int]:
    """Process ids of a process's children whose command line holds this."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(p) for p in found if what in Path(f"/proc/{p}/cmdline").read_text()]


def wait_until(there: Callable[[], bool], *, limit_s: float = 600.0) -> None:
    end = time.monotonic() + limit_s
    while not there():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.1)


def start_all(hospitals: Hospitals, stack: ExitStack) -> dict[str, Child]:
    """Start every silo."""
    return {
        name: stack.enter_context(
            clues(name, "join", str(file), log=hospitals.folder / f"join-{name}.log")
        )
        for name, file in hospitals.silos.items()
    }


def start_serve(hospitals: Hospitals, stack: ExitStack) -> Child:
    return stack.enter_context(
        clues("serve", "serve", str(hospitals.coordinator), log=hospitals.folder / "serve.log")
    )


def answered(hospitals: Hospitals, kind: str) -> Callable[[], bool]:
    """Whether a silo's ledger has an answer of a kind."""
    ledger = hospitals.silo_run(SILO) / "ledger.jsonl"
    return lambda: ledger.exists() and f'"{kind}-reply"' in ledger.read_text()


def ledgers_agree(hospitals: Hospitals) -> bool:
    ours = verify(hospitals.coordinator_run / "ledger.jsonl")
    return all(
        compare(ours, verify(hospitals.silo_run(name) / "ledger.jsonl"))[name]
        for name in hospitals.silos
    )


def test_without_tls_the_result_is_that_of_one_process(reference, tmp_path):
    hospitals = beside(reference, tmp_path, tls=False)
    run_on_machines(hospitals, limit_s=600)
    assert differences(hospitals) == []
    assert ledgers_agree(hospitals)


def test_with_tls_and_keys_the_result_is_that_of_one_process(reference, tmp_path):
    hospitals = beside(reference, tmp_path)
    run_on_machines(hospitals, limit_s=600)
    assert differences(hospitals) == []
    assert ledgers_agree(hospitals)
    left = Path("/proc").glob("[0-9]*/cmdline")
    still = [p for p in left if str(tmp_path) in _text(p)]
    assert not still, "a process of the run is left behind"


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs flwr[simulation] (ray)")
def test_in_flowers_simulation_the_result_is_that_of_one_process(reference, tmp_path):
    hospitals = replace(reference, folder=tmp_path)
    (tmp_path / "one-process").symlink_to(reference.one_process)
    command = [sys.executable, str(HERE / "simulated_run.py"), str(reference.whole), str(tmp_path)]
    with Child("simulation", command, log=tmp_path / "log", environment=ONE_THREAD) as child:
        finish(child, limit_s=400)
    assert differences(hospitals) == []


def test_a_supernode_that_dies_comes_back_and_nothing_is_lost(reference, tmp_path):
    """Killed and started again within the minute in which the SuperLink holds it for alive."""
    hospitals = beside(reference, tmp_path)
    with ExitStack() as stack:
        joined = start_all(hospitals, stack)
        serve = start_serve(hospitals, stack)
        wait_until(answered(hospitals, "train"))
        [node] = children_of(joined[SILO].process.pid, "flower-supernode")
        os.kill(node, signal.SIGKILL)
        finish(serve, limit_s=600)
    assert "does not let this silo in yet" in (tmp_path / f"join-{SILO}.log").read_text()
    assert differences(hospitals) == []
    assert ledgers_agree(hospitals)


def test_a_silo_that_is_killed_and_started_again_goes_on(reference, tmp_path):
    hospitals = beside(reference, tmp_path)
    with ExitStack() as stack:
        joined = start_all(hospitals, stack)
        serve = start_serve(hospitals, stack)
        wait_until(answered(hospitals, "score"))
        joined[SILO].process.kill()
        joined[SILO].process.wait()
        again = clues(SILO, "join", str(hospitals.silos[SILO]), log=tmp_path / "again.log")
        stack.enter_context(again)
        finish(serve, limit_s=600)
    assert differences(hospitals) == []
    assert ledgers_agree(hospitals)


def test_a_coordinator_that_is_killed_goes_on_where_it_stopped(reference, tmp_path):
    hospitals = beside(reference, tmp_path)
    with ExitStack() as stack:
        start_all(hospitals, stack)
        serve = start_serve(hospitals, stack)
        wait_until(answered(hospitals, "score"))
        [link] = children_of(serve.process.pid, "flower-superlink")
        serve.process.kill()
        serve.process.wait()
        wait_until(lambda: not Path(f"/proc/{link}").exists(), limit_s=30)
        serve = start_serve(hospitals, stack)
        finish(serve, limit_s=600)
        said = serve.output()
    assert "select: 3 of 3" in said
    assert "train: 3 of 3" not in said, "finished stages ran again"
    assert differences(hospitals) == []
    assert ledgers_agree(hospitals)


def test_a_superlink_that_dies_ends_the_run_with_a_reason(tmp_path):
    hospitals = write_hospitals(tmp_path)
    with ExitStack() as stack:
        start_all(hospitals, stack)
        serve = start_serve(hospitals, stack)
        wait_until(answered(hospitals, "hello"))
        [link] = children_of(serve.process.pid, "flower-superlink")
        os.kill(link, signal.SIGKILL)
        wait_until(lambda: not serve.running, limit_s=120)
        assert serve.process.returncode == 8
        assert "does not answer any more" in serve.output()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
