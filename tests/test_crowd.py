"""Rows of a training in the silo's own order: what subtracting two answers would give.

Each attack here got what it wanted before the order was a secret: the exact gradient of one row,
or whether a row is in the silo.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federation_helpers import (
    LastAsked,
    Recorder,
    forget_questions,
    merged,
    open_micro,
    tiny_model,
    write_micro,
)

from clues.config import Recipe, SiloSettings, short
from clues.errors import ConfigError, DataError, NumericsError
from clues.model.adapters import LoraModel
from clues.model.loss import make_batch, row_losses
from clues.model.training import Schedule
from clues.pipeline import ModelCache, run_until
from clues.progress import Silent
from clues.scoring import perplexity
from clues.scoring.rounds import read_scores
from clues.silo.crowd import gather, round_order, rows_in_mean, rows_in_update, secret_seed
from clues.silo.questions import FILE
from clues.silo.select import fewest_told
from clues.silo.silo import Silo
from clues.wall.messages import REPLIES, REQUESTS, TrainRequest, from_bytes

FOREVER = 1000  # max_selections of a silo that is asked far too much


class World(LastAsked):
    """A run in one process, and silo north as it is on a machine of its own."""

    def __init__(self, folder: Path) -> None:
        config = write_micro(folder / "input", tiny_model(folder / "model"))
        # One key for all tests: by how much an attack misses depends on it.
        private = folder / "run" / "silos" / "north" / "private"
        private.mkdir(parents=True, mode=0o700)
        (private / "data.key").write_bytes(bytes(range(32)))
        self.run = open_micro(config, folder / "run")
        self.recorder = Recorder(self.run)
        run_until(self.run)
        self.cache = ModelCache()

    def silo(self, folder: Path, **changes) -> Silo:
        if not folder.exists():
            shutil.copytree(self.run.run_dir.silo("north"), folder)
        own = {"order_seed": None, "max_selections": FOREVER, **changes}
        content = merged(self.run.silos["north"].settings.model_dump(by_alias=True), own)
        settings = SiloSettings.model_validate(content)
        return Silo(settings, folder, load_model=self.cache.load, progress=Silent())


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def ask(silo: Silo, request):
    return from_bytes(silo.answer(request.to_bytes()), allowed=REPLIES, sender="north")


def train_request(hello, silo: Silo) -> TrainRequest:
    return TrainRequest(
        recipe_hash=hello.recipe_hash,
        round=0,
        validation={},
        validation_loss=0.0,
        adapter=silo.space.model().initial,
        directions={},
    )


def first_round(world: World, silo: Silo, *, tokens: Mapping[str, Any] | None = None, **train):
    """The first moment after round one of a recipe, as anybody can start it."""
    train = {"checkpoints": 1, **train}
    hello = world.hello(score={"form": "less"}, train=train, tokens=tokens or {})
    ask(silo, hello)
    return ask(silo, train_request(hello, silo))


def gradients(model: LoraModel, rows, adapter, names) -> list[torch.Tensor]:
    """Every row's own gradient at an adapter."""
    model.freeze_a(frozen=True)
    model.set_state(adapter)
    weights = [model.parameters()[name] for name in names]
    found = []
    for row in rows:
        model.peft.zero_grad()
        row_losses(model.peft, make_batch([row], device=torch.device("cpu"))).mean().backward()
        found.append(torch.cat([w.grad.double().flatten() for w in weights]))  # pyright: ignore
    return found


def flat(tensors, names) -> torch.Tensor:
    return torch.cat([tensors[name].double().flatten() for name in names])


def best_cosine(found: torch.Tensor, rows: list[torch.Tensor]) -> float:
    return max(float(found @ g / (found.norm() * g.norm() + 1e-300)) for g in rows)


