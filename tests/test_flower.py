"""The real ClientApp and the real transport on a grid without a network."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from federation_helpers import files_of, plain, run_micro, tiny_model, without_volatile, write_micro

pytest.importorskip("flwr", reason="Flower is not installed: clues[flower]")
from flower_grid import LocalGrid, open_grid_run, same_adapter, selection_of, silo_app

from clues.carriers.flower import GridTransport, find_silos, from_content, to_content
from clues.config import FederationSettings
from clues.data.rowskey import make_rows_key
from clues.errors import QuorumError
from clues.pipeline import run_until
from clues.wall.ledger import Ledger, compare, summary, verify
from clues.wall.messages import (
    FitReply,
    FitRequest,
    SelectRequest,
    from_bytes,
    kind_of,
)
from clues.wall.transport import Missing

pytestmark = pytest.mark.slow
SILOS = ("north", "south", "west")
QUICK = {"wait_s": 0.05, "timeouts": {"train": 0.3}}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("input")
    changes = {
        "evaluate": {"arms": ["clues"]},
        "federation": {"quorum": 2, **QUICK},
        "combine": {"rounds": 2},
        # All kinds of messages travel.
        "recipe": {"duplicates": {}},
    }
    key = {"duplicates_key": str(make_rows_key(folder / "rows.key"))}
    model = tiny_model(folder / "model")
    return write_micro(folder / "in", model, silos=SILOS, changes=changes, silo_changes=key)


@pytest.fixture(scope="module")
def reference(config, tmp_path_factory):
    """The same run in one process: its folder and results."""
    root = tmp_path_factory.mktemp("one") / "run"
    return root, run_micro(config, root)


def run_grid(config, root, **how):
    run, grid = open_grid_run(config, root, **how)
    results = plain(run_until(run).results)
    return results, grid


def test_a_message_comes_out_as_it_went_in_and_anything_else_is_empty():
    for data in (b"", b"x", bytes(range(256)) * 1000):
        assert from_content(to_content(data)) == data
    foreign = to_content(b"x")
    del foreign["message"]
    assert from_content(foreign) == b""


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    """A run over the grid that loses nothing: its folder, results and grid."""
    folder = tmp_path_factory.mktemp("grid")
    return folder, *run_grid(config, folder)


@pytest.mark.walk
def test_over_flower_the_run_ends_as_in_one_process(reference, undisturbed):
    root, expected = reference
    folder, results, grid = undisturbed
    assert results["threshold"] == expected["threshold"]
    assert without_volatile(results["silos"]) == without_volatile(expected["silos"])
    assert without_volatile(results["arms"]) == without_volatile(expected["arms"])
    for name in SILOS:
        assert selection_of(folder, name) == selection_of(root, name)
    assert same_adapter(folder / "coordinator-side", root), "not the same adapter"
    kinds = [kind for node, kind in grid.pushed if node == 10]
    # Few, fat messages: one a round and one of everything else.
    first = ["hello", "sketch", "leave"]
    assert kinds == [*first, "train", "train", "score", "select", "fit", "fit", "evaluate"]


@pytest.mark.walk
def test_both_sides_record_the_same_messages(undisturbed):
    folder, *_ = undisturbed
    ours = verify(folder / "coordinator-side" / "ledger.jsonl")
    for name in SILOS:
        theirs = verify(folder / "silos" / name / "ledger.jsonl")
        assert compare(ours, theirs) == {name: 20}


@pytest.mark.walk
def test_a_message_that_got_lost_is_sent_again(config, reference, tmp_path):
    lost = {(11, "train"): [3, 5], (12, "fit"): [8]}

    def lose(node, kind):
        codes = lost.get((node, kind))
        return codes.pop(0) if codes else 0

    results, _ = run_grid(config, tmp_path, lose=lose)
    assert results["absences"] == []
    assert same_adapter(tmp_path / "coordinator-side", reference[0])
    ours = verify(tmp_path / "coordinator-side" / "ledger.jsonl")
    assert [r["messages"] for r in summary(ours) if r["direction"] == "lost"] == [2, 1]
    # The silo never saw them, and the two ledgers agree all the same.
    for name in SILOS:
        assert name in compare(ours, verify(tmp_path / "silos" / name / "ledger.jsonl"))


@pytest.mark.walk
def test_a_silo_that_was_restarted_is_asked_again_though_nobody_said_an_error(config, tmp_path):
    run, grid = open_grid_run(config, tmp_path)

    def lose(node, kind):
        if (node, kind) == (11, "score") and grid.activated[11] == "once":
            grid.activated[11] = "again"
            return "nothing"
        return 0

    grid.lose = lose
    results = plain(run_until(run).results)
    assert results["absences"] == []
    assert grid.pushed.count((11, "score")) == 2


@pytest.mark.walk
def test_a_silo_that_never_comes_is_waited_for_and_named(config, tmp_path):
    run, grid = open_grid_run(config, tmp_path)
    grid.offline = {11}
    results = plain(run_until(run).results)
    [absence] = results["absences"]
    assert (absence["silo"], absence["stage"]) == ("south", "hello")
    assert "not connected for" in absence["why"]
    assert set(results["silos"]) == {"north", "west"}


@pytest.mark.walk
def test_a_silo_that_does_not_answer_in_time_is_named(config, tmp_path):
    results, _ = run_grid(
        config, tmp_path, lose=lambda n, k: "nothing" if (n, k) == (12, "train") else 0
    )
    [absence] = results["absences"]
    assert (absence["silo"], absence["stage"]) == ("west", "train")
    assert "no answer to train within" in absence["why"]


@pytest.mark.walk
def test_a_silo_whose_process_dies_every_time_is_given_up(config, tmp_path):
    results, grid = run_grid(
        config, tmp_path, lose=lambda n, k: 8 if (n, k) == (12, "score") else 0
    )
    [absence] = results["absences"]
    assert "asked 5 times, and its process died" in absence["why"]
    assert grid.pushed.count((12, "score")) == 5


@pytest.mark.walk
def test_below_quorum_the_run_stops_and_goes_on_when_they_are_back(config, reference, tmp_path):
    run, grid = open_grid_run(config, tmp_path)
    grid.offline = {11, 12}
    with pytest.raises(QuorumError, match="not connected for"):
        run_until(run)
    results, _ = run_grid(config, tmp_path)
    assert results["absences"] == []
    assert same_adapter(tmp_path / "coordinator-side", reference[0])


@pytest.mark.walk
@pytest.mark.parametrize(
    "kind",
    [*(pytest.param(k, marks=pytest.mark.long) for k in ("train", "score", "select")), "fit"],
)
def test_a_coordinator_killed_in_a_phase_goes_on_to_the_same_result(
    config, reference, tmp_path, kind
):
    class Killed(BaseException):
        """As a signal: nobody catches it."""

    def lose(node, kind_of_message):
        if (node, kind_of_message) == (11, kind):
            raise Killed
        return 0

    run, _grid = open_grid_run(config, tmp_path, lose=lose)
    with pytest.raises(Killed):
        run_until(run)
    results, _ = run_grid(config, tmp_path)
    assert results["absences"] == []
    assert results["threshold"] == reference[1]["threshold"]
    assert same_adapter(tmp_path / "coordinator-side", reference[0])
    ours = verify(tmp_path / "coordinator-side" / "ledger.jsonl")
    for name in SILOS:
        assert name in compare(ours, verify(tmp_path / "silos" / name / "ledger.jsonl"))


def poisoned(request: bytes, reply: bytes) -> bytes:
    """A fit reply whose adapter holds a NaN, past every check of an honest silo."""
    if kind_of(request) != "fit":
        return reply
    honest = from_bytes(reply, allowed={"fit-reply": FitReply}, sender="")
    bad = {n: torch.full_like(t, float("nan")) for n, t in honest.adapter.items()}
    return replace(honest, adapter=bad).to_bytes()


HOSTILE = {
    "garbage": (lambda q, r: b"\x80\x04garbage" if kind_of(q) == "train" else r, "not a message"),
    "empty": (lambda q, r: b"" if kind_of(q) == "score" else r, "not a message"),
    "nan": (poisoned, "not finite"),
    "wrong kind": (lambda q, r: q if kind_of(q) == "select" else r, "may not come here"),
    "cut": (lambda q, r: r[:-5] if kind_of(q) == "fit" else r, "not what was sent"),
}


# In one process every kind of lie is told in the default tests (test_lies.py).
@pytest.mark.parametrize(
    "name",
    [n if n == "nan" else pytest.param(n, marks=pytest.mark.long) for n in HOSTILE],
)
def test_a_hostile_silo_is_named_and_left_out(config, tmp_path, name):
    change, why = HOSTILE[name]
    results, _ = run_grid(config, tmp_path, change={"south": change})
    [absence] = results["absences"]
    assert absence["silo"] == "south"
    assert why in absence["why"]


@pytest.mark.walk
def test_content_that_flower_itself_cannot_read_costs_only_its_sender(config, tmp_path):
    run, grid = open_grid_run(config, tmp_path)
    pull = grid.pull_messages

    def pull_odd(message_ids):
        [reply] = pull(message_ids) or [None]
        if reply and reply.metadata.src_node_id == 11 and "train" in reply.metadata.message_type:
            raise ValueError("zqxsecret in the bytes")
        return [reply] if reply else []

    for node, context in grid.contexts.items():
        context.node_id = node
    grid.pull_messages = pull_odd
    app = grid.apps[11]

    def stamped(message, context):
        reply = app(message, context)
        reply.metadata.__dict__["_src_node_id"] = 11
        return reply

    grid.apps[11] = stamped
    results = plain(run_until(run).results)
    [absence] = results["absences"]
    assert absence["silo"] == "south"
    assert "zqxsecret" not in json.dumps(results)


@pytest.mark.walk
def test_no_error_of_a_silo_crosses_but_a_reference_does(config, tmp_path, caplog):
    """A marker stands in every row; the silo fails in its own words and in Python's."""
    folder = shutil.copytree(config.parent, tmp_path / "in")
    rows = folder / "silos" / "south.jsonl"
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps({**r, "output": "zqxsecret"}) + "\n" for r in lines))
    caplog.set_level(logging.DEBUG)
    root = tmp_path / "run"
    run, grid = open_grid_run(folder / "clues.yaml", root)
    honest = grid.apps[11]

    def fails(message, context):
        if message.metadata.message_type == "query.score":
            rows.write_text("zqxsecret is not JSON")
        return honest(message, context)

    grid.apps[11] = fails
    results = plain(run_until(run).results)
    [absence] = results["absences"]
    errors = (root / "silos" / "south" / "private" / "errors.log").read_text()
    reference = errors.split("reference ")[1][:8]
    assert f"reference {reference}" in absence["why"]
    assert "zqxsecret" not in caplog.text
    for file in files_of(root):
        if "private" not in file.parts:
            assert b"zqxsecret" not in file.read_bytes(), file


