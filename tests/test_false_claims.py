"""What a silo says of its own rows, gradients, anchors and figures bends nobody else's run."""

import dataclasses
import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from federation_fakes import N_ROWS, RECIPE, Fakes, fitting, honest, tiny_adapter

from clues.config import CombineSettings, EvaluateSettings, FederationSettings, ThresholdSettings
from clues.coordinator.attendance import Attendance
from clues.coordinator.bounds import (
    CLIPPED,
    FARTHEST,
    Reach,
    capped,
    longest_gradient,
    mean_lengths,
    reach_of,
    shortened,
    too_far,
)
from clues.coordinator.curve import Watch
from clues.coordinator.exchange import Exchange
from clues.coordinator.guards import check_apart, check_evaluate, check_train
from clues.coordinator.train import _mean_moment
from clues.data.damage import DAMAGE_KINDS
from clues.errors import ApprovalError, DataError, LedgerError, NumericsError, QuorumError
from clues.printable import is_printable, printable, quoted
from clues.selection.threshold import fit_threshold
from clues.wall.diagnostics import OTHER, read_diagnostics
from clues.wall.ledger import START, Entry, Ledger, summary, verify
from clues.wall.messages import (
    REPLIES,
    EvaluateReply,
    HelloReply,
    Refusal,
    ScoreReply,
    SelectReply,
    SelectRequest,
    TrainReply,
    from_bytes,
    id_of,
    kind_of,
)

A, B = "q.lora_A.weight", "q.lora_B.weight"
SENT = tiny_adapter()
ESCAPES = "\x1b]0;title\x07\x1b[2J[/red]\u202e\u200b"

# --- the optimiser's means


def train_reply(first: torch.Tensor, second: torch.Tensor) -> TrainReply:
    return TrainReply(
        recipe_hash="",
        weight=10,
        learning_rate=0.1,
        adapter=SENT,
        first_moment={B: first},
        second_moment={B: second},
    )


FIRST, SECOND = torch.full((6, 2), 0.1), torch.full((6, 2), 0.02)
KNOWN = {
    "sent": SENT,
    "n_rows": 10,
    "peak": 0.2,
    "ffa": True,
    "longest": longest_gradient(24, batch_size=4),
}


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        (FIRST * 1e31, SECOND, "length"),
        (FIRST * -1e6, SECOND, "length"),
        (FIRST, SECOND * 1e31, "length"),
        (torch.full((6, 2), 3e38), torch.full((6, 2), 3e38), "length"),
        (FIRST, -SECOND, "does not fit"),
        (FIRST.double(), SECOND, "does not fit"),
        (FIRST.T.contiguous(), SECOND, "does not fit"),
        (FIRST[:1], SECOND[:1], "does not fit"),
    ],
)
def test_means_that_no_training_gives_are_refused_by_name(first, second, why):
    check_train("north", train_reply(FIRST, SECOND), **KNOWN)
    with pytest.raises(DataError, match=f"^silo north: its optimiser state .*{why}"):
        check_train("north", train_reply(first, second), **KNOWN)


@pytest.mark.parametrize("means", [(True, False), (False, True), (False, False)])
def test_means_that_nobody_asked_for_are_refused_and_so_are_missing_ones(means):
    with pytest.raises(DataError, match=r"north.*does not fit"):
        check_train("north", train_reply(FIRST, SECOND), **KNOWN, means=means)
    empty = replace(train_reply(FIRST, SECOND), first_moment={}, second_moment={})
    check_train("north", empty, **KNOWN, means=(False, False))
    with pytest.raises(DataError, match=r"north.*does not fit"):
        check_train("north", empty, **KNOWN)


def test_a_mean_of_a_weight_more_or_less_is_refused():
    both = {"first_moment": {B: FIRST, A: torch.zeros(2, 6)}}
    for changes in (both, {"first_moment": {}}, {"second_moment": {A: torch.zeros(2, 6)}}):
        with pytest.raises(DataError, match=r"north.*does not fit"):
            check_train("north", replace(train_reply(FIRST, SECOND), **changes), **KNOWN)


