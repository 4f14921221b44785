"""The same with Ray itself: real workers, and two nodes on one machine of which one is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from federation_helpers import edit_config, open_micro, write_micro, write_rows

from benchmarks import ray_nodes
from benchmarks.ray_nodes import Cluster
from clues.pipeline import run_until

pytest.importorskip("ray", reason="Ray is not installed: the extra `ray`")
pytestmark = [pytest.mark.long, pytest.mark.skipif(not Path("/proc").exists(), reason="no /proc")]
N_ROWS = 3000


@pytest.fixture(scope="module")
def config(tmp_path_factory, micro_model) -> Path:
    """One silo of twelve shards."""
    folder = tmp_path_factory.mktemp("silo")
    path = write_micro(folder, micro_model, silos=("north",))
    rows = [
        {"instruction": f"Question {n} of many?", "output": f"Answer {n * n}.", "damage": ""}
        for n in range(N_ROWS)
    ]
    write_rows(folder / "silos/north.jsonl", rows)
    return edit_config(path, {"combine": {"rounds": 1}})


@pytest.fixture(scope="module")
def table(config) -> bytes:
    """The scores of one process."""
    run_until(open_micro(config, config.parent / "one"), "score")
    return scores(config.parent / "one")


@contextmanager
def cluster(*cpus: int) -> Iterator[Cluster]:
    try:
        with ray_nodes.cluster(*cpus) as nodes:
            yield nodes
    except RuntimeError as error:
        if "does not start" not in str(error):
            raise
        pytest.skip(str(error))


def scores(run: Path) -> bytes:
    return (run / "silos/north/private/scores.parquet").read_bytes()


def on(nodes: Cluster, config: Path, name: str, **compute) -> Path:
    """The configuration with this cluster in it."""
    setting = {"engine": "ray", "address": nodes.address, "wait_s": 60, **compute}
    path = config.with_name(f"{name}.yaml")
    path.write_text(config.read_text())
    return edit_config(path, {"compute": setting})


def start(nodes: Cluster, config: Path, out: Path, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "clues", "score", str(config), "--out", str(out)]
    with log.open("w") as file:
        return subprocess.Popen(command, env=nodes.environment, stdout=file, stderr=file)


def wait_for_shards(out: Path, n: int, process: subprocess.Popen, log: Path) -> None:
    """Until so many shards of the last job lie there."""
    end = time.monotonic() + 180
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        if len(list(out.glob("silos/north/private/shards/*/shard-*.safetensors"))) >= n:
            return
        time.sleep(0.02)
    pytest.fail(f"no {n} shards in time: {log.read_text()}")


def test_a_node_killed_half_way_changes_no_bit(config, table, tmp_path):
    with cluster(1, 1) as nodes:
        path = on(nodes, config, "killed", workers=2)
        process = start(nodes, path, tmp_path / "run", tmp_path / "log")
        # The losses' twelve shards, and a few of the first checkpoint's.
        wait_for_shards(tmp_path / "run", 15, process, tmp_path / "log")
        nodes.kill_last_node()
        assert process.wait(timeout=300) == 0, (tmp_path / "log").read_text()
        assert "is lost" in (tmp_path / "log").read_text(), "killed too late to test anything"
        assert scores(tmp_path / "run") == table


def test_a_driver_killed_half_way_loses_its_open_shards_alone(config, table, tmp_path):
    with cluster(2) as nodes:
        path = on(nodes, config, "driver", workers=2)
        out, log = tmp_path / "run", tmp_path / "log"
        process = start(nodes, path, out, log)
        wait_for_shards(out, 15, process, log)
        process.send_signal(signal.SIGKILL)
        process.wait()
        there = {p: p.stat().st_mtime_ns for p in out.glob("silos/north/private/shards/*/shard-*")}
        assert start(nodes, path, out, log).wait(timeout=300) == 0, log.read_text()
        assert scores(out) == table
        assert there, "nothing was there to go on from"
        found = json.loads((out / "silos/north/private/progress.json").read_text())
        assert found["parts_done"] == found["parts"]


def test_a_wrong_token_is_one_line(config, tmp_path):
    with cluster(1) as nodes:
        path = on(nodes, config, "token", workers=1, wait_s=20)
        nodes.environment = {**nodes.environment, "RAY_AUTH_TOKEN": "0" * 64}
        log = tmp_path / "log"
        assert start(nodes, path, tmp_path / "run", log).wait(timeout=300) == 8
        said = log.read_text()
        assert "Ray cannot be used" in said
        assert "auth_token" in said
        assert "Traceback" not in said


def test_ray_on_this_machine_alone_needs_no_cluster(config, table, tmp_path, monkeypatch):
    path = config.with_name("local.yaml")
    path.write_text(config.read_text())
    edit_config(path, {"compute": {"engine": "ray", "workers": 1}})
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    command = [sys.executable, "-m", "clues", "score", str(path), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if "timed out during startup" in done.stderr:
        pytest.skip("Ray does not start on this machine now")
    assert done.returncode == 0, done.stderr
    assert scores(tmp_path / "run") == table
    assert (tmp_path / "home/.ray").stat().st_mode & 0o777 == 0o700, "others could read the token"


def test_two_training_workers_have_the_loss_curve_of_one_process(tmp_path, micro_model):
    config = write_micro(tmp_path, micro_model, silos=("north",))
    program = Path(__file__).with_name("ray_training.py")
    with cluster(2) as nodes:
        command = [sys.executable, str(program), str(config), nodes.address]
        done = subprocess.run(
            command, env=nodes.environment, capture_output=True, text=True, timeout=400
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    alone, together = found["alone"], found["together"]
    assert found["taken"] == len(alone["losses"]) == 20
    assert alone["losses"][0] > alone["losses"][-1] + 0.1, "nothing was learnt"
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert together["weights"] == pytest.approx(alone["weights"], rel=1e-3)
    for same in ("steps", "rates", "moments"):
        assert together[same] == alone[same]
