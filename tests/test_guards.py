"""A hostile silo is named and left out, or stops the run below the quorum; it never joins."""

import json
import re
from dataclasses import replace

import pytest
import torch
from federation_fakes import N_ROWS, RECIPE, Fakes, fitting, honest, tiny_adapter

from clues import __version__
from clues.config import CombineSettings, FederationSettings
from clues.coordinator.guards import (
    check_hello,
    check_select,
    check_train,
    too_long,
    update_norm,
)
from clues.errors import DataError, QuorumError
from clues.wall.messages import (
    FitReply,
    HelloReply,
    Refusal,
    SelectReply,
    TrainReply,
    from_bytes,
)
from clues.wall.transport import Missing

NAMES = ("east", "north", "south")
GOOD = tuple(name for name in NAMES if name != "north")
A, B = "q.lora_A.weight", "q.lora_B.weight"
TWO = FederationSettings(quorum=2)


def edited(**changes):
    """A hostile silo: the honest reply with weights replaced by functions of themselves."""

    def answer(name, request):
        reply = honest(name, request)
        adapter = dict(reply.adapter)
        for key, change in changes.items():
            weight = {"a": A, "b": B}.get(key, key)
            adapter[weight] = change(adapter.get(weight, torch.zeros(2)))
        return replace(reply, adapter={k: v for k, v in adapter.items() if v is not None})

    return answer


def weighing(weight):
    return lambda name, request: replace(honest(name, request), weight=weight)