def test_a_warm_up_that_stays_inside_sends_nothing():
    empty = replace(
        train_reply(FIRST, SECOND), adapter={}, first_moment={}, second_moment={}, weight=0
    )
    check_apart("north", empty)
    for changes in ({"weight": 10}, {"adapter": SENT}, {"first_moment": {B: FIRST}}):
        with pytest.raises(DataError, match=r"^silo north: it sends of a warm-up"):
            check_apart("north", replace(empty, **changes))


def test_lengths_of_both_means_are_lengths_of_gradients():
    gradient = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    first, second = mean_lengths(train_reply(gradient, gradient.square()))
    assert first == pytest.approx(float(gradient.norm()), rel=1e-6)
    assert second == pytest.approx(first, rel=1e-6), "one gradient alone: both means say the same"


def test_no_mean_has_more_say_than_an_honest_one_can_have():
    assert shortened([0.8, 0.7, CLIPPED]) == [1.0, 1.0, 1.0], "honest means were changed"
    assert shortened([0.8, 0.7, 800.0]) == [1.0, 1.0, 1 / 800]
    assert shortened([0.8, 900.0, 800.0, 0.7, 0.9]) == [1.0, 1 / 900, 1 / 800, 1.0, 1.0]
    noisy = shortened([20.0, 22.0, 40.0])
    assert noisy == [1.0, 1.0, 22 / 40], "with noise in most silos their median is the limit"
    assert shortened([50.0]) == [1.0], "of one nobody can say that it is wrong"


def test_a_liar_moves_the_joint_means_by_no_more_than_its_own_honest_part():
    silos = [{B: FIRST * k} for k in (0.9, 1.0, 1.1, 1.2)]
    bound = CLIPPED / (len(silos) + 1)
    for liar in (FIRST * -100, FIRST * 1e4, -FIRST, torch.zeros(6, 2)):
        lengths = [float(m[B].double().norm()) for m in (*silos, {B: liar})]
        joint = _mean_moment([*silos, {B: liar}], shortened(lengths))[B]
        without = sum(m[B] for m in silos) / (len(silos) + 1)
        assert float((joint - without).norm()) <= bound * (1 + 1e-5)


# --- what is not finite is traced


class Fragile:
    """Public rows whose loss is not finite under an adapter with a large weight."""

    def __call__(self, state):
        if max(float(t.abs().max()) for t in state.values()) > 100:
            raise NumericsError("the loss of 3 of 3 rows is not finite.")
        return 1.0


def large(name, request):
    """Finite, and of two silos nobody can say whose update is too long."""
    reply = honest(name, request)
    return replace(reply, adapter={**reply.adapter, B: torch.full((6, 2), 1e5)})


@pytest.mark.parametrize("how", ["ffa", "svd", "stack", "adaptive"])
def test_one_of_two_silos_that_makes_losses_infinite_is_named_and_left_out(tmp_path, how):
    method: dict[str, Any] = (
        {"method": "adaptive"} if how == "adaptive" else {"aggregation": how, "rounds": 1}
    )
    stage = fitting(
        Fakes(("north", "south"), {"north": large}),
        tmp_path,
        federation=FederationSettings(quorum=1),
        combine=CombineSettings(**method),
    )
    stage = dataclasses.replace(stage, watch=Watch(Fragile()))
    adapter, record = stage.run("clues", tmp_path / "rounds", token="")
    assert record["n_silos"] == 1
    assert all(float(t.abs().max()) < 1e3 for t in adapter.values())
    [absence] = stage.attendance.to_json()
    assert absence["silo"] == "north"
    assert "silo north: with what it sent, public rows have no finite score" in absence["why"]


