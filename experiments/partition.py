"""Disjoint sets of rows, by index."""

from collections.abc import Mapping

import numpy as np

from clues.errors import ConfigError, DataError


def take_disjoint(n_rows: int, sizes: Mapping[str, int], *, seed: int) -> dict[str, list[int]]:
    """Draw sets of rows that share none, such as validation, anchor and held-out.

    A set keeps its rows when another is added after it.

    Args:
        n_rows: how many rows there are.
        sizes: rows wanted for each set.
        seed: fixes the rows.

    Returns:
        For each set its rows, ascending.

    Raises:
        ConfigError: a size is negative.
        DataError: there are too few rows.
    """
    negative = [name for name, size in sizes.items() if size < 0]
    if negative:
        raise ConfigError(f"set {negative[0]} has a negative size.")
    n_wanted = sum(sizes.values())
    if n_wanted > n_rows:
        wanted = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise DataError(f"{n_wanted} rows are wanted ({wanted}), and there are {n_rows}.")
    rows = np.random.default_rng(seed).permutation(n_rows)
    ends = np.cumsum(list(sizes.values())).tolist()
    starts = [0, *ends]
    return {
        name: np.sort(rows[start:end]).tolist()
        for name, start, end in zip(sizes, starts, ends, strict=False)
    }