def difference(world: World, silo: Silo, *, batch: int) -> float:
    """Two recipes that differ by one step in round one: how near what is left is to one row."""
    n, steps = 6, {"batch_size": batch, "learning_rate": 1e-6, "warmup": 0.0}
    fewer = first_round(world, silo, steps=2 * n, rounds=2, **steps)
    more = first_round(world, silo, steps=2 * n + 2, rounds=2, **steps)
    names = [name for name in fewer.first_moment if ".lora_B." in name]
    m_fewer = flat(fewer.first_moment, names) * (1 - 0.9**n)
    m_more = flat(more.first_moment, names) * (1 - 0.9 ** (n + 1))
    left = (m_more - 0.9 * m_fewer) / 0.1
    model = silo.space.model()
    return best_cosine(left, gradients(model, silo.space.encoded().rows, model.initial, names))


@pytest.mark.walk
def test_two_recipes_of_nearly_equal_steps_leave_no_gradient_of_a_row(world, tmp_path):
    # The attack works where the order is known, so that it would be seen here.
    assert difference(world, world.silo(tmp_path / "known", order_seed=3), batch=1) > 0.999
    assert difference(world, world.silo(tmp_path / "secret", min_kept=5), batch=5) < 0.97


def full_batch(world: World, silo: Silo, **tokens):
    """The mean gradient of all rows, in one step of one batch: the order does not matter then."""
    train = {"batch_size": 64, "steps": 2, "rounds": 2, "learning_rate": 1e-6}
    found = first_round(world, silo, tokens=tokens, **train)
    return found.first_moment, len(silo.space.encoded().rows)


@pytest.mark.walk
def test_two_lengths_that_part_one_row_leave_no_gradient_of_it(world, tmp_path):
    rows = world.silo(tmp_path / "look").space.encoded().rows
    lengths = sorted(len(row.ids) for row in rows)
    top, below = lengths[-1], next(n for n in reversed(lengths) if n < lengths[-1])
    longest = [row for row in rows if len(row.ids) == top]
    found = {}
    for name, changes in {"known": {"order_seed": 3}, "secret": {"min_kept": 5}}.items():
        silo = world.silo(tmp_path / name, **changes)
        (all_of_them, n), (shorter, m) = (
            full_batch(world, silo, max_length=k) for k in (top, below)
        )
        assert n - m == len(longest)
        names = [name for name in all_of_them if ".lora_B." in name]
        left = n * flat(all_of_them, names) - m * flat(shorter, names)
        model = silo.space.model()
        truth = torch.stack(gradients(model, longest, model.initial, names)).sum(0)
        found[name] = best_cosine(left, [truth])
    assert found["known"] > 0.99, "the attack does not even work on a known order"
    assert found["secret"] < 0.9, found


def edited(world: World, silo_of, folder: Path) -> float:
    """The owner edits one row and the same request comes again: how near to that row's change."""
    source = Path(world.run.silos["north"].settings.data)
    data = folder.parent / f"{folder.name}.jsonl"
    shutil.copy(source, data)
    before = silo_of(folder, data=str(data))
    old = list(before.space.rows().samples)
    first, n = full_batch(world, before)
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    lines[3]["output"] = "Nothing of what was written here before."
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    after = silo_of(folder, data=str(data))
    second, _ = full_batch(world, after)
    names = [name for name in first if ".lora_B." in name]
    model = after.space.model()
    rows = [next(r for r in s.space.encoded().rows if r.row == 3) for s in (before, after)]
    assert [s.id for s in after.space.rows().samples] != [s.id for s in old]
    was, now = gradients(model, rows, model.initial, names)
    return best_cosine(n * (flat(second, names) - flat(first, names)), [now - was])


def test_a_row_that_is_edited_does_not_stand_between_two_answers(world, tmp_path):
    known = edited(world, lambda f, **how: world.silo(f, order_seed=3, **how), tmp_path / "known")
    secret = edited(world, lambda f, **how: world.silo(f, min_kept=5, **how), tmp_path / "secret")
    assert known > 0.99, "the attack does not even work on a known order"
    assert secret < 0.9


def unlike(one: list[int], two: list[int]) -> int:
    """How many rows, with their repetitions, one has and the other has not."""
    counts = np.bincount(one, minlength=100) - np.bincount(two, minlength=100)
    return int(counts.clip(min=0).sum())


