"""Half precision ranks rows as full precision does."""

import pytest
import torch
from conftest import random_state
from scipy.stats import spearmanr

from clues.config import LoraSettings, ModelSettings, TokenSettings
from clues.data.damage import DAMAGE_KINDS, damage_rows
from clues.data.samples import Message, Sample
from clues.data.tokens import RowEncoder
from clues.model.adapters import Checkpoint, LoraModel, load_tokenizer
from clues.prepare.facts import make_questions
from clues.scoring.forms import form_directions, form_scores

N_ROWS, N_VALIDATION = 120, 30


def scores(dtype: str, form: str) -> list[float]:
    settings = ModelSettings(dtype=dtype)  # pyright: ignore[reportArgumentType]
    lora = LoraSettings(dropout=0.0, target_modules="all-linear")
    model = LoraModel.load(settings, lora, seed=1, device="cpu")
    state = {n: 0.1 * t for n, t in random_state(model.state(), seed=2).items()}
    second = {n: torch.full_like(t, 1e-4) for n, t in state.items()}
    encoder = RowEncoder(load_tokenizer(settings), TokenSettings(max_length=256))
    questions = make_questions("medicine", language="en", seed=3)[: N_ROWS + N_VALIDATION]
    foreign = [row["output"] for row in make_questions("finance", language="en", seed=3)[:50]]
    mixed, _ = damage_rows(
        questions[N_VALIDATION:], share=0.5, kinds=DAMAGE_KINDS, seed=4, foreign=foreign
    )
    rows = [
        encoder.encode(
            Sample(n, (Message("user", r["instruction"]), Message("assistant", r["output"])))
        )
        for n, r in enumerate([*questions[:N_VALIDATION], *mixed])
    ]
    checkpoint = Checkpoint(1, 1.0, state, second)
    directions = form_directions(
        model,
        {"validation": rows[:N_VALIDATION]},
        checkpoint,
        form=form,
        weights=list(model.parameters()),
    )
    way = "side_branch" if form == "adam" else "gradients"
    found = form_scores(
        model, rows[N_VALIDATION:], checkpoint, list(directions.values()), form=form, way=way
    )
    return found.products[:, 0].tolist()


@pytest.mark.long
@pytest.mark.parametrize("form", ["adam", "cosine"])
def test_a_bfloat16_base_ranks_rows_as_a_float32_base_does(form) -> None:
    full, half = scores("float32", form), scores("bfloat16", form)
    assert spearmanr(full, half).statistic >= 0.999
