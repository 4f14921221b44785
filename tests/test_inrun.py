"""In-run scores are the gradients of the steps themselves, and training does not notice them."""

import numpy as np
import pytest
import torch
from federation_helpers import edit_config, open_micro, run_micro, write_micro

from clues.config import Recipe, ScoreSettings, TrainSettings
from clues.errors import DataError
from clues.model import steps
from clues.model.loss import make_batch, row_losses
from clues.model.training import Schedule, train
from clues.pipeline import run_until
from clues.scoring.inrun import InRun, Reference, Visits, mean_scores, merge_visits, visit_order

RATE, BATCH = 1e-2, 2


def flat(tensors, names) -> torch.Tensor:
    return torch.cat([tensors[n].double().flatten() for n in names])


def random_directions(model, names=("first", "second")):
    generator = torch.Generator().manual_seed(1)
    return {
        key: {
            n: torch.randn(p.shape, generator=generator).to(p.dtype)
            for n, p in model.parameters().items()
        }
        for key in names
    }


@pytest.fixture
def scored(tmp_path, make_lora, encoded_rows):
    """Train a few steps under observation; returns everything a test compares."""

    def call(*, every_visit=True, n_steps=6, observe=True, dropout=0.0, dtype=torch.float64):
        model = make_lora(dtype=dtype, dropout=dropout)
        start = model.state()  # B is not zero, so that gradients of A are not either
        rows, anchors = encoded_rows[:4], encoded_rows[4:7]
        order = visit_order(len(rows), n_steps, BATCH, seed=5)
        reference = Reference(random_directions(model), {"first": 2.0, "second": 0.5}, 3.0)
        how = {"n_rows": len(rows), "first_step": 0, "every_visit": every_visit, "seed": 7}
        seen = InRun(model, order, reference, anchors, **how) if observe else None
        trained = train(
            model,
            rows,
            start=start,
            settings=TrainSettings(batch_size=BATCH),
            schedule=Schedule(RATE, 0.0, n_steps),
            n_steps=n_steps,
            seed=3,
            scratch=str(tmp_path / "scratch"),
            checkpoint_at=range(1, n_steps + 1),
            order=order.ravel().tolist(),
            observer=seen,
        )
        states = [start, *(c.adapter for c in trained.checkpoints)]
        return model, rows, anchors, order, reference, seen, states

    return call


def by_hand(model, state, row, reference):
    """One row's scores from its own backward pass with the weights of a step."""
    model.set_state(state)
    parameters = model.parameters()
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    with model.evaluating() as peft:
        loss = row_losses(peft, make_batch([row]))[0]
        gradient = dict(
            zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True)
        )
    names = list(parameters)
    products = {
        key: float(flat(gradient, names) @ flat(direction, names)) / reference.products[key]
        for key, direction in reference.directions.items()
    }
    return {**products, "loss": reference.loss - float(loss.detach())}


def test_every_visit_is_the_inner_product_with_the_weights_before_its_step(scored) -> None:
    model, rows, anchors, order, reference, seen, states = scored()
    assert seen is not None
    for visits, which in zip(seen.visits(), (rows, anchors), strict=True):
        assert len(visits.index) > 0
        for n, (index, step) in enumerate(zip(visits.index, visits.step, strict=True)):
            expected = by_hand(model, states[step], which[index], reference)
            for key, value in expected.items():
                assert visits.scores[key][n] == pytest.approx(value, rel=1e-9, abs=1e-12), (
                    f"{key} at step {step}: the score is not the gradient's of that step"
                )
    assert sorted(seen.visits()[0].index) == sorted(order.ravel())


@pytest.mark.slow
def test_training_is_the_same_bit_by_bit_with_and_without_an_observer(scored, monkeypatch) -> None:
    # Without one a step goes in parts, which changes last digits.
    monkeypatch.setattr(
        steps, "token_budget_batches", lambda lengths, budget: [range(len(lengths))]
    )
    for dropout in (0.0, 0.2):
        ends = [scored(observe=o, dropout=dropout, dtype=torch.float32)[-1][-1] for o in (0, 1)]
        assert all(torch.equal(ends[0][n], ends[1][n]) for n in ends[0]), (
            f"watching changes training at dropout {dropout}"
        )


def test_first_visits_come_before_any_step_on_the_row(scored) -> None:
    _, rows, anchors, order, _, seen, _ = scored(every_visit=False)
    visits, riders = seen.visits()
    assert sorted(visits.index) == list(range(len(rows))), "every row once"
    assert sorted(riders.index) == list(range(len(anchors))), "every anchor once"
    for index, step in zip(visits.index, visits.step, strict=True):
        assert index not in order[:step], "the row had been trained on"


def test_rows_and_anchors_are_visited_equally_often(scored) -> None:
    _, rows, anchors, order, _, seen, _ = scored(n_steps=8)
    visits, riders = seen.visits()
    passes = order.size / len(rows)
    assert np.bincount(visits.index).tolist() == [passes] * len(rows)
    assert np.bincount(riders.index).tolist() == [passes] * len(anchors)


def test_all_rows_are_seen_before_any_is_seen_again() -> None:
    order = visit_order(10, 7, 3, seed=1).ravel()
    assert sorted(order[:10]) == list(range(10))
    assert sorted(order[10:20]) == list(range(10))
    assert list(order[:10]) != list(order[10:20]), "the passes are shuffled apart"