def test_a_run_that_stopped_for_such_an_update_is_not_stuck_on_it(tmp_path):
    names = ("north", "south")
    stage = fitting(Fakes(names, {"north": large}), tmp_path)
    with pytest.raises(QuorumError, match=r"1 silos are left and 2 .*\nsilo north: with what"):
        dataclasses.replace(stage, watch=Watch(Fragile())).run("clues", tmp_path / "r", token="")
    again = dataclasses.replace(fitting(Fakes(names), tmp_path), watch=Watch(Fragile()))
    _, record = again.run("clues", tmp_path / "r", token="")
    assert record["n_silos"] == 2


def test_a_weight_that_no_adapter_has_is_refused_before_anything_is_multiplied(tmp_path):
    def giant(name, request):
        reply = honest(name, request)
        return replace(
            reply, adapter={n: torch.full_like(t, 1e38) for n, t in reply.adapter.items()}
        )

    stage = fitting(
        Fakes(("north", "south"), {"north": giant}),
        tmp_path,
        federation=FederationSettings(quorum=1),
        combine=CombineSettings(rounds=1, aggregation="svd"),
    )
    stage.run("clues", tmp_path / "rounds", token="")
    [absence] = stage.attendance.to_json()
    assert "holds a number above 1e+06" in absence["why"]


# --- an answer belongs to its request


def test_an_older_answer_of_the_same_shape_is_no_answer(tmp_path):
    kept: dict[str, Any] = {}

    def replays(name, request):
        kept.setdefault(name, replace(honest(name, request), answers=id_of(request.to_bytes())))
        return kept[name]

    names = ("east", "north", "south")
    federation = FederationSettings(quorum=2)
    stage = fitting(Fakes(names, {"north": replays}), tmp_path, federation=federation)
    _, record = stage.run("clues", tmp_path / "rounds", token="")
    assert record["n_silos"] == 2
    [absence] = stage.attendance.to_json()
    assert "silo north: its answer belongs to another request" in absence["why"]


def test_every_round_arm_and_start_has_an_id_of_its_own():
    from clues.wall.messages import FitRequest

    base = {"combine": {}, "selection_token": "", "recipe_hash": RECIPE.hash}
    requests = [
        FitRequest(arm=arm, round=number, adapter=tiny_adapter(seed), **base)
        for arm in ("mixed", "clues")
        for number in (0, 1)
        for seed in (0, 1)
    ]
    assert len({id_of(request.to_bytes()) for request in requests}) == len(requests)


# --- numbers of rows


def test_no_silo_outweighs_all_others_however_many_rows_it_announces():
    assert capped([200, 200, 200, 200, 10**7], 0.5) == [200, 200, 200, 200, 800]
    assert capped([10, 30, 20], 0.5) == [10, 30, 20], "honest, unequal silos were changed"
    assert capped([100, 5000], 0.5) == [100, 5000], "of two nobody can say which one is wrong"
    assert capped([10**7, 10**7, 10, 10, 10], 0.3) == pytest.approx([22.5, 22.5, 10, 10, 10])
    assert capped([1, 2, 3], 0.1) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("share", [0.2, 0.25, 0.35, 0.5, 0.9])
def test_every_share_is_bounded_and_keeps_the_order_of_sizes(share):
    rng = np.random.default_rng(5)
    for _ in range(50):
        rows = [int(n) for n in rng.integers(1, 10 ** int(rng.integers(1, 8)), 6)]
        found = capped(rows, share)
        assert max(found) / sum(found) <= max(share, 1 / 6) * (1 + 1e-9)
        assert list(np.argsort(rows, kind="stable")) == list(np.argsort(found, kind="stable")) or (
            len(set(found)) < 6
        )


