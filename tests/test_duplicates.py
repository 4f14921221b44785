"""The same question in several silos: found under a key, kept once, and told to nobody else."""

# ruff: noqa: RUF001

import json
import re
import shutil
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from federation_helpers import (
    N_ROWS,
    Recorder,
    edit_config,
    merged,
    open_micro,
    plain,
    tiny_model,
    without_volatile,
    write_micro,
)
from pydantic import ValidationError
from typer.testing import CliRunner

from clues.cli.verbs import app
from clues.config import DuplicatesSettings, Recipe, load_config, validate
from clues.coordinator.duplicates import (
    Sketched,
    check_sketches,
    find_duplicates,
    matching_pairs,
    other_keys,
)
from clues.data.rowskey import make_rows_key, read_rows_key
from clues.data.samples import Message, Sample
from clues.data.sketches import (
    N_BANDS,
    PAD_TO,
    SKETCH_BYTES,
    band_width,
    estimated_similarity,
    fewest_equal,
    key_token,
    question_of,
    random_order,
    random_sketches,
    run_key,
    shingles,
    sketch,
)
from clues.errors import ConfigError, DataError, KeyFileError, QuorumError
from clues.pipeline import ModelCache, run_until
from clues.progress import Silent
from clues.silo.silo import Silo
from clues.silo.workspace import ELSEWHERE, LEFT_OUT
from clues.wall.messages import (
    REPLIES,
    REQUESTS,
    LeaveRequest,
    SketchReply,
    SketchRequest,
    from_bytes,
)

KEY = run_key(b"k" * 8 + bytes(range(32)), "abc")
ON = {"recipe": {"duplicates": {"similarity": 0.8, "max_share": 0.5}}}
EXACT = "Name all organs that lie on the left side of the body, from the top down."
LONG = "A class of nine is asked about organs, bones and muscles, and writes for an hour. "
NEAR = "Name all organs that lie at the left side of the body, from the top down."


def jaccard(one: str, other: str) -> float:
    """Explicit, on sets of byte strings."""
    a, b = (
        {padded[i : i + 6] for i in range(len(padded) - 5)}
        for padded in (f" {text} ".encode() for text in (one, other))
    )
    return len(a & b) / len(a | b)


def random_pair(generator: np.random.Generator, share: float) -> tuple[str, str]:
    """Two long texts, one a copy of the other with another tail."""
    letters = generator.choice(list("abcdefghijklmnopqrstuvwxyz "), 1200)
    other = letters.copy()
    n = int((1 - share) * len(other))
    other[len(other) - n :] = generator.choice(list("ABCDEFGHIJKL"), n)
    return "".join(letters), "".join(other)


@pytest.mark.parametrize("share", [0.7, 0.85, 0.9, 0.95, 1.0])
def test_equal_bands_are_as_many_as_exact_jaccard_says(share):
    generator = np.random.default_rng(int(share * 100))
    pairs = [random_pair(generator, share) for _ in range(12)]
    exact = np.mean([jaccard(*pair) ** band_width(0.8) for pair in pairs])
    one, other = (sketch([p[k] for p in pairs], KEY, similarity=0.8) for k in (0, 1))
    n_equal = (one == other).sum(axis=1)
    error = np.sqrt(exact * (1 - exact) / (N_BANDS * len(pairs)))
    assert abs(n_equal.mean() / N_BANDS - exact) <= 4 * error + 1e-12
    if share == 1.0:
        assert [estimated_similarity(int(n), similarity=0.8) for n in n_equal] == [1.0] * 12


def test_shingles_are_the_exact_sets():
    for text in ("", "a", "ab ab ab ab", "Où est-il ?", "北京的首都在哪里"):
        data = f" {text} ".encode().ljust(6, b"\0")
        exact = {int.from_bytes(data[i : i + 6], "big") for i in range(len(data) - 5)}
        assert set(shingles(text).tolist()) == exact


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.8, 0.9, 1.0])
def test_a_pair_at_the_similarity_is_about_as_likely_to_count_as_not(similarity):
    width, fewest = band_width(similarity), fewest_equal(similarity)
    assert 1 <= width <= 16
    assert fewest - 1 < N_BANDS * similarity**width <= fewest or fewest == 1
    # Half as alike: not even three bands are expected, and far more are needed.
    assert N_BANDS * (similarity / 2) ** width < 0.3 * fewest


