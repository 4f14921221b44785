"""Similarity of hidden states equals a plain loop over tokens, whatever the batch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_state
from test_influence import checkpoint_of

from clues.errors import DataError, NumericsError
from clues.model.adapters import Checkpoint
from clues.scoring import hidden
from clues.scoring.baselines import BASELINES, Scene

SIMILARITIES = ("embedding", "repsim", "rds")
LIMIT = {torch.float32: 1e-6, torch.float64: 1e-12}
WEIGHTS = {"near": 3.0, "far": 1.0}


def scene_of(model, rows, **changes) -> Scene:
    scene = Scene(
        model=model,
        checkpoint=checkpoint_of(model, seed=2),
        rows=rows,
        validation={"near": rows[:3], "far": rows[3:5]},
        weights=WEIGHTS,
        names=list(model.parameters()),
        seed=0,
    )
    return replace(scene, **changes)


def states_of(model, row) -> np.ndarray:
    """Last hidden state of every token of one row, as the whole model tells it."""
    ids = torch.tensor([row.ids])
    with model.evaluating(), torch.no_grad():
        found = model.peft(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    return found[0].double().numpy()


def vector_of(name, scene, row) -> np.ndarray:
    """One row's unit vector, token by token."""
    tuned = name == "repsim"
    scene.model.set_state(scene.checkpoint.adapter if tuned else scene.model.initial)
    states = states_of(scene.model, row)
    total, weight = np.zeros(states.shape[1]), 0.0
    for t, state in enumerate(states):
        w = {"embedding": 1.0, "repsim": float(row.mask[t]), "rds": t + 1.0}[name]
        total, weight = total + w * state, weight + w
    mean = total / weight
    return mean / np.linalg.norm(mean)


def by_definition(name, scene, rows) -> np.ndarray:
    sets = {s: [vector_of(name, scene, v) for v in scene.validation[s]] for s in WEIGHTS}
    scores = []
    for row in rows:
        mine = vector_of(name, scene, row)
        if name == "rds":
            best = {s: max(float(mine @ v) for v in found) for s, found in sets.items()}
            scores.append((3 * best["near"] + best["far"]) / 4)
        else:
            centre = 3 * np.mean(sets["near"], axis=0) + np.mean(sets["far"], axis=0)
            scores.append(float(mine @ centre / np.linalg.norm(centre)))
    return np.array(scores)


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("name", SIMILARITIES)
def test_a_similarity_equals_a_loop_over_the_tokens_of_single_rows(
    make_lora, encoded_rows, dtype, name
):
    scene = scene_of(make_lora(dtype=dtype), encoded_rows)
    found = BASELINES[name](scene)(encoded_rows)
    expected = by_definition(name, scene, encoded_rows)
    assert np.abs(found - expected).max() < LIMIT[dtype]
    assert np.ptp(expected) > 1e-3, "rows that all score alike show nothing"
    assert np.abs(found).max() <= 1 + 1e-12
    assert found.dtype == np.float64


@pytest.mark.parametrize("budget", [1, 150, 10_000])
@pytest.mark.parametrize("name", SIMILARITIES)
def test_neither_batch_nor_padding_nor_order_changes_a_similarity(
    make_lora, encoded_rows, monkeypatch, name, budget
):
    scene = scene_of(make_lora(), encoded_rows)
    usual = BASELINES[name](scene)(encoded_rows)
    monkeypatch.setattr(hidden, "token_budget_of", lambda device: budget)
    found = BASELINES[name](scene)(encoded_rows[::-1])[::-1]
    assert np.abs(found - usual).max() < 1e-6
    alone = [BASELINES[name](scene)([row])[0] for row in encoded_rows]
    assert np.abs(alone - usual).max() < 1e-6
    assert BASELINES[name](scene)([]).shape == (0,)


def test_repsim_looks_at_the_tuned_model_and_rds_at_the_base_model(make_lora, encoded_rows):
    scene = scene_of(make_lora(), encoded_rows)
    other = random_state(scene.model.initial, seed=9)
    retrained = replace(scene, checkpoint=Checkpoint(1, 0.1, other, {}))
    gaps = {
        name: np.abs(
            BASELINES[name](scene)(encoded_rows) - BASELINES[name](retrained)(encoded_rows)
        ).max()
        for name in SIMILARITIES
    }
    assert gaps["repsim"] > 1e-3
    assert gaps["rds"] == gaps["embedding"] == 0


def test_the_nearest_row_of_rds_is_the_row_itself(make_lora, encoded_rows):
    scene = scene_of(make_lora(), encoded_rows, weights={"near": 1.0})
    scores = BASELINES["rds"](scene)(encoded_rows)
    assert scores[:3] == pytest.approx(1, abs=1e-6)
    assert (scores[3:] < 1 - 1e-4).all()


@pytest.mark.parametrize("name", ["repsim", "rds"])
def test_a_row_without_a_response_is_refused_wherever_it_stands(make_lora, encoded_rows, name):
    silent = replace(encoded_rows[5], id="silent", mask=(False,) * len(encoded_rows[5].ids))
    scene = scene_of(make_lora(), encoded_rows)
    score = BASELINES[name](scene)
    with pytest.raises(DataError, match=r"row silent: none of its \d+ tokens belongs to a resp"):
        score([*encoded_rows[:2], silent])
    sets = {"near": encoded_rows[:3], "far": (*encoded_rows[3:4], silent)}
    with pytest.raises(DataError, match="row silent"):
        BASELINES[name](replace(scene, validation=sets))


@pytest.mark.parametrize("name", SIMILARITIES)
def test_a_similarity_makes_no_logits_and_keeps_no_vector_of_a_row(
    make_lora, encoded_rows, monkeypatch, name
):
    scene = scene_of(make_lora(), encoded_rows)
    score = BASELINES[name](scene)

    def refuse(*arguments):
        raise AssertionError("the head of the model ran")

    base: Any = scene.model.peft.get_base_model()
    base.lm_head.register_forward_pre_hook(refuse)
    monkeypatch.setattr(np, "stack", refuse)
    assert np.isfinite(score(encoded_rows)).all()


@pytest.mark.parametrize("name", SIMILARITIES)
def test_a_hidden_state_that_is_not_finite_names_its_row(make_lora, encoded_rows, name):
    scene = scene_of(make_lora(), encoded_rows)
    score = BASELINES[name](scene)
    own = set(encoded_rows[6].ids) - {i for row in encoded_rows[:6] for i in row.ids}
    table = scene.model.peft.get_input_embeddings().weight
    with torch.no_grad():
        table[sorted(own)[0]] = float("inf")
    with pytest.raises(NumericsError, match=rf"1 of 7 rows .*{encoded_rows[6].id}"):
        score(encoded_rows)
    sets = {"near": encoded_rows[5:], "far": encoded_rows[:1]}
    with pytest.raises(NumericsError, match=rf"1 of 2 rows .*{encoded_rows[6].id}"):
        BASELINES[name](replace(scene, validation=sets))