@pytest.mark.parametrize("n_seen", [5, 6, 9, 12, 18, 19, 20, 24, 38, 45])
def test_rounds_without_end_tell_of_a_few_groups_of_rows_alone(
    world, tmp_path, monkeypatch, n_seen
):
    silo, fit = world.silo(tmp_path / "s", min_kept=5), world.request("fit")
    content = world.hello(train={"batch_size": 1})
    ask(silo, content)
    monkeypatch.setattr("clues.silo.crowd._check_weights", lambda *_, **__: None)
    rows = list(silo.space.encoded().rows)
    schedule = Schedule(1e-3, 0.0, 60 * n_seen)
    how: dict[str, Any] = {"n_steps": n_seen, "what": "a test", "schedule": schedule}
    requests = [
        replace(fit, recipe_hash=content.recipe_hash, round=k, adapter={"w": torch.tensor(k * 1.0)})
        for k in range(60)
    ]
    orders = [gather(silo.space, rows, request, **how).order for request in requests]
    assert all(order is not None and len(order) == n_seen for order in orders)
    groups = {tuple(order) for order in orders if order}
    assert len(groups) <= 19 // 5 + 1, (
        "each answer is another mixture, and many give away the parts"
    )
    assert all(unlike(list(a), list(b)) >= 5 for a in groups for b in groups if a != b)


@pytest.mark.parametrize("n_rows", [5, 8, 19, 40])
def test_parts_take_turns_until_all_rows_have_had_theirs(n_rows):
    for n_seen in range(1, 90):
        orders = [
            round_order(range(n_rows), n_seen, number=number, fewest=5) for number in range(n_rows)
        ]
        assert all(len(order) == n_seen for order in orders)
        seen = {row for order in orders for row in order}
        if n_seen >= 5:
            assert n_rows - len(seen) < 5, f"{n_seen} of {n_rows}: rows that never train"


def test_an_in_run_training_sets_rows_aside_and_scores_them_all_the_same(
    world, tmp_path, monkeypatch
):
    silo = world.silo(tmp_path / "s", min_kept=5)
    train = {"batch_size": 64, "steps": 2, "rounds": 1, "checkpoints": 1}
    hello = world.hello(score={"trajectory": "inrun", "form": "sgd"}, train=train)
    ask(silo, hello)
    model, n_rows = silo.space.model(), len(silo.space.encoded().rows)
    taken: list[int] = []
    inside = silo.space.train

    def spied(rows, what, **how):
        taken.append(len(rows))
        return inside(rows, what, **how)

    monkeypatch.setattr(silo.space, "train", spied)
    sets = list(silo.space.validation())
    request = TrainRequest(
        recipe_hash=hello.recipe_hash,
        round=0,
        validation=dict.fromkeys(sets, 1.0),
        validation_loss=1.0,
        adapter=model.initial,
        directions={
            name: {n: t for n, t in model.initial.items() if ".lora_B." in n} for name in sets
        },
    )
    ask(silo, request)
    assert taken == [n_rows - 5], "one batch of all rows: two recipes would part one row"
    place = silo.space.inrun_folder()
    n_anchors = len(silo.space.anchors())
    rows, anchors = read_scores(place, 1, n_rows=n_rows, n_anchors=n_anchors)
    assert all(len(values) == n_rows for values in rows.values())
    assert all(len(values) == n_anchors for values in anchors.values())


def test_an_adapter_under_which_losses_overflow_is_refused_whatever_the_rows_are(world, tmp_path):
    silo = world.silo(tmp_path / "s")
    asked = (silo.private / FILE).read_bytes()
    for kind in ("train", "fit"):
        request = world.request(kind)
        for a, b in ((1.0, 3e38), (1e7, 1e-3), (1e4, 1e4)):
            bad = {n: torch.full_like(t, a if "_A" in n else b) for n, t in request.adapter.items()}
            with pytest.raises(DataError, match="multiply to more than"):
                silo.answer(replace(request, adapter=bad).to_bytes())
    score = world.request("score")
    bad = [{n: torch.full_like(t, 1e9) for n, t in c.items()} for c in score.checkpoints]
    with pytest.raises(DataError, match="multiply to more than"):
        silo.answer(replace(score, checkpoints=bad).to_bytes())
    assert (silo.private / FILE).read_bytes() == asked


