"""Joining rules equal Flower's on the same arrays, do not care for order, and resist one silo."""

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from federation_fakes import Fakes, fitting, honest, tiny_adapter
from federation_helpers import edit_config, open_micro, run_micro, write_micro

from clues.config import CombineSettings, ServerSettings, TrainSettings, validate
from clues.coordinator.inbox import Inbox, StoredTensors, Update
from clues.errors import ConfigError, DataError
from clues.model.loss import make_batch, row_losses
from clues.model.merging import adaptive_shares, aggregate, modules, stack, updates
from clues.model.robust import robust_aggregate
from clues.model.serveropt import ServerState, server_step
from clues.model.training import Schedule, train
from clues.pipeline import run_until
from clues.scoring.direction import mean_gradient
from clues.wall.messages import FitReply

A, B = "q.lora_A.weight", "q.lora_B.weight"
OPTIMIZERS = ("fedavgm", "fedadam", "fedyogi", "fedadagrad")


def settings(rule, aggregation="ffa", **more):
    return CombineSettings(rule=rule, aggregation=aggregation, **more)


def same_a(n, *, spread=0.1):
    """Adapters of n silos after one round of ffa: A in common, B near to each other."""
    start = tiny_adapter()
    generator = torch.Generator().manual_seed(1)
    shape = start[B].shape
    return [
        {A: start[A].clone(), B: start[B] + spread * torch.randn(shape, generator=generator)}
        for _ in range(n)
    ]


def distance(one, two):
    square = sum(float((one[m] - two[m]).square().sum()) for m in two)
    return (square / sum(float(t.square().sum()) for t in two.values())) ** 0.5


def flower_reply(app, state, weight):
    """What Flower's strategies read of a reply, without a grid."""
    arrays = app.ArrayRecord({n: app.Array(t.numpy()) for n, t in state.items()})
    metrics = app.MetricRecord({"num-examples": weight})
    content = app.RecordDict({"arrays": arrays, "metrics": metrics})
    return SimpleNamespace(
        content=content, has_error=lambda: False, has_content=lambda: True, metadata=None
    )


@pytest.fixture(scope="module")
def flower():
    app = pytest.importorskip("flwr.app", reason="Flower is not installed: clues[flower]")
    return app, pytest.importorskip("flwr.serverapp.strategy")


@pytest.mark.parametrize(
    ("rule", "name", "arguments"),
    [
        ("median", "FedMedian", {}),
        ("trimmed_mean", "FedTrimmedAvg", {"beta": 0.2}),
        ("krum", "Krum", {"num_malicious_nodes": 1}),
        ("mean", "FedAvg", {}),
    ],
)
def test_a_rule_gives_the_numbers_of_flower(flower, rule, name, arguments):
    app, strategies = flower
    states, weights = same_a(7), [10, 20, 30, 40, 50, 60, 70]
    replies = [flower_reply(app, s, w) for s, w in zip(states, weights, strict=True)]
    theirs, _ = getattr(strategies, name)(**arguments).aggregate_train(1, replies)
    if rule == "mean":
        ours = aggregate(states, weights, method="factors").adapter
    else:
        ours = robust_aggregate(states, settings(rule)).adapter
    for weight in ours:
        np.testing.assert_allclose(ours[weight].numpy(), theirs[weight].numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "name", "theirs"),
    [
        ("fedavgm", "FedAvgM", {"server_learning_rate": 0.7, "server_momentum": 0.9}),
        ("fedadam", "FedAdam", {"eta": 0.7, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}),
        ("fedyogi", "FedYogi", {"eta": 0.7, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}),
        ("fedadagrad", "FedAdagrad", {"eta": 0.7, "tau": 1e-3}),
    ],
)
def test_a_server_optimiser_gives_the_numbers_of_flower_over_four_rounds(
    flower, optimizer, name, theirs
):
    app, strategies = flower
    strategy = getattr(strategies, name)(**theirs)
    # Flower's FedAdagrad has no momentum.
    beta_1 = 0.0 if optimizer == "fedadagrad" else 0.9
    ours = ServerSettings(optimizer=optimizer, learning_rate=0.7, beta_1=beta_1)
    adapter, state = tiny_adapter(), ServerState()
    current = {n: t.numpy() for n, t in adapter.items()}
    record = app.ArrayRecord({n: app.Array(a) for n, a in current.items()})
    strategy.current_arrays = record if optimizer == "fedavgm" else current
    for number in range(4):
        moved = {n: t + 0.1 * tiny_adapter(number + 5)[n] for n, t in adapter.items()}
        joint = aggregate([moved], [1.0], method="factors").adapter
        if optimizer != "fedavgm":
            strategy.current_arrays = {n: t.numpy() for n, t in adapter.items()}
        found, _ = strategy.aggregate_train(number + 1, [flower_reply(app, moved, 10)])
        adapter, state = server_step(adapter, joint, state, ours, number=number)
        for weight in adapter:
            np.testing.assert_allclose(
                adapter[weight].numpy(), found[weight].numpy(), rtol=2e-4, atol=1e-5
            )


