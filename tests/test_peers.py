"""The comparison with other programs: rows of the lengths it says, the same numbers, honest gaps."""

from dataclasses import replace

import numpy as np
import pytest
from federation_helpers import tiny_model

from benchmarks.clock import Ratio
from benchmarks.peers.__main__ import compare
from benchmarks.peers.scenes import EVEN, LONGEST, SHORTEST, joined_rows
from benchmarks.peers.table import Measured, lines_of
from benchmarks.peers.ways import OURS, WAYS, Way
from benchmarks.scene import built_scene


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    found = built_scene(str(tiny_model(tmp_path_factory.mktemp("model"))), device="cpu")
    return replace(found, rows=tuple(found.repeated(6)))


def test_rows_have_the_lengths_that_the_table_says(scene) -> None:
    even = joined_rows(scene.rows, 5, mixed=False)
    assert {len(row.ids) for row in even} == {EVEN}
    mixed = joined_rows(scene.rows, 40, mixed=True)
    lengths = [len(row.ids) for row in mixed]
    assert min(lengths) >= SHORTEST
    assert max(lengths) <= LONGEST
    assert max(lengths) > 2 * np.median(lengths)
    for row in (*even, *mixed):
        assert len(row.mask) == len(row.ids)
        # A prompt first, which does not count, and an answer that does.
        assert not row.mask[0]
        assert row.n_response_tokens > 0


@pytest.mark.slow
def test_every_way_that_can_run_gives_the_side_branches_numbers(scene) -> None:
    found = {way.name: way for way in compare(scene, n_turns=1)}
    assert list(found) == [way.name for way in WAYS]
    for way in WAYS:
        measured = found[way.name]
        if not way.can_run:
            assert measured == Measured(way.name, None)
            continue
        assert measured.time is not None
        if way.same_numbers and way is not OURS:
            assert measured.difference is not None
            assert measured.difference < 1e-4
            assert measured.correlation == pytest.approx(1, abs=1e-6)


def test_what_is_not_installed_is_not_measured() -> None:
    absent = Way("another", lambda *_: np.zeros(1), module="no_such_module_anywhere")
    assert not absent.can_run
    assert OURS.can_run
    lines = lines_of("**model**", [Measured(absent.name, None)])
    assert lines[-2] == "| another | not measured | - | - | - |"


def test_a_line_says_ratio_memory_and_distance() -> None:
    measured = Measured("way", Ratio(1.25, 1.2, 1.3), 3 * 2**20, 2e-7, 0.99999)
    (line,) = lines_of("about", [measured])[4:-1]
    assert line == "| way | 1.25 x (1.20 to 1.30) | 3 MB | 2e-07 | 0.99999 |"
