"""Merging adapters means merging what they add to the weights, not their factors."""

import itertools

import pytest
import torch
from peft import PeftModel

from clues.config import CombineSettings
from clues.errors import DataError, NumericsError
from clues.model.merging import aggregate, factorise, merge, modules, normalised, stack, updates

WEIGHTS = [3.0, 1.0, 2.0]
SHARES = [3 / 6, 1 / 6, 2 / 6]
# PEFT says at density 1 that nothing is pruned, which is what these tests ask for.
at_full_density = pytest.mark.filterwarnings("ignore:The density 1.0 is greater")
METHODS = ("average", "task_arithmetic", "ties", "dare")


@pytest.fixture(scope="module")
def model(make_lora):
    return make_lora(rank=3, alpha=12.0, target_modules=("q_proj", "down_proj"))


@pytest.fixture(scope="module")
def states(make_states, model):
    return make_states(3, like=model)


@pytest.fixture(scope="module")
def double_states(make_states, make_lora):
    like = make_lora(dtype=torch.float64, rank=3, target_modules=("q_proj", "down_proj"))
    return make_states(3, like=like)


def average_update(states, shares):
    every = [updates(state) for state in states]
    return {
        m: sum(s * u[m] for s, u in zip(shares, every, strict=True)) for m in modules(states[0])
    }


def distance(found, expected):
    """Relative distance of two full updates, all modules together."""
    difference = sum(float((found[m] - expected[m]).square().sum()) for m in expected)
    size = sum(float(expected[m].square().sum()) for m in expected)
    return (difference / size) ** 0.5


def rank_of(state):
    return {t.shape[0] for n, t in state.items() if ".lora_A." in n} | {
        t.shape[1] for n, t in state.items() if ".lora_B." in n
    }


@pytest.mark.slow
def test_ffa_average_is_the_average_of_the_full_updates(make_states, model):
    states = make_states(3, like=model, same_a=True)
    merged = aggregate(states, WEIGHTS, method="ffa")
    found = distance(updates(merged.adapter), average_update(states, SHARES))
    assert found < 1e-6, f"{found}: weights not normalised, or A was averaged away"
    assert merged.energy_lost == 0
    for name, tensor in merged.adapter.items():
        if ".lora_A." in name:
            assert torch.equal(tensor, states[0][name]), "a shared A must stay bit-identical"


def test_ffa_refuses_adapters_whose_a_differs(states):
    with pytest.raises(DataError, match=r"aggregation ffa: .*lora_A.* differs between silos"):
        aggregate(states, WEIGHTS, method="ffa")


def test_svd_is_the_best_approximation_of_the_average_and_reports_what_it_lost(states):
    wanted = average_update(states, SHARES)
    merged = aggregate(states, WEIGHTS, method="svd")
    assert rank_of(merged.adapter) == {3}
    best, kept, total = {}, 0.0, 0.0
    for module, update in wanted.items():
        u, s, v = torch.linalg.svd(update, full_matrices=False)
        best[module] = u[:, :3] @ torch.diag(s[:3]) @ v[:3]
        kept += float(s[:3].square().sum())
        total += float(s.square().sum())
    assert distance(updates(merged.adapter), best) < 1e-6
    assert merged.energy_lost == pytest.approx(1 - kept / total, abs=1e-9)
    lost = distance(updates(merged.adapter), wanted) ** 2
    assert merged.energy_lost == pytest.approx(lost, rel=1e-4), "energy is the squared norm"
    assert 0.05 < merged.energy_lost < 0.9, "the case must lose something"


def test_svd_of_equal_adapters_gives_them_back(states):
    merged = aggregate([states[0]] * 4, [1, 2, 3, 4], method="svd")
    assert distance(updates(merged.adapter), updates(states[0])) < 1e-6
    assert merged.energy_lost < 1e-12


def test_averaging_the_factors_is_not_averaging_the_updates(states):
    merged = aggregate(states, WEIGHTS, method="factors")
    found = distance(updates(merged.adapter), average_update(states, SHARES))
    assert found > 0.3, "if factors were exact, svd and ffa would not be needed"
    for name, tensor in merged.adapter.items():
        expected = sum(s * state[name] for s, state in zip(SHARES, states, strict=True))
        assert torch.allclose(tensor, expected, atol=1e-7)


