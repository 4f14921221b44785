"""Every form equals a plain loop, and every way to compute a form gives the same numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_state
from pydantic import ValidationError
from scipy.stats import spearmanr
from test_influence import (
    LIMIT,
    checkpoint_of,
    every_dtype,
    gradients_by_loop,
    products_by_loop,
    random_direction,
    row_error,
)

from clues.config import BASELINE_NAMES, FORMS, LINEAR_FORMS, ScoreSettings
from clues.errors import ConfigError, DataError, NumericsError
from clues.model.loss import make_batch, row_losses
from clues.scoring.datainf import datainf_direction
from clues.scoring.direction import mean_gradient, scored_weights
from clues.scoring.finite import difference_scores
from clues.scoring.forms import by_block, form_directions, form_scores, way_of
from clues.scoring.gradients import Products, each_gradient, transformed_products
from clues.scoring.influence import influence_scores
from clues.scoring.perplexity import alignments, mean_losses


def with_moments(model, *, seed=5):
    checkpoint = checkpoint_of(model, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    first = {
        n: torch.randn(t.shape, generator=generator, dtype=t.dtype) * 0.1
        for n, t in model.state().items()
    }
    return replace(checkpoint, first_moment=first, optimizer_steps=7)


def gradient_products(model, rows, *, adapter, directions) -> Products:
    """Of the rows' gradients as they are."""
    how = {"adapter": adapter, "directions": directions, "transforms": {"": None}}
    return transformed_products(model, rows, **how)[""]


def flat(state, names):
    return torch.cat([state[n].flatten() for n in names]).double()


def by_definition(form, g, v, checkpoint, names):
    """One row's score, written as in the formulas; g and v by weight name."""
    g_P, v_P = flat(g, names), flat(v, names)
    square_P = flat(checkpoint.second_moment, names)
    if form == "sgd":
        return float(g_P @ v_P)
    if form == "adam":
        return float(g_P @ (v_P / (square_P.sqrt() + 1e-8)))
    if form == "adam_two_sided":
        scale_P = square_P.sqrt() + 1e-8
        return float((g_P / scale_P) @ (v_P / scale_P))
    if form == "cosine":
        return float(g_P @ v_P / (g_P.norm() * v_P.norm()))
    m_P = flat(checkpoint.first_moment, names) * (1 - 0.9**checkpoint.optimizer_steps)
    raw_square_P = square_P * (1 - 0.999**checkpoint.optimizer_steps)
    u_P = (0.9 * m_P + 0.1 * g_P) / (0.999 * raw_square_P + 0.001 * g_P**2 + 1e-8).sqrt()
    if form == "adam_exact":
        return float(u_P @ v_P)
    return float(u_P @ v_P / (u_P.norm() * v_P.norm()))


@every_dtype
@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_its_definition(make_lora, encoded_rows, dtype, form):
    model = make_lora(dtype=dtype)
    checkpoint, rows = with_moments(model), encoded_rows[2:]
    names = list(model.parameters())
    sets = {"en": encoded_rows[:3], "fr": encoded_rows[1:4]}
    directions = form_directions(model, sets, checkpoint, form=form, weights=names)
    found = form_scores(
        model,
        rows,
        checkpoint,
        list(directions.values()),
        form=form,
        way=way_of(ScoreSettings(form=form), form),
    )
    plain = [
        mean_gradient(model, part, checkpoint.adapter, weights=names)[0] for part in sets.values()
    ]
    model.set_state(checkpoint.adapter)
    gradients = gradients_by_loop(model, rows)
    expected = np.array(
        [[by_definition(form, g, v, checkpoint, names) for v in plain] for g in gradients]
    )
    assert row_error(found.products, expected) < LIMIT[dtype]


@every_dtype
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_per_sample_gradients_equal_a_loop_and_vmap(make_lora, encoded_rows, dtype):
    model = make_lora(dtype=dtype)
    names = list(model.parameters())
    found = {n: {} for n in names}

    def keep(batch, name, gradient):
        found[name] |= {row: g.clone() for row, g in zip(batch, gradient, strict=True)}

    each_gradient(
        model, encoded_rows, adapter=model.state(), weights=names, on_gradient=keep, token_budget=64
    )
    for row, expected in enumerate(gradients_by_loop(model, encoded_rows)):
        for name in names:
            scale = max(float(expected[name].norm()), 1e-12)
            error = float((found[name][row] - expected[name]).norm()) / scale
            assert error < LIMIT[dtype], f"row {row}, {name}: {error}"
    by_vmap = gradients_by_vmap(model, encoded_rows)
    for name in names:
        stacked = torch.stack([found[name][row] for row in range(len(encoded_rows))])
        error = (stacked - by_vmap[name]).norm() / by_vmap[name].norm()
        assert float(error) < LIMIT[dtype], f"{name}: {error}"


