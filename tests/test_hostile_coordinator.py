"""A coordinator that asks for more than the protocol gives gets an error that says no more."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from federation_helpers import (
    LastAsked,
    Recorder,
    files_of,
    forget_questions,
    merged,
    open_micro,
    tiny_model,
    write_micro,
)

from clues.config import SiloSettings
from clues.errors import CluesError, ConfigError, DataError, RecipeMismatchError
from clues.pipeline import ModelCache, Run, run_until
from clues.progress import Silent
from clues.silo.gate import KeptInside
from clues.silo.silo import Silo
from clues.wall.messages import REPLIES, from_bytes


class World(LastAsked):
    """A run that stopped after a stage, and copies of silo north to ask."""

    def __init__(self, folder: Path, *, until: str, **how) -> None:
        config = write_micro(folder / "input", tiny_model(folder / "model"), **how)
        self.run: Run = open_micro(config, folder / "run")
        self.recorder = Recorder(self.run)
        run_until(self.run, until)
        self.cache = ModelCache()

    def silo(self, tmp_path: Path, **changes) -> Silo:
        """Silo north as a new process would open it."""
        folder = tmp_path / "north"
        if not folder.exists():
            shutil.copytree(self.run.run_dir.silo("north"), folder)
        content = merged(self.run.silos["north"].settings.model_dump(by_alias=True), changes)
        settings = SiloSettings.model_validate(content)
        return Silo(settings, folder, load_model=self.cache.load, progress=Silent())


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"), until="report")


def forget_answers(silo: Silo) -> None:
    """As if requests of other recipes had pushed the stored answers out."""
    shutil.rmtree(silo.outbox)


def turned(request):
    """The score request with every direction turned round: the worst rows come first."""
    turned_round = [
        {name: {weight: -t for weight, t in direction.items()} for name, direction in sets.items()}
        for sets in request.directions
    ]
    return replace(request, directions=turned_round)


@pytest.mark.walk
def test_a_threshold_does_not_come_twice_by_changing_the_scores_under_it(world, tmp_path):
    silo = world.silo(tmp_path)
    kept = (silo.private / "selection.json").read_bytes()
    silo.answer(turned(world.request("score")).to_bytes())
    forget_answers(silo)
    with pytest.raises(RecipeMismatchError, match="decides about other scores"):
        silo.answer(world.request("select").to_bytes())
    assert (silo.private / "selection.json").read_bytes() == kept
    # The true scores again, and the true threshold is still the one that has decided.
    silo.answer(world.request("score").to_bytes())
    _, reply = world.recorder.last("north", "select")
    assert silo.answer(world.request("select").to_bytes()) == reply


def test_a_threshold_that_comes_before_the_scores_does_not_count(world, tmp_path):
    silo = world.silo(tmp_path)
    forget_answers(silo)
    forget_questions(silo)
    (silo.private / "scores.parquet").unlink()
    with pytest.raises(DataError, match="no scores yet"):
        silo.answer(world.request("select").to_bytes())
    silo.answer(world.request("score").to_bytes())
    silo.answer(world.request("select").to_bytes())


@pytest.mark.walk
def test_one_recipe_draws_one_cut_out_of_the_private_scores(
    tmp_path_factory, tmp_path, monkeypatch
):
    def middle(scores, *, seed):
        return float(np.median(scores))

    # So few random scores have no two parts for the real one to find.
    monkeypatch.setattr("clues.silo.score.mixture_cut", middle)
    changes = {"recipe": {"threshold": {"rule": "mixture"}}}
    mixture = World(tmp_path_factory.mktemp("mixture"), until="score", changes=changes)
    _, honest = mixture.recorder.last("north", "score")
    assert from_bytes(honest, allowed=REPLIES, sender="").proposal is not None
    silo = mixture.silo(tmp_path)
    with pytest.raises(RecipeMismatchError, match="cut has already been proposed"):
        silo.answer(turned(mixture.request("score")).to_bytes())
    assert silo.answer(mixture.request("score").to_bytes()) == honest
    # A cut between one row and all others would be the score of that row.
    monkeypatch.setattr("clues.silo.score.mixture_cut", lambda scores, *, seed: float(scores.max()))
    alone = mixture.silo(tmp_path / "alone", min_kept=2)
    forget_questions(alone)
    forget_answers(alone)
    reply = from_bytes(
        alone.answer(mixture.request("score").to_bytes()), allowed=REPLIES, sender=""
    )
    assert reply.proposal is None


def test_what_a_coordinator_writes_does_not_steer_the_terminal_that_shows_a_silos_log(tmp_path):
    log = tmp_path / "private" / "errors.log"
    for error in (DataError, KeyError):
        with KeptInside(log):
            raise error("clues \x1b]0;x\x07\x1b[2J\u202e" + "x" * 1_000_000)
    text = log.read_text()
    assert text.count("--- ") == 2
    assert len(text) < 2 * 25_000
    assert all(c.isprintable() or c == "\n" for c in text)


def moments(request, change):
    second = [{n: change(t) for n, t in m.items()} for m in request.second_moments]
    return replace(request, second_moments=second)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[:1],
        lambda t: t.T.contiguous(),
        lambda t: t.flatten(),
        lambda t: t[:0],
        lambda t: -t - 1,
    ],
    ids=["cut", "turned", "flat", "empty", "negative"],
)
def test_running_means_that_are_not_of_the_adapter_are_refused(world, tmp_path, change):
    silo, request = world.silo(tmp_path), world.request("score")
    assert request.second_moments[0]
    with pytest.raises(DataError, match=r"has shape|negative numbers"):
        silo.answer(moments(request, change).to_bytes())
    for odd in ({}, {"x": torch.ones(1)}):
        with pytest.raises(DataError, match="not one of the adapter's weights"):
            silo.answer(
                replace(request, second_moments=[odd for _ in request.second_moments]).to_bytes()
            )


@pytest.mark.parametrize("odd", [[], [1.0], {}], ids=["none", "one", "no name"])
def test_anchor_scores_that_are_not_one_per_anchor_are_refused(world, tmp_path, odd):
    silo, request = world.silo(tmp_path), world.request("score")
    name = next(iter(request.anchor_scores))
    bent = {} if odd == {} else {**request.anchor_scores, name: odd}
    with pytest.raises(DataError, match="not one per anchor and name"):
        silo.answer(replace(request, anchor_scores=bent).to_bytes())


def test_recipes_without_end_are_refused_before_a_row_is_trained_on(world, tmp_path):
    silo = world.silo(tmp_path, max_selections=2)
    silo.answer(world.hello(train={"learning_rate": 0.011}).to_bytes())
    recipe = (silo.private / "recipe.json").read_bytes()
    third = world.hello(train={"learning_rate": 0.012})
    with pytest.raises(DataError, match=r"north: 2 recipes.* max_selections is 2"):
        silo.answer(third.to_bytes())
    assert (silo.private / "recipe.json").read_bytes() == recipe
    # A training, a threshold or a score request is no way round it.
    for kind in ("train", "score", "select", "fit", "evaluate"):
        with pytest.raises(RecipeMismatchError, match="Start again with hello"):
            silo.answer(replace(world.request(kind), recipe_hash=third.recipe_hash).to_bytes())


def test_an_update_of_single_rows_is_refused(world, tmp_path):
    silo = world.silo(tmp_path, min_kept=5)
    hello = world.hello(train={"batch_size": 1, "steps": 4})
    silo.answer(hello.to_bytes())
    train = replace(world.request("train"), recipe_hash=hello.recipe_hash, round=0)
    with pytest.raises(DataError, match=r"train on 2 rows .* min_kept is 5"):
        silo.answer(train.to_bytes())
    silo.answer(world.request("hello").to_bytes())
    with pytest.raises(DataError, match=r"train on 4 rows .* min_kept is 5"):
        silo.answer(world.request("fit").to_bytes())


def test_an_arm_of_fewer_rows_than_the_silo_demands_is_refused(world, tmp_path):
    silo = world.silo(tmp_path, min_kept=5)
    path = silo.private / "selection.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "kept": [3]}))
    request = world.request("fit")
    for arm in ("clues", "random"):
        crafted = replace(request, arm=arm, combine=merged(request.combine, {"local_steps": 50}))
        with pytest.raises(DataError, match=rf"arm {arm} would train on 1 row "):
            silo.answer(crafted.to_bytes())


@pytest.mark.parametrize(("kind", "number"), [("train", 2), ("train", -1), ("fit", 2), ("fit", -1)])
def test_rounds_that_the_recipe_does_not_have_are_refused(world, tmp_path, kind, number):
    request = replace(world.request(kind), round=number)
    with pytest.raises(DataError, match=rf"north: round {number + 1} was asked for"):
        world.silo(tmp_path).answer(request.to_bytes())


@pytest.mark.slow
def test_replayed_requests_draw_nothing_new_in_any_order(world, tmp_path):
    silo = world.silo(tmp_path)
    sent = {reply for name, _, reply in world.recorder.crossed if name == "north"}
    requests = [request for name, request, _ in world.recorder.crossed if name == "north"]
    kept = (silo.private / "selection.json").read_bytes()
    for data in (*reversed(requests), *requests[::2], *requests):
        assert silo.answer(data) in sent, "a replayed request made the silo say something new"
    assert (silo.private / "selection.json").read_bytes() == kept


def test_a_recipe_cannot_name_private_files_as_public_rows(world, tmp_path):
    silo, hello = world.silo(tmp_path), world.request("hello")
    own = {"path": "kept.jsonl", "sha256": "../kept", "weight": 1.0}
    crafted = world.hello(public={"geography": {"anchor": own}})
    with pytest.raises(CluesError) as refused:
        silo.answer(crafted.to_bytes())
    assert isinstance(refused.value, DataError | ConfigError)
    assert (
        json.loads((silo.private / "recipe.json").read_text())["public"] == hello.recipe["public"]
    )


def with_direction(request, change):
    """The request with the first checkpoint's direction of its only set changed."""
    [(name, direction)] = request.directions[0].items()
    return replace(request, directions=[change(name, direction), *request.directions[1:]])


