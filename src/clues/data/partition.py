"""Rows to silos, by index: evenly, by key, or unevenly by key; and disjoint public sets."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from clues.errors import ConfigError, DataError

N_DRAWS = 100

Key = TypeVar("Key", bound=Hashable)


def partition_iid(n_rows: int, *, n_silos: int, seed: int) -> list[list[int]]:
    """Deal rows to silos at random; sizes differ by one at most.

    Returns:
        One ascending list of row positions for each silo; each row is in exactly one.

    Raises:
        ConfigError: `n_silos` is below 1.
        DataError: there are fewer rows than silos.
    """
    _check_silos(n_rows, n_silos)
    rows = np.random.default_rng(seed).permutation(n_rows)
    return [np.sort(part).tolist() for part in np.array_split(rows, n_silos)]


def partition_by_key(keys: Sequence[Key]) -> dict[Key, list[int]]:
    """Give each key a silo of its own.

    Args:
        keys: one for each row, such as a hospital's name.

    Returns:
        For each key, in order of first sight, its rows, ascending.

    Raises:
        DataError: a row has no key, or one that cannot be a key (a list).
    """
    silos: dict[Key, list[int]] = {}
    for row, key in enumerate(keys):
        if key is None or (isinstance(key, float) and math.isnan(key)):
            raise DataError(f"row {row} has no key. Fill the column, or leave the row out.")
        if not isinstance(key, Hashable):
            raise DataError(f"row {row} has a {type(key).__name__} as key. Use text or numbers.")
        silos.setdefault(key, []).append(row)
    return silos


def partition_dirichlet(
    keys: Sequence[Hashable], *, n_silos: int, concentration: float, seed: int
) -> list[list[int]]:
    """Deal each key's rows to silos in shares drawn from a Dirichlet distribution.

    shares[key] ~ Dirichlet(concentration, ..., concentration)

    Small concentration (0.1): most of a key's rows lie in one silo. Large (100): nearly iid.
    Drawn anew until no silo is empty, at most `N_DRAWS` times.

    Args:
        keys: one for each row, such as a domain or a label.
        n_silos: how many silos.
        concentration: above 0, the same for every silo.
        seed: fixes shares and rows.

    Returns:
        One ascending list of row positions for each silo; each row is in exactly one.

    Raises:
        ConfigError: `n_silos` is below 1 or `concentration` not a number above 0.
        DataError: a row has no key, or some silo stays empty.

    Source: Hsu et al. 2019, arXiv 1909.06335.
    """
    _check_silos(len(keys), n_silos)
    if not (concentration > 0 and math.isfinite(concentration)):
        raise ConfigError(f"concentration {concentration} is not a number above 0.")
    rng = np.random.default_rng(seed)
    rows_of_key = partition_by_key(keys)
    for _ in range(N_DRAWS):
        silos: list[list[int]] = [[] for _ in range(n_silos)]
        for rows in rows_of_key.values():
            shares = rng.dirichlet(np.full(n_silos, concentration))
            # Counts are drawn, not rounded: rounding sends every key of one row to one silo.
            counts = rng.multinomial(len(rows), shares)
            parts = np.split(rng.permutation(rows), np.cumsum(counts)[:-1])
            for silo, part in zip(silos, parts, strict=True):
                silo.extend(part.tolist())
        if all(silos):
            return [sorted(silo) for silo in silos]
    raise DataError(
        f"a silo stays empty: {len(keys)} rows, {n_silos} silos, concentration {concentration}. "
        "Raise the concentration or have fewer silos."
    )


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


def _check_silos(n_rows: int, n_silos: int) -> None:
    if n_silos < 1:
        raise ConfigError(f"n_silos is {n_silos}; it must be 1 or more.")
    if n_rows < n_silos:
        raise DataError(f"{n_rows} rows cannot fill {n_silos} silos.")
