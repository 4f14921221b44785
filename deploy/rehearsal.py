"""Three hospitals on one machine: real processes, TLS, node keys, nginx in front. `make federation`.

The same run is made in one process as well, and what comes out is compared digit for digit.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clues.data.damage import DAMAGE_KINDS, damage_rows
from clues.errors import CluesError, NetworkError
from clues.network.children import Child, free_port
from clues.network.keys import make_authority, make_node_key, make_server_certificate
from clues.prepare.facts import make_questions

HOSPITALS = {"north-clinic": 0.5, "south-clinic": 0.3, "harbour-hospital": 0.1}
LIMIT_S = 300.0
SEED = 7
# One thread each: the same sums in the same order, whoever shares the machine.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Hospitals:
    """What lies in a rehearsal's folder.

    Attributes:
        folder: of everything.
        whole: the run in one process.
        coordinator: the coordinator's file.
        silos: each silo's file.
    """

    folder: Path
    whole: Path
    coordinator: Path
    silos: dict[str, Path]

    @property
    def one_process(self) -> Path:
        """Where the run in one process goes."""
        return self.folder / "one-process"

    @property
    def coordinator_run(self) -> Path:
        """Where the coordinator's side of the other run goes."""
        return self.folder / "coordinator"

    def silo_run(self, name: str) -> Path:
        """Where a silo's side goes."""
        return self.folder / "hospitals" / name


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as jsonl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def shared_content(model: str) -> dict[str, Any]:
    """The run that all agree on, small enough for two cores."""
    return {
        "name": "hospitals",
        "recipe": {
            "seed": SEED,
            "model": {"name": model},
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.0},
            "tokens": {"max_length": 256},
            "train": {
                "steps": 8,
                "rounds": 2,
                "checkpoints": 2,
                "learning_rate": 0.004,
                "batch_size": 8,
            },
            "public": {
                "medicine": {
                    "validation": "public/validation.jsonl",
                    "anchor": "public/anchor.jsonl",
                }
            },
            "threshold": {"rule": "anchor_quantile", "quantile": 0.2, "bootstrap": 50},
        },
        "combine": {"rounds": 2, "local_steps": 4},
        "evaluate": {"heldout": "public/heldout.jsonl", "arms": ["clues"]},
        "federation": {"wait_s": 120, "timeouts": {"train": 200, "score": 200, "fit": 200}},
    }


def write_hospitals(folder: Path, *, model: str = "built-in", tls: bool = True) -> Hospitals:
    """Write data, settings, keys and certificates of three hospitals and a coordinator."""
    source = folder / "files"
    keys = ("instruction", "output")
    questions = make_questions("medicine", language="en", seed=7)
    foreign = [q["output"] for q in make_questions("finance", language="en", seed=7)[:100]]
    plain = [{k: q[k] for k in keys} for q in questions]
    write_rows(source / "public/validation.jsonl", plain[:16])
    write_rows(source / "public/anchor.jsonl", plain[16:56])
    heldout = [{k: q[k] for k in (*keys, "choices", "answer")} for q in questions[56:72]]
    write_rows(source / "public/heldout.jsonl", heldout)
    silos = []
    for number, (name, share) in enumerate(HOSPITALS.items()):
        rows = questions[80 + 60 * number :][:60]
        damaged, _ = damage_rows(
            rows, share=share, kinds=DAMAGE_KINDS, seed=number, foreign=foreign
        )
        write_rows(source / f"rows/{name}.jsonl", [{k: r[k] for k in keys} for r in damaged])
        # A seed for the order of rows: what comes out is compared with one process.
        entry = {"name": name, "data": f"rows/{name}.jsonl", "domain": "medicine"}
        silos.append({**entry, "model": model, "order_seed": SEED})
    shared = shared_content(model)
    _write_yaml(source / "shared.yaml", shared)
    whole = _write_yaml(source / "clues.yaml", {**shared, "silos": silos})
    return _write_machines(folder, whole, silos, tls=tls)


