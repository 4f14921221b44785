"""Silos that lie in a whole run are named and left out; one that keeps nothing stays."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from federation_helpers import edit_config, open_micro, plain, run_micro, tiny_model, write_micro
from safetensors.torch import load_file

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

    def exchange(self, requests):
        for name, data in self.inner.exchange(requests):
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


def highest(root: Path, silo: str) -> float:
    with (root / "silos" / silo / "private/decisions.csv").open() as file:
        return max(float(row["score"]) for row in csv.DictReader(file))


@pytest.mark.slow
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
