"""Silos that lie in a whole run are named and left out; one that keeps nothing stays."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from federation_helpers import (
    edit_config,
    files_of,
    open_micro,
    plain,
    run_micro,
    tiny_model,
    write_micro,
)
from safetensors.torch import load_file

from clues.errors import NumericsError
from clues.pipeline import run_until
from clues.wall.messages import REPLIES, REQUESTS, SelectReply, from_bytes

SILOS = ("north", "south", "west", "east")
FOREIGN = "0" * 64
# What the silo of a lie sends instead of its honest reply, and what the record says of it.
COUNTS = {
    "hello": (lambda r: replace(r, n_rows=-20), "-20 rows"),
    "train": (lambda r: replace(r, weight=10**12), "trained on 1000000000000 rows"),
    "score": (
        lambda r: replace(
            r,
            anchor_scores={g: {k: v[1:] for k, v in s.items()} for g, s in r.anchor_scores.items()},
        ),
        "anchor scores do not fit",
    ),
    "select": (lambda r: replace(r, n_kept=10**6), "keeps 1000000 of"),
}


class Lying:
    """A transport on which south lies about counts, west about the recipe, east about the kind."""

    def __init__(self, inner, kind: str, outbox: Path) -> None:
        self.inner, self.kind, self.silos, self.outbox = inner, kind, inner.silos, outbox

    def exchange(self, requests, *, most):
        for name, data in self.inner.exchange(requests, most=most):
            kind = from_bytes(requests[name], allowed=REQUESTS, sender="").kind
            yield name, self.lie(name, data) if kind == self.kind else data

    def lie(self, name: str, data: bytes) -> bytes:
        reply = from_bytes(data, allowed=REPLIES, sender=name)
        if name == "south":
            reply = COUNTS[self.kind][0](reply)
        if name == "west":
            reply = replace(reply, recipe_hash=FOREIGN)
        if name == "east":
            [hello] = self.outbox.glob("hello-*")
            honest = from_bytes(hello.read_bytes(), allowed=REPLIES, sender=name)
            other = SelectReply(recipe_hash=reply.recipe_hash, n_kept=10)
            reply = honest if self.kind == "select" else other
        return reply.to_bytes()


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("input")
    changes = {
        "evaluate": {"arms": ["clues"], "heldout": None},
        "federation": {"quorum": 1},
        "combine": {"rounds": 1},
    }
    return write_micro(folder / "in", tiny_model(folder / "model"), silos=SILOS, changes=changes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(COUNTS))
def test_who_lies_is_named_and_left_out_of_a_whole_run(config, tmp_path, kind):
    if kind == "score":
        # Anchors are scored in the silos only where each has a trajectory of its own.
        config = shutil.copytree(config.parent, tmp_path / "in") / config.name
        edit_config(config, {"recipe": {"score": {"trajectory": "local"}}})
    root = tmp_path / "run"
    run = open_micro(config, root)
    honest = run.coordinator.exchange.transport
    run.coordinator.exchange.transport = Lying(honest, kind, root / "silos/east/outbox")
    results = plain(run_until(run).results)
    why = {absence["silo"]: absence["why"] for absence in results["absences"]}
    assert set(why) == {"south", "west", "east"}
    assert {absence["stage"] for absence in results["absences"]} == {kind}
    assert COUNTS[kind][1] in why["south"]
    assert "answered under another recipe" in why["west"]
    assert "may not come here" in why["east"]
    assert all(f"silo {name}" in text for name, text in why.items())
    assert set(results["silos"]) == {"north"}
    assert results["arms"]["clues"]["silos"] == 1
    adapter = load_file(root / "coordinator/adapter/adapter_model.safetensors")
    assert all(bool(t.isfinite().all()) for t in adapter.values())
    assert "Who was missing" in (root / "results.md").read_text()


class Tampering:
    """A transport on which some silos' replies of a kind are changed."""

    def __init__(self, inner, lies) -> None:
        self.inner, self.lies, self.silos = inner, lies, inner.silos

    def exchange(self, requests, *, most):
        for name, data in self.inner.exchange(requests, most=most):
            request = from_bytes(requests[name], allowed=REQUESTS, sender="")
            lie = self.lies.get((name, request.kind))
            reply = lie and from_bytes(data, allowed=REPLIES, sender=name)
            yield name, lie(reply).to_bytes() if lie else data


def lied_to(config: Path, root: Path, lies):
    run = open_micro(config, root)
    run.coordinator.exchange.transport = Tampering(run.coordinator.exchange.transport, lies)
    return run


def full(tensors, value: float):
    return {name: torch.full_like(tensor, value) for name, tensor in tensors.items()}


ESCAPES = "\x1b]0;title\x07\x1b[2J\u202e[/red]"
# One lie of each kind, each told by another silo of one run, and what the record says of it.
ONE_OF_EACH = {
    ("south", "train"): (
        lambda r: replace(r, first_moment=full(r.first_moment, 1e30)),
        r"silo south: its optimiser state has length .*e\+3",
    ),
    ("west", "fit"): (
        lambda r: replace(r, adapter={ESCAPES: torch.zeros(1)}),
        r"silo west: fit-reply.adapter holds text that is longer .* or cannot be printed",
    ),
    ("east", "evaluate"): (
        lambda r: replace(r, diagnostics={**r.diagnostics, "domain": ESCAPES[-6:]}),
        r"silo east: its diagnostics do not fit at 'domain'",
    ),
}


