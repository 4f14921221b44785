"""A trial of a base model before anything heavy: rows together score as each row alone.

Models are many, and each may put tokens in an order of its own, need more than token ids, or let
one row change another. So three short rows of random tokens are scored in one batch and, one by
one, from gradients that autograd makes; nothing goes on where the two differ.
"""

import copy
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from peft import set_peft_model_state_dict

from clues.config import ScoreSettings
from clues.data.tokens import EncodedRow
from clues.errors import ConfigError, DataError
from clues.model.adapters import AdapterState, LoraModel
from clues.model.devices import random_forked, wide
from clues.model.fitness import HALF_TYPES, n_embeddings
from clues.model.layers import short_names
from clues.model.loss import make_batch, row_losses
from clues.model.place import Opening
from clues.scoring.direction import trainable
from clues.scoring.finite import check_difference, difference_scores
from clues.scoring.influence import influence_scores

LENGTHS = (7, 5, 9)
# Largest distance of the scores from those of each row alone, as a share of their norm. Half
# precision rounds other rows otherwise; rows that are mixed up are off by about 1.
FULL, HALF = 0.01, 0.3
DIFFERENCE = 0.05
ADVICE = "Take another base model, or one that transformers can train on token ids alone."


def try_out(model: LoraModel, settings: ScoreSettings) -> None:
    """Refuse a model that the chosen score is wrong for; a model is tried once.

    Args:
        model: is left with its initial adapter.
        settings: how rows are scored.

    Raises:
        DataError: the model cannot be trained on tokens alone, or its rows do not stay apart.
        ConfigError: finite differences say nothing on this model, or PEFT would not open its
            adapter again.
    """
    by_difference = settings.way == "finite_difference"
    if model.tried and not by_difference:
        return
    if by_difference:
        check_difference(model)
    rows = _rows(n_embeddings(model.peft.get_base_model()))
    name = type(model.peft.get_base_model()).__name__
    with Opening(name, "training step", done="made", advice=ADVICE), random_forked(model.device):
        state = _moved(model.initial, model.scaling)
        _train_a_step(model, rows, state)
        alone, losses = _alone(model, rows, state)
        found = influence_scores(model, rows, adapter=state, directions=alone)
    expected = np.array([[_product(g, d) for d in alone] for g in alone])
    half = model.peft.get_base_model().dtype in HALF_TYPES
    for what, one, other in (("score", found.products, expected), ("loss", found.losses, losses)):
        far = _distance(one, other)
        if not far <= (HALF if half else FULL):
            raise DataError(
                f"{name}: the {what} of a row depends on the rows beside it (off by {far:.0%} in a "
                "trial with random rows), so rows cannot be compared. Name other layers in "
                "recipe.lora.target_modules, or take another base model."
            )
    if by_difference:
        moved = difference_scores(model, rows, adapter=state, directions=alone)
        far = _distance(moved.products, expected)
        if not far <= DIFFERENCE:
            raise DataError(
                f"{name}: finite differences are off by {far:.0%} in a trial with random rows: its "
                "loss is not smooth enough for them. Set recipe.score.way: auto."
            )
    model.set_state(model.initial)
    with Opening(name, "saved adapter", done="opened again", advice=ADVICE):
        _check_opens_again(model, state)
    model.tried = True


def _rows(width: int) -> list[EncodedRow]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for n, length in enumerate(LENGTHS):
        ids = torch.randint(width, (length,), generator=generator).tolist()
        mask = tuple(t >= length // 2 for t in range(length))
        rows.append(EncodedRow(n, f"trial-{n}", tuple(ids), mask))
    return rows


def _moved(initial: AdapterState, scaling: float) -> AdapterState:
    """An adapter whose B is not zero, so that A has a gradient."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: t + 0.05 / scaling * torch.randn(t.shape, generator=generator, dtype=t.dtype)
        for name, t in initial.items()
    }


def _train_a_step(model: LoraModel, rows: Sequence[EncodedRow], state: AdapterState) -> None:
    """Forward and backward as in training: some models ask for more inputs then."""
    model.set_state(state)
    was_training = model.peft.training
    weights = list(model.parameters().values())
    model.peft.train()
    try:
        with trainable(weights, only=weights):
            loss = row_losses(model.peft, make_batch(rows, device=model.device)).mean()
            torch.autograd.grad(loss, weights, allow_unused=True)
    finally:
        model.peft.train(was_training)


def _alone(
    model: LoraModel, rows: Sequence[EncodedRow], state: AdapterState
) -> tuple[list[AdapterState], np.ndarray]:
    """Gradient and loss of every row, one row at a time."""
    model.set_state(state)
    parameters = model.parameters()
    weights = list(parameters.values())
    gradients, losses = [], []
    with model.evaluating(), trainable(weights, only=weights):
        for row in rows:
            loss = row_losses(model.peft, make_batch([row], device=model.device))[0]
            made = torch.autograd.grad(loss, weights, allow_unused=True)
            pairs = zip(parameters.items(), made, strict=True)
            gradients.append({n: torch.zeros_like(p) if g is None else g for (n, p), g in pairs})
            losses.append(float(loss.detach()))
    return gradients, np.array(losses)


def _product(a: AdapterState, b: AdapterState) -> float:
    return sum(float((wide(a[name]) * wide(b[name])).sum()) for name in a)


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))


def _check_opens_again(model: LoraModel, state: AdapterState) -> None:
    """Let PEFT take up a saved adapter, in other modules around the same base weights.

    It knows models by name and renames weights of some as it opens them.
    """
    base = model.peft.get_base_model()
    kept = {id(p) for p in model.parameters().values()}
    shared = {id(t): t for t in (*base.parameters(), *base.buffers()) if id(t) not in kept}
    twin = LoraModel.around(copy.deepcopy(model.peft, shared))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that it misses; they are counted here
        set_peft_model_state_dict(twin.peft, {n: t.clone() for n, t in state.items()})
    found = twin.state()
    lost = [name for name in state if not torch.equal(found[name], state[name].to(found[name]))]
    if lost:
        layers = short_names([name.rsplit(".lora_", 1)[0] for name in lost])
        raise ConfigError(
            f"recipe.lora.target_modules: PEFT does not open a saved adapter on some layers of this "
            f"model again ({len(lost)} weights, for example {lost[0]}). Name others than "
            f"{', '.join(layers)}."
        )