def test_an_adapter_that_is_not_finite_does_not_leave(world, tmp_path):
    """A gradient overflows where the loss does not, and it can depend on one token of the rows."""
    silo, fit = world.silo(tmp_path / "s"), world.request("fit")
    hello = world.hello(lora={"target_modules": "all-linear", "alpha": 2.0, "rank": 2})
    ask(silo, hello)
    silo.space.keep(range(24))
    generator = torch.Generator().manual_seed(0)
    state = {
        n: torch.randn(t.shape, generator=generator).sign() * 1e3
        for n, t in silo.space.model().initial.items()
    }
    how = merged(fit.combine, {"local_steps": 1, "rounds": 9})
    request = replace(fit, recipe_hash=hello.recipe_hash, arm="mixed", round=0, combine=how)
    with pytest.raises(NumericsError, match="not finite"):
        silo.answer(replace(request, adapter=state).to_bytes())


def test_an_update_of_which_nearly_all_is_dropped_is_refused(world, tmp_path):
    with pytest.raises(ValueError, match="dropout"):
        world.hello(lora={"dropout": 0.999})


def test_an_adapter_of_embeddings_is_refused_because_it_lists_the_rows_tokens(make_lora):
    with pytest.raises(ConfigError, match="linear layers alone"):
        make_lora(target_modules=("q_proj", "embed_tokens"))


def test_whether_a_row_is_kept_does_not_show_in_the_bytes_of_an_adapter(world, tmp_path):
    silo, fit = world.silo(tmp_path / "s"), world.request("fit")
    told = set()
    for seed in (1, 2):
        # The same training on the same rows under another recipe: as if one row less were kept.
        hello = world.hello(threshold={"bootstrap": 20 + seed})
        ask(silo, hello)
        silo.space.keep(range(12))
        reply = ask(silo, replace(fit, recipe_hash=hello.recipe_hash, round=0))
        told.add(flat(reply.adapter, sorted(reply.adapter)).numpy().tobytes())
    assert len(told) == 2, "equal bytes say that the same rows were kept"


def rows_of(silo: Silo, request, **how):
    rows = list(silo.space.encoded().rows)
    schedule = Schedule(1e-3, 0.0, 12)
    return gather(silo.space, rows, request, n_steps=6, what="a test", schedule=schedule, **how)


def test_every_training_sets_other_rows_aside_and_takes_the_others_equally_often(world, tmp_path):
    silo, fit = world.silo(tmp_path / "s", min_kept=4), world.request("fit")
    crowd = rows_of(silo, fit)
    assert len(crowd.rows) == len(silo.space.encoded().rows) - 4
    assert crowd.order is not None
    assert len(crowd.order) == 6 * 4, "every batch is full"
    counts = np.bincount(crowd.order, minlength=len(crowd.rows))
    assert counts.max() - counts.min() <= 1
    later = rows_of(silo, replace(fit, round=fit.round + 1))
    assert [r.row for r in later.rows] == [r.row for r in crowd.rows], "per round, other rows"
    assert later.order != crowd.order
    others = [
        rows_of(silo, replace(fit, arm="mixed")),
        rows_of(silo, replace(fit, recipe_hash="0" * 12)),
        rows_of(world.silo(tmp_path / "other", min_kept=4), fit),
    ]
    # The last one has the same key: the same folder was copied.
    assert [r.row for r in others.pop().rows] == [r.row for r in crowd.rows]
    for other in others:
        unlike = {r.row for r in other.rows} ^ {r.row for r in crowd.rows}
        assert len(unlike) >= 2, "two trainings that leave out the same rows can be subtracted"


