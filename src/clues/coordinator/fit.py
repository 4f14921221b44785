"""The rounds that make one joint adapter of an arm's rows, or the one merge."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from clues.config import CombineSettings, FederationSettings, Recipe, derived_seed
from clues.coordinator.attendance import Attendance
from clues.coordinator.bounds import capped
from clues.coordinator.curve import Watch
from clues.coordinator.exchange import Exchange
from clues.coordinator.guards import check_fit, too_long, update_norm
from clues.coordinator.inbox import Inbox, Update
from clues.coordinator.tracing import join_finite
from clues.errors import DataError
from clues.model.adapters import AdapterState, read_tensors, write_tensors
from clues.model.merging import (
    Merged,
    adaptive_shares,
    aggregate,
    factorise,
    merge,
    stack,
    updates,
)
from clues.model.robust import robust_aggregate
from clues.model.serveropt import ServerState, server_step
from clues.rundir import read_record, write_record
from clues.wall.messages import FitReply, FitRequest

log = logging.getLogger("clues")


@dataclass(frozen=True)
class Fitting:
    """What the fit of every arm works with.

    Attributes:
        recipe: for seeds and the hash.
        combine: how adapters are joined.
        federation: what is accepted.
        exchange: to ask silos.
        initial: the adapter that every silo can make from the recipe's seed.
        public_loss: mean validation loss at an adapter of any rank, and its gradient.
        watch: looks at public rows' loss along the rounds.
    """

    recipe: Recipe
    combine: CombineSettings
    federation: FederationSettings
    exchange: Exchange
    initial: AdapterState
    public_loss: Callable[[AdapterState], tuple[float, Mapping[str, Tensor]]]
    watch: Watch

    @property
    def attendance(self) -> Attendance:
        """Who takes part."""
        return self.exchange.attendance

    def run(self, arm: str, folder: Path, *, token: str) -> tuple[AdapterState, dict[str, Any]]:
        """Do the rounds that are not on disk yet.

        Args:
            arm: whose rows are trained on.
            folder: for this arm and these inputs; a killed fit goes on from what is there.
            token: of the selection, for arms that depend on it.

        Returns:
            The joint adapter, what making it lost, public rows' loss along the rounds, and the
            seconds that all rounds took, those found on disk with them.

        Raises:
            DataError: no silo has a row to train on.
            QuorumError: too few silos are left.
        """
        n_rounds = 1 if self.combine.method != "fedavg" else self.combine.rounds
        stored = [_round_file(folder, number) for number in range(n_rounds)]
        adapter = self.initial
        record: dict[str, Any] = {"energy_lost": 0.0, "n_silos": 0}
        n_done = 0
        # The newest counts: earlier rounds are removed on the way.
        for number in reversed([n for n, file in enumerate(stored) if file.exists()]):
            found = self._stored_round(folder, number)
            if found is not None:
                n_done, (adapter, record) = number + 1, found
                break
        if not n_done:
            record["curve"] = self.watch.look([], 0, n_rounds, adapter)
        inbox = Inbox(folder / "inbox")
        for number in range(n_done, n_rounds):
            started = time.perf_counter()
            sent = self._ask(arm, number, adapter, inbox, token=token)
            if not sent:
                raise DataError(f"arm {arm}: no silo has a row to train on.")
            sent, (joint, extra) = self._join_finite(arm, adapter, sent, folder, number)
            adapter, lost = joint.adapter, max(record["energy_lost"], joint.energy_lost)
            curve = self.watch.look(record.get("curve", []), number + 1, n_rounds, adapter)
            took = record.get("seconds", 0.0) + time.perf_counter() - started
            known = {"energy_lost": lost, "curve": curve, "seconds": round(took, 3)}
            record = {"n_silos": len(sent), **known, **extra}
            # Before the adapter: killed in between, the round is done again and gives the same.
            write_record(folder / "record.json", record)
            write_tensors(stored[number], adapter)
            inbox.clear()
            for old in (number - 2,) if number >= 2 else ():
                stored[old].unlink(missing_ok=True)
                _server_file(folder, old).unlink(missing_ok=True)
        return adapter, record

    def _stored_round(
        self, folder: Path, number: int
    ) -> tuple[AdapterState, dict[str, Any]] | None:
        """A round that is on disk and whole; damaged ones are done again, and give the same."""
        try:
            record = read_record(folder / "record.json", advice="The rounds are done again.")
            if self.combine.server and number + 1 < self.combine.rounds:
                ServerState.read(_server_file(folder, number))
            return read_tensors(_round_file(folder, number)), record
        except DataError as error:
            log.warning("%s", error)
            return None

    def _ask(
        self, arm: str, number: int, adapter: AdapterState, inbox: Inbox, *, token: str
    ) -> dict[str, Update]:
        request = FitRequest(
            recipe_hash=self.recipe.hash,
            arm=arm,
            round=number,
            combine=self.combine.content(),
            selection_token=token,
            adapter=adapter,
        )
        # With stack every round trains a new adapter on top of what is there.
        base = self.initial if self.combine.aggregation == "stack" else adapter
        ffa = self.combine.method == "fedavg" and self.combine.aggregation == "ffa"
        members = self.attendance.members
        n_rows = {name: silo["n_rows"] for name, silo in members.items()}

        def take(name: str, reply: FitReply) -> Update:
            check_fit(name, reply, sent=base, n_rows=n_rows[name], ffa=ffa)
            norm = update_norm(reply.adapter, base)
            return Update(reply.weight, norm, 0.0, inbox.path(name))

        def judge(found: Mapping[str, Update]) -> Mapping[str, str]:
            norms = {name: u.norm for name, u in found.items() if u.weight}
            return too_long(norms, bound=self.federation.norm_bound)

        requests = dict.fromkeys(members, request)
        stage = f"fit-{arm}"
        found = self.exchange.ask(stage, requests, take, keep=inbox.put, judge=judge)
        return {name: u for name, u in found.items() if u.weight > 0}

    def _join_finite(
        self,
        arm: str,
        before: AdapterState,
        sent: Mapping[str, Update],
        folder: Path,
        number: int,
    ) -> tuple[dict[str, Update], tuple[Merged, dict[str, Any]]]:
        """As `_join`, without silos whose adapter makes public rows' losses not finite."""

        def alone(update: Update) -> tuple[Merged, dict[str, Any]]:
            own = dict(update.tensors())
            stacks = self.combine.method == "fedavg" and self.combine.aggregation == "stack"
            return Merged(_on_top(before, own) if stacks else own, 0.0), {}

        def look(joined: tuple[Merged, dict[str, Any]]) -> None:
            self.watch.loss(joined[0].adapter)

        return join_finite(
            sent,
            join=lambda some: self._join(before, some, folder, number),
            alone=alone,
            look=look,
            stage=f"fit-{arm}",
            attendance=self.attendance,
        )

    def _join(
        self, before: AdapterState, sent: Mapping[str, Update], folder: Path, number: int
    ) -> tuple[Merged, dict[str, Any]]:
        adapters = [u.tensors() for u in sent.values()]
        weights = capped([u.weight for u in sent.values()], self.federation.max_share)
        combine = self.combine
        if combine.method != "fedavg":
            extra: dict[str, Any] = {}
            if combine.method == "adaptive":
                weights = adaptive_shares(adapters, weights, self.public_loss)
                extra = {"weights": dict(zip(sent, weights, strict=True))}
                return Merged(stack(adapters, weights), 0.0), extra
            seed = derived_seed(self.recipe.seed, "merge")
            return merge(adapters, weights, combine, seed=seed), extra
        if combine.rule != "mean":
            joint = robust_aggregate(adapters, combine)
        else:
            joint = aggregate(adapters, weights, method=combine.aggregation)
        if combine.aggregation == "stack":
            joint = Merged(_on_top(before, joint.adapter), 0.0)
        if combine.server:
            last = _server_file(folder, number - 1)
            state = ServerState.read(last) if number else ServerState()
            adapter, state = server_step(
                before, joint.adapter, state, combine.server, number=number
            )
            state.write(_server_file(folder, number))
            joint = Merged(adapter, joint.energy_lost)
        return joint, {}


def _on_top(before: AdapterState, added: AdapterState) -> AdapterState:
    """Both updates in one adapter, exactly; no more rank than a full matrix has."""
    joint = stack([before, added], [1.0, 1.0])
    rank = next(t.shape[0] for n, t in joint.items() if ".lora_A." in n)
    room = max(min(d.shape) for d in updates(joint).values())
    return joint if rank <= room else factorise(updates(joint), rank=None).adapter


def _round_file(folder: Path, number: int) -> Path:
    return folder / f"round-{number}.safetensors"


def _server_file(folder: Path, number: int) -> Path:
    return folder / f"server-{number}.safetensors"