def test_fedavgm_of_rate_one_without_momentum_is_fedavg():
    start, joint = tiny_adapter(), tiny_adapter(1)
    plain = ServerSettings(optimizer="fedavgm", beta_1=0.0)
    found, _ = server_step(start, joint, ServerState(), plain, number=0)
    assert all(torch.allclose(found[n], joint[n], atol=1e-6) for n in joint)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_under_ffa_a_server_optimiser_does_not_move_a_and_survives_a_kill(tmp_path, optimizer):
    combine = CombineSettings(rounds=4, server=ServerSettings(optimizer=optimizer))
    names = ("east", "north")
    adapter, _ = fitting(Fakes(names), tmp_path / "a", combine=combine).run(
        "clues", tmp_path / "a", token=""
    )
    assert torch.equal(adapter[A], tiny_adapter()[A])
    plain, _ = fitting(
        Fakes(names), tmp_path / "p", combine=combine.model_copy(update={"server": None})
    ).run("clues", tmp_path / "p", token="")
    assert not torch.allclose(adapter[B], plain[B], atol=1e-3), "the optimiser did nothing"

    class Killed(Exception):
        pass

    def killer(name, request):
        if request.round == 2:
            raise Killed
        return honest(name, request)

    with pytest.raises(Killed):
        fitting(Fakes(names, {"east": killer}), tmp_path / "b", combine=combine).run(
            "clues", tmp_path / "b", token=""
        )
    again, _ = fitting(Fakes(names), tmp_path / "b", combine=combine).run(
        "clues", tmp_path / "b", token=""
    )
    assert torch.equal(again[B], adapter[B]), "its state was lost with the process"


RULES = [
    ("median", "ffa"),
    ("median", "svd"),
    ("trimmed_mean", "ffa"),
    ("trimmed_mean", "svd"),
    ("krum", "ffa"),
    ("krum", "svd"),
    ("krum", "factors"),
]


@pytest.mark.parametrize(("rule", "form"), RULES)
def test_the_order_of_the_silos_does_not_change_a_robust_rule(rule, form):
    states = same_a(5)
    usual = updates(robust_aggregate(states, settings(rule, form)).adapter)
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 17):
        found = robust_aggregate([states[i] for i in order], settings(rule, form)).adapter
        assert distance(updates(found), usual) < 1e-6, order


@pytest.mark.parametrize(("rule", "form"), RULES)
def test_a_robust_rule_resists_one_hostile_silo_of_five_and_the_mean_does_not(rule, form):
    states = same_a(5)
    clean = updates(aggregate(states[1:], [1] * 4, method="svd").adapter)
    for attack in (100.0, -100.0):
        bad = {A: states[0][A], B: states[0][B] + attack}
        found = robust_aggregate([bad, *states[1:]], settings(rule, form)).adapter
        spread = max(distance(updates(s), clean) for s in states[1:])
        assert distance(updates(found), clean) < 1.5 * spread, f"{rule} was moved"
        method = "factors" if form == "factors" else form
        mean = aggregate([bad, *states[1:]], [1] * 5, method=method).adapter
        assert distance(updates(mean), clean) > 5


def test_the_median_of_updates_is_the_median_where_the_rank_has_room():
    states = [tiny_adapter(k, size=4, rank=4) for k in range(5)]
    found = robust_aggregate(states, settings("median", "svd")).adapter
    wanted = np.median(np.stack([updates(s)["q"].numpy() for s in states]), axis=0)
    assert distance(updates(found), {"q": torch.from_numpy(wanted)}) < 1e-6