def asked(text: str, *, system: str = "") -> str:
    turns = (Message("system", system),) if system else ()
    return question_of(Sample(0, (*turns, Message("user", text), Message("assistant", "x"))))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (EXACT, EXACT.upper(), True),
        (EXACT, EXACT.replace(" ", " \n\t"), True),
        ("ＡＢＣ ﬁne question about it", "abc fine question about it", True),
        (EXACT, NEAR, True),
        (EXACT, EXACT.replace("left", "right").replace("organs", "bones"), False),
        ("中国的首都是哪一座城市，人口有多少？", "中国的首都是哪一座城市，人口有多少?", True),
        ("日本で一番高い山はどこにありますか、そして高さは何メートルですか", "日本で一番長い川はどこを流れますか、そして長さは何キロですか", False),
        ("日本で一番高い山はどこにありますか、そして高さは何メートルですか", "日本で一番高い山はどこにありますか、そして高さは何メートルですか？", True),
    ],
)  # fmt: skip
def test_near_questions_are_one_in_any_script_and_others_are_not(one, other, same):
    bands = sketch([asked(one), asked(other)], KEY, similarity=0.8)
    equal = int((bands[0] == bands[1]).sum())
    assert (equal >= fewest_equal(0.8)) == same, f"{equal} bands"
    assert asked(one, system="You are a doctor. " * 30) == asked(one), "a shared system text counts"


def test_without_the_key_or_under_another_recipe_no_sketch_can_be_told():
    texts = [asked(EXACT), asked(NEAR)]
    key = b"k" * 8 + bytes(range(32))
    ours = sketch(texts, KEY, similarity=0.8)
    for other in (run_key(key, "abd"), run_key(key[::-1], "abc")):
        assert not (ours == sketch(texts, other, similarity=0.8)).any()
        assert key_token(other) != key_token(KEY)
    assert (ours == sketch(texts, run_key(key, "abc"), similarity=0.8)).all()


# --- what the coordinator makes of sketches


SETTINGS = DuplicatesSettings(similarity=0.8, max_share=0.9)


def silos_with(*questions: list[str]) -> dict[str, np.ndarray]:
    """Sketches of silos s0, s1, ... with random ones after them."""
    found = {}
    for n, texts in enumerate(questions):
        dummies = random_sketches(PAD_TO - len(texts), b"%d" % n)
        found[f"s{n}"] = np.concatenate([sketch(texts, KEY, similarity=0.8), dummies])
    return found


def left_by(sketches, *, salt="abc", n_rows=100, settings=SETTINGS):
    counts = dict.fromkeys(sketches, n_rows)
    return find_duplicates(sketches, settings, n_rows=counts, salt=salt)


def test_one_silo_keeps_a_question_and_no_silo_is_always_the_loser():
    texts = [f"Question {n * 7919} asks about number {n**3} and thing {n * n}" for n in range(30)]
    lost = left_by(silos_with(texts, texts, texts))
    assert all(sum(n in handles for handles in lost.values()) == 2 for n in range(30))
    sizes = [len(handles) for handles in lost.values()]
    assert max(sizes) - min(sizes) <= 2, f"unfair: {sizes}"
    assert left_by(silos_with(texts, texts, texts)) == lost
    assert left_by(silos_with(texts, texts, texts), salt="abd") != lost


def test_the_smaller_silo_keeps_its_rows_where_both_have_the_same():
    texts = [f"Question {n * 7919} asks about number {n**3} and thing {n * n}" for n in range(20)]
    sketches = silos_with(texts, texts)
    counts = {"s0": 1000, "s1": 40}
    lost = find_duplicates(sketches, SETTINGS, n_rows=counts, salt="abc")
    assert len(lost["s1"]) <= 1 < len(lost["s0"])


def test_a_row_is_left_out_only_for_a_row_that_matches_it():
    # The first is like the second and the second like the third, by different bands.
    bands = random_sketches(3 * PAD_TO, b"chain").copy().reshape(3, PAD_TO, N_BANDS)
    bands[1, 0, :20] = bands[0, 0, :20]
    bands[1, 0, 20:40] = bands[2, 0, 20:40]
    for salt in "abcdefgh":
        lost = left_by({"s0": bands[0], "s1": bands[1], "s2": bands[2]}, salt=salt)
        gone = {name for name, handles in lost.items() if handles == [0]}
        ends = ({"s1"}, {"s0", "s2"})
        assert gone in ends, "a row went for one that it does not match, or two alike were kept"


