"""Inputs that are changed in place: a run that is continued ends where a fresh one does."""

import csv
import io
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from federation_helpers import (
    Recorder,
    edit_config,
    files_of,
    open_micro,
    plain,
    tiny_model,
    without_volatile,
    write_micro,
    write_rows,
)

from clues.errors import RecipeMismatchError
from clues.model.cache import ModelCache
from clues.pipeline import run_until
from clues.wall.messages import REQUESTS, from_bytes

CHANGES = {"evaluate": {"arms": ["clues", "oracle"]}}


class World:
    """A finished run and its input, to be copied and changed."""

    def __init__(self, folder: Path, silos: tuple[str, ...]) -> None:
        self.cache, self.folder, self.silos = ModelCache(), folder, silos
        model = tiny_model(folder / "model")
        write_micro(folder / "input", model, silos=silos, changes=CHANGES)
        self.results = self.run(folder)[0]

    def copy(self, place: Path) -> Path:
        for name in ("input", "run"):
            shutil.copytree(self.folder / name, place / name)
        return place

    def run(self, place: Path, root: str = "run") -> tuple[dict[str, Any], list[str]]:
        """Run what lies at a place; results, and the kinds of requests that silos worked on."""
        config = place / "input/clues.yaml"
        run = open_micro(config, place / root, cache=self.cache)
        before = {p for p in files_of(place / root) if p.parent.name == "outbox"}
        times = {p: p.stat().st_mtime_ns for p in before}
        recorder = Recorder(run)
        results = run_until(run).results
        assert results is not None
        asked = {from_bytes(q, allowed=REQUESTS, sender="").kind for _, q, _ in recorder.crossed}
        now = [p for p in files_of(place / root) if p.parent.name == "outbox"]
        worked = {p.name.partition("-")[0] for p in now if times.get(p) != p.stat().st_mtime_ns}
        assert worked <= asked
        return without_volatile(plain(results)), sorted(worked)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> World:
    """Of one silo: its rows may change and be scored again."""
    return World(tmp_path_factory.mktemp("alone"), ("north",))


def data(place: Path, silo: str = "north") -> Path:
    return place / f"input/silos/{silo}.jsonl"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def edit(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[Path], None]:
    def changed(place: Path) -> None:
        rows = rows_of(data(place))
        write_rows(data(place), change(rows) or rows)  # pyright: ignore[reportArgumentType]

    return changed


def silo_setting(**settings: Any) -> Callable[[Path], None]:
    def changed(place: Path) -> None:
        path = place / "input/clues.yaml"
        content = yaml.safe_load(path.read_text())
        content["silos"][0] |= settings
        path.write_text(yaml.safe_dump(content, sort_keys=False))

    return changed


def as_csv(place: Path) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["instruction", "output", "key", "damage"])
    writer.writeheader()
    writer.writerows(rows_of(data(place)))
    data(place).with_suffix(".csv").write_text(buffer.getvalue())
    silo_setting(data="silos/north.csv")(place)


def other_label_column(place: Path) -> None:
    edit(lambda rows: [{**r, "second": "" if r["damage"] else "swap"} for r in rows])(place)
    silo_setting(labels="second")(place)


def heldout(place: Path) -> None:
    path = place / "input/public/heldout.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))


def turned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**r, "damage": "" if r["damage"] else "swap"} for r in rows]