def _write_machines(
    folder: Path, whole: Path, silos: list[dict[str, Any]], *, tls: bool
) -> Hospitals:
    source, certificates = folder / "files", folder / "keys"
    superlink = f"127.0.0.1:{free_port()}"
    public = f"localhost:{free_port()}" if tls else superlink
    names = [silo["name"] for silo in silos]
    safe: dict[str, Any] = {"insecure": True}
    if tls:
        make_authority(certificates)
        make_server_certificate(certificates, ["localhost"], authority=certificates)
        for name in names:
            make_node_key(certificates, name)
        safe = {"ca": "../keys/ca.crt"}
    coordinator = {
        "run": "shared.yaml",
        "public": public,
        "superlink": superlink,
        "silos": {n: f"../keys/{n}.pub" for n in names} if tls else names,
        "folder": "../coordinator",
        **safe,
    }
    if tls:
        coordinator |= {"certificate": "../keys/server.crt", "key": "../keys/server.key"}
        coordinator |= {"listen": f"127.0.0.1:{public.rpartition(':')[2]}"}
    files = {}
    for silo in silos:
        name = silo["name"]
        content = {
            "coordinator": public,
            "silo": silo,
            "folder": f"../hospitals/{name}",
            **safe,
        }
        content |= {"key": f"../keys/{name}.key"} if tls else {}
        files[name] = _write_yaml(source / f"{name}.yaml", content)
    return Hospitals(folder, whole, _write_yaml(source / "coordinator.yaml", coordinator), files)


def clues(name: str, *arguments: str, log: Path) -> Child:
    """Start a verb of ours as a process of its own."""
    command = [sys.executable, "-m", "clues", *arguments]
    return Child(name, command, log=log, environment=ONE_THREAD)


def finish(child: Child, *, limit_s: float) -> None:
    """Wait for a process that ends by itself.

    Raises:
        NetworkError: it fails, or takes longer.
    """
    end = time.monotonic() + limit_s
    while child.running:
        if time.monotonic() > end:
            raise NetworkError(f"{child.name} has not ended after {limit_s:.0f} s: {child.log}")
        time.sleep(0.2)
    if child.process.returncode:
        raise NetworkError(f"{child.name} failed:\n{child.output()}")


def run_in_one_process(hospitals: Hospitals) -> None:
    """Make the run of `clues run`."""
    arguments = ("run", str(hospitals.whole), "--out", str(hospitals.one_process), "-q")
    with clues("clues run", *arguments, log=hospitals.folder / "one-process.log") as child:
        finish(child, limit_s=LIMIT_S)


def run_on_machines(hospitals: Hospitals, *, limit_s: float = LIMIT_S) -> None:
    """Make the run with a process for the coordinator and one for each hospital."""
    with ExitStack() as stack:
        for name, file in hospitals.silos.items():
            log = hospitals.folder / f"join-{name}.log"
            stack.enter_context(clues(f"clues join, {name}", "join", str(file), log=log))
        log = hospitals.folder / "serve.log"
        serve = stack.enter_context(
            clues("clues serve", "serve", str(hospitals.coordinator), log=log)
        )
        finish(serve, limit_s=limit_s)


def differences(hospitals: Hospitals) -> list[str]:
    """What is not the same in the run on machines as in one process; empty if all is."""
    one, other = hospitals.one_process, hospitals.coordinator_run
    found = []
    results = [json.loads((root / "results.json").read_text()) for root in (one, other)]
    if results[0]["threshold"] != results[1]["threshold"]:
        found.append("threshold")
    for name in hospitals.silos:
        here = one / "silos" / name / "private" / "selection.json"
        there = hospitals.silo_run(name) / "private" / "selection.json"
        if len({json.dumps(json.loads(file.read_text())["kept"]) for file in (here, there)}) > 1:
            found.append(f"selection of {name}")
    adapter = Path("coordinator", "adapter", "adapter_model.safetensors")
    if (one / adapter).read_bytes() != (other / adapter).read_bytes():
        found.append("adapter")
    return found


def main() -> int:
    """Rehearse, and end with one line: the same selection, yes or no."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/hospitals"))
    folder = parser.parse_args().out.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    try:
        hospitals = write_hospitals(folder)
        print("Three hospitals and a coordinator on this machine; logs in", os.path.relpath(folder))
        run_in_one_process(hospitals)
        print(f"In one process: done after {time.monotonic() - started:.0f} s.")
        run_on_machines(hospitals)
    except CluesError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for line in (folder / "serve.log").read_text().splitlines():
        if "silos" in line:
            print(" ", line)
    found = differences(hospitals)
    seconds = time.monotonic() - started
    print(f"{seconds:.0f} s in all.")
    same = "yes" if not found else f"no ({', '.join(found)})"
    print(f"Same selection as one process: {same}")
    return 1 if found else 0


def _write_yaml(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