def test_rows_that_nobody_has_weigh_no_more_than_half_in_a_joint_adapter(tmp_path):
    def many(name, request):
        return replace(honest(name, request), weight=10**7)

    names = ("east", "north", "south", "west")
    stages = []
    for share in (0.5, 1.0):
        stage = fitting(
            Fakes(names, {"north": many}),
            tmp_path / str(share),
            federation=FederationSettings(max_share=share),
            combine=CombineSettings(rounds=1),
        )
        stage.attendance.members["north"]["n_rows"] = 10**7
        stages.append(stage.run("clues", tmp_path / str(share), token="")[0][B])
    alone = honest("north", first_request()).adapter[B]
    others = sum(honest(n, first_request()).adapter[B] for n in names if n != "north") / 3
    assert torch.allclose(stages[0], (alone + others) / 2, atol=1e-6)
    assert torch.allclose(stages[1], alone, atol=1e-4), "this test would not see the limit"


def first_request() -> Any:
    return SimpleNamespace(round=0, adapter=tiny_adapter())


# --- anchors that silos have scored themselves

GROUPS = tuple(f"silo {name}" for name in ("east", "north", "south", "west", "zulu"))
OWNERS = {group: group.removeprefix("silo ") for group in GROUPS}
RULES = ("anchor_mean", "anchor_quantile", "anchor_tolerance", "mixture")
LIES = (1e9, -1e9, 1e308, -1e308)


def anchors_of(group: str) -> np.ndarray:
    rng = np.random.default_rng(sum(map(ord, group)))
    return rng.normal(2.0, 0.5, 40)


def threshold_of(scores, rule, units, proposals=None):
    settings = ThresholdSettings(rule=rule, units=units, bootstrap=5, quantile=0.2)
    groups = {group: {"validation": values} for group, values in scores.items()}
    weights = {group: {"validation": 1.0} for group in groups}
    how = {"recipe_hash": "", "seed": 0, "proposals": proposals or {}, "owners": OWNERS}
    return fit_threshold(groups, weights, settings, **how)


def value_alone(scores, rule, units) -> Any:
    """What a rule makes of one silo's anchors alone, in the units of the whole."""
    return threshold_of(scores, rule, units).value


@pytest.mark.parametrize("n_liars", [1, 2])
@pytest.mark.parametrize("units", ["anchor", "raw"])
@pytest.mark.parametrize("rule", RULES)
def test_a_minority_cannot_move_the_threshold_out_of_the_range_of_the_others(rule, units, n_liars):
    scores = {group: anchors_of(group) for group in GROUPS}
    proposals = {name: 0.1 * n for n, name in enumerate(OWNERS.values())}
    liars, honest_ones = GROUPS[:n_liars], GROUPS[n_liars:]
    if rule == "mixture":
        values: list[Any] = [proposals[OWNERS[group]] for group in honest_ones]
    else:
        values = [value_alone({g: scores[g]}, rule, units) for g in honest_ones]
    for lie in (1e9, -1e9):
        for all_anchors in (False, True):
            for liar in liars:
                bent = anchors_of(liar)
                bent[: None if all_anchors else 1] += lie
                scores[liar], proposals[OWNERS[liar]] = bent, lie
            found = threshold_of(scores, rule, units, proposals).value
            assert min(values) - 1e-9 <= found <= max(values) + 1e-9


def score_reply(group: str, values, proposal=None) -> ScoreReply:
    scores = {group: {"validation": [float(v) for v in values]}}
    return ScoreReply(recipe_hash="", anchor_scores=scores, proposal=proposal)


def judged(replies, rule: Any = "anchor_mean", units: Any = "anchor"):
    """Who is refused, at the gate or beside the others."""
    settings, refused, reaches = ThresholdSettings(rule=rule, units=units), set(), {}
    for name, reply in replies.items():
        try:
            reaches[name] = reach_of(name, reply, {"validation": 1.0}, settings)
        except DataError:
            refused.add(name)
    far = too_far(reaches)
    assert all(text.startswith(f"silo {name}: ") for name, text in far.items())
    return refused | set(far)


