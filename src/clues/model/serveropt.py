"""Optimisers of the coordinator: what becomes of a round's joint adapter.

d is the joint adapter minus the one that was sent, entry by entry; x the new adapter.

    fedavgm     m = beta_1 m + d;                         x = sent + rate * m
    fedadam     m = beta_1 m + (1 - beta_1) d;
                v = beta_2 v + (1 - beta_2) d^2;          x = sent + rate_t * m / (sqrt(v) + tau)
    fedyogi     v = v - (1 - beta_2) d^2 sign(v - d^2);   x = sent + rate * m / (sqrt(v) + tau)
    fedadagrad  v = v + d^2;                              x = sent + rate * m / (sqrt(v) + tau)

Under ffa d is zero for A, so that B alone moves and one step stays one step of the model. Under
factors A and B have states of their own, and the step is a step of neither.

Flower's strategies do the same, but keep m and v in the memory of one process, where a run that
is continued cannot find them; the tests compare with its numbers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from clues.config import ServerSettings
from clues.model.adapters import AdapterState, read_tensors, write_tensors


@dataclass(frozen=True)
class ServerState:
    """Running means m and v by weight name, in float64; empty before the first round."""

    m: AdapterState = field(default_factory=dict)
    v: AdapterState = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write both to one file."""
        named = {"m": self.m, "v": self.v}
        tensors = {f"{key}|{n}": t for key, state in named.items() for n, t in state.items()}
        write_tensors(path, tensors)

    @classmethod
    def read(cls, path: Path) -> "ServerState":
        """Read what `write` wrote."""
        found: dict[str, AdapterState] = {"m": {}, "v": {}}
        for key, tensor in read_tensors(path).items():
            owner, _, name = key.partition("|")
            found[owner][name] = tensor
        return cls(**found)


def server_step(
    sent: Mapping[str, Tensor],
    joint: Mapping[str, Tensor],
    state: ServerState,
    settings: ServerSettings,
    *,
    number: int,
) -> tuple[AdapterState, ServerState]:
    """Take one step of the coordinator's optimiser.

    Args:
        sent: the adapter that the round began with.
        joint: what the silos' adapters were joined to.
        state: of the round before.
        settings: optimiser and its constants.
        number: of the round, from zero.

    Returns:
        The adapter for the next round in the dtype of `sent`, and the state after it.

    Source: Hsu et al. 2019 (1909.06335), Reddi et al. 2021 (2003.00295).
    """
    b1, b2, rate = settings.beta_1, settings.beta_2, settings.rate
    if settings.optimizer == "fedadam":
        # Flower counts rounds from one and adds one; we keep to it, to give its numbers.
        rate *= math.sqrt(1 - b2 ** (number + 2)) / (1 - b1 ** (number + 2))
    adapter: AdapterState = {}
    m, v = dict(state.m), dict(state.v)
    for name, before in sent.items():
        d = joint[name].double() - before.double()
        zero = torch.zeros_like(d)
        old_m, old_v = m.get(name, zero), v.get(name, zero)
        if settings.optimizer == "fedavgm":
            m[name] = b1 * old_m + d
            step = m[name]
        else:
            m[name] = b1 * old_m + (1 - b1) * d
            v[name] = {
                "fedadam": b2 * old_v + (1 - b2) * d**2,
                "fedyogi": old_v - (1 - b2) * d**2 * torch.sign(old_v - d**2),
                "fedadagrad": old_v + d**2,
            }[settings.optimizer]
            step = m[name] / (v[name].sqrt() + settings.tau)
        adapter[name] = (before.double() + rate * step).to(before.dtype)
    return adapter, ServerState(m, v)