def test_rows_of_one_silo_are_never_left_out_for_each_other():
    texts = [asked(EXACT), asked(NEAR)]
    assert left_by(silos_with(texts, ["something quite different is asked here"])) == {
        "s0": [],
        "s1": [],
    }


def test_distinct_questions_lose_nothing(tmp_path):
    from clues.prepare.facts import make_questions

    texts = [
        asked(row["instruction"])
        for domain in ("geography", "medicine")
        for row in make_questions(domain, language="en", seed=5)
    ]
    texts = list(dict.fromkeys(texts))[:240]
    pairs = [(a, b) for a in range(240) for b in range(a) if jaccard(texts[a], texts[b]) >= 0.7]
    bands = sketch(texts, KEY, similarity=0.8)
    owner = np.arange(240)
    found = {(b, a) for b, a in matching_pairs(bands, owner, fewest=fewest_equal(0.8)).tolist()}
    assert found <= {(b, a) for a, b in pairs}, "a pair far below the similarity counts as one"


def test_a_silo_that_takes_too_much_of_another_is_named():
    texts = [f"Question {n * 7919} asks about number {n**3} and thing {n * n}" for n in range(30)]
    with pytest.raises(
        DataError, match=r"\d+% of the rows of silo s\d .* silo s\d, and .*max_share is 0\.2"
    ):
        left_by(silos_with(texts, texts), n_rows=30, settings=DuplicatesSettings(max_share=0.2))


def reply_with(**tensors) -> SketchReply:
    return SketchReply(recipe_hash="a", key_token="b", sketches=tensors)


def whole(n: int) -> torch.Tensor:
    return torch.from_numpy(random_sketches(n, b"x").copy().view("u1").reshape(n, SKETCH_BYTES))


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"other": whole(64)},
        {"sketches": whole(64), "more": whole(64)},
        {"sketches": whole(64).float()},
        {"sketches": whole(64)[:, :-4]},
        {"sketches": whole(63)},
        {"sketches": whole(256)},
        {"sketches": whole(64).reshape(2, 32, -1)},
        {"sketches": whole(64).reshape(-1)},
        {"sketches": whole(64)[:0]},
    ],
)
def test_sketches_that_do_not_fit_the_announced_rows_are_refused(tensors):
    with pytest.raises(DataError, match="silo north: its sketches do not fit the 120 rows"):
        check_sketches("north", reply_with(**tensors), n_rows=120)
    assert len(check_sketches("north", reply_with(sketches=whole(128)), n_rows=120).bands) == 128


def test_a_sketch_that_comes_twice_is_refused():
    twice = whole(64)
    twice[3] = twice[4]
    with pytest.raises(DataError, match="north: it sends a sketch twice"):
        check_sketches("north", reply_with(sketches=twice), n_rows=60)


def test_a_silo_with_another_key_is_named_and_two_that_differ_both():
    bands = random_sketches(1, b"")
    found = {n: Sketched(token, bands) for n, token in zip("abc", ["x", "x", "y"], strict=True)}
    assert list(other_keys(found)) == ["c"]
    assert list(other_keys({n: found[n] for n in "ac"})) == ["a", "c"]


# --- keys


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path):
    path = make_rows_key(tmp_path / "keys" / "rows.key")
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(read_rows_key(path)) == 64
    path.write_bytes(path.read_bytes() + b"\r\n ")
    assert len(read_rows_key(path)) == 64, "an editor's white space made another key"
    with pytest.raises(KeyFileError, match="exists already"):
        make_rows_key(path)


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"", 0o600, "has 0 bytes, and at least 32"),
        (b"short", 0o600, "has 5 bytes"),
        (b" " * 40, 0o600, "has 0 bytes"),
        (b"\0" * 64, 0o600, "repeats a few characters"),
        (b"abcd" * 10, 0o600, "repeats a few characters"),
        (bytes(range(64)) * 100, 0o600, "at most"),
        (bytes(range(64)), 0o640, "other users can read this key. Call: chmod 600"),
        (None, 0o600, "no such file"),
    ],
)
def test_a_weak_open_or_missing_key_is_refused(tmp_path, content, mode, said):
    path = tmp_path / "rows.key"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(KeyFileError, match=said):
        read_rows_key(path)


# --- whole runs