@pytest.mark.parametrize("units", ["anchor", "raw"])
@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("n_liars", [1, 2])
def test_anchors_far_from_all_others_are_refused_and_nobody_else_is(n_liars, lie, units):
    for all_anchors in (False, True):
        replies = {OWNERS[g]: score_reply(g, anchors_of(g)) for g in GROUPS}
        for liar in GROUPS[:n_liars]:
            values = anchors_of(liar)
            if all_anchors:
                # Not all the same: those have no unit, and are refused for that.
                values = lie * np.linspace(0.5, 1.0, 40)
            else:
                values[3] = lie
            replies[OWNERS[liar]] = score_reply(liar, values)
        assert judged(replies, units=units) == {OWNERS[g] for g in GROUPS[:n_liars]}


def test_anchors_that_all_score_the_same_cost_nobody_else_anything():
    replies = {OWNERS[g]: score_reply(g, anchors_of(g)) for g in GROUPS}
    replies["north"] = score_reply("silo north", [0.5] * 40)
    assert judged(replies) == {"north"}


@pytest.mark.parametrize("lie", LIES)
def test_a_proposal_far_from_all_others_is_refused(lie):
    replies = {
        OWNERS[g]: replace(score_reply(g, anchors_of(g)), proposal=-1.5 + 0.1 * n)
        for n, g in enumerate(GROUPS)
    }
    replies["north"] = replace(replies["north"], proposal=lie)
    assert judged(replies, rule="mixture") == {"north"}
    # Where the coordinator scores the anchors, there is nothing but the proposal.
    replies = {name: replace(reply, anchor_scores={}) for name, reply in replies.items()}
    assert judged(replies, rule="mixture") == {"north"}


def test_a_proposal_that_no_rule_asks_for_is_refused():
    reply = replace(score_reply("silo north", anchors_of("silo north")), proposal=0.5)
    with pytest.raises(DataError, match="north: it proposes a threshold, and rule anchor_mean"):
        reach_of("north", reply, {"validation": 1.0}, ThresholdSettings(rule="anchor_mean"))


def test_of_two_silos_nobody_is_said_to_lie():
    assert too_far({"a": Reach(1.0, 1.0, 0.0), "b": Reach(1e9, 1e9, 1e9)}) == {}
    three = {"a": Reach(1.0), "b": Reach(1.0), "c": Reach(FARTHEST * 0.99)}
    assert too_far(three) == {}


# --- diagnostics

HONEST = {
    "rows": 21,
    "kept": 12,
    "threshold": -0.5,
    "score_bands": [[0.1, -1.0], [0.5, 0.0], [0.9, 1.5]],
    "clean": 11,
    "precision": 0.9,
    "recall": 0.9,
    "f1": 0.9,
    "accuracy": 0.9,
    "auc": 0.9,
    "detection": {"selection score": {"auc": 0.9, "auc_by_kind": {"cut": 0.8, OTHER: None}}},
    "dropped_by_kind": {"cut": 0.5},
}
SCORE = HONEST["detection"]["selection score"]
HOSTILE = {
    "strings": {"rows": "<script>", "kept": "x", "threshold": "y"},
    "deep": {"detection": {"a": [[[[]]]]}, "precision": "x"},
    "huge whole numbers": {"rows": 10**400, "kept": 10**400},
    "negative": {"rows": -5, "kept": -7},
    "a number for a truth": {"rows": True, "kept": False},
    "part of the figures": {"precision": 0.5},
    "bands that are text": {"score_bands": "zz"},
    "bands of other lengths": {"score_bands": [[1], [2, 3, 4]]},
    "bands out of order": {"score_bands": [[0.9, 0.0], [0.1, 1.0]]},
    "bands falling": {"score_bands": [[0.1, 1.0], [0.9, 0.0]]},
    "many bands": {"score_bands": [[n / 99, 0.0] for n in range(99)]},
    "scores off every page": {"score_bands": [[0.1, -1e300], [0.9, 1e300]]},
    "a domain of its own": {**HONEST, "domain": "<img src=x onerror=alert(1)>"},
    "an epsilon that is text": {"epsilon": "x", "delta": []},
    "an epsilon that is not finite": {"epsilon": math.inf},
    "by hand that is a number": {"by_hand": 5},
    "more by hand than rows": {**HONEST, "by_hand": {"kept": 99, "dropped": 99}},
    "a long key": {"k" * 400_000: 1},
    "rates above one": {**HONEST, "auc": 1.5},
    "more rows than announced": {**HONEST, "rows": 60},
    "more kept than told": {**HONEST, "kept": 20},
    "more clean rows than rows": {**HONEST, "clean": 22},
    "no figures of the deciding score": {**HONEST, "detection": {}},
    "another score": {**HONEST, "detection": {"selection score": SCORE, "x": SCORE}},
    "a kind of its own": {**HONEST, "dropped_by_kind": {"patient 17": 1.0}},
    "many kinds": {**HONEST, "dropped_by_kind": {f"k{n}": 1.0 for n in range(50)}},
    "a kind as text": {**HONEST, "dropped_by_kind": {"cut": "z"}},
    "an AUC as text": {**HONEST, "detection": {"selection score": {**SCORE, "auc": "x"}}},
}


