"""The side branch gives what a loop of single backward passes gives, only faster."""

import numpy as np
import pytest
import torch

from clues.config import ScoreSettings
from clues.errors import ConfigError, DataError, NumericsError
from clues.model.adapters import Checkpoint
from clues.model.loss import make_batch, row_losses
from clues.scoring.direction import mean_gradient, scored_weights, validation_direction
from clues.scoring.influence import influence_scores, side_branches
from clues.scoring.perplexity import mean_losses

LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5}
every_dtype = pytest.mark.parametrize("dtype", LIMIT, ids=["float64", "float32"])


def gradients_by_loop(model, rows):
    """Gradient of every row's loss in every adapter weight, one row and one pass at a time."""
    parameters = model.parameters()
    flags = [p.requires_grad for p in parameters.values()]
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    gradients = []
    with model.evaluating() as peft:
        for row in rows:
            loss = row_losses(peft, make_batch([row]))[0]
            found = torch.autograd.grad(loss, list(parameters.values()))
            gradients.append(dict(zip(parameters, found, strict=True)))
    for parameter, flag in zip(parameters.values(), flags, strict=True):
        parameter.requires_grad_(flag)
    return gradients


def products_by_loop(gradients, directions):
    return np.array(
        [[sum(float((g[n] * d[n]).sum()) for n in d) for d in directions] for g in gradients]
    )


def row_error(found, expected):
    """Largest relative distance between the vectors of one row."""
    return (np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max()


def random_direction(model, *, seed, only=lambda name: True):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(t.shape, generator=generator, dtype=t.dtype)
        for name, t in model.state().items()
        if only(name)
    }


def checkpoint_of(model, *, seed=5):
    generator = torch.Generator().manual_seed(seed)
    moment = {
        n: torch.rand(t.shape, generator=generator, dtype=t.dtype) for n, t in model.state().items()
    }
    return Checkpoint(step=1, learning_rate=1e-3, adapter=model.state(), second_moment=moment)


@every_dtype
@pytest.mark.parametrize("form", ["sgd", "adam"])
def test_scores_equal_explicit_row_gradients_times_the_direction(
    make_lora, encoded_rows, dtype, form
):
    model = make_lora(dtype=dtype)
    validation, rows = encoded_rows[:3], encoded_rows[2:]
    names = list(model.parameters())
    assert len(names) == 2 * 7 * 2, "all seven projections of both blocks must carry an adapter"
    direction = validation_direction(
        model, validation, checkpoint_of(model), form=form, weights=names
    )
    scores = influence_scores(model, rows, adapter=model.state(), directions=[direction])
    expected = products_by_loop(gradients_by_loop(model, rows), [direction])
    error = row_error(scores.products, expected)
    assert error < LIMIT[dtype], f"{error}: side branch at the wrong layer, or scaling lost"


@every_dtype
def test_several_directions_score_at_once_as_they_would_alone(make_lora, encoded_rows, dtype):
    model = make_lora(dtype=dtype, n_blocks=3, rank=3, alpha=12.0)
    directions = [
        random_direction(model, seed=1),
        random_direction(model, seed=2, only=lambda n: ".lora_B." in n),
        random_direction(model, seed=3, only=lambda n: ".lora_A." in n and "q_proj" in n),
    ]
    found = influence_scores(model, encoded_rows, adapter=model.state(), directions=directions)
    expected = products_by_loop(gradients_by_loop(model, encoded_rows), directions)
    error = row_error(found.products, expected)
    assert error < LIMIT[dtype], f"{error}: directions are mixed up, or an absent weight counts"


def test_all_linear_targets_are_scored_too(make_lora, encoded_rows):
    model = make_lora(dtype=torch.float64, target_modules="all-linear")
    direction = random_direction(model, seed=1)
    found = influence_scores(model, encoded_rows, adapter=model.state(), directions=[direction])
    expected = products_by_loop(gradients_by_loop(model, encoded_rows), [direction])
    assert row_error(found.products, expected) < 1e-12