@pytest.mark.parametrize("method", ["svd", "factors", "ffa"])
def test_six_equal_adapters_average_to_themselves(states, method):
    merged = aggregate([states[0]] * 6, [1.0] * 6, method=method)
    found = distance(updates(merged.adapter), updates(states[0]))
    assert found < 1e-6, f"{found}: five means six times too large"


def test_weighting_each_factor_by_the_root_of_its_share_is_six_times_too_large(states):
    # What PEFT's add_weighted_adapter(linear) does, and why it is not used here.
    root = (1 / 6) ** 0.5
    wrong = {name: 6 * root * tensor for name, tensor in states[0].items()}
    expected = {m: 6 * u for m, u in updates(states[0]).items()}
    assert distance(updates(wrong), expected) < 1e-6
    right = merge([states[0]] * 6, [1.0] * 6, CombineSettings(method="average"), seed=0)
    assert distance(updates(right.adapter), updates(states[0])) < 1e-6


def test_six_adapters_with_turned_factors_are_equal_as_updates_but_not_as_factors(states):
    # B R and R' A give the same B A for every rotation R: only `factors` sees a difference.
    generator = torch.Generator().manual_seed(0)
    turned = []
    for _ in range(6):
        q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
        turned.append({n: q.T @ t if ".lora_A." in n else t @ q for n, t in states[0].items()})
    wanted = updates(states[0])
    assert distance(updates(aggregate(turned, [1.0] * 6, method="svd").adapter), wanted) < 1e-5
    factors = aggregate(turned, [1.0] * 6, method="factors").adapter
    assert distance(updates(factors), wanted) > 0.3


@pytest.mark.parametrize("method", ["ffa", "svd", "factors"])
def test_aggregating_does_not_change_what_it_is_given(make_states, model, method):
    states = make_states(3, like=model, same_a=True)
    before = [{n: t.clone() for n, t in state.items()} for state in states]
    merged = aggregate(states, WEIGHTS, method=method).adapter
    for tensor in merged.values():
        tensor.zero_()
    for state, old in zip(states, before, strict=True):
        assert all(torch.equal(state[n], old[n]) for n in old), "the result shares memory"


def test_merge_average_is_the_weighted_sum_of_the_updates(double_states):
    merged = merge(double_states, WEIGHTS, CombineSettings(method="average"), seed=0)
    found = distance(updates(merged.adapter), average_update(double_states, SHARES))
    assert found < 1e-12, f"{found}: shares are applied to both factors, or not at all"
    assert rank_of(merged.adapter) == {9}
    assert merged.energy_lost == 0


def test_task_arithmetic_is_the_scaled_sum_of_the_updates(double_states):
    settings = CombineSettings(method="task_arithmetic", scale=0.7)
    merged = merge(double_states, WEIGHTS, settings, seed=0)
    expected = average_update(double_states, [0.7] * 3)
    assert distance(updates(merged.adapter), expected) < 1e-12
    assert merged.energy_lost == 0


def plain_ties(deltas, factors, density):
    """Trim, elect a sign, average what agrees with it (Yadav et al. 2023), entry by entry."""
    n_kept = int(density * deltas[0].numel())
    trimmed = []
    for delta in deltas:
        limit = delta.abs().flatten().sort(descending=True).values[n_kept - 1]
        trimmed.append(torch.where(delta.abs() >= limit, delta, 0.0))
    merged = torch.zeros_like(deltas[0])
    for index in itertools.product(*map(range, merged.shape)):
        entries = [float(t[index]) for t in trimmed]
        positive = sum(entries) >= 0
        agreeing = [
            f * e for f, e in zip(factors, entries, strict=True) if (e > 0 if positive else e < 0)
        ]
        merged[index] = sum(agreeing) / max(1, len(agreeing))
    return merged