def visits_of(*rows: int, score: float) -> Visits:
    n = len(rows)
    return Visits(np.array(rows), np.zeros(n, np.int64), {"loss": np.full(n, score)})


def test_visits_of_the_first_round_count_for_rows_that_no_later_one_saw() -> None:
    rounds = [visits_of(0, 1, 2, score=100.0), visits_of(1, 1, 2, score=2.0), visits_of(1, score=5)]
    assert mean_scores(merge_visits(rounds), 3)["loss"].tolist() == [100.0, 3.0, 2.0]
    assert mean_scores(merge_visits(rounds[:1]), 3)["loss"].tolist() == [100.0] * 3


def test_a_row_never_seen_is_named() -> None:
    with pytest.raises(DataError, match="1 of 3 rows were never trained on"):
        mean_scores(merge_visits([visits_of(0, score=1.0), visits_of(1, score=4.0)]), 3)


def test_visits_survive_the_disk(tmp_path) -> None:
    visits = Visits(np.array([3, 1]), np.array([0, 2]), {"a": np.array([0.1, -1e300])})
    visits.write(tmp_path / "visits.parquet")
    back = Visits.read(tmp_path / "visits.parquet")
    assert back.index.tolist() == [3, 1]
    assert back.step.tolist() == [0, 2]
    assert back.scores["a"].tolist() == visits.scores["a"].tolist()
    with pytest.raises(DataError, match="no in-run scores"):
        Visits.read(tmp_path / "absent.parquet")


@pytest.mark.parametrize(
    "score",
    [
        {"trajectory": "local", "compare": ["inrun"]},
        {"trajectory": "inrun", "form": "cosine"},
        {"trajectory": "inrun", "method": "perplexity"},
        {"trajectory": "inrun", "per_block": True},
    ],
)
def test_what_in_run_scores_cannot_do_is_said(score) -> None:
    with pytest.raises(ValueError, match="in-run scores"):
        ScoreSettings(**score)


def test_in_run_scores_ask_for_at_least_an_epoch() -> None:
    public = {"d": {"validation": "v", "anchor": "a"}}
    for score in ({"trajectory": "inrun"}, {"compare": ["inrun"]}):
        with pytest.raises(ValueError, match="in-run scores come from training on every row"):
            Recipe(public=public, score=score)
        for long in ({"epochs": 1}, {"steps": 3}):
            assert Recipe(public=public, score=score, train=long).score.inrun


CLUES_ALONE = {"evaluate": {"arms": ["clues"]}}


@pytest.fixture(scope="module")
def model(micro_model):
    return micro_model


@pytest.mark.slow
@pytest.mark.parametrize("visits", ["first", "every"])
@pytest.mark.parametrize("refresh", [None, 3])
def test_a_run_with_in_run_scores_ends(model, tmp_path, visits, refresh) -> None:
    score = {"trajectory": "inrun", "visits": visits, "refresh": refresh}
    changes = {"recipe": {"score": score, "train": {"steps": 12, "rounds": 4}}, **CLUES_ALONE}
    results = run_micro(write_micro(tmp_path, model, changes=changes), tmp_path / "run")
    assert results["method"]["trajectory"] == "inrun"
    assert {s["rows"] for s in results["silos"].values()} == {24}
    assert all(s["auc"] is not None for s in results["silos"].values())


@pytest.mark.slow
def test_in_run_scores_beside_checkpoint_scores(model, tmp_path) -> None:
    changes = {
        "recipe": {"score": {"compare": ["inrun", "cosine"]}, "train": {"steps": 12}},
        **CLUES_ALONE,
    }
    results = run_micro(write_micro(tmp_path, model, changes=changes), tmp_path / "run")
    for silo in results["silos"].values():
        assert silo["detection"]["inrun"]["auc"] is not None
        assert silo["detection"]["inrun"]["auc"] != silo["detection"]["cosine"]["auc"]


@pytest.mark.slow
def test_too_few_steps_to_see_every_row_stop_the_run(model, tmp_path) -> None:
    changes = {"recipe": {"score": {"trajectory": "inrun"}}, **CLUES_ALONE}
    config = write_micro(tmp_path, model, changes=changes)
    with pytest.raises(DataError, match="were never trained on"):
        run_until(open_micro(config, tmp_path / "run"))
    # The same run goes on once the recipe trains long enough.
    edit_config(config, {"recipe": {"train": {"steps": 12}}})
    assert run_until(open_micro(config, tmp_path / "run")).results is not None


def test_a_refresh_every_n_steps_means_fewer_directions() -> None:
    from clues.scoring.rounds import is_refreshed

    public = {"d": {"validation": {"v": {"path": "v"}}, "anchor": {"path": "a"}}}

    def rounds(**score):
        recipe = Recipe(
            train={"batch_size": 4, "epochs": 3, "rounds": 8},
            public=public,
            score={"trajectory": "inrun", **score},
        )
        return [n for n in range(8) if is_refreshed(n, 5, recipe, [30])]

    assert rounds() == list(range(8))
    assert rounds(refresh=10) == [0, 2, 4, 6]
    assert rounds(refresh=15) == [0, 3, 6]
    # 5 steps of 4 rows a round: after two rounds every one of 30 rows (40, as rounded) was seen.
    assert rounds(visits="first") == [0, 1]