def plant(folder: Path) -> dict[str, list[tuple[str, int]]]:
    """Put the same questions into silos' files; returns by question where it stands."""
    places: dict[str, list[tuple[str, int]]] = {"exact": [], "near": []}
    for name, rows in {"north": (2, 5), "south": (7, 9), "west": (11, None)}.items():
        path = folder / f"silos/{name}.jsonl"
        content = [json.loads(line) for line in path.read_text().splitlines()]
        for what, row in zip(places, rows, strict=True):
            if row is not None:
                text = {"exact": "Which organ makes the insulin of the body, and where is it?"}
                # Far above the similarity: the shared key is drawn anew, and at 0.82 every fifth key
                # misses the pair.
                text["near"] = LONG + (EXACT if name == "north" else NEAR)
                content[row]["instruction"] = text[what]
                places[what].append((name, row))
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return places


class World:
    """A run of three silos with planted duplicates, recorded."""

    def __init__(self, folder: Path) -> None:
        model, silos = tiny_model(folder / "model"), ("north", "south", "west")
        changes = {**ON, "evaluate": {"arms": ["mixed", "clues"]}}
        self.config = write_micro(folder / "in", model, silos=silos, changes=changes)
        self.places = plant(folder / "in")
        self.root = folder / "run"
        self.run = open_micro(self.config, self.root)
        self.recorder = Recorder(self.run)
        self.results = plain(run_until(self.run).results)
        self.cache = ModelCache()

    def request(self, kind: str, silo: str = "north"):
        data, _ = self.recorder.last(silo, kind)
        return from_bytes(data, allowed=REQUESTS, sender="coordinator")

    def reply(self, kind: str, silo: str = "north"):
        _, data = self.recorder.last(silo, kind)
        return from_bytes(data, allowed=REPLIES, sender=silo)

    def silo(self, folder: Path, **changes) -> Silo:
        """Silo north anew, in a folder of its own, after hello."""
        key = {"duplicates_key": str(self.run.run_dir.rows_key)}
        settings = self.run.silos["north"].settings.model_copy(update={**key, **changes})
        silo = Silo(settings, folder, load_model=self.cache.load, progress=Silent())
        silo.answer(self.request("hello").to_bytes())
        return silo


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def decisions(root: Path, name: str) -> list[str]:
    return (root / f"silos/{name}/private/decisions.csv").read_text().splitlines()[1:]


@pytest.mark.walk
def test_planted_duplicates_are_kept_once_and_nothing_else_is_left_out(world):
    gone = {
        (name, number)
        for name in world.run.silos
        for number, line in enumerate(decisions(world.root, name))
        if line.endswith(f",0,dropped,in another silo,{ELSEWHERE},")
    }
    planted = {what: set(places) for what, places in world.places.items()}
    assert all(len(places - gone) == 1 for places in planted.values()), gone
    assert gone <= set().union(*planted.values()), "a question that stands once was left out"
    for name, silo in world.run.silos.items():
        scored = silo.space.scores().row.tolist()
        rows = {number for other, number in gone if other == name}
        assert not rows & set(scored), "a row that another silo keeps was scored"
        assert not rows & {row.row for row in silo.arm_rows("mixed")}
        assert (ELSEWHERE in (silo.private / "report.html").read_text()) or not rows
        said = world.results["silos"][name]
        assert said["left_out"] == (10 if rows else 0), "not rounded as it left"
        assert world.reply("hello", name).n_rows == 20, "the announced number is the file's"


def test_the_coordinator_gets_as_many_sketches_as_the_padding_says_and_no_text(world):
    for name in world.run.silos:
        reply = world.reply("sketch", name)
        assert reply.sketches["sketches"].shape == (PAD_TO, SKETCH_BYTES)
    north = world.reply("sketch").sketches["sketches"].numpy().view("<u4")
    key = run_key(read_rows_key(world.run.run_dir.rows_key), world.request("sketch").recipe_hash)
    questions = [question_of(s) for s in world.run.silos["north"].space.rows().samples]
    ours = sketch(list(dict.fromkeys(questions)), key, similarity=0.8)
    places = [int(np.flatnonzero((north == one).all(axis=1))[0]) for one in ours]
    assert places != sorted(places), "the order of the rows shows"
    assert "left_out" not in (world.root / "report.html").read_text()
    assert "In another silo" in (world.root / "report.html").read_text()


