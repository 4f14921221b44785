"""Joining rules that a few hostile silos cannot move far: median, trimmed mean, Krum.

K adapters, D numbers of one weight or of one module's update. All three ignore how many rows a
silo has, because a hostile silo would lie about it.

Median and trimmed mean act on single numbers. Under ffa these are the entries of B: every A is
the same, so this is one model's arithmetic, but the median of B is not the median of B A. Under
svd they are the entries of the updates B A themselves, and the result is cut to the best
approximation of the same rank. Krum returns one silo's adapter as it is, so nothing is lost;
distances are taken between B under ffa, updates under svd, both factors under factors.

Flower has the same rules, but only as parts of a strategy that takes its messages, holds all of
them in memory and computes in float32; the tests compare with its numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from scipy.stats import trim_mean
from torch import Tensor

from clues.config import CombineSettings
from clues.errors import DataError
from clues.model.adapters import check_state
from clues.model.merging import Merged, factorise, modules, update

Form = Literal["ffa", "svd", "factors", "stack"]


def robust_aggregate(adapters: Sequence[Mapping[str, Tensor]], settings: CombineSettings) -> Merged:
    """Join adapters of one round by `settings.rule`, each silo with one vote.

    Args:
        adapters: K states of the same names and shapes, may lie on disk; one weight (under svd
            one module's update) of all K is in memory at a time.
        settings: rule, aggregation, trim and n_hostile.

    Raises:
        DataError: too few adapters for what the rule promises, or shapes differ.

    Source: Yin et al. 2018 (1803.01498) for median and trimmed mean, Blanchard et al. 2017
    (1703.02757) for Krum.
    """
    for state in adapters:
        check_state(state, like=adapters[0])
    rule, n = settings.rule, len(adapters)
    n_cut = int(settings.trim * n)
    needed = {"median": 3, "trimmed_mean": 3, "krum": 2 * settings.n_hostile + 3}[rule]
    if n < needed:
        raise DataError(f"rule {rule}: {n} silos sent an adapter, it needs {needed}.")
    if rule == "trimmed_mean" and n_cut == 0:
        raise DataError(
            f"rule trimmed_mean: trim {settings.trim:g} of {n} silos cuts nobody off. Raise "
            f"combine.trim to more than {1 / n:.2g}."
        )
    if rule == "krum":
        chosen = krum(_numbers(adapters, settings.aggregation), n_hostile=settings.n_hostile)
        return Merged({name: t.clone() for name, t in adapters[chosen].items()}, 0.0)
    joined: dict[str, Tensor] = {}
    for name, values_KD in _numbers(adapters, settings.aggregation):
        values = values_KD.numpy()
        found = np.median(values, axis=0) if rule == "median" else trim_mean(values, settings.trim)
        joined[name] = torch.from_numpy(np.asarray(found))
    first = adapters[0]
    if settings.aggregation == "svd":
        shapes = {m: update(first, m).shape for m in joined}
        rank = next(t.shape[0] for n, t in first.items() if ".lora_A." in n)
        return factorise({m: t.view(shapes[m]) for m, t in joined.items()}, rank=rank)
    state = {n: t.clone() for n, t in first.items()}
    return Merged(
        state | {n: t.view(first[n].shape).to(first[n].dtype) for n, t in joined.items()}, 0.0
    )


def krum(numbers: Iterator[tuple[str, Tensor]], *, n_hostile: int) -> int:
    """Position of the adapter whose K - f - 2 nearest others are nearest.

    score[k] = sum over the K - f - 2 smallest of |x_k - x_j|^2, j != k
    """
    distances_KK = torch.zeros(())
    for _, values_KD in numbers:
        # Differences, not |x|^2 + |y|^2 - 2 x y: adapters differ by little of their length.
        distances_KK = distances_KK + torch.cdist(values_KD, values_KD).square()
    n_near = len(distances_KK) - n_hostile - 2
    # The nearest is the adapter itself, at distance 0.
    return int(distances_KK.sort(dim=1).values[:, 1 : n_near + 1].sum(dim=1).argmin())


def _numbers(adapters: Sequence[Mapping[str, Tensor]], form: Form) -> Iterator[tuple[str, Tensor]]:
    """The numbers that a rule compares, K x D in float64, weight by weight."""
    if form == "svd":
        for module in modules(adapters[0]):
            yield module, torch.stack([update(state, module).flatten() for state in adapters])
        return
    for name in adapters[0]:
        if form != "ffa" or ".lora_B." in name:
            yield name, torch.stack([state[name].double().flatten() for state in adapters])
