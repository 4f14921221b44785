"""One budget for all that a silo answers, one threshold per recipe, and only the recipe's own."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from federation_helpers import (
    Recorder,
    forget_questions,
    merged,
    open_micro,
    tiny_model,
    write_micro,
)

from clues.config import Recipe
from clues.errors import CluesError, DataError, DegenerateSelectionError, RecipeMismatchError
from clues.pipeline import ModelCache, run_until
from clues.progress import Silent
from clues.rundir import read_record, write_record
from clues.silo.overrides import Overrides
from clues.silo.questions import FILE
from clues.silo.silo import Silo
from clues.wall.messages import REPLIES, REQUESTS, from_bytes

SECRET = "Qvz-marker-"


class World:
    """A run that has selected, every private row of which carries a marker."""

    def __init__(self, folder: Path) -> None:
        looks = {"recipe": {"duplicates": {}}}
        self.config = write_micro(folder / "input", tiny_model(folder / "model"), changes=looks)
        for path in (folder / "input" / "silos").glob("*.jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            marked = [{**row, "output": SECRET + row["output"]} for row in rows]
            path.write_text("".join(json.dumps(row) + "\n" for row in marked))
        self.root = folder / "run"
        self.run = open_micro(self.config, self.root)
        self.recorder = Recorder(self.run)
        run_until(self.run)
        data, self.reply = self.recorder.last("north", "select")
        self.request = from_bytes(data, allowed=REQUESTS, sender="coordinator")
        self.cache = ModelCache()

    def last(self, kind: str):
        """The last request of a kind that silo north got."""
        data, _ = self.recorder.last("north", kind)
        return from_bytes(data, allowed=REQUESTS, sender="coordinator")

    def silo(self, tmp_path: Path, **changes) -> Silo:
        folder = tmp_path / "north"
        if not folder.exists():
            shutil.copytree(self.root / "silos" / "north", folder)
        settings = self.run.silos["north"].settings.model_copy(update=changes)
        return Silo(settings, folder, load_model=self.cache.load, progress=Silent())


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def moved(request, by=0.01):
    threshold = {**request.threshold, "value": request.threshold["value"] + by}
    return replace(request, threshold=threshold)


def forget_answers(silo: Silo) -> None:
    shutil.rmtree(silo.outbox)


@pytest.mark.walk
def test_a_second_threshold_under_one_recipe_is_refused_by_any_process(world, tmp_path):
    for _ in range(2):
        with pytest.raises(RecipeMismatchError, match=r"north.*already decided"):
            world.silo(tmp_path).answer(moved(world.request).to_bytes())
    silo = world.silo(tmp_path)
    forget_answers(silo)
    with pytest.raises(RecipeMismatchError, match="already decided"):
        silo.answer(moved(world.request, 1e-9).to_bytes())
    assert silo.answer(world.request.to_bytes()) == world.reply, "the same request is no second one"


@pytest.mark.walk
def test_a_refused_threshold_has_been_tried_too(world, tmp_path):
    silo = world.silo(tmp_path)
    forget_questions(silo)
    with pytest.raises(DegenerateSelectionError):
        silo.answer(moved(world.request, 1e9).to_bytes())
    with pytest.raises(RecipeMismatchError, match="already decided"):
        silo.answer(world.request.to_bytes())


def test_other_rows_have_a_count_of_their_own(world, tmp_path):
    silo = world.silo(tmp_path, max_selections=1)
    path = silo.private / FILE
    stored = read_record(path, advice="")
    [(token, met)] = stored["rows"].items()
    crowded = {"other": met[world.request.recipe_hash]}
    write_record(path, {"version": 1, "rows": {token: crowded}})
    forget_answers(silo)
    with pytest.raises(DataError, match=r"north: 1 recipes.* max_selections is 1"):
        silo.answer(world.request.to_bytes())
    write_record(path, {"version": 1, "rows": {"other rows": crowded}})
    silo.answer(world.request.to_bytes())
    after = read_record(path, advice="")["rows"]
    assert after["other rows"] == crowded, "what other rows have met was forgotten"
    assert list(after[token]) == [world.request.recipe_hash]


@pytest.mark.parametrize("content", ["", "[]", "[" * 5000, "\x00", '{"rows": {"t": 3}}'])
def test_a_count_that_cannot_be_read_is_not_begun_anew(world, tmp_path, content):
    silo = world.silo(tmp_path)
    (silo.private / FILE).write_text(content)
    forget_answers(silo)
    with pytest.raises(CluesError, match=r"asked\.json"):
        silo.answer(world.request.to_bytes())
    assert (silo.private / FILE).read_text() == content


def test_every_kind_of_question_is_counted_and_the_same_one_is_free(world, tmp_path):
    silo = world.silo(tmp_path, max_selections=1)
    for kind in ("hello", "sketch", "leave", "train", "score", "select", "fit", "evaluate"):
        silo.answer(world.last(kind).to_bytes())
        forget_answers(silo)
    asked = json.loads((silo.private / FILE).read_text())["rows"]
    [[under]] = [recipes.values() for recipes in asked.values()]
    assert {a["question"]["kind"] for a in under["asked"]} == set(REQUESTS)
    assert all(len(a["requests"]) == 1 for a in under["asked"])


def other_hello(world, **recipe):
    hello = world.last("hello")
    content = merged(hello.recipe, recipe)
    return replace(hello, recipe=content, recipe_hash=Recipe.model_validate(content).hash)


def bent(adapter, by=1e-3):
    return {name: tensor + by for name, tensor in adapter.items()}


OTHER_WAYS = {
    "hello": lambda w: other_hello(w, tokens={"max_length": 100}),
    "leave": lambda w: replace(w.last("leave"), handles=[0, 1]),
    "train": lambda w: replace(w.last("train"), adapter=bent(w.last("train").adapter)),
    "score": lambda w: replace(
        w.last("score"), checkpoints=[bent(c) for c in w.last("score").checkpoints]
    ),
    "fit, another start": lambda w: replace(w.last("fit"), adapter=bent(w.last("fit").adapter)),
    "fit, other steps": lambda w: replace(
        w.last("fit"), combine=merged(w.last("fit").combine, {"local_steps": 2})
    ),
    "evaluate": lambda w: replace(w.last("evaluate"), selection_token="0" * 16),
}


@pytest.mark.parametrize("what", OTHER_WAYS)
def test_a_question_asked_in_another_way_costs_one_more(world, tmp_path, what):
    request = OTHER_WAYS[what](world)
    with pytest.raises(DataError, match="max_selections is 1"):
        world.silo(tmp_path, max_selections=1).answer(request.to_bytes())
    silo = world.silo(tmp_path / "two", max_selections=2)
    silo.answer(request.to_bytes())
    # What is spent on one question lets every other be asked in another way, once.
    if what.startswith("fit"):
        silo.answer(OTHER_WAYS["train"](world).to_bytes())
        for by in (2e-3, 3e-3):
            third = replace(request, adapter=bent(request.adapter, by))
            with pytest.raises(DataError, match="max_selections is 2"):
                silo.answer(third.to_bytes())


def test_rounds_are_many_and_every_hundred_updates_cost_one_more(world, tmp_path, monkeypatch):
    monkeypatch.setattr("clues.silo.questions.UPDATES", 3)
    silo = world.silo(tmp_path, max_selections=1)
    forget_questions(silo)
    fit = world.last("fit")
    rounds = [replace(fit, round=k, combine=merged(fit.combine, {"rounds": 9})) for k in range(4)]
    for request in rounds[:3]:
        silo.answer(request.to_bytes())
    with pytest.raises(DataError, match="max_selections is 1"):
        silo.answer(rounds[3].to_bytes())
    world.silo(tmp_path, max_selections=2).answer(rounds[3].to_bytes())


def test_every_failure_costs_one_more_and_the_same_one_is_free(world, tmp_path):
    """Each tells whether rows made something fail: hundreds of them would be hundreds of answers."""
    silo = world.silo(tmp_path, max_selections=2, min_kept=1000)
    forget_questions(silo)
    fit = world.last("fit")
    many = [replace(fit, round=k, combine=merged(fit.combine, {"rounds": 9})) for k in range(4)]
    for request in (many[0], many[0], many[1], many[0]):
        with pytest.raises(DataError, match="min_kept is 1000"):
            silo.answer(request.to_bytes())
    for request in (many[2], world.last("score"), many[3]):
        with pytest.raises(DataError, match="max_selections is 2"):
            silo.answer(request.to_bytes())
    # What fails no more is no failure.
    better = world.silo(tmp_path, max_selections=2)
    for request in (many[0], many[1], many[2]):
        better.answer(request.to_bytes())


def test_work_that_was_killed_counts_until_it_is_done(world, tmp_path, monkeypatch):
    silo = world.silo(tmp_path, max_selections=1)
    forget_answers(silo)
    request = world.last("score").to_bytes()

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("clues.silo.silo.score", killed)
        with pytest.raises(KeyboardInterrupt):
            silo.answer(request)
    [[under]] = [r.values() for r in json.loads((silo.private / FILE).read_text())["rows"].values()]
    assert len(under["unanswered"]) == 1
    again = world.silo(tmp_path, max_selections=1)
    again.answer(request)
    again.answer(world.last("select").to_bytes())


def test_hello_says_the_same_of_every_recipe(world, tmp_path):
    silo, told = world.silo(tmp_path), set()
    for length in (8, 40, 60, 384):
        reply = silo.answer(other_hello(world, tokens={"max_length": length}).to_bytes())
        hello = from_bytes(reply, allowed=REPLIES, sender="north")
        told.add((hello.n_rows, hello.data_token))
    assert len(told) == 1, "a recipe's length told how long rows are"


def test_a_fit_waits_for_the_selection_of_its_own_recipe(world, tmp_path):
    silo = world.silo(tmp_path)
    hello = other_hello(world, seed=77, duplicates=None)
    silo.answer(hello.to_bytes())
    for arm in ("clues", "mixed", "random", "oracle"):
        fit = replace(world.last("fit"), arm=arm, recipe_hash=hello.recipe_hash, round=0)
        with pytest.raises(DataError, match="nothing is selected yet under recipe"):
            silo.answer(fit.to_bytes())


@pytest.mark.parametrize("arm", ["clues", "mixed"])
def test_no_joint_model_trains_on_rows_that_a_person_has_dropped_since(world, tmp_path, arm):
    silo, fit = world.silo(tmp_path), replace(world.last("fit"), arm=arm)
    threshold = silo.space.threshold()
    kept = [d for d in silo.select(threshold).decisions if d.kept]
    ruling = {"id": kept[0].id, "keep": False, "reason": "not ours"}
    content = {"silo": "north", "recipe_hash": silo.space.recipe().hash, "overrides": [ruling]}
    silo.overrule(Overrides.model_validate(content), threshold)
    with pytest.raises(DataError, match="overruled rows since the selection"):
        silo.answer(fit.to_bytes())
    silo.answer(world.request.to_bytes())
    assert kept[0].row not in silo.space.kept()
    silo.answer(fit.to_bytes())


def test_arms_that_do_not_exist_are_not_even_counted(world, tmp_path):
    silo = world.silo(tmp_path)
    before = (silo.private / FILE).read_bytes()
    for change in ({"arm": "x" * 10**6}, {"arm": "perplexity"}, {"round": 10**9}, {"round": -1}):
        with pytest.raises(DataError):
            silo.answer(replace(world.last("fit"), **change).to_bytes())
    assert (silo.private / FILE).read_bytes() == before


def turn_units(threshold, change):
    units = {g: change(json.loads(json.dumps(u))) for g, u in threshold["units"].items()}
    return {**threshold, "units": units}


def with_weights(units, weight):
    return merged(units, {"parts": {n: {"weight": weight} for n in units["parts"]}})


BENT_THRESHOLDS = {
    "the worst rows first": lambda t: turn_units(t, lambda u: with_weights(u, -1.0)),
    "one part alone": lambda t: turn_units(
        t, lambda u: merged(u, {"parts": {next(iter(u["parts"])): {"weight": 0.0}}})
    ),
    "another place": lambda t: turn_units(t, lambda u: {**u, "location": u["location"] + 1e-3}),
    "no unit of the silo's": lambda t: {
        **t,
        "units": {"domain x": next(iter(t["units"].values()))},
    },
    "another rule": lambda t: {**t, "rule": "preset"},
    "a share of the rows": lambda t: {**t, "rule": "ratio", "value": None, "ratio": 0.2},
}


@pytest.mark.parametrize("what", BENT_THRESHOLDS)
def test_a_threshold_that_is_not_by_the_recipe_is_refused(world, tmp_path, what):
    silo = world.silo(tmp_path)
    kept = (silo.private / "selection.json").read_bytes()
    forget_questions(silo)
    bent_request = replace(world.request, threshold=BENT_THRESHOLDS[what](world.request.threshold))
    with pytest.raises(CluesError) as refused:
        silo.answer(bent_request.to_bytes())
    assert isinstance(refused.value, RecipeMismatchError | DataError)
    assert (silo.private / "selection.json").read_bytes() == kept


@pytest.mark.parametrize(
    "weights", [{"loss": 7.0}, {"validation": 0.5}, {"loss": -1.0}, {"x": 1.0}]
)
def test_weights_that_no_weighing_finds_are_refused(world, tmp_path, weights):
    silo = world.silo(tmp_path)
    with pytest.raises(DataError, match="weights that the recipe does not leave"):
        silo.answer(replace(world.last("score"), weights=weights).to_bytes())


def test_no_refusal_shows_a_row(world, tmp_path):
    silo = world.silo(tmp_path, max_selections=1, min_kept=1000)
    errors = []
    for request in (moved(world.request), world.request):
        shutil.rmtree(silo.outbox, ignore_errors=True)
        with pytest.raises((RecipeMismatchError, DataError)) as raised:
            silo.answer(request.to_bytes())
        errors.append(str(raised.value))
    assert len(errors) == 2
    assert not [e for e in errors if SECRET in e]