@pytest.mark.walk
def test_a_resumed_run_asks_nothing_again_and_finds_the_same(world, tmp_path):
    run = open_micro(world.config, world.root)
    recorder = Recorder(run)
    again = plain(run_until(run).results)
    assert without_volatile(again) == without_volatile(world.results)
    kinds = Counter(from_bytes(q, allowed=REQUESTS, sender="").kind for _, q, _ in recorder.crossed)
    assert set(kinds) == {"hello", "evaluate"}
    fresh = open_micro(world.config, tmp_path / "run")
    run_until(fresh, "duplicates")
    (fresh.silos["south"].private / LEFT_OUT).write_text("{")
    resumed = open_micro(world.config, tmp_path / "run")
    assert [len(s.space.memory) for s in resumed.silos.values()] == [0, 0, 0]
    found = run_until(resumed, "select")
    assert found.selected is not None
    assert resumed.silos["south"].space.stored_left_out() is not None, "a lost list was not mended"


@pytest.mark.slow
def test_off_is_as_if_the_setting_were_not_there(world, tmp_path):
    recipe = load_config(world.config).recipe
    off = recipe.model_copy(update={"duplicates": None})
    assert "duplicates" not in off.model_dump(mode="json")
    assert validate(Recipe, off.model_dump(mode="json"), where="").hash == off.hash
    assert len({off.hash, recipe.hash, off.scoring_hash, recipe.scoring_hash}) == 4
    config = edit_config(world.config, {"recipe": {"duplicates": None}})
    run = open_micro(config, tmp_path / "run")
    recorder = Recorder(run)
    run_until(run, "score")
    edit_config(config, ON)
    kinds = {from_bytes(q, allowed=REQUESTS, sender="").kind for _, q, _ in recorder.crossed}
    assert kinds == {"hello", "train", "score"}
    assert not run.run_dir.rows_key.exists()
    assert not (run.run_dir.coordinator / "stages/duplicates.json").exists()


# --- a hostile coordinator, and silos that cannot take part


def test_a_silo_without_a_key_or_with_privacy_says_so_at_hello(world, tmp_path):
    with pytest.raises(ConfigError, match=r"north: .* no key for it. Set duplicates_key"):
        world.silo(tmp_path / "a", duplicates_key=None)
    weak = tmp_path / "weak"
    weak.write_bytes(b"password")
    weak.chmod(0o600)
    with pytest.raises(KeyFileError, match="at least 32"):
        world.silo(tmp_path / "b", duplicates_key=str(weak))
    private = validate(type(world.run.silos["north"].settings), {
        "name": "north", "data": "x", "domain": "geography", "privacy": {"epsilon": 8, "delta": 1e-5}
    }, where="").privacy  # fmt: skip
    with pytest.raises(ConfigError, match="privacy does not account for that"):
        world.silo(tmp_path / "c", privacy=private, share_diagnostics=False)


@pytest.mark.parametrize("kind", ["train", "score", "fit"])
def test_nothing_is_done_before_the_list_has_come(world, tmp_path, kind):
    silo = world.silo(tmp_path / "north")
    with pytest.raises(DataError, match="has not said yet which rows to leave out"):
        silo.answer(world.request(kind).to_bytes())


@pytest.mark.parametrize(
    ("handles", "said"),
    [
        ([0, 0], "or one twice"),
        ([-1], "has not sent"),
        ([PAD_TO], "has not sent"),
        (list(range(PAD_TO)), r"24 of 24 usable rows .* max_duplicates is 0\.2"),
    ],
)
def test_only_handles_that_exist_and_few_enough_are_left_out(world, tmp_path, handles, said):
    silo = world.silo(tmp_path / "north")
    request = LeaveRequest(recipe_hash=world.request("leave").recipe_hash, handles=handles)
    with pytest.raises(DataError, match=said):
        silo.answer(request.to_bytes())
    assert not (silo.private / LEFT_OUT).exists()


def test_too_few_rows_are_never_left(world, tmp_path):
    silo = world.silo(tmp_path / "north", max_duplicates=0.9, min_kept=20)
    rows = world.silo(tmp_path / "other").space.rows().samples
    recipe_hash = world.request("leave").recipe_hash
    request = LeaveRequest(recipe_hash=recipe_hash, handles=list(range(20)))
    assert len(rows) == 24
    with pytest.raises(DataError, match="fewer than the 20 that min_kept asks for"):
        silo.answer(request.to_bytes())


def test_another_list_costs_one_of_the_budget_and_changes_every_later_answer(world, tmp_path):
    silo = world.silo(tmp_path / "north", max_selections=2, max_duplicates=0.9)
    leave = world.request("leave")
    first = silo.answer(leave.to_bytes())
    trained = silo.answer(world.request("train").to_bytes())
    assert silo.answer(leave.to_bytes()) == first, "the same list is no second one"
    handles = [h for h in range(10) if h not in leave.handles]
    silo.answer(replace(leave, handles=handles).to_bytes())
    assert silo.answer(world.request("train").to_bytes()) != trained, "an old answer came back"
    with pytest.raises(DataError, match="max_selections is 2"):
        silo.answer(replace(leave, handles=handles[:-1]).to_bytes())