@pytest.mark.parametrize(("density", "scale"), [(0.2, 1.0), (0.5, 0.6)])
def test_ties_equals_ties_written_out_on_the_full_updates(states, density, scale):
    settings = CombineSettings(method="ties", density=density, scale=scale)
    merged = merge(states, WEIGHTS, settings, seed=0)
    expected = {
        m: plain_ties([updates(s)[m] for s in states], [scale * 3 * w for w in SHARES], density)
        for m in modules(states[0])
    }
    found = distance(updates(merged.adapter), expected)
    assert found < 1e-6, f"{found}: TIES on the factors is not TIES on the updates"
    assert merged.energy_lost < 1e-10


@at_full_density
def test_ties_of_one_adapter_at_full_density_is_that_adapter(states):
    settings = CombineSettings(method="ties", density=1.0)
    merged = merge(states[:1], [2.0], settings, seed=0)
    assert distance(updates(merged.adapter), updates(states[0])) < 1e-6


@at_full_density
def test_dare_that_drops_nothing_is_the_weighted_sum(states):
    settings = CombineSettings(method="dare", density=1.0, scale=0.9)
    merged = merge(states, WEIGHTS, settings, seed=0)
    expected = average_update(states, [0.9 * s for s in SHARES])
    assert distance(updates(merged.adapter), expected) < 1e-6


@pytest.mark.slow
def test_dare_is_right_on_average(states):
    settings = CombineSettings(method="dare", density=0.5)
    expected = average_update(states, SHARES)
    n_draws = 200
    mean = {m: torch.zeros_like(u) for m, u in expected.items()}
    single = []
    for seed in range(n_draws):
        found = updates(merge(states, WEIGHTS, settings, seed=seed).adapter)
        single.append(distance(found, expected))
        for module, update in found.items():
            mean[module] += update / n_draws
    typical = sum(single) / n_draws
    assert typical > 0.3, "nothing was dropped"
    assert distance(mean, expected) < 1.3 * typical / n_draws**0.5, "survivors are not rescaled"


def test_dare_depends_on_the_seed_alone(states):
    settings = CombineSettings(method="dare", density=0.5)
    torch.manual_seed(1)
    one = merge(states, WEIGHTS, settings, seed=7).adapter
    after = torch.rand(1)
    torch.manual_seed(2)
    two = merge(states, WEIGHTS, settings, seed=7).adapter
    assert all(torch.equal(one[n], two[n]) for n in one)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after), "merging moves the global random generator"
    other = merge(states, WEIGHTS, settings, seed=8).adapter
    assert distance(updates(one), updates(other)) > 0.1


@pytest.mark.parametrize("method", ["ffa", "svd", "factors"])
def test_the_order_of_the_silos_does_not_change_an_aggregate(make_states, model, method):
    states = make_states(3, like=model, same_a=method == "ffa")
    usual = aggregate(states, WEIGHTS, method=method)
    for order in itertools.permutations(range(3)):
        found = aggregate([states[i] for i in order], [WEIGHTS[i] for i in order], method=method)
        assert distance(updates(found.adapter), updates(usual.adapter)) < 1e-6, order
        assert found.energy_lost == pytest.approx(usual.energy_lost, abs=1e-9)


# DARE draws which entries to drop, so below density 1 the order matters as the seed does.
@at_full_density
@pytest.mark.parametrize(
    ("method", "density"),
    [("average", 0.2), ("task_arithmetic", 0.2), ("ties", 0.4), ("dare", 1.0)],
)
def test_the_order_of_the_silos_does_not_change_a_merge(states, method, density):
    settings = CombineSettings(method=method, density=density)
    usual = updates(merge(states, WEIGHTS, settings, seed=0).adapter)
    for order in itertools.permutations(range(3)):
        found = merge([states[i] for i in order], [WEIGHTS[i] for i in order], settings, seed=0)
        assert distance(updates(found.adapter), usual) < 1e-6, order


@pytest.mark.parametrize("method", ["average", "ties", "dare"])
def test_only_the_proportions_of_the_weights_count(states, method):
    settings = CombineSettings(method=method, density=0.5)
    one = merge(states, WEIGHTS, settings, seed=0)
    two = merge(states, [50 * w for w in WEIGHTS], settings, seed=0)
    assert distance(updates(two.adapter), updates(one.adapter)) < 1e-6