ATTACKS = {
    "NaN": (edited(b=lambda t: t * torch.nan), "not finite"),
    "infinity": (edited(b=lambda t: t + torch.inf), "not finite"),
    "10^12 rows": (weighing(10**12), rf"trained on {10**12} rows.* {N_ROWS}"),
    "more rows than announced": (weighing(N_ROWS + 10), f"{N_ROWS + 10} rows"),
    "negative rows": (weighing(-10), "-10 rows"),
    "an adapter of no rows": (weighing(0), "trained on 0 rows"),
    "rows and no adapter": (
        lambda name, request: FitReply(recipe_hash=RECIPE.hash, weight=10, adapter={}),
        "2 weights differ by name",
    ),
    "wrong shape": (edited(b=lambda t: t[:1]), r"shape \(1, 2\), expected \(6, 2\)"),
    "transposed": (edited(b=lambda t: t.T.contiguous()), r"shape \(2, 6\)"),
    "an extra tensor": (edited(x=lambda t: t), "1 weights differ by name"),
    "a tensor less": (edited(b=lambda t: None), "1 weights differ by name"),
    "another dtype": (edited(b=lambda t: t.double()), "float64, expected torch.float32"),
    "half precision": (edited(b=lambda t: t.half()), "float16"),
    "a changed A": (edited(a=lambda t: t + 1e-3), "must not"),
    "huge norm": (edited(b=lambda t: t + 100), "its update has norm .* median"),
    "no message": (lambda name, request: b"hello", "not a message"),
    "another recipe": (
        lambda name, request: replace(honest(name, request), recipe_hash="0" * 12),
        "another recipe",
    ),
    "a refusal": (
        lambda name, request: Refusal(recipe_hash=RECIPE.hash).to_bytes(),
        "'refusal' may not come here",
    ),
    "silence": (lambda name, request: Missing("no answer within 60 s"), "no answer within 60 s"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_silo_is_named_and_left_out(tmp_path, attack):
    answer, why = ATTACKS[attack]
    fakes = Fakes(NAMES, {"north": answer})
    stage = fitting(fakes, tmp_path, federation=TWO)
    adapter, record = stage.run("clues", tmp_path / "rounds", token="")
    expected, _ = fitting(Fakes(GOOD), tmp_path / "b").run("clues", tmp_path / "b", token="")
    assert all(torch.equal(adapter[n], expected[n]) for n in expected), "it took part"
    assert record["n_silos"] == 2
    [absence] = stage.attendance.to_json()
    assert (absence["silo"], absence["stage"]) == ("north", "fit-clues")
    assert fakes.asked.count(("north", 0)) == 1
    assert ("north", 1) not in fakes.asked, "it was asked again"
    assert re.search(f"^silo north.*{why}", absence["why"]), absence["why"]
    assert json.loads((tmp_path / "absences.json").read_text())["absent"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_without_a_quorum_of_fewer_a_hostile_silo_stops_the_run(tmp_path, attack):
    answer, why = ATTACKS[attack]
    fakes = Fakes(NAMES, {"north": answer})
    stage = fitting(fakes, tmp_path)
    with pytest.raises(QuorumError, match=f"2 silos are left and 3 are needed.*\n.*{why}"):
        stage.run("clues", tmp_path / "rounds", token="")
    assert stage.attendance.to_json() == [], "who stopped a run must be asked again"
    fakes.answers.clear()
    _, record = fitting(fakes, tmp_path).run("clues", tmp_path / "rounds", token="")
    assert record["n_silos"] == 3
    [stop] = json.loads((tmp_path / "absences.json").read_text())["stops"]
    assert stop["silo"] == "north"


def test_a_silo_that_kept_nothing_takes_part_without_a_say(tmp_path):
    def nothing(name, request):
        return FitReply(recipe_hash=RECIPE.hash, weight=0, adapter={})

    fakes = Fakes(NAMES, {"north": nothing})
    _, record = fitting(fakes, tmp_path).run("clues", tmp_path / "rounds", token="")
    assert record["n_silos"] == 2
    assert ("north", 2) in fakes.asked, "an empty selection is no absence"


def test_when_no_silo_kept_anything_the_arm_stops_with_a_reason(tmp_path):
    def nothing(name, request):
        return FitReply(recipe_hash=RECIPE.hash, weight=0, adapter={})

    fakes = Fakes(NAMES, dict.fromkeys(NAMES, nothing))
    with pytest.raises(DataError, match="arm clues: no silo has a row to train on"):
        fitting(fakes, tmp_path).run("clues", tmp_path / "rounds", token="")


def test_a_silo_that_goes_missing_late_is_left_out_from_there_and_a_continued_run_knows(tmp_path):
    def late(name, request):
        return honest(name, request) if request.round == 0 else Missing("connection lost")

    class Killed(Exception):
        pass

    def killer(name, request):
        if request.round == 2:
            raise Killed
        return honest(name, request)

    whole = fitting(Fakes(NAMES, {"north": late}), tmp_path / "a", federation=TWO)
    expected, record = whole.run("clues", tmp_path / "a" / "rounds", token="")
    assert record["n_silos"] == 2
    fakes = Fakes(NAMES, {"north": late, "south": killer})
    with pytest.raises(Killed):
        fitting(fakes, tmp_path / "b", federation=TWO).run(
            "clues", tmp_path / "b" / "rounds", token=""
        )
    again = Fakes(NAMES)
    continued = fitting(again, tmp_path / "b", federation=TWO)
    found, _ = continued.run("clues", tmp_path / "b" / "rounds", token="")
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    assert {name for name, _ in again.asked} == set(GOOD), "a left-out silo came back"
    assert [a["why"] for a in continued.attendance.to_json()] == ["silo north: connection lost"]


def test_the_inbox_is_empty_when_a_fit_is_over(tmp_path):
    fitting(Fakes(NAMES), tmp_path).run("clues", tmp_path / "rounds", token="")
    assert not list((tmp_path / "rounds").glob("inbox/*"))


def test_the_norm_bound_needs_three_silos_and_half_of_them_honest():
    assert not too_long({"a": 1.0, "b": 1e9}, bound=10)
    assert set(too_long({"a": 1.0, "b": 1e9, "c": 2.0}, bound=10)) == {"b"}
    assert set(too_long({"a": 1.0, "b": 1e9, "c": 2.0, "d": 1e9}, bound=10)) == {"b", "d"}
    assert not too_long({"a": 1.0, "b": 9.9, "c": 1.0}, bound=10)
    assert not too_long({"a": 0.0, "b": 0.0, "c": 1.0}, bound=10), "no scale to compare with"


def test_the_norm_of_an_update_is_that_of_the_difference():
    sent = tiny_adapter()
    moved = {A: sent[A], B: sent[B] + 3.0}
    assert update_norm(moved, sent) == pytest.approx(3 * 12**0.5, rel=1e-6)


HELLO = HelloReply(
    recipe_hash="",
    silo="north",
    domain="d",
    n_rows=10,
    data_token="",
    version=__version__,
    overrides_token="",
    oracle_token="",
    again="",
)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"silo": "south"}, "answers as 'south'"),
        ({"domain": "x"}, "no public set"),
        ({"n_rows": -1}, "-1 rows"),
        ({"n_rows": 10**12}, "max_rows"),
    ],
)
def test_a_hello_that_cannot_be_true_is_refused(changes, why):
    check_hello("north", HELLO, domains=["d"], max_rows=100)
    with pytest.raises(DataError, match=f"north.*{why}"):
        check_hello("north", replace(HELLO, **changes), domains=["d"], max_rows=100)