def evaluated(content, *, n_rows=20, n_kept=10, kinds=("cut",), compared=()):
    reply = EvaluateReply(recipe_hash="", diagnostics=content)
    how = {"n_rows": n_rows, "n_kept": n_kept, "kinds": kinds, "compared": compared}
    return check_evaluate("north", reply, **how)


def test_honest_diagnostics_come_back_as_they_are():
    assert evaluated(HONEST) == HONEST
    assert evaluated({}) == {}
    assert evaluated({"epsilon": 3.5, "delta": 1e-5}) == {"epsilon": 3.5, "delta": 1e-5}
    few = {"rows": 18, "kept": 11, "threshold": None}
    assert evaluated(few) == few


@pytest.mark.parametrize("what", HOSTILE)
def test_diagnostics_of_another_shape_are_refused_by_name_and_not_repeated(what):
    with pytest.raises(DataError, match=r"^silo north: its diagnostics") as refusal:
        evaluated(HOSTILE[what])
    assert len(str(refusal.value)) < 300
    assert str(refusal.value).isprintable()
    assert "<" not in str(refusal.value)


def test_figures_of_every_compared_score_are_there_or_none_are_taken():
    beside = {"precision": None, "recall": None, "f1": None, "kept": None, "share": None}
    whole = {**HONEST, "detection": {"selection score": SCORE, "less": {**SCORE, **beside}}}
    assert evaluated(whole, compared=("less",)) == whole
    for detection in ({"selection score": SCORE}, {"selection score": SCORE, "less": SCORE}):
        with pytest.raises(DataError, match="other scores"):
            evaluated({**HONEST, "detection": detection}, compared=("less",))


def test_kinds_that_are_named_without_asking_are_those_that_the_program_makes():
    assert EvaluateSettings().kinds == DAMAGE_KINDS
    with pytest.raises(ValueError, match="kinds"):
        EvaluateSettings(kinds=("a\x1b[2J",))


def test_what_a_silo_may_say_is_held_to_the_same_on_its_own_side():
    with pytest.raises(DataError, match="silo north: its diagnostics do not fit at 'extra'"):
        read_diagnostics({"extra": 1}, where="silo north")


# --- a person's approval


class Voices:
    """Silos that answer a select request as they please."""

    def __init__(self, refusing: tuple[str, ...] = ()) -> None:
        self.silos, self.refusing = ("east", "north", "south"), refusing

    def exchange(self, requests, *, most):
        for name, data in requests.items():
            kind = Refusal if name in self.refusing else SelectReply
            more = {} if kind is Refusal else {"n_kept": 10}
            yield name, kind(recipe_hash="r", answers=id_of(data), **more).to_bytes()