def test_another_key_draws_another_order(world, tmp_path):
    silo, fit = world.silo(tmp_path / "s"), world.request("fit")
    before = rows_of(silo, fit)
    (silo.private / "data.key").write_bytes(b"k" * 32)
    after = rows_of(silo, fit)
    assert after.order != before.order
    assert [r.row for r in after.rows] != [r.row for r in before.rows]


def test_two_recipes_are_one_only_if_their_whole_hash_is_equal():
    """The first 12 digits can be made equal in minutes; then both would draw the same order."""
    public = {"law": {"validation": "v.jsonl", "anchor": {"path": "a", "sha256": "0" * 64}}}
    recipe = Recipe.model_validate({"public": public})
    assert len(recipe.hash) == len(recipe.scoring_hash) == 64
    assert short(recipe.hash) == recipe.hash[:12]


def test_purposes_do_not_run_into_each_other(world, tmp_path):
    space = world.silo(tmp_path / "s").space
    seeds = {secret_seed(space, *parts) for parts in (("a", "bc"), ("ab", "c"), ("abc",), ("1:a",))}
    assert len(seeds) == 4
    assert max(seeds) > 2**200


@pytest.mark.parametrize(
    ("batch", "steps", "rows"), [(1, 1, 1.0), (1, 5, 4.89), (16, 1, 16.0), (1, 10**4, 19.0)]
)
def test_rows_in_a_running_mean_are_counted_by_their_weights(batch, steps, rows):
    weights = np.repeat(0.1 * 0.9 ** np.arange(steps) / (1 - 0.9**steps) / batch, batch)
    assert weights.sum() == pytest.approx(1)
    assert rows_in_mean(batch, steps) == pytest.approx(1 / (weights**2).sum())
    assert rows_in_mean(batch, steps) == pytest.approx(rows, abs=0.01)


def weights_of_steps(rates, *, decay: float) -> np.ndarray:
    """How much every step's gradient moves the weights, by running AdamW's mean on unit vectors."""
    n, mean, moved = len(rates), np.zeros(len(rates)), np.zeros(len(rates))
    for k, rate in enumerate(rates):
        mean = 0.9 * mean + 0.1 * np.eye(n)[k]
        moved = (1 - rate * decay) * moved + rate * mean / (1 - 0.9 ** (k + 1))
    return np.abs(moved)


@pytest.mark.parametrize("n", [1, 2, 6, 40])
@pytest.mark.parametrize("decay", [0.0, 0.1, 1e3, 2.5e3, 1e4])
def test_rows_in_an_update_are_counted_by_the_largest_share(n, decay):
    rates = [1e-3 * (n - k) / n for k in range(n)]
    weights = weights_of_steps(rates, decay=decay)
    found = rows_in_update(3, rates, weight_decay=decay)
    assert found == pytest.approx(3 * weights.sum() / weights.max())
    assert rows_in_update(1, [1e3] * 400, weight_decay=1e6) == 0.0, "weights that overflow"


def one_sided(world: World, silo: Silo, *, train: Mapping[str, Any], **combine) -> float:
    """How near an update is to the signs of one row's gradient, which is what AdamW's first step is."""
    hello = world.hello(
        lora={"alpha": 1.0, "dropout": 0.0}, train={"batch_size": 1, "warmup": 0.0, **train}
    )
    ask(silo, hello)
    silo.space.keep(range(24))
    model, fit = silo.space.model(), world.request("fit")
    how = {"rounds": 1, "local_steps": 6, "learning_rate": 1e-3, **combine}
    request = replace(fit, recipe_hash=hello.recipe_hash, arm="mixed", round=0)
    request = replace(request, combine=merged(fit.combine, how), adapter=model.initial)
    reply = ask(silo, request)
    names = [name for name in reply.adapter if ".lora_B." in name]
    moved = flat(reply.adapter, names) - flat(model.initial, names)
    rows = gradients(model, silo.space.encoded().rows, model.initial, names)
    return max(abs(best_cosine(s * moved, [g.sign() for g in rows])) for s in (1, -1))