def test_losses_beside_the_scores_are_the_row_losses(make_lora, encoded_rows):
    model = make_lora(dtype=torch.float64)
    direction = random_direction(model, seed=1)
    scores = influence_scores(model, encoded_rows, adapter=model.state(), directions=[direction])
    alone = mean_losses(model, encoded_rows, adapter=model.state(), token_budget=1)
    assert scores.losses == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("budget", [1, 64, 150, 100_000])
def test_scores_do_not_depend_on_batch_size_or_padding(make_lora, encoded_rows, budget):
    model = make_lora(dtype=torch.float64)
    direction = random_direction(model, seed=1)
    usual = influence_scores(model, encoded_rows, adapter=model.state(), directions=[direction])
    found = influence_scores(
        model, encoded_rows, adapter=model.state(), directions=[direction], token_budget=budget
    )
    error = row_error(found.products, usual.products)
    assert error < 1e-12, f"{error}: a row's score depends on its batch"


def test_scores_follow_their_rows_into_another_order(make_lora, encoded_rows):
    model = make_lora(dtype=torch.float64)
    direction = random_direction(model, seed=1)
    order = [4, 0, 6, 2, 5, 1, 3]
    usual = influence_scores(model, encoded_rows, adapter=model.state(), directions=[direction])
    found = influence_scores(
        model,
        [encoded_rows[i] for i in order],
        adapter=model.state(),
        directions=[direction],
        token_budget=100,
    )
    assert row_error(found.products, usual.products[order]) < 1e-12, "scores go to other rows"
    assert found.losses == pytest.approx(usual.losses[order], rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "blocks"), [("first", {0}), ("last", {2}), ((0, 2), {0, 2}), ("all", {0, 1, 2})]
)
@pytest.mark.parametrize("frozen_a", [False, True])
def test_chosen_layers_equal_the_loop_over_these_weights(
    make_lora, encoded_rows, layers, blocks, frozen_a
):
    model = make_lora(dtype=torch.float64, n_blocks=3)
    names = scored_weights(model, ScoreSettings(layers=layers), frozen_a=frozen_a)
    wanted = [
        n
        for n in model.parameters()
        if any(f".layers.{b}." in n for b in blocks) and not (frozen_a and ".lora_A." in n)
    ]
    assert names == wanted
    direction = validation_direction(
        model, encoded_rows[:3], checkpoint_of(model), form="sgd", weights=names
    )
    assert set(direction) == set(wanted)
    found = influence_scores(model, encoded_rows, adapter=model.state(), directions=[direction])
    expected = products_by_loop(gradients_by_loop(model, encoded_rows), [direction])
    assert row_error(found.products, expected) < 1e-12


def test_a_block_that_does_not_exist_is_named(make_lora):
    model = make_lora()
    with pytest.raises(ConfigError, match="block 7 does not exist; LoRA is on blocks 0 to 1"):
        scored_weights(model, ScoreSettings(layers=(0, 7)), frozen_a=False)


def test_scoring_with_a_frozen_a_gives_the_scores_of_b_alone(make_lora, encoded_rows):
    model = make_lora(dtype=torch.float64)
    model.freeze_a(frozen=True)
    names = scored_weights(model, ScoreSettings(), frozen_a=True)
    direction = mean_gradient(model, encoded_rows[:3], model.state(), weights=names)[0]
    assert all(".lora_B." in name for name in direction)
    found = influence_scores(model, encoded_rows, adapter=model.state(), directions=[direction])
    expected = products_by_loop(gradients_by_loop(model, encoded_rows), [direction])
    assert row_error(found.products, expected) < 1e-12


def test_the_score_times_the_rate_is_the_first_order_drop_in_validation_loss(
    make_lora, encoded_rows
):
    model = make_lora(dtype=torch.float64)
    start, rate = model.state(), 1e-6
    validation, rows = encoded_rows[:3], encoded_rows[3:]
    direction = mean_gradient(model, validation, start, weights=list(start))[0]
    scores = influence_scores(model, rows, adapter=start, directions=[direction])
    before = mean_losses(model, validation, adapter=start).mean()
    model.set_state(start)
    for n, gradient in enumerate(gradients_by_loop(model, rows)):
        stepped = {name: start[name] - rate * gradient[name] for name in start}
        drop = before - mean_losses(model, validation, adapter=stepped).mean()
        assert rate * scores.products[n, 0] == pytest.approx(drop, rel=1e-3), (
            "wrong sign, or a factor is missing"
        )