def ask_to_select(folder, voices, quorum):
    attendance = Attendance(folder / "absences.json", recipe_hash="r", quorum=quorum)
    attendance.members = {name: {} for name in voices.silos}
    exchange = Exchange(voices, attendance, recipe_hash="r")
    request = SelectRequest(recipe_hash="r", threshold={})
    found = exchange.ask("select", dict.fromkeys(voices.silos, request), lambda _, r: r.n_kept)
    return found, attendance


def test_who_refuses_to_select_stops_a_run_once_and_is_left_out_then(tmp_path):
    with pytest.raises(ApprovalError, match=r"north waits .* left out, since federation.quorum"):
        ask_to_select(tmp_path, Voices(("north",)), quorum=2)
    with pytest.raises(ApprovalError, match="south waits"):
        ask_to_select(tmp_path, Voices(("south",)), quorum=2)
    found, attendance = ask_to_select(tmp_path, Voices(("north",)), quorum=2)
    assert set(found) == {"east", "south"}
    [absence] = attendance.to_json()
    assert absence["silo"] == "north"
    assert "waits for a person's approval" in absence["why"]


def test_without_a_quorum_or_below_it_a_run_waits_for_everybodys_approval(tmp_path):
    for _ in range(3):
        with pytest.raises(ApprovalError, match="north waits"):
            ask_to_select(tmp_path / "all", Voices(("north",)), quorum=None)
        with pytest.raises(ApprovalError, match="north, south waits"):
            ask_to_select(tmp_path / "two", Voices(("north", "south")), quorum=2)
    found, attendance = ask_to_select(tmp_path / "all", Voices(), quorum=None)
    assert len(found) == 3
    assert attendance.to_json() == []


# --- text


def hello(**changes) -> bytes:
    names = ("silo", "domain", "data_token", "version", "overrides_token", "oracle_token", "again")
    texts = dict.fromkeys(names, "d")
    return HelloReply(recipe_hash="", n_rows=10, **{**texts, **changes}).to_bytes()


BAD_TEXTS = (ESCAPES, "x" * 400_000, "a\nb", "\u2066a", "\ud7ff\x00", "a\u200db")


@pytest.mark.parametrize("field", ["silo", "domain", "data_token", "version", "overrides_token"])
@pytest.mark.parametrize("text", BAD_TEXTS, ids=range(len(BAD_TEXTS)))
def test_text_that_could_flood_or_fool_a_terminal_does_not_enter(field, text):
    with pytest.raises(DataError, match=f"silo north: hello-reply.{field} holds text") as refusal:
        from_bytes(hello(**{field: text}), allowed=REPLIES, sender="silo north")
    assert is_printable(str(refusal.value))


@pytest.mark.parametrize("text", BAD_TEXTS, ids=range(len(BAD_TEXTS)))
def test_names_that_a_silo_chooses_do_not_enter_either(text):
    messages = (
        train_reply(FIRST, SECOND).__class__(
            **{**_fields(train_reply(FIRST, SECOND)), "adapter": {text: FIRST}}
        ),
        score_reply(text, [1.0]),
        EvaluateReply(recipe_hash="", diagnostics={"a": [{text: 1}]}),
        EvaluateReply(recipe_hash="", diagnostics={"a": text}),
    )
    for message in messages:
        with pytest.raises(DataError) as refusal:
            from_bytes(message.to_bytes(), allowed=REPLIES, sender="silo north")
        assert is_printable(str(refusal.value))


def _fields(message):
    return {spec.name: getattr(message, spec.name) for spec in dataclasses.fields(message)}


def test_a_number_of_thousands_of_digits_does_not_enter():
    for number in (10**400, -(2**63)):
        data = EvaluateReply(recipe_hash="", diagnostics={"rows": number}).to_bytes()
        with pytest.raises(DataError, match="a number that is too large"):
            from_bytes(data, allowed=REPLIES, sender="silo north")


