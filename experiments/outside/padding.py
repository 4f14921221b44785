"""Whether scores as the authors had them follow how much padding a row has.

    python -m experiments.outside.padding --data FOLDER

Prints, by set and form, the rank correlation of a query's scores with the rows' numbers of padded
positions, as a mean over queries: 1 where the score is the padding and nothing else.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from clues.config import BUILT_IN, ModelSettings
from clues.model.adapters import LoraModel, load_tokenizer
from experiments.outside.forms import influences, taken
from experiments.outside.run import LORA, Scene, with_padding_in_front
from experiments.outside.sets import SETS


def follows_padding(scene: Scene) -> dict[str, float]:
    """By form, mean rank correlation of scores and padded positions; of a set padded in front."""
    checkpoint, _, padded = with_padding_in_front(scene)
    n = len(scene.train)
    train, queries = taken(padded, 0, n), taken(padded, n, len(scene.queries))
    n_padded = [scene.width - len(row.ids) for row in scene.train]
    return {
        form: float(np.mean([np.asarray(spearmanr(one, n_padded))[0] for one in scores]))
        for form, scores in influences(train, queries, checkpoint, silo=train).items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line per set."""
    parser = argparse.ArgumentParser(prog="python -m experiments.outside.padding")
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--model", default=BUILT_IN, help="built-in, or a local folder")
    known = [wanted.name for wanted in SETS if wanted.left]
    parser.add_argument("--sets", nargs="+", choices=known, default=["grammars", "math"])
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    settings = ModelSettings(name=asked.model, dtype="float32")
    model = LoraModel.load(settings, LORA, seed=asked.seed, device="cpu")
    tokenizer = load_tokenizer(settings)
    for wanted in SETS:
        if wanted.name in asked.sets:
            scene = Scene.of(model, tokenizer, wanted, asked.data, asked.seed)
            found = follows_padding(scene)
            print(wanted.name, {form: round(value, 3) for form, value in found.items()}, flush=True)


if __name__ == "__main__":
    main()