def test_a_silo_that_guesses_learns_of_its_own_rows_alone_and_of_few(world, tmp_path):
    """Being told to leave a row out says that another silo has the question; nothing else does."""
    leave = world.request("leave", "south")
    assert {f.name for f in fields(leave)} == {"recipe_hash", "handles"}
    assert len(leave.handles) <= 0.2 * N_ROWS
    # Whose row is kept, how alike the two are, and where it stands do not cross.
    reveals = LeaveRequest.reveals
    assert "that another silo has the questions" in reveals
    for similarity in (0.3, 0.74):
        with pytest.raises(ValidationError):
            DuplicatesSettings(similarity=similarity)
    # At the lowest that can be asked for, unlike questions show next to nothing.
    assert N_BANDS * 0.3 ** band_width(0.75) < 1


@pytest.mark.parametrize("kind", [SketchRequest, LeaveRequest])
def test_a_recipe_that_does_not_look_has_no_such_question(world, tmp_path, kind):
    hello = world.request("hello")
    recipe = {k: v for k, v in hello.recipe.items() if k != "duplicates"}
    hash_ = validate(Recipe, recipe, where="").hash
    silo = world.silo(tmp_path / "north")
    silo.answer(replace(hello, recipe=recipe, recipe_hash=hash_).to_bytes())
    more = {"handles": [1]} if kind is LeaveRequest else {}
    with pytest.raises(DataError, match="the recipe does not look for the same question"):
        silo.answer(kind(recipe_hash=hash_, **more).to_bytes())


def test_how_many_rows_are_too_long_does_not_show_in_the_sketches(world, tmp_path):
    hello = world.request("hello")
    recipe = {**hello.recipe, "tokens": {**hello.recipe["tokens"], "max_length": 110}}
    hash_ = validate(Recipe, recipe, where="").hash
    silo = world.silo(tmp_path / "north")
    silo.answer(replace(hello, recipe=recipe, recipe_hash=hash_).to_bytes())
    reply = silo.answer(SketchRequest(recipe_hash=hash_).to_bytes())
    assert len(silo.space.usable().dropped) > 0
    sent = from_bytes(reply, allowed=REPLIES, sender="").sketches["sketches"]
    assert len(sent) == PAD_TO
    assert len(np.unique(sent.numpy(), axis=0)) == PAD_TO


def test_the_order_is_a_permutation_and_another_for_another_seed():
    assert sorted(random_order(100, b"a")) == list(range(100))
    assert random_order(100, b"a") != random_order(100, b"b")


# --- the page


def test_the_example_of_the_page_runs_as_it_stands(world, tmp_path, monkeypatch):
    page = (Path(__file__).parent.parent / "docs/privacy.md").read_text(encoding="utf-8")
    _, _, section = page.partition("### The same question in several silos\n")
    section = section.partition("\n### ")[0]
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in blocks] == ["yaml", "bash", "yaml"]
    (_, run_part), (_, command), (_, silo_part) = blocks
    folder = shutil.copytree(world.config.parent, tmp_path / "in")
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(app, command.split()[1:])
    assert done.exit_code == 0, done.output
    content = merged(yaml.safe_load((folder / "clues.yaml").read_text()), {})
    content["recipe"]["duplicates"] = yaml.safe_load(run_part)["recipe"]["duplicates"]
    content["silos"] = [{**silo, **yaml.safe_load(silo_part)} for silo in content["silos"]]
    (folder / "clues.yaml").write_text(yaml.safe_dump(content))
    run = open_micro(folder / "clues.yaml", tmp_path / "run")
    run_until(run, "duplicates")
    assert not run.run_dir.rows_key.exists(), "the run made a key of its own"
    assert sum(len(silo.space.left_out()) for silo in run.silos.values()) == 3


def test_a_silo_with_another_key_stops_the_run_and_is_named(world, tmp_path):
    run = open_micro(world.config, tmp_path / "run")
    other = make_rows_key(tmp_path / "other.key")
    silo = run.silos["west"].space
    silo.settings = silo.settings.model_copy(update={"duplicates_key": str(other)})
    with pytest.raises(QuorumError, match="silo west: its duplicates_key is not that of the other"):
        run_until(run, "duplicates")
