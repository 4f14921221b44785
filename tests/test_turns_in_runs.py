"""Chats in a whole run: every turn has a score, and the recipe says what a low one costs."""

import csv
import json

import numpy as np
import pytest
from browser import Opened, chromium
from federation_helpers import (
    Recorder,
    edit_config,
    open_micro,
    tiny_model,
    write_micro,
    write_rows,
)

from clues.data.formats import read_rows
from clues.data.turnrows import by_turn
from clues.pipeline import run_until
from clues.scoring.parts import Turn
from clues.scoring.table import ScoreTable

DRAWS = True  # the page is opened
pytestmark = pytest.mark.slow  # runs
SHAPES = (3, 1, 2, 4, 2, 1, 3, 2)


def chats(path, *, shapes=SHAPES) -> None:
    """Join rows of question and answer to chats of several; one single row stays as it was."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found, at = [], 0
    for n in shapes * 3:
        own = rows[at : at + n]
        if len(own) < n:
            break
        at += n
        turns = [
            {"role": role, "content": row[key]}
            for row in own
            for role, key in (("user", "instruction"), ("assistant", "output"))
        ]
        found.append({"messages": turns, "damage": own[0].get("damage", "")})
    write_rows(path, found)


class World:
    """One silo of chats and a coordinator with chats as anchors, selected under each setting."""

    def __init__(self, folder):
        self.config = write_micro(folder / "in", tiny_model(folder / "m"), silos=("north",))
        chats(self.config.parent / "silos/north.jsonl")
        chats(self.config.parent / "public/geography.anchor.jsonl", shapes=(2, 2, 1, 2, 2, 2, 1))
        edit_config(self.config, {"recipe": {"score": {"turns": True}}})
        self.root = folder / "run"
        self.private = self.root / "silos/north/private"
        self.decisions, self.kept, self.selected, self.crossed = {}, {}, {}, {}
        self.trained = {}
        for low_turn in ("keep", "drop", "mask"):
            edit_config(self.config, {"recipe": {"threshold": {"low_turn": low_turn}}})
            run = open_micro(self.config, self.root)
            recorder = Recorder(run)
            run_until(run, "select")
            silo = run.silos["north"]
            self.selected[low_turn] = silo.select(silo.space.threshold())
            self.trained[low_turn] = {row.row: row for row in silo.arm_rows("clues")}
            with (self.private / "decisions.csv").open() as file:
                self.decisions[low_turn] = list(csv.DictReader(file))
            self.kept[low_turn] = (self.private / "kept.jsonl").read_bytes()
            self.crossed[low_turn] = [len(reply) for _, _, reply in recorder.crossed]
        self.table = ScoreTable.read(self.private / "turns.parquet")
        space = run.silos["north"].space
        self.rows = {row.row: row for row in space.encoded().rows}
        self.encoder, self.cut = space.encoder(), space.threshold().value


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def test_every_trained_turn_of_a_row_that_has_several_is_scored_once(world):
    expected = [(n, turn) for n, row in sorted(world.rows.items()) for turn in by_turn(row)]
    found = zip(world.table.row.tolist(), world.table.parts[Turn()].tolist(), strict=True)
    assert sorted(found) == expected
    assert len(expected) > 12


def test_the_loss_of_a_row_is_that_of_its_turns_by_their_tokens(world):
    rows = ScoreTable.read(world.private / "scores.parquet")
    n = world.table.n_response_tokens
    for row, loss in zip(rows.row.tolist(), rows.raw["loss"].tolist(), strict=True):
        own = world.table.row == row
        if own.any():
            mean = np.average(world.table.raw["loss"][own], weights=n[own])
            assert mean == pytest.approx(loss, rel=1e-5), "a turn is scored in another context"


def test_the_lowest_turn_stands_beside_every_decision(world):
    turns = world.selected["keep"].decisions
    assert any(len(d.turns) > 1 for d in turns)
    for decision, line in zip(turns, world.decisions["keep"], strict=True):
        worst = min(decision.turns, key=lambda t: t.score, default=None)
        number = "" if worst is None else str(worst.turn + 1)
        assert line["worst_turn"] == number
        assert line["worst_turn_score"] == ("" if worst is None else str(worst.score))


def test_a_low_turn_costs_what_the_recipe_says(world):
    cut, by_row = world.cut, {d.row: d.turns for d in world.selected["keep"].decisions}
    seen = {"masked": 0, "dropped": 0}
    for keep, mask, drop in zip(
        *(world.decisions[n] for n in ("keep", "mask", "drop")), strict=True
    ):
        if not keep["score"]:
            continue
        low = [t.turn for t in by_row[int(keep["row"])] if t.score < cut]
        several = len(by_row[int(keep["row"])])
        assert keep["kept"] == str(int(float(keep["score"]) >= cut)), "a shown turn decides nothing"
        assert drop["kept"] == str(int(keep["kept"] == "1" and not low))
        assert (drop["why"] == "turn") == (keep["kept"] == "1" and bool(low))
        if not several:
            assert mask["kept"] == keep["kept"]
            continue
        assert mask["kept"] == str(int(len(low) < several))
        untrained = [turn + 1 for turn in low] if len(low) < several else []
        assert mask["untrained_turns"] == " ".join(map(str, untrained))
        seen["masked"] += bool(untrained)
        seen["dropped"] += drop["why"] == "turn"
    assert min(seen.values()) > 0, "the data of this test show nothing"


def test_what_trains_here_is_what_a_reader_of_kept_would_train(world, tmp_path):
    path = tmp_path / "kept.jsonl"
    path.write_bytes(world.kept["mask"])
    selection, trained = world.selected["mask"], world.trained["mask"]
    assert list(trained) == list(selection.kept)
    for position, sample in zip(selection.kept, read_rows(path).samples, strict=True):
        again = world.encoder.encode(sample)
        assert (again.ids, again.mask) == (trained[position].ids, trained[position].mask)
    assert selection.untrained
    assert all(
        trained[n].n_response_tokens < world.rows[n].n_response_tokens for n in selection.untrained
    )
    # Rows without a mark keep their bytes.
    lines = (world.config.parent / "silos/north.jsonl").read_bytes().splitlines()
    kept = world.kept["mask"].splitlines()
    for position, line in zip(selection.kept, kept, strict=True):
        assert (line == lines[position]) == (position not in selection.untrained)


def test_nothing_of_turns_crosses_the_wall(world, tmp_path):
    edit_config(
        world.config, {"recipe": {"score": {"turns": False}, "threshold": {"low_turn": "keep"}}}
    )
    run = open_micro(world.config, tmp_path / "run")
    recorder = Recorder(run)
    run_until(run, "select")
    assert [len(reply) for _, _, reply in recorder.crossed] == world.crossed["keep"]
    plain = (tmp_path / "run/silos/north/private/decisions.csv").read_text().splitlines()
    assert "worst_turn" not in plain[0]
    assert _lines(world.decisions["keep"]) == [
        ",".join(line.split(",")[:5]) for line in plain[1:]
    ], "scores of rows are others where turns are scored"


def _lines(decisions) -> list[str]:
    names = ("row", "number", "id", "score", "kept")
    return [",".join(d[name] for name in names) for d in decisions]


def test_the_page_shows_the_turns_of_a_chat_with_their_scores(world):
    masked = world.selected["mask"]
    row, untrained = next(iter(masked.untrained.items()))
    scores = {t.turn: t.score for t in masked.decisions[row].turns}
    with chromium() as browser:
        view = Opened(browser, world.private / "report.html")
        page = view.page
        page.wait_for_selector("html[data-ready]")
        page.locator("#show").select_option("lowturn")
        low = {d.row for d in masked.decisions if any(t.score < world.cut for t in d.turns)}
        assert page.locator("#found").inner_text().startswith(f"{len(low)} row")
        page.locator("#search").fill(masked.decisions[row].id)
        page.wait_for_timeout(400)
        page.locator("#list .row").first.click()
        said = page.locator("#detail .turn-score").all_inner_texts()
        assert len(said) == len(scores)
        for (turn, score), text in zip(sorted(scores.items()), said, strict=True):
            assert f"{score:.3f}".replace("-", "\u2212") in text
            assert ("not trained" in text) == (turn in untrained)
            assert ("the lowest" in text) == (score == min(scores.values()))
        kept = page.locator("#figures tbody tr", has_text="kept").first.locator("td").first
        assert kept.inner_text().split()[0] == str(len(masked.kept))
        assert view.complaints == []
        assert view.left == []
        view.close()