@pytest.mark.walk
def test_one_run_with_a_liar_of_each_kind_ends_for_everybody_else(config, tmp_path):
    root = tmp_path / "run"
    run = lied_to(config, root, {place: lie for place, (lie, _) in ONE_OF_EACH.items()})
    results = plain(run_until(run).results)
    why = {(a["silo"], a["stage"].split("-")[0]): a["why"] for a in results["absences"]}
    assert set(why) == set(ONE_OF_EACH)
    for place, (_, text) in ONE_OF_EACH.items():
        assert re.match(text, why[place]), why[place]
    # Nothing depends on diagnostics, so who lies there has trained and stays.
    assert set(results["silos"]) == {"north", "east"}
    assert results["arms"]["clues"]["silos"] == 2
    assert "precision" in results["silos"]["north"]
    assert set(results["silos"]["east"]) == {"domain", "rows", "kept", "threshold"}
    assert results["silos"]["east"]["domain"] == "medicine"
    for path in (p for p in outside(root) if p.suffix not in (".safetensors", ".clues")):
        assert b"\x1b" not in path.read_bytes(), path


@pytest.mark.walk
def test_labels_leave_only_under_names_that_were_stated_before(config, tmp_path):
    folder = shutil.copytree(config.parent, tmp_path / "in")
    data = folder / "silos/north.jsonl"
    data.write_text(data.read_text().replace('"damage": "cut"', '"damage": "patient zqx 17"'))
    results = plain(run_until(open_micro(folder / config.name, tmp_path / "run")).results)
    by_kind = results["silos"]["north"]["detection"]["selection score"]["auc_by_kind"]
    assert set(by_kind) == {"delete", "swap", "mix", "other"}
    assert set(results["silos"]["north"]["dropped_by_kind"]) == set(by_kind)
    for path in outside(tmp_path / "run"):
        assert b"zqx" not in path.read_bytes(), path


def outside(root: Path) -> list[Path]:
    """Every file of a run that does not stay in a silo."""
    return [p for p in files_of(root) if "private" not in p.parts]


@pytest.mark.walk
def test_a_silo_that_lies_about_its_own_anchors_keeps_at_most_its_own_rows(config, tmp_path):
    """Where every silo scores the anchors itself, with the rule that pools them all."""
    config = shutil.copytree(config.parent, tmp_path / "in") / config.name
    edit_config(config, {"recipe": {"score": {"trajectory": "local"}}})
    scored = run_until(open_micro(config, tmp_path / "a"), "score").scored
    assert scored is not None

    def lie(shift):
        def told(reply):
            scores = {
                group: {part: [v[0] + shift, *v[1:]] for part, v in sets.items()}
                for group, sets in reply.anchor_scores.items()
            }
            return replace(reply, anchor_scores=scores)

        return told

    for number, shift in enumerate((-1e9, 1e308, -30.0, 30.0)):
        # The silos have answered before: the same questions get the same answers.
        root = shutil.copytree(tmp_path / "a", tmp_path / f"b{number}")
        shutil.rmtree(root / "coordinator")
        run = lied_to(config, root, {("south", "score"): lie(shift)})
        threshold = run_until(run, "threshold").threshold
        absences = run.coordinator.attendance.to_json()
        assert {a["silo"] for a in absences} <= {"south"}, "somebody honest was left out"
        if abs(shift) > 1e3:
            assert [a["silo"] for a in absences] == ["south"]
        assert threshold is not None
        assert threshold.value is not None
        cuts = [
            float(np.mean(threshold.units[g].apply({k: np.array(v) for k, v in s.items()})))
            for g, s in scored.anchors.items()
            if g != "silo south"
        ]
        assert min(cuts) - 1e-9 <= threshold.value <= max(cuts) + 1e-9


def highest(root: Path, silo: str) -> float:
    with (root / "silos" / silo / "private/decisions.csv").open() as file:
        return max(float(row["score"]) for row in csv.DictReader(file))


@pytest.mark.walk
def test_a_silo_that_keeps_nothing_takes_part_in_the_rest_of_a_run(config, tmp_path):
    config = shutil.copytree(config.parent, tmp_path / "in") / config.name
    root = tmp_path / "run"
    run_micro(config, root)
    best = sorted((highest(root, name), name) for name in SILOS)
    cut, empty = (best[0][0] + best[1][0]) / 2, best[0][1]
    changes = {"recipe": {"threshold": {"rule": "preset", "preset": cut}}}
    evaluate = {"arms": ["clues", "random"], "heldout": "public/heldout.jsonl"}
    results = run_micro(edit_config(config, {**changes, "evaluate": evaluate}), root)
    assert results["absences"] == []
    assert [n for n, silo in results["silos"].items() if silo["kept"] == 0] == [empty]
    for arm in ("clues", "random"):
        assert results["arms"][arm]["silos"] == len(SILOS) - 1
        assert results["arms"][arm]["heldout_loss"] > 0
    private = root / "silos" / empty / "private"
    assert (private / "kept.jsonl").read_text() == ""
    assert len((private / "dropped.jsonl").read_text().splitlines()) == 24
    assert json.loads((private / "selection.json").read_text())["kept"] == []


@pytest.mark.slow
def test_a_warm_up_on_which_nothing_can_be_scored_is_not_kept(config, tmp_path, monkeypatch):
    from clues.coordinator import score

    def not_finite(*_, **__):
        raise NumericsError("the score of 8 of 8 rows is not finite.")

    monkeypatch.setattr(score, "score_rows", not_finite)
    with pytest.raises(NumericsError, match=r"8 of 8 rows .* the next call trains"):
        run_until(open_micro(config, tmp_path / "run"), "score")
    assert not (tmp_path / "run/coordinator/stages/train.json").exists()
    assert not list((tmp_path / "run/coordinator/trajectory").iterdir())
