"""Silos without a model: they answer a fit request with an adapter made by a function."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from clues.config import CombineSettings, FederationSettings, Recipe
from clues.coordinator.attendance import Attendance
from clues.coordinator.curve import Watch
from clues.coordinator.exchange import Exchange
from clues.coordinator.fit import Fitting
from clues.wall.messages import REQUESTS, FitReply, FitRequest, from_bytes, id_of
from clues.wall.transport import Missing

RECIPE = Recipe(public={})
N_ROWS = 100
Answer = Callable[[str, FitRequest], FitReply | Missing | bytes]


def tiny_adapter(seed: int = 0, *, size: int = 6, rank: int = 2) -> dict[str, torch.Tensor]:
    """An adapter of one square module."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "q.lora_A.weight": torch.randn(rank, size, generator=generator),
        "q.lora_B.weight": torch.randn(size, rank, generator=generator),
    }


def honest(name: str, request: FitRequest, *, length: float = 0.1) -> FitReply:
    """B moves by a small random step that depends on silo and round."""
    seed = sum(map(ord, name)) * 1000 + request.round
    generator = torch.Generator().manual_seed(seed)
    moved = {
        n: t + length * torch.randn(t.shape, generator=generator) if ".lora_B." in n else t
        for n, t in request.adapter.items()
    }
    return FitReply(recipe_hash=RECIPE.hash, weight=N_ROWS, adapter=moved)


@dataclass
class Fakes:
    """A transport to silos that exist as functions alone."""

    names: tuple[str, ...]
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)

    @property
    def silos(self) -> tuple[str, ...]:
        return self.names

    def exchange(
        self, requests: Mapping[str, bytes], *, most: Mapping[str, int]
    ) -> Iterator[tuple[str, bytes | Missing]]:
        # Not in order of name: arrival must not matter.
        for name in sorted(requests, reverse=True):
            request = from_bytes(requests[name], allowed=REQUESTS, sender="coordinator")
            self.asked.append((name, request.round))
            answer = self.answers.get(name, honest)(name, request)
            if isinstance(answer, FitReply):
                # As a silo does it, when all else is there.
                answer = replace(answer, answers=answer.answers or id_of(requests[name])).to_bytes()
            yield name, answer


def fitting(
    fakes: Fakes,
    folder: Path,
    *,
    combine: CombineSettings | None = None,
    federation: FederationSettings | None = None,
    initial: dict[str, torch.Tensor] | None = None,
) -> Fitting:
    """The coordinator's fit stage over such silos; every call is a new process to it."""
    federation = federation or FederationSettings()
    attendance = Attendance(
        folder / "absences.json", recipe_hash=RECIPE.hash, quorum=federation.quorum
    )
    attendance.members = {
        name: {"domain": "d", "n_rows": N_ROWS, "token": name}
        for name in fakes.names
        if name not in attendance.left_out
    }
    return Fitting(
        recipe=RECIPE,
        combine=combine or CombineSettings(rounds=3, aggregation="ffa"),
        federation=federation,
        exchange=Exchange(
            fakes,
            attendance,
            recipe_hash=RECIPE.hash,
            max_message_mb=federation.max_message_mb,
        ),
        initial=initial or tiny_adapter(),
        public_loss=lambda state: (0.0, state),
        watch=Watch(lambda state: 0.0),
    )