@pytest.mark.parametrize(
    ("train", "combine", "least"),
    [
        ({}, {}, 0.7),  # AdamW's first steps count most
        ({"weight_decay": 1e6}, {"learning_rate": 1e-4}, 0.99),
        ({"weight_decay": 1e6}, {"local_steps": 12, "learning_rate": 1.7e-5}, 0.75),
        ({}, {"proximal": 1e4}, 0.98),
        ({}, {"proximal": 1e4, "local_steps": 20}, 0.75),
    ],
    ids=["few steps", "decay", "decay of many steps", "mu", "mu of many steps"],
)
def test_no_step_is_all_that_an_update_shows(world, tmp_path, monkeypatch, train, combine, least):
    silo = world.silo(tmp_path / "s", min_kept=5)
    monkeypatch.setattr("clues.silo.crowd.ENOUGH_IN_STEP", 1)
    with pytest.raises(DataError, match=r"an update in which \d\.\d rows count|forget more than"):
        one_sided(world, silo, train=train, **combine)
    monkeypatch.setattr("clues.silo.crowd._check_weights", lambda *_, **__: None)
    found = one_sided(world, silo, train=train, **combine)
    assert found > least, "the attack does not even work where nothing stands against it"


def solved(world: World, silo: Silo, *, batch: int) -> float:
    """Rounds of one joint model, all from one adapter, solved for the first step of one of them.

    Rates rise until the second step of the fourth round and fall from there, which makes a kink in
    that round's weights. Two other rounds of the same rows take away what lies beside the kink.
    """
    n, n_rounds, kink = 26, 9, 4
    peak = kink * n + 2
    warmup = (peak - 0.5) / (n * n_rounds)
    hello = world.hello(
        lora={"alpha": 1.0, "dropout": 0.0}, train={"batch_size": batch, "warmup": warmup}
    )
    ask(silo, hello)
    silo.space.keep(range(24))
    model, fit = silo.space.model(), world.request("fit")
    how = merged(fit.combine, {"rounds": n_rounds, "local_steps": n, "learning_rate": 1e-5})
    schedule = Schedule(1e-5, warmup, n * n_rounds)
    names = [name for name in model.initial if ".lora_B." in name]
    moved, rates = [], []
    for k in (kink - 3, kink, kink + 3):
        request = replace(fit, recipe_hash=hello.recipe_hash, arm="mixed", round=k, combine=how)
        reply = ask(silo, replace(request, adapter=model.initial))
        moved.append(flat(reply.adapter, names) - flat(model.initial, names))
        rates.append([schedule.factor(k * n + step) for step in range(n)])
    wanted = torch.eye(n, dtype=torch.float64)[0]
    by = torch.linalg.lstsq(torch.tensor(rates).double().T, wanted[:, None]).solution
    left = (by * torch.stack(moved)).sum(0)
    rows = gradients(model, silo.space.encoded().rows, model.initial, names)
    return max(best_cosine(s * left, [g.sign() for g in rows]) for s in (1, -1))


@pytest.mark.walk
def test_a_few_rounds_cannot_be_solved_for_one_row(world, tmp_path, monkeypatch):
    silo = world.silo(tmp_path / "s", min_kept=5)
    with pytest.raises(DataError, match="takes 4 rows per step"):
        solved(world, silo, batch=4)
    assert solved(world, silo, batch=5) < 0.9
    monkeypatch.setattr("clues.silo.crowd.ENOUGH_IN_STEP", 1)
    assert solved(world, silo, batch=1) > 0.97, "the attack does not even work on single rows"


def spied_train(silo: Silo, monkeypatch) -> list[list[int]]:
    """Rows of every training of a silo, in their order."""
    taken: list[list[int]] = []
    inside = silo.space.train

    def spied(rows, what, **how):
        order = range(len(rows)) if how["order"] is None else how["order"]
        taken.append([rows[i].row for i in order])
        return inside(rows, what, **how)

    monkeypatch.setattr(silo.space, "train", spied)
    return taken