@pytest.mark.parametrize("form", ["sgd", "adam"])
def test_the_direction_is_the_mean_of_single_row_gradients(make_lora, encoded_rows, form):
    model = make_lora(dtype=torch.float64)
    checkpoint = checkpoint_of(model)
    gradients = gradients_by_loop(model, encoded_rows)
    direction = validation_direction(
        model, encoded_rows, checkpoint, form=form, weights=list(checkpoint.adapter)
    )
    assert list(direction) == list(checkpoint.adapter)
    for name, found in direction.items():
        expected = torch.stack([g[name] for g in gradients]).mean(dim=0)
        if form == "adam":
            expected = expected / (checkpoint.second_moment[name].sqrt() + 1e-8)
        error = ((found - expected).norm() / expected.norm()).item()
        assert error < 1e-12, f"{name}: {error}: not the mean over rows, or another weight's v"


def test_optimiser_state_is_matched_by_name_not_by_position(make_lora, encoded_rows):
    model = make_lora(dtype=torch.float64)
    checkpoint = checkpoint_of(model)
    turned = dict(reversed(checkpoint.second_moment.items()))
    shuffled = Checkpoint(checkpoint.step, checkpoint.learning_rate, checkpoint.adapter, turned)
    names = list(checkpoint.adapter)
    one = validation_direction(model, encoded_rows, checkpoint, form="adam", weights=names)
    two = validation_direction(model, encoded_rows, shuffled, form="adam", weights=names)
    assert all(torch.equal(one[name], two[name]) for name in names)


def test_adam_without_optimiser_state_is_refused(make_lora, encoded_rows):
    model = make_lora()
    checkpoint = Checkpoint(3, 1e-3, model.state(), {})
    with pytest.raises(DataError, match="checkpoint at step 3: no optimiser state"):
        validation_direction(
            model, encoded_rows, checkpoint, form="adam", weights=list(checkpoint.adapter)
        )


def condition(model):
    """What scoring must leave as it was."""
    hooks = [m for m in model.peft.modules() if m._forward_hooks or m._forward_pre_hooks]
    flags = {n: p.requires_grad for n, p in model.peft.named_parameters()}
    modes = {n: m.training for n, m in model.peft.named_modules()}
    gradients = [n for n, p in model.peft.named_parameters() if p.grad is not None]
    return len(hooks), flags, modes, gradients


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frozen_a", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_scoring_leaves_the_model_as_it_was(make_lora, encoded_rows, training, frozen_a, fails):
    model = make_lora(dropout=0.3)
    model.freeze_a(frozen=frozen_a)
    model.peft.train(training)
    direction = random_direction(model, seed=1)
    before, weights = condition(model), model.state()
    base = {n: p.detach().clone() for n, p in model.peft.named_parameters()}
    rows = list(encoded_rows)
    if fails:
        # An id beyond the vocabulary: the forward pass itself raises, side branches attached.
        broken = encoded_rows[0]
        rows.append(type(broken)(9, "0" * 16, (10**6, *broken.ids[1:]), broken.mask))
        with pytest.raises(IndexError):
            influence_scores(model, rows, adapter=weights, directions=[direction])
        with pytest.raises(IndexError):
            mean_gradient(model, rows, weights, weights=list(weights))
    else:
        influence_scores(model, rows, adapter=weights, directions=[direction])
        mean_gradient(model, rows, weights, weights=list(weights))
    assert condition(model) == before, "a hook, a flag, a mode or a gradient was left behind"
    for name, parameter in model.peft.named_parameters():
        assert torch.equal(parameter, base[name]), f"{name} changed while scoring"


