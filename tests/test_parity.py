"""Forms `sgd` and `adam_exact` give the scores of the CLUES authors' own functions.

The scores were made once, on a real tiny model, and are no part of the project. The environment
variable CLUES_SHARED names the folder that holds them, as `parity`, and the model, as
`models/stories260K`.
"""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from clues.config import LoraSettings, ModelSettings
from clues.data.tokens import EncodedRow, as_encoded
from clues.model.adapters import Checkpoint, LoraModel
from clues.scoring.forms import form_directions, form_scores

BETAS = {"exp_avg": 0.9, "exp_avg_sq": 0.999}
# Of the spread of the scores, which in the Adam form is a twentieth of the largest. Both sides
# compute in float32, and add up in another order.
LIMIT = 2e-5
STEPS = (8, 16, 24)


@pytest.fixture(scope="module")
def shared() -> Path:
    named = os.environ.get("CLUES_SHARED")
    if not named:
        pytest.skip("CLUES_SHARED does not name the folder with the authors' scores")
    folder = Path(named)
    assert (folder / "parity/parity.json.gz").exists(), f"CLUES_SHARED={named} holds no scores"
    return folder


@pytest.fixture(scope="module")
def theirs(shared) -> dict[str, Any]:
    with gzip.open(shared / "parity/parity.json.gz") as file:
        return json.load(file)


@pytest.fixture(scope="module")
def model(shared) -> LoraModel:
    base = ModelSettings(name=str(shared / "models/stories260K"), dtype="float32")
    lora = LoraSettings(rank=4, alpha=4, dropout=0.0, target_modules=("q_proj", "v_proj"))
    return LoraModel.load(base, lora, seed=0, device="cpu")


def rows_of(theirs: dict[str, Any], part: str) -> list[EncodedRow]:
    return [as_encoded(row, n) for n, row in enumerate(theirs[part])]


def checkpoint_of(shared: Path, found: dict[str, Any]) -> Checkpoint:
    step = found["step"]
    with safe_open(shared / f"parity/checkpoint-{step}.safetensors", "pt") as file:
        parts: dict[str, dict[str, Any]] = {"adapter": {}, **{name: {} for name in BETAS}}
        for key in file.keys():  # noqa: SIM118 (it is no dictionary)
            part, name = key.split("/", 1)
            # The optimiser keeps its means as they are; a checkpoint has them bias-corrected.
            scale = 1 - BETAS[part] ** step if part in BETAS else 1
            parts[part][name] = file.get_tensor(key) / scale
    return Checkpoint(
        step,
        found["learning_rate"],
        parts["adapter"],
        second_moment=parts["exp_avg_sq"],
        first_moment=parts["exp_avg"],
        optimizer_steps=step,
    )


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("form", "way", "name"),
    [
        ("sgd", "side_branch", "noproj"),
        ("sgd", "gradients", "noproj"),
        ("adam_exact", "gradients", "noproj_adam"),
    ],
)
def test_a_form_gives_the_scores_of_the_authors_functions(
    shared, theirs, model, form, way, name, step
) -> None:
    (found,) = [c for c in theirs["checkpoints"] if c["step"] == step]
    checkpoint = checkpoint_of(shared, found)
    sets = {"all": rows_of(theirs, "validation")}
    names = list(model.parameters())
    directions = form_directions(model, sets, checkpoint, form=form, weights=names)
    rows = rows_of(theirs, "train")
    ours = form_scores(model, rows, checkpoint, list(directions.values()), form=form, way=way)
    expected = np.array(found[name])
    error = np.abs(ours.products[:, 0] - expected).max() / np.ptp(expected)
    assert error < LIMIT, f"{form} is not the authors' {name}"