def gradients_by_vmap(model, rows):
    """Per-sample gradients by torch.func, all rows padded to one batch."""
    tensors = make_batch(rows)
    wanted = {id(p): name for name, p in model.parameters().items()}
    with model.evaluating() as peft:
        everything = dict(peft.named_parameters())
        trained = {n: p.detach() for n, p in everything.items() if id(p) in wanted}
        fixed = {n: p.detach() for n, p in everything.items() if id(p) not in wanted}

        def loss(weights, ids_T, targets_T):
            # Padding is on the right: a causal model needs no mask to ignore it.
            logits_TV = torch.func.functional_call(
                peft,
                {**fixed, **weights},
                kwargs={
                    "input_ids": ids_T[None],
                    "use_cache": False,
                },
            ).logits[0]
            losses_T = torch.nn.functional.cross_entropy(
                logits_TV, targets_T.clamp(min=0), reduction="none"
            )
            counts_T = (targets_T >= 0).to(losses_T)
            return (losses_T * counts_T).sum() / counts_T.sum()

        found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(
            trained, tensors.ids_NT, tensors.targets_NT
        )
    return {wanted[id(everything[n])]: g for n, g in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_batch_padding_and_order_change_nothing(make_lora, encoded_rows, form, monkeypatch):
    model = make_lora(dtype=torch.float64)
    checkpoint, names = with_moments(model), list(model.parameters())
    directions = form_directions(
        model, {"en": encoded_rows[:3]}, checkpoint, form=form, weights=names
    )
    way = way_of(ScoreSettings(form=form), form)

    def scored(rows):
        return form_scores(
            model, rows, checkpoint, list(directions.values()), form=form, way=way
        ).products

    usual = scored(encoded_rows)
    order = np.random.default_rng(0).permutation(len(encoded_rows))
    turned = scored([encoded_rows[i] for i in order])
    assert turned == pytest.approx(usual[order], rel=1e-10)
    alone = np.concatenate([scored([row]) for row in encoded_rows])
    assert alone == pytest.approx(usual, rel=1e-10)


@every_dtype
def test_finite_difference_agrees_with_the_side_branch(make_lora, encoded_rows, dtype):
    model = make_lora(dtype=dtype)
    adapter = model.state()
    directions = [random_direction(model, seed=seed) for seed in (1, 2)]
    exact = influence_scores(model, encoded_rows, adapter=adapter, directions=directions)
    near = difference_scores(model, encoded_rows, adapter=adapter, directions=directions)
    assert near.losses == pytest.approx(exact.losses, rel=1e-6)
    limit = {torch.float64: 1e-6, torch.float32: 2e-2}[dtype]
    assert row_error(near.products, exact.products) < limit
    for k in range(2):
        assert spearmanr(near.products[:, k], exact.products[:, k]).statistic > 0.999
    assert all(torch.equal(model.state()[n], t) for n, t in adapter.items()), "the adapter moved"


def test_finite_difference_refuses_a_direction_of_zero(make_lora, encoded_rows):
    model = make_lora()
    zero = {n: torch.zeros_like(t) for n, t in model.state().items()}
    with pytest.raises(NumericsError, match="direction 1 is zero"):
        difference_scores(model, encoded_rows, adapter=model.state(), directions=[zero])


def test_products_norms_and_cosines_belong_together(make_lora, encoded_rows):
    model = make_lora(dtype=torch.float64)
    direction = random_direction(model, seed=1)
    found = gradient_products(model, encoded_rows, adapter=model.state(), directions=[direction])
    gradients = gradients_by_loop(model, encoded_rows)
    assert row_error(found.products, products_by_loop(gradients, [direction])) < 1e-12
    norms = [float(flat(g, g).norm()) for g in gradients]
    assert found.norms == pytest.approx(norms, rel=1e-12)
    assert np.abs(found.cosines).max() <= 1


def test_blocks_add_up_to_the_whole(make_lora, encoded_rows):
    model = make_lora(dtype=torch.float64)
    direction = random_direction(model, seed=1)
    blocks = by_block(direction)
    assert set(blocks) == {0, 1}
    adapter = model.state()
    whole = influence_scores(model, encoded_rows, adapter=adapter, directions=[direction])
    parts = influence_scores(model, encoded_rows, adapter=adapter, directions=list(blocks.values()))
    assert parts.products.sum(axis=1) == pytest.approx(whole.products[:, 0], rel=1e-10)


# DataInf


def test_datainf_equals_its_dense_formula(make_lora, encoded_rows):
    model = make_lora(dtype=torch.float64)
    names = [n for n in model.parameters() if "layers.0.self_attn.q_proj" in n]
    assert len(names) == 2
    validation, rows = encoded_rows[:3], encoded_rows[2:]
    gradient = mean_gradient(model, validation, model.state(), weights=names)[0]
    direction = datainf_direction(model, rows, adapter=model.state(), gradient=gradient)
    gradients = gradients_by_loop(model, rows)
    for name in names:
        g_NP = torch.stack([g[name].flatten() for g in gradients])
        ridge = 0.1 * float(g_NP.square().sum(dim=1).mean()) / g_NP.shape[1]
        eye_PP = torch.eye(g_NP.shape[1], dtype=torch.float64)
        # The mean of inverses, by dense matrices; DataInf swaps it for the inverse of the mean.
        inverse_PP = torch.stack(
            [torch.linalg.inv(torch.outer(g, g) + ridge * eye_PP) for g in g_NP]
        ).mean(dim=0)
        expected = inverse_PP @ gradient[name].flatten()
        error = (direction[name].flatten() - expected).norm() / expected.norm()
        assert float(error) < 1e-9, f"{name}: {error}"


def test_datainf_ignores_a_weight_that_no_row_moves(make_lora, encoded_rows):
    model = make_lora(dtype=torch.float64)
    adapter = {n: torch.zeros_like(t) if ".lora_B." in n else t for n, t in model.state().items()}
    names = list(adapter)
    gradient = mean_gradient(model, encoded_rows[:3], adapter, weights=names)[0]
    direction = datainf_direction(model, encoded_rows, adapter=adapter, gradient=gradient)
    assert all(torch.isfinite(t).all() for t in direction.values())
    assert all((direction[n] == 0).all() for n in names if ".lora_A." in n)


# What may be asked for


def test_weights_can_be_chosen_by_projection_and_factor(make_lora):
    model = make_lora()

    def chosen(**options):
        return scored_weights(model, ScoreSettings(**options), frozen_a=False)

    assert all(
        ".q_proj.lora_" in n or ".v_proj.lora_" in n
        for n in chosen(projections=("q_proj", "v_proj"))
    )
    assert len(chosen(projections=("q_proj",))) == 4
    assert all(".lora_A." in n for n in chosen(factors="A"))
    assert len(chosen(factors="B", layers="first")) == 7
    with pytest.raises(ConfigError, match="'w_proj' has no LoRA; there is LoRA on"):
        chosen(projections=("w_proj",))
    with pytest.raises(ConfigError, match="never trains A"):
        scored_weights(model, ScoreSettings(factors="A"), frozen_a=True)


@pytest.mark.parametrize("form", sorted(set(FORMS) - set(LINEAR_FORMS)))
def test_a_way_that_cannot_give_a_form_is_refused(form):
    with pytest.raises(ValidationError, match="needs the gradients"):
        ScoreSettings(form=form, way="side_branch")
    with pytest.raises(ValidationError, match="per_block"):
        ScoreSettings(form=form, per_block=True)


@pytest.mark.parametrize("form", ["adam_exact", "less"])
def test_a_form_without_its_moments_is_refused(make_lora, encoded_rows, form):
    model = make_lora()
    direction = random_direction(model, seed=1)
    with pytest.raises(DataError, match="no optimiser state"):
        form_scores(
            model, encoded_rows, checkpoint_of(model), [direction], form=form, way="gradients"
        )


def test_a_loss_that_is_not_finite_is_refused(make_lora, encoded_rows, monkeypatch):
    import clues.scoring.gradients as gradients

    def poisoned(*arguments, **options):
        return row_losses(*arguments, **options) * float("nan")

    monkeypatch.setattr(gradients, "row_losses", poisoned)
    model = make_lora()
    with pytest.raises(NumericsError, match="not finite"):
        gradient_products(
            model,
            encoded_rows,
            adapter=model.state(),
            directions=[random_direction(model, seed=1)],
        )


def test_every_score_has_its_paragraph_in_the_documentation():
    text = Path(__file__).parent.parent / "docs/scores.md"
    if not text.exists():
        pytest.skip("the documentation is not beside the tests")
    named = text.read_text(encoding="utf-8")
    trajectories = ("local", "crossfit", "global", "inrun")
    ways = ("side_branch", "gradients", "finite_difference")
    missing = [n for n in (*FORMS, *BASELINE_NAMES, *trajectories, *ways) if f"`{n}" not in named]
    assert not missing, "a score without a paragraph"


def test_alignment_is_what_a_question_takes_off_the_loss_of_its_answer(make_lora, encoded_rows):
    model = make_lora()
    adapter = random_state(model.initial, seed=3)
    given = mean_losses(model, encoded_rows, adapter=adapter)
    found = alignments(model, encoded_rows, given, adapter=adapter)
    for row, value, loss in zip(encoded_rows, found, given, strict=True):
        first = row.mask.index(True)
        assert all(row.mask[first:]), "this oracle takes rows of one answer at the end"
        # The token before the answer stays: without it the first answer token has no loss.
        ids = torch.tensor([row.ids[first - 1 :]])
        with torch.no_grad(), model.evaluating():
            logits = model.peft(input_ids=ids).logits[0, :-1]
        alone = torch.nn.functional.cross_entropy(logits.double(), ids[0, 1:])
        assert value == pytest.approx(float(alone) - loss, abs=1e-5)


def test_an_answer_without_a_question_is_neither_helped_nor_hurt(make_lora, encoded_rows):
    row = encoded_rows[0]
    first = row.mask.index(True)
    bare = replace(row, ids=row.ids[first:], mask=row.mask[first:])
    model = make_lora()
    losses = mean_losses(model, [bare, row], adapter=model.initial)
    found = alignments(model, [bare, row], losses, adapter=model.initial)
    assert found[0] == 0
    assert found[1] != 0