@pytest.mark.parametrize("trajectory", ["local", "crossfit"])
def test_a_training_that_stays_inside_hides_single_rows_too(
    world, tmp_path, monkeypatch, trajectory
):
    """What anchors score under its checkpoints leaves, and is as good as parts of an update."""
    score, silo = {"trajectory": trajectory}, world.silo(tmp_path / "s", min_kept=3)
    taken = spied_train(silo, monkeypatch)

    def asked(**train):
        hello = world.hello(score=score, train={"rounds": 4, "checkpoints": 1, **train})
        ask(silo, hello)
        ask(silo, train_request(hello, silo))

    for train in (
        {"batch_size": 1, "steps": 1},
        {"batch_size": 1, "steps": 6},
        {"batch_size": 2, "steps": 8, "checkpoints": 4, "weight_decay": 1e5, "learning_rate": 1.0},
        {"batch_size": 2, "steps": 8, "checkpoints": 4},
    ):
        with pytest.raises(DataError, match=r"rows per step|forget more|would train on 1 row "):
            asked(**train)
    assert not taken
    asked(batch_size=8, steps=4)
    rows = silo.space.encoded().rows
    aside = [{r.row for r in rows} - set(order) for order in taken]
    if trajectory == "local":
        assert [len(left) for left in aside] == [3]
    else:
        assert sum(len(left) - 3 for left in aside) == len(rows)
    again = world.silo(tmp_path / "again", min_kept=3)
    (again.private / "data.key").write_bytes(b"k" * 32)
    silo, before = again, list(taken)
    taken = spied_train(silo, monkeypatch)
    asked(batch_size=8, steps=4)
    assert taken != before, "the order does not follow from the silo's key"


def test_where_anchors_look_at_every_step_every_batch_hides_single_rows(world, tmp_path):
    silo = world.silo(tmp_path / "s", min_kept=5)
    train = {"batch_size": 4, "steps": 60, "rounds": 1, "checkpoints": 1}
    hello = world.hello(score={"trajectory": "inrun", "form": "sgd"}, train=train)
    ask(silo, hello)
    with pytest.raises(DataError, match="takes 4 rows per step"):
        ask(silo, train_request(hello, silo))


def test_what_would_be_refused_in_the_last_round_is_refused_in_the_first(
    world, tmp_path, monkeypatch
):
    monkeypatch.setattr("clues.silo.crowd.ENOUGH_IN_STEP", 1)
    silo, fit = world.silo(tmp_path / "s", min_kept=5), world.request("fit")
    ask(silo, world.hello(train={"batch_size": 1}))
    rates = [[(60 - start - k) / 60 for k in range(20)] for start in (0, 40)]
    first, last = (rows_in_update(1, r) for r in rates)
    assert last < 5 < first, "both would be refused, or none"
    rows = list(silo.space.encoded().rows)
    how: dict[str, Any] = {"n_steps": 20, "what": "a test", "schedule": Schedule(1.0, 0.0, 60)}
    with pytest.raises(DataError, match=rf"in which {last:.1f} rows count"):
        gather(silo.space, rows, replace(fit, round=0), **how)


def test_a_mean_of_few_rows_does_not_leave(world, tmp_path):
    silo = world.silo(tmp_path / "s", min_kept=5)
    with pytest.raises(DataError, match=r"mean of gradients in which 4\.9 rows count"):
        first_round(world, silo, batch_size=1, steps=10, rounds=2)


