"""What the benchmark compares gives the same numbers, and its instruments measure."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from federation_helpers import tiny_model

from benchmarks import scoring
from benchmarks.clean import table as cleaning_table
from benchmarks.clock import ratio, take_turns
from benchmarks.footprint import written_by
from benchmarks.growth import draw, long_rows
from benchmarks.memory import Resident, peak_bytes
from benchmarks.scene import Scene, built_scene, demo_owner, with_rows
from benchmarks.speed import each_set, faster_row, products
from benchmarks.table import HEAD, Row, read_sections, table_text, write_section
from benchmarks.ways import activation_pass, published_scores, relative_difference, vmap_scores


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def scene(folder) -> Scene:
    return built_scene(str(folder), device="cpu")


@pytest.mark.slow
def test_other_ways_give_the_numbers_of_the_side_branch(scene, tmp_path) -> None:
    rows, direction = scene.repeated(7), scene.directions(1)[0]
    ours = products(scene, rows, [direction])[:, 0]
    published = published_scores(scene, rows, direction, folder=tmp_path)
    assert relative_difference(published.products, ours) < 1e-5
    assert relative_difference(vmap_scores(scene, rows, direction), ours) < 1e-5
    # One gradient a row lay there, in float32, and the validation gradient beside them.
    n_weights = sum(p.numel() for p in scene.model.parameters().values())
    assert 4 * n_weights <= published.bytes_per_row < 5 * n_weights + 4096
    assert len(list(tmp_path.glob("*.pt"))) == len(rows) + 1


def test_the_limit_goes_all_the_way_and_makes_no_weight_gradient(scene) -> None:
    from clues.scoring.influence import influence_scores

    rows = scene.repeated(5)
    expected = influence_scores(
        scene.model,
        rows,
        adapter=scene.checkpoint.adapter,
        directions=scene.directions(1),
    ).losses
    np.testing.assert_allclose(activation_pass(scene, rows), expected, rtol=1e-5)
    assert all(p.grad is None for p in scene.model.peft.parameters())


def test_peak_memory_counts_what_was_alive_at_once() -> None:
    def call() -> None:
        first = torch.zeros(1_000_000)  # 4 MB
        del first
        second, third = torch.zeros(500_000), torch.zeros(750_000)  # 5 MB together
        second.add_(third.sum())

    assert 5.0e6 <= peak_bytes(call, torch.device("cpu")) < 5.1e6


def test_files_that_stay_and_bytes_that_were_written_are_counted() -> None:
    def leave() -> None:
        Path("left.bin").write_bytes(b"x" * 10_000)

    def remove() -> None:
        Path("gone.bin").write_bytes(b"x" * 10_000)
        Path("gone.bin").unlink()

    left, gone = written_by(leave), written_by(remove)
    assert (left.n_files, gone.n_files) == (1, 0)
    if left.n_bytes is not None and gone.n_bytes is not None:
        assert left.n_bytes >= 10_000
        assert gone.n_bytes >= 10_000


def test_calls_take_turns_and_ratios_are_of_the_same_turn() -> None:
    order: list[str] = []
    take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b", "b", "a"]
    found = ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    # Three directions in 1.2 times the time of one: each further one costs a tenth.
    assert each_set([1.2], [1.0], 3) == pytest.approx(0.1)
    assert not faster_row("a way", 3.5, found).met
    assert faster_row("a way", 3.0, found).met


def test_a_larger_silo_trains_one_epoch(folder) -> None:
    owner = demo_owner(str(folder))
    larger = with_rows(owner, 400)
    assert len(larger.rows) == 400
    assert larger.recipe.train.steps == 400 // owner.recipe.train.batch_size
    assert larger.recipe.score.trajectory == "inrun"


def test_growth_is_judged_by_the_last_against_the_first(tmp_path) -> None:
    flat = [Resident(1000, 800, 1.0), Resident(10_000, 810, 10.1)]
    steep = [Resident(1000, 800, 1.0), Resident(10_000, 1000, 12.0)]
    assert [row.met for row in long_rows(flat)] == [True, True]
    assert [row.met for row in long_rows(steep)] == [False, False]
    pytest.importorskip("matplotlib", reason="figures need the extra `figures`")
    draw(flat, tmp_path / "images" / "growth.svg")
    assert "<svg" in (tmp_path / "images" / "growth.svg").read_text()


def test_a_section_replaces_its_own_and_leaves_the_others(tmp_path) -> None:
    page = tmp_path / "benchmarks.md"
    write_section(page, "model on machine one", "old")
    write_section(page, "model on machine two", "stays")
    text = table_text([Row("what", "at most 1", "0.5", True), Row("else", "2", "3", False)])
    write_section(page, "model on machine one", text)
    assert page.read_text().startswith(HEAD)
    sections = read_sections(page)
    assert list(sections) == ["model on machine one", "model on machine two"]
    assert sections["model on machine two"] == "stays"
    assert "| else | 2 | 3 | no |" in sections["model on machine one"]


@pytest.mark.walk
@pytest.mark.parametrize(
    "short", [True, pytest.param(False, marks=pytest.mark.long)], ids=["here", "in processes"]
)
def test_every_row_of_the_table_can_be_made(folder, tmp_path, capsys, monkeypatch, short) -> None:
    if short:  # without the rows that processes of their own measure
        flat = [Resident(1000, 800, 1.0), Resident(10_000, 810, 10.1)]
        monkeypatch.setattr(scoring, "resident_growth", lambda *args, **how: flat)
        row = Row("two processes", "at least 1.6", "1.9", True)
        monkeypatch.setattr(scoring, "processes_row", lambda *args, **how: row)
    page = tmp_path / "benchmarks.md"
    scoring.main(["--quick", "--write", "--model", str(folder)], page=page)
    (text,) = read_sections(page).values()
    assert text in capsys.readouterr().out
    for what in (
        "limit",
        "published way",
        "vmap",
        "Bergson",
        "directions",
        "bytes on disk",
        "peak memory",
        "checkpoints",
        "resident",
        "processes",
        "in-run",
    ):
        assert what in text
    # Where no GPU is, that is what the table says.
    assert text.count("not measured") >= 1


def test_what_became_of_damaged_rows_is_counted_by_reason_and_a_lost_row_is_an_error(
    tmp_path,
) -> None:
    rows = [{"instruction": str(n), "input": "", "output": "x"} for n in range(5)]
    labels = ["refusal", "refusal", "cut", "", ""]
    whys = ["refusal", "score", "html", "kept", "score"]
    lines = [f"{n},{int(why == 'kept')},{why}" for n, why in enumerate(whys, start=1)]
    (tmp_path / "decisions.csv").write_text("\n".join(["number,kept,why", *lines]))
    (tmp_path / "kept.json").write_text(json.dumps(rows[3:4]))
    aside = [*rows[:3], rows[4]]
    (tmp_path / "set_aside.json").write_text(json.dumps(aside))
    assert cleaning_table(tmp_path, rows, labels)[2:] == [
        "| refusal | 2 | 100.0% | 50.0% | 50.0% | 0.0% |",
        "| cut | 1 | 100.0% | 0.0% | 0.0% | 100.0% |",
        "| none: clean rows | 2 | 50.0% | 0.0% | 50.0% | 0.0% |",
    ]
    (tmp_path / "set_aside.json").write_text(json.dumps(aside[1:]))
    with pytest.raises(ValueError, match="1 rows of the file"):
        cleaning_table(tmp_path, rows, labels)
