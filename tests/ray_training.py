"""Trains one silo's rows in this process and on a cluster; prints both loss curves as JSON.

A program of its own because Ray reads its token's settings when it is imported.
"""

import json
import sys
from tempfile import TemporaryDirectory

from clues.cluster.training import train_on_cluster
from clues.config import ComputeSettings, load_config
from clues.data.formats import read_rows
from clues.model.adapters import LoraModel
from clues.model.cache import ModelCache
from clues.model.recording import Schedule
from clues.model.training import Trained, train

N_STEPS = 20


def main(path: str, address: str) -> None:
    config = load_config(path)
    model, encoder = ModelCache().load(config.recipe)
    rows = [encoder.encode(s) for s in read_rows(config.silos[0].data).samples]
    settings = ComputeSettings(engine="ray", address=address, train_workers=2)
    taken = []
    with TemporaryDirectory() as scratch:
        how = {
            "start": model.initial,
            "schedule": Schedule(0.05, 0.1, N_STEPS),
            "n_steps": N_STEPS,
            "seed": 7,
            "scratch": scratch,
            "checkpoint_at": (10, 20),
        }
        alone = train(model, rows, settings=config.recipe.train, **how)
        how["on_step"] = lambda: taken.append(1)
        together = train_on_cluster(settings, config.recipe, model, rows, **how)
    found = {"alone": shown(alone, model), "together": shown(together, model), "taken": len(taken)}
    sys.stdout.write(json.dumps(found))


def shown(trained: Trained, model: LoraModel) -> dict:
    return {
        "losses": trained.losses,
        "steps": [c.step for c in trained.checkpoints],
        "rates": [c.learning_rate for c in trained.checkpoints],
        "moments": sorted(trained.checkpoints[0].second_moment),
        "weights": [float(w.abs().sum()) for _, w in sorted(trained.adapter.items())],
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