def test_a_selection_must_keep_the_rows_that_are_set_aside_too(world, tmp_path):
    silo, request = world.silo(tmp_path / "s"), world.request("select")
    n_kept = json.loads((silo.private / "selection.json").read_text())["kept"]
    for min_kept in (1, len(n_kept) // 2 + 1):
        silo = world.silo(tmp_path / str(min_kept), min_kept=min_kept)
        forget_questions(silo)
        # The silo's key draws up to nine rows more.
        fewest = fewest_told(silo.space)
        assert 2 * min_kept <= fewest <= 2 * min_kept + 9
        if fewest <= len(n_kept):
            ask(silo, request)
            continue
        with pytest.raises(DataError, match="rows would be kept"):
            ask(silo, request)


def overflow(silo: Silo, token: int, request):
    """The score request with an adapter under which one token makes a loss infinite."""
    model = silo.space.model()
    embedding = model.peft.get_base_model().get_input_embeddings().weight.detach()
    state = {n: torch.zeros_like(t) for n, t in request.checkpoints[0].items()}
    for name in state:
        if ".lora_A." in name and state[name].shape[1] == embedding.shape[1]:
            state[name][0] = embedding[token] / embedding[token].norm()
        if ".lora_B." in name:
            state[name][:, 0] = 3e38
    return replace(request, checkpoints=[state for _ in request.checkpoints])


@pytest.mark.slow
@pytest.mark.parametrize(
    "score",
    [{}, {"method": "perplexity"}, {"method": "influence", "form": "sgd", "loss_weight": 0.0}],
    ids=["default", "perplexity", "sgd"],
)
def test_a_score_that_is_not_finite_is_answered_like_any_other(
    world, tmp_path, tmp_path_factory, monkeypatch, score
):
    changes = {"recipe": {"score": score}}
    folder = tmp_path_factory.mktemp("scored")
    config = write_micro(folder / "input", tiny_model(folder / "model"), changes=changes)
    run = open_micro(config, folder / "run")
    recorder = Recorder(run)
    run_until(run, "score")
    request = from_bytes(recorder.last("north", "score")[0], allowed=REQUESTS, sender="")
    settings = run.silos["north"].settings.model_copy(update={"max_selections": FOREVER})
    silo = Silo(settings, run.run_dir.silo("north"), load_model=world.cache.load, progress=Silent())
    # The probe looks at public rows alone, which the coordinator knows.
    monkeypatch.setattr("clues.silo.score.probe_loss", lambda *_, **__: 0.0)
    monkeypatch.setattr("clues.silo.score.check_probe", lambda *_, **__: None)
    honest = ask(silo, request)
    monkeypatch.setattr("clues.silo.sent.LARGEST_PRODUCT", float("inf"))
    crafted = ask(silo, overflow(silo, 40, request))
    assert replace(crafted, answers="") == replace(honest, answers=""), "the answer tells of a row"
    lost = json.loads((silo.private / "nonfinite.json").read_text())
    assert lost, "nothing overflowed, so nothing was tested"


BASELINES = ("base_perplexity", "ifd", "alignment", "length", "embedding", "repsim", "datainf")


@pytest.mark.slow
@pytest.mark.parametrize(
    "score",
    [*({"method": name} for name in BASELINES), {"compare": ["ifd", "repsim", "adam", "cosine"]}],
    ids=[*BASELINES, "compared"],
)
def test_no_score_of_any_kind_stops_for_a_row_that_has_none(
    world, tmp_path, tmp_path_factory, monkeypatch, score
):
    folder = tmp_path_factory.mktemp("scored")
    config = write_micro(
        folder / "input", tiny_model(folder / "model"), changes={"recipe": {"score": score}}
    )
    data = folder / "input/silos/north.jsonl"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    # A byte that stands in no public row.
    rows[5]["output"] += " \N{SECTION SIGN}"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = open_micro(config, folder / "run")
    recorder = Recorder(run)
    run_until(run, "score")
    request, honest = recorder.last("north", "score")
    silo = Silo(
        run.silos["north"].settings,
        run.run_dir.silo("north"),
        load_model=world.cache.load,
        progress=Silent(),
    )
    for old in (*silo.outbox.glob("score-*"), *(silo.private / "shards").glob("*/*")):
        old.unlink()
    (token,) = {
        *silo.space.encoder().tokenizer.encode("\N{SECTION SIGN}", add_special_tokens=False)[-1:]
    }
    real = perplexity.row_losses

    def spoilt(model, tensors, **how):
        hit_N = (tensors.ids_NT == token).any(dim=1)
        return torch.where(hit_N, float("nan"), real(model, tensors, **how))

    monkeypatch.setattr(perplexity, "row_losses", spoilt)
    assert silo.answer(request) == honest, "the answer tells of a row"
    lost = json.loads((silo.private / "nonfinite.json").read_text())
    assert list(lost) == ["5"]