def test_what_stands_in_a_record_is_one_short_line_that_can_be_printed(tmp_path):
    attendance = Attendance(tmp_path / "absences.json", recipe_hash="r", quorum=1)
    attendance.members = {"a": {}, "b": {}}
    attendance.leave_out("fit", {"a": f"silo a: {ESCAPES * 10_000}"}, n_left=1)
    attendance.remark("evaluate", {"b": f"silo b:\n{ESCAPES}"})
    for entry in attendance.to_json():
        assert is_printable(entry["why"], 600)
    assert (tmp_path / "absences.json").stat().st_size < 5_000
    assert "\x1b" not in json.dumps(attendance.record, ensure_ascii=False)
    stops = Attendance(tmp_path / "more.json", recipe_hash="r", quorum=2)
    with pytest.raises(QuorumError) as stop:
        stops.leave_out("fit", {"a": f"silo a: {ESCAPES}"}, n_left=1)
    assert "\x1b" not in str(stop.value)


def test_printable_text_stays_as_it_is_and_quoted_text_is_plain():
    text = "Prüfung: 3 of 4 rows, 漢字"
    assert printable(text, 100) == text
    assert printable(text, 10) == text[:9] + "…"
    assert printable(" " * 10_000 + "x", 10).startswith("…")
    assert quoted(ESCAPES).isascii()
    assert quoted(ESCAPES).isprintable()
    assert quoted("x" * 1000) == "'" + "x" * 40 + "'"


# --- the ledger


def test_a_kind_that_the_program_does_not_have_is_not_written_into_the_ledger(tmp_path):
    from clues.wall.container import write

    header = json.dumps({"kind": "\x1b[2J\x1b[31mK[/red]"})
    data = write(header, {"0": torch.zeros(1)})
    assert kind_of(data) == "unknown"
    assert kind_of(b"hello") == "unreadable"
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.record("north", "out", kind_of(data), data)
    assert summary(verify(ledger.path))[0]["kind"] == "unknown"


def chained(**odd) -> str:
    plain = {
        "n": 0,
        "time": "t",
        "silo": "north",
        "direction": "in",
        "kind": "hello",
        "n_bytes": 1,
        "sha256": "a" * 64,
        "previous": START,
    }
    entry = Entry(**{**plain, **odd}, chain="")
    return json.dumps(dataclasses.asdict(replace(entry, chain=entry.expected_chain())))


@pytest.mark.parametrize(
    "odd",
    [
        {"n_bytes": "x"},
        {"n_bytes": None},
        {"n_bytes": True},
        {"silo": []},
        {"silo": {}},
        {"kind": [1]},
        {"direction": {}},
        {"time": []},
        {"silo": "\x1b[2J[/x]"},
        {"kind": "k" * 3000},
    ],
)
def test_a_well_chained_ledger_of_odd_entries_is_no_ledger(tmp_path, odd):
    path = tmp_path / "theirs.jsonl"
    path.write_text(chained() + "\n")
    assert len(verify(path)) == 1
    path.write_text(chained(**odd) + "\n")
    with pytest.raises(LedgerError, match="line 1: not a ledger entry"):
        verify(path)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"n":' + "9" * 5000 + "}", "[]", "1"])
def test_a_line_that_is_no_entry_is_no_traceback(tmp_path, line):
    path = tmp_path / "theirs.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(LedgerError):
        verify(path)


def test_brackets_in_a_ledger_are_printed_as_they_are(tmp_path, capsys):
    from clues.cli.audit import ledger

    path = tmp_path / "ledger.jsonl"
    path.write_text(chained(kind="[/red]") + "\n")
    ledger(path)
    ledger(path, every=True)
    assert capsys.readouterr().out.count("[/red]") == 2


def test_the_number_of_rows_in_fakes_is_what_the_guards_allow():
    assert capped([N_ROWS] * 3, 0.5) == [N_ROWS] * 3