def test_dropout_is_off_while_scoring(make_lora, encoded_rows):
    scores = []
    for dropout in (0.0, 0.5):
        model = make_lora(dropout=dropout)
        model.peft.train()
        weights = model.state()
        direction = mean_gradient(model, encoded_rows[:3], weights, weights=list(weights))[0]
        scores.append(
            influence_scores(model, encoded_rows, adapter=weights, directions=[direction])
        )
    assert np.array_equal(scores[0].products, scores[1].products), "dropout makes scores random"
    assert np.array_equal(scores[0].losses, scores[1].losses)


@torch.no_grad()
def poison(model):
    model.peft.get_base_model().lm_head.weight[5] = torch.nan


def test_scores_that_are_not_finite_are_counted_and_refused(make_lora, encoded_rows):
    model = make_lora()
    direction = random_direction(model, seed=1)
    weights = model.state()
    poison(model)
    with pytest.raises(NumericsError, match=r"score of 7 of 7 rows is not finite") as raised:
        influence_scores(model, encoded_rows, adapter=weights, directions=[direction])
    assert raised.value.exit_code == 6


def test_a_direction_that_is_not_finite_is_refused(make_lora, encoded_rows):
    model = make_lora()
    weights = model.state()
    poison(model)
    with pytest.raises(NumericsError, match="validation gradient is not finite"):
        mean_gradient(model, encoded_rows, weights, weights=list(weights))


def test_perplexities_that_are_not_finite_are_refused(make_lora, encoded_rows):
    model = make_lora()
    poison(model)
    with pytest.raises(NumericsError, match="7 of 7 rows is not finite"):
        mean_losses(model, encoded_rows, adapter=model.state())


def test_progress_counts_every_row_once(make_lora, encoded_rows):
    model = make_lora()
    seen = []
    influence_scores(
        model,
        encoded_rows,
        adapter=model.state(),
        directions=[random_direction(model, seed=1)],
        token_budget=100,
        on_rows=seen.append,
    )
    assert sum(seen) == len(encoded_rows)
    assert len(seen) > 1


def test_scores_are_made_at_the_adapter_given_not_at_the_one_loaded(
    make_lora, make_states, encoded_rows
):
    model = make_lora(dtype=torch.float64)
    direction = random_direction(model, seed=1)
    for state in make_states(2, like=model):
        found = influence_scores(model, encoded_rows, adapter=state, directions=[direction])
        model.set_state(state)
        expected = products_by_loop(gradients_by_loop(model, encoded_rows), [direction])
        assert row_error(found.products, expected) < 1e-12


def test_a_half_precision_base_scores_close_to_its_float32_twin(make_lora, encoded_rows):
    full, half = make_lora(), make_lora(dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters().values()} == {torch.float32}
    weights = half.state()
    direction = mean_gradient(full, encoded_rows[:3], weights, weights=list(weights))[0]
    one = influence_scores(full, encoded_rows, adapter=weights, directions=[direction])
    two = influence_scores(half, encoded_rows, adapter=weights, directions=[direction])
    assert np.corrcoef(one.products[:, 0], two.products[:, 0])[0, 1] > 0.99


@pytest.mark.parametrize("factors", ["AB", "B"])
def test_a_branch_in_training_is_exact_under_dropout(make_lora, encoded_rows, factors) -> None:
    model = make_lora(dtype=torch.float64, dropout=0.4)
    model.freeze_a(frozen=factors == "B")
    whole = random_direction(model, seed=2)
    direction = {n: t for n, t in whole.items() if n.split(".lora_")[1][0] in factors}
    model.peft.train()
    # One forward pass, with its dropout masks, gives both the score and the gradient.
    with side_branches(model, [direction], n_rows=1) as alpha_NK:
        row_losses(model.peft, make_batch(encoded_rows[:1]))[0].backward()
    expected = sum(float((model.parameters()[n].grad * t).sum()) for n, t in direction.items())
    assert alpha_NK.grad.item() == pytest.approx(expected, rel=1e-10)