def test_an_exception_outside_the_silo_gives_flower_a_reference_and_no_text(tmp_path):
    from clues.carriers.flower import make_client_app

    def answer(data, context):
        raise RuntimeError("zqxsecret: patient 42")

    app = make_client_app(answer, lambda context: tmp_path / "errors.log")
    grid = LocalGrid({10: app})
    transport = GridTransport(
        grid, {"north": 10}, Ledger(tmp_path / "ledger.jsonl"), settings=FederationSettings()
    )
    request = SelectRequest(recipe_hash="x", threshold={})
    [(_name, missing)] = list(
        transport.exchange({"north": request.to_bytes()}, most={"north": 10**6})
    )
    assert isinstance(missing, Missing)
    assert "zqxsecret" not in missing.why
    assert "zqxsecret" in (tmp_path / "errors.log").read_text()


@pytest.mark.walk
def test_a_reference_that_is_no_reference_is_not_repeated(config, tmp_path):
    from clues.wall.messages import Failure

    def speaks(request, reply):
        if kind_of(request) != "train":
            return reply
        return Failure(recipe_hash="", reference="zqxsecret <b>patient</b>").to_bytes()

    results, _ = run_grid(config, tmp_path, change={"south": speaks})
    [absence] = results["absences"]
    assert "(unreadable)" in absence["why"]
    assert "zqxsecret" not in json.dumps(results)


def test_machines_without_keys_say_who_they_are_and_strangers_are_ignored(config, tmp_path):
    from clues.config import load_config

    apps = {
        number: silo_app(settings, tmp_path / settings.name)
        for number, settings in enumerate(load_config(config).silos, start=20)
    }
    grid = LocalGrid(apps)
    wanted = ["north", "south", "nobody"]
    settings = FederationSettings(wait_s=0.2)
    found = find_silos(grid, wanted, settings=settings, poll_s=0.01)
    assert found == {"north": 20, "south": 21, "nobody": 0}
    assert FitRequest.kind not in [kind for _, kind in grid.pushed]