@pytest.mark.parametrize("n_kept", [-1, 11])
def test_more_kept_rows_than_rows_are_refused(n_kept):
    with pytest.raises(DataError, match="north"):
        check_select("north", SelectReply(recipe_hash="", n_kept=n_kept), n_rows=10)


SENT = tiny_adapter()
TRAIN = TrainReply(
    recipe_hash="",
    weight=10,
    learning_rate=0.1,
    adapter=SENT,
    second_moment={B: torch.ones(6, 2)},
    first_moment={B: -torch.ones(6, 2)},
)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"weight": 0}, "0 rows"),
        ({"weight": 20}, "20 rows"),
        ({"learning_rate": 0.3}, "exceeds 0.2"),
        ({"learning_rate": -0.1}, "learning rate"),
        ({"second_moment": {B: -torch.ones(6, 2)}}, "optimiser state"),
        ({"second_moment": {B: torch.ones(6, 1)}}, "optimiser state"),
        ({"first_moment": {A: torch.ones(2, 6)}}, "optimiser state"),
        ({"adapter": {**SENT, A: SENT[A] + 1}}, "under ffa"),
    ],
)
def test_a_round_of_the_warm_up_that_does_not_fit_is_refused(changes, why):
    known = {"sent": SENT, "n_rows": 10, "peak": 0.2, "ffa": True}
    check_train("north", TRAIN, **known)
    with pytest.raises(DataError, match=f"north.*{why}"):
        check_train("north", replace(TRAIN, **changes), **known)


def test_a_quorum_larger_than_what_is_left_stops_in_any_combination(tmp_path):
    silent = dict.fromkeys(("north", "south"), lambda name, request: Missing("gone"))
    with pytest.raises(QuorumError, match="1 silos are left and 2 are needed"):
        fitting(Fakes(NAMES, silent), tmp_path, federation=TWO).run(
            "clues", tmp_path / "rounds", token=""
        )


def test_robust_rules_stop_when_absences_leave_too_few(tmp_path):
    fakes = Fakes(NAMES, {"north": lambda name, request: Missing("gone")})
    combine = CombineSettings(rounds=2, rule="median")
    with pytest.raises(DataError, match="2 silos sent an adapter, it needs 3"):
        fitting(fakes, tmp_path, federation=TWO, combine=combine).run(
            "clues", tmp_path / "rounds", token=""
        )


def changed_on_the_way(name, request):
    data = bytearray(honest(name, request).to_bytes())
    data[-1] ^= 1
    return bytes(data)


def test_a_weight_that_changed_on_the_way_does_not_join(tmp_path):
    fakes = Fakes(NAMES, {"north": changed_on_the_way})
    stage = fitting(fakes, tmp_path, federation=TWO)
    _, record = stage.run("clues", tmp_path / "rounds", token="")
    assert record["n_silos"] == 2
    [absence] = stage.attendance.to_json()
    assert "silo north: what arrived is not what was sent" in absence["why"]


def padded(name, request):
    """An honest adapter, and with it 20 MB that say nothing."""
    return replace(honest(name, request), adapter={B: torch.zeros(5_000_000)})


def test_an_answer_that_is_larger_than_asked_for_is_refused_unread(tmp_path, monkeypatch):
    read = []

    def watched(data, **how):
        read.append(len(data))
        return from_bytes(data, **how)

    monkeypatch.setattr("clues.coordinator.exchange.from_bytes", watched)
    stage = fitting(Fakes(NAMES, {"north": padded}), tmp_path, federation=TWO)
    _, record = stage.run("clues", tmp_path / "rounds", token="")
    assert record["n_silos"] == 2
    [absence] = stage.attendance.to_json()
    assert re.search(r"^silo north: its answer to fit has 20.0 MB.* 16.0 MB", absence["why"])
    assert max(read) < 1_000_000, "it was taken apart before it was refused"


def test_the_limit_on_answers_can_be_set_and_holds_for_each_silo(tmp_path):
    fine = FederationSettings(quorum=2, max_message_mb=21)
    stage = fitting(Fakes(NAMES, {"north": padded}), tmp_path / "a", federation=fine)
    stage.run("clues", tmp_path / "a", token="")
    [absence] = stage.attendance.to_json()
    assert "weights differ by name" in absence["why"], "the guards come after the limit"
    small = FederationSettings(max_message_mb=1e-5)
    with pytest.raises(QuorumError, match="max_message_mb"):
        fitting(Fakes(NAMES), tmp_path / "b", federation=small).run(
            "clues", tmp_path / "b", token=""
        )