SELECTED = ["evaluate", "hello", "select"]
WARM = ["evaluate", "fit", "hello", "score", "select", "train"]
KINDS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "nothing": (lambda place: None, []),
    "labels turned": (edit(turned), ["evaluate", "fit", "hello", "select"]),
    "another column of labels": (other_label_column, ["evaluate", "fit", "hello", "select"]),
    "a column added": (edit(lambda rows: [{**r, "source": "new"} for r in rows]), SELECTED),
    "a column taken": (
        edit(lambda rows: [{k: v for k, v in r.items() if k != "key"} for r in rows]),
        SELECTED,
    ),
    "a value of another column": (edit(lambda rows: rows[5].update(key="other")), SELECTED),
    "keys in another order": (
        edit(lambda rows: [dict(reversed(list(r.items()))) for r in rows]),
        SELECTED,
    ),
    "the same rows as csv": (as_csv, SELECTED),
    "the license": (silo_setting(license="mit"), SELECTED),
    "another order": (edit(lambda rows: rows[::-1]), WARM),
    "a row edited": (edit(lambda rows: rows[3].update(output=rows[3]["output"] + " Yes.")), WARM),
    "a row added": (edit(lambda rows: [*rows, {**rows[0], "output": "No."}]), WARM),
    "held-out rows": (heldout, []),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_continued_after_a_change_is_a_fresh_run(alone, tmp_path, kind, caplog):
    change, expected = KINDS[kind]
    place = alone.copy(tmp_path)
    change(place)
    with caplog.at_level(logging.WARNING, "clues"):
        continued, worked = alone.run(place)
    assert worked == expected, "more or less was done again than depends on the change"
    fresh, _ = alone.run(place, "fresh")
    assert continued == fresh
    assert (continued == alone.results) == (kind not in RESULTS_CHANGE)
    for name in ("kept.*", "dropped.*", "decisions.csv", "card.md"):
        ours, theirs = (
            {p.name: p.read_bytes() for p in (place / root).glob(f"silos/north/private/{name}")}
            for root in ("run", "fresh")
        )
        assert ours == theirs, name
        assert ours
    kept = [
        json.loads((place / root / "silos/north/private/selection.json").read_text())["kept"]
        for root in ("run", "fresh")
    ]
    assert kept[0] == kept[1]
    said = [r.message for r in caplog.records if r.name == "clues"]
    assert len(said) == {"nothing": 0}.get(kind, len(said) or 1), said


RESULTS_CHANGE = {
    *("labels turned", "another column of labels", "another order", "a row edited"),
    *("a row added", "held-out rows"),
}


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("two"), ("north", "south"))


def leave(place: Path) -> None:
    path = place / "input/clues.yaml"
    content = yaml.safe_load(path.read_text())
    del content["silos"][0]
    path.write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (KINDS["a row edited"][0], "rows or the domain of silo north changed"),
        (KINDS["another order"][0], "rows or the domain of silo north changed"),
        (silo_setting(domain="medicine"), "rows or the domain of silo north changed"),
        (leave, "Silo north left"),
    ],
)
def test_rows_that_change_after_a_threshold_stop_the_run_before_the_work(
    two, tmp_path, change, said
):
    place = two.copy(tmp_path)
    change(place)
    run = open_micro(place / "input/clues.yaml", place / "run", cache=two.cache)
    recorder = Recorder(run)
    with pytest.raises(RecipeMismatchError, match=rf"{said}.*south would refuse.*new folder"):
        run_until(run)
    kinds = {from_bytes(q, allowed=REQUESTS, sender="").kind for _, q, _ in recorder.crossed}
    assert kinds == {"hello"}, "somebody trained for nothing"


@pytest.mark.walk
def test_another_rule_is_another_recipe_and_may_have_other_rows(two, tmp_path):
    place = two.copy(tmp_path)
    KINDS["a row edited"][0](place)
    edit_config(place / "input/clues.yaml", {"recipe": {"threshold": {"bootstrap": 21}}})
    continued, _ = two.run(place)
    assert continued == two.run(place, "fresh")[0]


def test_a_moved_run_with_a_moved_model_does_nothing_again(alone, tmp_path):
    place = alone.copy(tmp_path)
    model = shutil.copytree(alone.folder / "model", place / "elsewhere" / "model")
    edit_config(place / "input/clues.yaml", {"recipe": {"model": {"name": str(model)}}})
    before = {p: p.stat().st_mtime_ns for p in (place / "run/coordinator/stages").iterdir()}
    again, _ = alone.run(place)
    assert again == alone.results
    assert before == {p: p.stat().st_mtime_ns for p in before}
