"""Every row lands in exactly one silo, and the same seed deals the same rows."""

import numpy as np
import pytest

from clues.data.partition import (
    partition_by_key,
    partition_dirichlet,
    partition_iid,
    take_disjoint,
)
from clues.errors import ConfigError, DataError

KEYS = ["heart"] * 60 + ["lung"] * 30 + ["skin"] * 10


def assert_covers(silos: list[list[int]], n_rows: int) -> None:
    """Each row is in exactly one silo, and positions are plain ascending integers."""
    assert sorted(row for silo in silos for row in silo) == list(range(n_rows))
    assert all(silo == sorted(silo) for silo in silos)
    assert all(type(row) is int for silo in silos for row in silo), "numpy integers are not JSON"


@pytest.mark.parametrize(("n_rows", "n_silos"), [(10, 1), (10, 3), (10, 10), (101, 7)])
def test_iid_silos_cover_every_row_once_and_differ_by_one_row(n_rows, n_silos):
    silos = partition_iid(n_rows, n_silos=n_silos, seed=0)
    assert_covers(silos, n_rows)
    sizes = [len(silo) for silo in silos]
    assert len(sizes) == n_silos
    assert max(sizes) - min(sizes) <= 1


def test_iid_silos_are_shuffled_and_follow_the_seed():
    assert partition_iid(50, n_silos=2, seed=1) == partition_iid(50, n_silos=2, seed=1)
    assert partition_iid(50, n_silos=2, seed=1) != partition_iid(50, n_silos=2, seed=2)
    assert partition_iid(50, n_silos=2, seed=1)[0] != list(range(25))


def test_each_key_is_a_silo_in_order_of_first_sight():
    assert partition_by_key(["b", "a", "b", "c"]) == {"b": [0, 2], "a": [1], "c": [3]}
    assert partition_by_key([]) == {}


@pytest.mark.parametrize("key", [None, float("nan"), ["SECRET"]])
def test_a_row_without_a_key_is_an_error_that_names_the_row(key):
    with pytest.raises(DataError, match="row 1 has") as caught:
        partition_by_key(["a", key])
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("concentration", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("seed", range(5))
def test_dirichlet_silos_cover_every_row_once_and_none_is_empty(concentration, seed):
    silos = partition_dirichlet(KEYS, n_silos=4, concentration=concentration, seed=seed)
    assert len(silos) == 4
    assert all(silos)
    assert_covers(silos, len(KEYS))
    again = partition_dirichlet(KEYS, n_silos=4, concentration=concentration, seed=seed)
    assert silos == again


def test_small_concentration_separates_keys_and_large_mixes_them():
    def unevenness(concentration: float) -> float:
        per_seed = []
        for seed in range(20):
            silos = partition_dirichlet(KEYS, n_silos=3, concentration=concentration, seed=seed)
            shares = [sum(KEYS[row] == "heart" for row in silo) / 60 for silo in silos]
            per_seed.append(np.std(shares))
        return float(np.mean(per_seed))

    assert unevenness(0.1) > 3 * unevenness(100.0)


def test_keys_of_a_single_row_do_not_all_go_to_one_silo():
    silos = partition_dirichlet(list(range(300)), n_silos=3, concentration=1.0, seed=0)
    assert min(len(silo) for silo in silos) > 60, "rounding sends rare keys to the last silo"


def test_dirichlet_gives_up_when_a_silo_stays_empty():
    with pytest.raises(DataError, match="a silo stays empty: 20 rows, 20 silos"):
        partition_dirichlet(["a"] * 20, n_silos=20, concentration=0.01, seed=0)


@pytest.mark.parametrize("concentration", [0.0, -1.0, float("nan"), float("inf")])
def test_a_concentration_that_is_no_positive_number_is_refused(concentration):
    with pytest.raises(ConfigError, match="is not a number above 0"):
        partition_dirichlet(KEYS, n_silos=2, concentration=concentration, seed=0)


def test_too_few_rows_or_silos_are_refused():
    with pytest.raises(DataError, match="2 rows cannot fill 3 silos"):
        partition_iid(2, n_silos=3, seed=0)
    with pytest.raises(ConfigError, match="n_silos is 0"):
        partition_iid(2, n_silos=0, seed=0)
    with pytest.raises(DataError, match="1 rows cannot fill 2 silos"):
        partition_dirichlet(["a"], n_silos=2, concentration=1.0, seed=0)


def test_disjoint_sets_share_no_row_and_have_their_sizes():
    sets = take_disjoint(20, {"validation": 5, "anchor": 4, "heldout": 11}, seed=0)
    assert {name: len(rows) for name, rows in sets.items()} == {
        "validation": 5,
        "anchor": 4,
        "heldout": 11,
    }
    assert_covers(list(sets.values()), 20)
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