def test_a_silo_of_weight_zero_has_no_say(states):
    one = merge(states, [1.0, 1.0, 0.0], CombineSettings(method="average"), seed=0)
    two = merge(states[:2], [1.0, 1.0], CombineSettings(method="average"), seed=0)
    assert distance(updates(one.adapter), updates(two.adapter)) < 1e-7


@pytest.mark.parametrize(
    ("weights", "error", "says"),
    [
        ([0.0, 0.0, 0.0], DataError, "one must be above zero"),
        ([1.0, -1.0, 1.0], DataError, "must not be negative"),
        ([1.0, float("nan"), 1.0], NumericsError, "not finite"),
        ([1.0, float("inf"), 1.0], NumericsError, "not finite"),
        ([1.0, 1.0], DataError, "3 adapters and 2 weights"),
        ([], DataError, "3 adapters and 0 weights"),
    ],
)
def test_weights_that_make_no_average_are_refused(states, weights, error, says):
    with pytest.raises(error, match=says):
        aggregate(states, weights, method="svd")
    for method in METHODS:
        with pytest.raises(error, match=says):
            merge(states, weights, CombineSettings(method=method), seed=0)


def test_normalised_weights_sum_to_one():
    assert normalised([3, 1, 2], n_adapters=3) == pytest.approx(SHARES, rel=1e-15)
    with pytest.raises(DataError, match="0 adapters"):
        normalised([], n_adapters=0)


def test_adapters_of_different_shape_or_name_are_refused(states):
    name = next(iter(states[0]))
    for broken, error in (
        ({**states[1], name: states[1][name][:2]}, DataError),
        ({n: t for n, t in states[1].items() if n != name}, DataError),
        ({**states[1], name: states[1][name] * torch.nan}, NumericsError),
    ):
        with pytest.raises(error):
            aggregate([states[0], broken], [1, 1], method="svd")
        with pytest.raises(error):
            merge([states[0], broken], [1, 1], CombineSettings(method="average"), seed=0)


def test_factorising_without_a_rank_loses_nothing_and_shares_one_rank():
    generator = torch.Generator().manual_seed(0)
    thin = torch.randn(6, 2, generator=generator) @ torch.randn(2, 9, generator=generator)
    full = torch.randn(4, 5, generator=generator)
    wanted = {"thin": thin, "full": full, "zero": torch.zeros(3, 3)}
    found = factorise(wanted, rank=None)
    assert rank_of(found.adapter) == {4}, "the smallest rank that holds every module"
    assert distance(updates(found.adapter), {m: u.double() for m, u in wanted.items()}) < 1e-6
    assert found.energy_lost < 1e-12
    nothing = factorise({"zero": torch.zeros(3, 3)}, rank=None)
    assert rank_of(nothing.adapter) == {1}
    assert nothing.energy_lost == 0


def logits_of(model, rows):
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row.ids])).logits for row in rows]


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_adapter_opens_in_plain_peft_with_the_logits_of_the_dense_sum(
    make_base, model, states, encoded_rows, tmp_path, method
):
    merged = merge(states, WEIGHTS, CombineSettings(method=method, density=0.5), seed=0)
    assert rank_of(merged.adapter) != {model.settings.rank}, "the rank must differ here"
    model.save(merged.adapter, tmp_path / "joint")
    opened = PeftModel.from_pretrained(make_base(), str(tmp_path / "joint")).eval()

    dense = make_base()
    plain = logits_of(dense, encoded_rows)
    for module, update in updates(merged.adapter).items():
        linear = dense.get_submodule(module.removeprefix("base_model.model."))
        # alpha / rank of the recipe: the scaling the silos trained with.
        linear.weight.data += (12.0 / 3 * update).float()
    pairs = zip(logits_of(opened, encoded_rows), logits_of(dense, encoded_rows), plain, strict=True)
    for found, expected, before in pairs:
        error = ((found - expected).norm() / (expected - before).norm()).item()
        assert error < 1e-4, f"{error}: alpha was not adapted to the new rank"


def test_stacking_keeps_every_factor(double_states):
    stacked = stack(double_states, [2.0, 0.0, -1.0])
    expected = average_update(double_states, [2.0, 0.0, -1.0])
    assert distance(updates(stacked), expected) < 1e-12
