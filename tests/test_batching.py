"""Batches by length: each row once, within the budget, and no cheaper way to cut them."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from clues.data.batching import START, token_budget_batches

LENGTHS = [7, 50, 3, 3, 18, 49, 1, 22, 8, 8, 30, 5]


@pytest.mark.parametrize("budget", [1, 10, 50, 64, 1000])
@pytest.mark.parametrize("max_rows", [1, 3, 256])
def test_batches_cover_every_row_once_within_the_budget(budget, max_rows):
    batches = token_budget_batches(LENGTHS, budget=budget, max_rows=max_rows)
    assert sorted(i for batch in batches for i in batch) == list(range(len(LENGTHS)))
    for batch in batches:
        padded = len(batch) * max(LENGTHS[i] for i in batch)
        assert len(batch) <= max_rows
        assert padded <= budget or len(batch) == 1, f"{padded} padded tokens in one batch"


def cost(parts, budget: int) -> float:
    return sum(len(part) * max(part) + budget * START for part in parts)


@pytest.mark.parametrize("budget", [20, 64, 320, 1024])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_way_to_cut_the_sorted_rows_costs_less(budget, seed):
    lengths = np.random.default_rng(seed).integers(1, 60, 9).tolist()
    found = [[lengths[i] for i in b] for b in token_budget_batches(lengths, budget=budget)]
    order = sorted(lengths, reverse=True)
    costs = []
    for n_cuts in range(len(order)):
        for cuts in combinations(range(1, len(order)), n_cuts):
            ends = [0, *cuts, len(order)]
            parts = [order[a:b] for a, b in pairwise(ends)]
            if all(len(p) * p[0] <= budget or len(p) == 1 for p in parts):
                costs.append(cost(parts, budget))
    assert cost(found, budget) == pytest.approx(min(costs))


def test_rows_of_one_length_fill_their_batches():
    assert [len(b) for b in token_budget_batches([32] * 70, budget=1024)] in (
        [32, 32, 6],
        [6, 32, 32],
    )


def test_one_long_row_does_not_pad_the_short_ones():
    assert token_budget_batches([10, 500, 10, 12], budget=2048) == [[1], [3, 0, 2]]


def test_no_rows_make_no_batches():
    assert token_budget_batches([], budget=10) == []


def test_many_rows_are_cut_in_no_time():
    lengths = np.random.default_rng(0).integers(10, 500, 5000).tolist()
    batches = token_budget_batches(lengths, budget=1024)
    assert sum(map(len, batches)) == 5000
