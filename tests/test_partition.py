"""Sets of rows share none, and the same seed draws the same rows."""

import pytest

from clues.errors import ConfigError, DataError
from experiments.partition import take_disjoint


def test_disjoint_sets_share_no_row_and_have_their_sizes():
    sets = take_disjoint(20, {"validation": 5, "anchor": 4, "heldout": 11}, seed=0)
    assert {name: len(rows) for name, rows in sets.items()} == {
        "validation": 5,
        "anchor": 4,
        "heldout": 11,
    }
    assert sorted(row for rows in sets.values() for row in rows) == list(range(20))
    assert all(rows == sorted(rows) for rows in sets.values())
    assert all(type(row) is int for rows in sets.values() for row in rows), "numpy is not JSON"
    assert take_disjoint(20, {"validation": 0}, seed=0) == {"validation": []}
    assert take_disjoint(20, {}, seed=0) == {}


def test_a_set_keeps_its_rows_when_another_is_added_after_it():
    alone = take_disjoint(100, {"validation": 10}, seed=4)
    both = take_disjoint(100, {"validation": 10, "anchor": 20}, seed=4)
    assert alone["validation"] == both["validation"]


def test_more_rows_than_there_are_is_an_error_that_counts():
    with pytest.raises(DataError, match=r"12 rows are wanted \(a 5, b 7\), and there are 10"):
        take_disjoint(10, {"a": 5, "b": 7}, seed=0)
    with pytest.raises(ConfigError, match="set a has a negative size"):
        take_disjoint(10, {"a": -1}, seed=0)