def first(tensors, change):
    name = next(iter(tensors))
    return {**tensors, name: change(tensors[name])}


def without_last(request):
    return replace(request, optimizer_steps=request.optimizer_steps[:-1])


MALFORMED = {
    "no checkpoints": lambda r: replace(
        r,
        learning_rates=[],
        optimizer_steps=[],
        probe_losses=[],
        checkpoints=[],
        directions=[],
        first_moments=[],
        second_moments=[],
    ),
    "lists of different lengths": without_last,
    "no directions": lambda r: replace(r, directions=[{} for _ in r.directions]),
    "a direction of another shape": lambda r: with_direction(
        r, lambda n, d: {n: first(d, lambda t: t.T.contiguous())}
    ),
    "a direction without dimensions": lambda r: with_direction(
        r, lambda n, d: {n: first(d, lambda _: torch.zeros(()))}
    ),
    "a direction of an unknown weight": lambda r: with_direction(
        r, lambda n, d: {n: {**d, "x": torch.zeros(2)}}
    ),
    "a direction of an unknown set": lambda r: with_direction(r, lambda _, d: {"other": d}),
    "a checkpoint that lacks a weight": lambda r: replace(
        r, checkpoints=[dict(list(r.checkpoints[0].items())[1:]), *r.checkpoints[1:]]
    ),
    "anchors' scores that nobody compares": lambda r: replace(
        r, compared_baselines={"length": [1.0] * len(r.anchor_scores["validation"])}
    ),
    "anchors' scores by a form that nobody compares": lambda r: replace(
        r, compared_forms={"adam": dict(r.anchor_scores)}
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_score_request_that_does_not_fit_the_recipe_is_refused(world, tmp_path, what):
    silo = world.silo(tmp_path)
    before = (silo.private / "scores.parquet").read_bytes()
    with pytest.raises(DataError):
        silo.answer(MALFORMED[what](world.request("score")).to_bytes())
    assert (silo.private / "scores.parquet").read_bytes() == before


@pytest.mark.parametrize("ratio", [-0.5, 1.5])
def test_a_share_of_rows_that_is_none_is_refused(world, tmp_path, ratio):
    silo = world.silo(tmp_path)
    forget_questions(silo)
    request = world.request("select")
    threshold = {**request.threshold, "rule": "ratio", "value": None, "ratio": ratio}
    with pytest.raises(DataError, match="out of range"):
        silo.answer(replace(request, threshold=threshold).to_bytes())


def test_whatever_was_tried_stands_in_no_file_that_may_leave(world, tmp_path):
    silo = world.silo(tmp_path)
    before = {path: path.read_bytes() for path in files_of(silo.outbox)}
    for request in (
        replace(world.request("train"), round=9),
        replace(world.request("fit"), arm="best"),
        replace(world.request("select"), threshold={}),
        MALFORMED["no directions"](world.request("score")),
    ):
        with pytest.raises(CluesError):
            silo.answer(request.to_bytes())
    left = {path: path.read_bytes() for path in files_of(silo.outbox)}
    assert set(left.values()) <= set(before.values())
