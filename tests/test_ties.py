"""A threshold put on the score of one row, and just above it: what the two counts tell."""

import hmac
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from clues.silo.counts import draw_of_ten
from clues.silo.select import fewest_told
from clues.silo.workspace import Workspace
from clues.wall.messages import ROUNDED_OFF, round_count, told_as

N_RECIPES = 2000


def silo(*, secret: bool = True, recipe_hash: str = "r") -> Workspace:
    """What draws: a key, and whether it is secret in which order rows train."""
    space = SimpleNamespace(
        secret=lambda: bytes(range(32)),
        order_seed=lambda: None if secret else 3,
        recipe=lambda: SimpleNamespace(hash=recipe_hash),
        fewest_kept=lambda: 10,
    )
    return cast(Workspace, cast(Any, space))


def told(n: int, *, of: str) -> int:
    return round_count(n, up=draw_of_ten(silo(), "kept", of))


def advantage(one: Counter, other: Counter) -> float:
    """How much better than guessing a single answer tells two numbers apart (total variation)."""
    return sum(abs(one[k] - other[k]) for k in one | other) / (2 * N_RECIPES)


@pytest.mark.parametrize("n", [10, 14, 15, 19, 20, 24, 25, 29, 57])
def test_one_row_more_changes_a_count_once_in_ten_times_wherever_the_threshold_lies(n):
    """To the nearest ten, 14 rows and 15 are always 10 and 20: a threshold on a tie reads one row."""
    before = Counter(told(n, of=f"{k} {n}") for k in range(N_RECIPES))
    after = Counter(told(n + 1, of=f"{k} {n + 1}") for k in range(N_RECIPES))
    assert advantage(before, after) < 0.1 + 0.04
    assert all(told_as(n, number) for number in before), "no honest count would be believed"
    mean = sum(number * times for number, times in before.items()) / N_RECIPES
    assert mean == pytest.approx(n, abs=0.5), "the counts are wrong on average"


@pytest.mark.parametrize("n", [9, 10, 11, 14, 19])
def test_one_row_less_makes_a_refusal_once_in_ten_recipes(n):
    """That too few rows are left is a count, too."""
    fewest = [fewest_told(silo(recipe_hash=str(k))) for k in range(N_RECIPES)]
    assert set(fewest) == set(range(10, 20))
    refused = [sum(kept < least for least in fewest) for kept in (n, n + 1)]
    assert 0 <= refused[0] - refused[1] < 0.14 * N_RECIPES


def test_the_same_rows_under_the_same_recipe_are_told_as_the_same_number():
    assert len({told(14, of="r rows") for _ in range(5)}) == 1


def test_where_nothing_is_secret_counts_are_rounded_to_the_nearest_ten():
    assert draw_of_ten(silo(secret=False), "kept", "x") is None
    assert [round_count(n) for n in (0, 1, 14, 16, 24, 26)] == [0, 10, 10, 20, 20, 30]
    assert fewest_told(silo(secret=False)) == 10


@pytest.mark.parametrize("up", range(10))
def test_a_rounded_number_is_never_further_off_than_everybody_allows(up):
    for n in range(200):
        number = round_count(n, up=up)
        assert number % 10 == 0
        assert abs(number - n) <= ROUNDED_OFF
        assert told_as(n, number)
    assert not told_as(0, 10)
    assert not told_as(5, 0)
    assert not told_as(30, 20)


def test_without_the_key_the_draw_is_another():
    other = cast(Any, silo())
    other.secret = lambda: hmac.digest(b"other", b"key", "sha256")
    draws = [(draw_of_ten(silo(), str(k)), draw_of_ten(other, str(k))) for k in range(200)]
    assert sum(a == b for a, b in draws) < 45