@pytest.mark.parametrize(
    ("rule", "n", "says"),
    [("median", 2, "needs 3"), ("krum", 4, "needs 5"), ("trimmed_mean", 4, "cuts nobody off")],
)
def test_a_rule_that_cannot_keep_its_promise_says_so(rule, n, says):
    with pytest.raises(DataError, match=says):
        robust_aggregate(same_a(n), settings(rule))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"rule": "median", "aggregation": "factors"}, "an A of one silo with a B of"),
        ({"rule": "krum", "aggregation": "stack"}, "nothing to stack"),
        ({"method": "ties", "rule": "median"}, "need method fedavg"),
        ({"server": {"optimizer": "fedadam"}, "aggregation": "svd"}, "aggregation ffa"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(content, says):
    with pytest.raises(ConfigError, match=says):
        validate(CombineSettings, content, where="clues.yaml")


def test_fedavg_is_another_name_of_factors_and_the_content_is_whole():
    assert validate(CombineSettings, {"aggregation": "fedavg"}, where="").aggregation == "factors"
    settings = CombineSettings(proximal=0.1, server=ServerSettings(optimizer="fedyogi"))
    content = settings.content()
    assert set(content) == set(CombineSettings.model_fields)
    assert CombineSettings.model_validate(content) == settings


def test_stacking_is_the_exact_average_and_over_rounds_the_exact_sum(tmp_path):
    def trained(name, request):
        reply = honest(name, request)
        return type(reply)(
            recipe_hash=reply.recipe_hash,
            weight=30 if name == "east" else 10,
            adapter=tiny_adapter(ord(name[0]) + request.round),
        )

    fakes = Fakes(("east", "north"), {"east": trained, "north": trained})
    combine = CombineSettings(rounds=4, aggregation="stack")
    initial = {A: tiny_adapter()[A], B: torch.zeros(6, 2)}
    adapter, record = fitting(fakes, tmp_path, combine=combine, initial=initial).run(
        "clues", tmp_path, token=""
    )
    wanted = sum(
        0.75 * updates(tiny_adapter(ord("e") + r))["q"]
        + 0.25 * updates(tiny_adapter(ord("n") + r))["q"]
        for r in range(4)
    )
    assert distance(updates(adapter), {"q": wanted}) < 1e-6
    assert adapter[A].shape[0] <= 6, "more rank than the full matrix has"
    assert record["energy_lost"] == 0


def test_an_adapter_in_the_base_weights_acts_as_itself_and_leaves_no_trace(make_lora, encoded_rows):
    model = make_lora(rank=3, alpha=6.0)
    state = model.state()
    empty = {n: torch.zeros_like(t) if ".lora_B." in n else t for n, t in state.items()}
    before = {n: p.detach().clone() for n, p in model.peft.named_parameters()}
    batch = make_batch(encoded_rows)
    with torch.no_grad():
        wanted = row_losses(model.peft, batch)
        model.set_state(empty)
        with model.on_top_of(stack([state], [1.0])):
            found = row_losses(model.peft, batch)
            assert torch.allclose(found, wanted, rtol=1e-4)
        assert not torch.allclose(row_losses(model.peft, batch), wanted, rtol=1e-4)
    model.set_state(state)
    for name, parameter in model.peft.named_parameters():
        assert torch.equal(parameter, before[name]), f"{name} has drifted"


def test_adaptive_weights_find_the_best_mixture_and_shut_out_a_harmful_silo():
    states = [tiny_adapter(k) for k in range(3)]
    target = 0.6 * updates(states[0])["q"] + 0.3 * updates(states[1])["q"]

    def loss_and_gradient(state):
        state = {n: t.double().requires_grad_() for n, t in state.items()}
        loss = (state[B] @ state[A] - target).square().sum()
        slopes = torch.autograd.grad(loss, [state[A], state[B]])
        return loss.item(), dict(zip((A, B), slopes, strict=True))

    found = adaptive_shares(states, [1, 1, 1], loss_and_gradient)
    assert found == pytest.approx([0.6, 0.3, 0.0], abs=1e-3)
    order = [2, 0, 1]
    again = adaptive_shares([states[k] for k in order], [1, 1, 1], loss_and_gradient)
    assert again == pytest.approx([found[k] for k in order], abs=1e-3)
    without = adaptive_shares(states, [0, 1, 1], loss_and_gradient)
    assert without[0] == 0, "a silo without rows has no say"


def test_adaptive_weights_lower_the_loss_of_a_language_model(make_lora, make_states, encoded_rows):
    model = make_lora(rank=2, target_modules=("q_proj", "v_proj"))
    states = make_states(2, like=model)
    wide = make_lora(rank=4, alpha=16.0, target_modules=("q_proj", "v_proj"))

    def loss_and_gradient(state):
        gradient, loss = mean_gradient(wide, encoded_rows, state, weights=list(state))
        return loss, gradient

    found = adaptive_shares(states, [1, 1], loss_and_gradient)
    best, _ = loss_and_gradient(stack(states, found))
    for weights in ([0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]):
        assert best <= loss_and_gradient(stack(states, weights))[0] + 1e-6, weights
    assert len(modules(states[0])) == 4


def test_the_proximal_term_is_in_the_gradient_and_holds_the_adapter_back(
    make_lora, encoded_rows, tmp_path
):
    model = make_lora(target_modules=("q_proj",))
    start = model.state()

    def after(mu, n_steps=6):
        return train(
            model,
            encoded_rows,
            start=start,
            settings=TrainSettings(batch_size=7, learning_rate=0.01),
            schedule=Schedule(0.01, 0.0, n_steps),
            n_steps=n_steps,
            seed=0,
            scratch=str(tmp_path),
            proximal=mu,
            checkpoint_at=(1, 2),
        )

    def moved(trained):
        return sum(float((t - start[n]).square().sum()) for n, t in trained.adapter.items())

    free, held = after(0.0), after(10.0)
    assert moved(held) < 0.5 * moved(free)
    # At the start the term is flat: one step is the same with it.
    first = [t.checkpoints[0].adapter for t in (free, held)]
    assert all(torch.equal(first[0][n], first[1][n]) for n in start)
    # In the second the gradient gains mu (w - start); clipping may change its length.
    name = next(n for n in start if ".lora_B." in n)
    means = [t.checkpoints[1].first_moment[name] for t in (free, held)]
    gained, pull = means[1] - means[0], first[0][name] - start[name]
    angle = torch.nn.functional.cosine_similarity(gained.flatten(), pull.flatten(), dim=0)
    assert angle > 0.5


def put_updates(folder: Path, n: int, *, size: int) -> list[StoredTensors]:
    inbox = Inbox(folder)
    found = []
    for k in range(n):
        adapter = tiny_adapter(k, size=size)
        inbox.put(f"s{k}", FitReply(recipe_hash="", weight=1, adapter=adapter).to_bytes())
        found.append(Update(1, 0.0, 0.0, inbox.path(f"s{k}")).tensors())
    return found


def test_stored_adapters_are_read_as_they_were_sent(tmp_path):
    [stored] = put_updates(tmp_path, 1, size=6)
    assert set(stored) == {A, B}
    assert all(torch.equal(stored[n], tiny_adapter(0)[n]) for n in stored)
    with pytest.raises(KeyError):
        stored["x"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_the_memory_of_averaging_does_not_grow_with_the_number_of_silos(tmp_path):
    size = 65_536  # 1 MB an adapter, two weights of 0.5 MB

    def answer(name, request):
        return honest(name, request, length=0.0)

    def peak(n):
        names = tuple(f"s{k:02}" for k in range(n))
        fakes = Fakes(names, dict.fromkeys(names, answer))
        combine = CombineSettings(rounds=1, aggregation="ffa")
        stage = fitting(fakes, tmp_path / str(n), combine=combine, initial=tiny_adapter(size=size))
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        stage.run("clues", tmp_path / str(n), token="")
        return resident("VmHWM") - before

    peak(3)  # what is loaded once
    few, many = peak(5), peak(50)
    assert many - few < 15, f"{few:.0f} MB with 5 silos, {many:.0f} MB with 50: replies pile up"


def resident(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise AssertionError(field)


@pytest.fixture(scope="module")
def selected(micro_model, tmp_path_factory):
    """A run of three silos up to its selection, which ways to combine have no part in."""
    folder = tmp_path_factory.mktemp("selected")
    changes = {"evaluate": {"arms": ["clues"]}}
    silos = ("north", "south", "west")
    config = write_micro(folder / "input", micro_model, silos=silos, changes=changes)
    run_until(open_micro(config, folder / "run"), "select")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "combine",
    [
        {"aggregation": "stack"},
        {"proximal": 0.1, "server": {"optimizer": "fedadam"}},
        {"rule": "median"},
        {"method": "adaptive"},
    ],
    ids=["stack", "proximal and fedadam", "median", "adaptive"],
)
def test_every_new_way_to_combine_runs_to_the_end(selected, tmp_path, combine):
    folder = shutil.copytree(selected, tmp_path / "copy")
    results = run_micro(
        edit_config(folder / "input/clues.yaml", {"combine": combine}), folder / "run"
    )
    assert results["arms"]["clues"]["heldout_loss"] > 0
    assert results["absences"] == []
