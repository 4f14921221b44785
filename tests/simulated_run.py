"""A run in Flower's simulation, in a process of its own: python simulated_run.py RUN.YAML FOLDER."""

import os
import sys
from pathlib import Path

# Read when torch and Flower are imported, here and in the actors.
os.environ.update(
    {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray gives its workers 15, and on a busy machine they then never get to work.
        "RAY_worker_niceness": "0",
    }
)

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation

from clues.carriers.flower import GridTransport, find_silos, make_client_app
from clues.config import load_config, load_shared
from clues.model.cache import ModelCache
from clues.pipeline import open_coordinator, run_until
from clues.progress import Silent
from clues.silo.gate import Gate
from clues.silo.silo import Silo
from clues.wall.ledger import Ledger


def client_app(whole: Path, folder: Path) -> ClientApp:
    silos = load_config(whole).silos

    def answer(data, context):
        settings = silos[int(context.node_config["partition-id"])]
        where = folder / "hospitals" / settings.name

        def open_silo():
            return Silo(settings, where, load_model=ModelCache().load, progress=Silent()).answer

        return Gate(settings.name, where, open_silo).answer(data)

    return make_client_app(answer, lambda context: folder / "errors.log")


def server_app(shared: Path, folder: Path, names: list[str]) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid, context):
        config = load_shared(shared)
        root = folder / "coordinator"
        root.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(root / "ledger.jsonl")
        # The first answer waits until the actors have loaded everything.
        patient = config.federation.model_copy(update={"wait_s": 600.0})
        nodes = find_silos(grid, names, settings=patient, ledger=ledger)
        transport = GridTransport(grid, nodes, ledger, settings=patient)
        run_until(open_coordinator(config, root, transport=transport, progress=Silent()))

    return app


def main() -> None:
    whole, folder = Path(sys.argv[1]), Path(sys.argv[2])
    names = [silo.name for silo in load_config(whole).silos]
    run_simulation(
        server_app(whole.with_name("shared.yaml"), folder, names),
        client_app(whole, folder),
        num_supernodes=len(names),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )


if __name__ == "__main__":
    main()
