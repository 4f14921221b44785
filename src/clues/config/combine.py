"""How the kept rows become one adapter, and what the coordinator takes from silos."""

from typing import Any, Literal

from pydantic import Field, model_validator

from clues.config.base import (
    Count,
    Factor,
    FactorOrZero,
    Rounds,
    Seconds,
    Settings,
    Steps,
)


class ServerSettings(Settings):
    """Experimental: an optimiser at the coordinator; its gradient is minus a round's joint update.

    Attributes:
        optimizer: name of the optimiser.
        learning_rate: its learning rate; null is 1 for fedavgm and 0.01 for the others.
        beta_1: decay of the running mean; for fedavgm, its momentum.
        beta_2: decay of the running mean of squares; fedavgm has none.
        tau: keeps small squares from making large steps; fedavgm has none.
    """

    optimizer: Literal["fedavgm", "fedadam", "fedyogi", "fedadagrad"]
    learning_rate: Factor | None = None
    beta_1: float = Field(default=0.9, ge=0.0, lt=1.0)
    beta_2: float = Field(default=0.99, ge=0.0, lt=1.0)
    tau: Factor = 1e-3

    @property
    def rate(self) -> float:
        """The learning rate in use."""
        return self.learning_rate or (1.0 if self.optimizer == "fedavgm" else 0.01)


class CombineSettings(Settings):
    """How the kept rows become one adapter.

    Every silo takes `rounds * local_steps` steps for each joint model, whatever the method.
    docs/strategies.md says which settings go together.

    Attributes:
        method: `fedavg` joins the silos' adapters after every round; the others merge them once,
            at the end.
        aggregation: the form in which adapters are joined. `fedavg` is another name of `factors`.
        rounds: how often adapters are joined.
        local_steps: optimiser steps of a silo between two rounds.
        learning_rate: the highest learning rate of this training; null for that of `recipe.train`.
        density: share of an update's entries that `ties` and `dare` keep.
        scale: factor of the merged update (`task_arithmetic`, `ties`, `dare`).
        rule: how the adapters of a round are joined; all rules but `mean` withstand hostile silos.
        trim: Experimental: share of the silos that `trimmed_mean` cuts off at either end.
        n_hostile: Experimental: number of hostile silos that `krum` withstands.
        proximal: Experimental: the mu of FedProx; 0 is off.
        server: Experimental: an optimiser at the coordinator on top of the joined update; null is
            off.
    """

    method: Literal["fedavg", "average", "task_arithmetic", "ties", "dare", "adaptive"] = "fedavg"
    aggregation: Literal["ffa", "svd", "factors", "stack"] = "ffa"
    rounds: Rounds = 20
    local_steps: Steps = 10
    learning_rate: Factor | None = None
    density: float = Field(default=0.2, gt=0.0, le=1.0)
    scale: Factor = 1.0
    rule: Literal["mean", "median", "trimmed_mean", "krum"] = "mean"
    trim: float = Field(default=0.2, gt=0.0, lt=0.5)
    n_hostile: Count = 1
    proximal: FactorOrZero = 0.0
    server: ServerSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _other_name(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("aggregation") == "fedavg":
            return {**value, "aggregation": "factors"}
        return value

    @model_validator(mode="after")
    def _parts_go_together(self) -> "CombineSettings":
        one_shot = self.method != "fedavg"
        if one_shot and (self.rule != "mean" or self.server):
            raise ValueError(f"rule and server need method fedavg, not {self.method}")
        if self.rule in ("median", "trimmed_mean") and self.aggregation not in ("ffa", "svd"):
            raise ValueError(
                f"rule {self.rule} on {self.aggregation} would join an A of one silo with a B of "
                "another; set aggregation ffa or svd"
            )
        if self.rule == "krum" and self.aggregation == "stack":
            raise ValueError("rule krum picks one adapter, so there is nothing to stack")
        if self.server and self.aggregation not in ("ffa", "factors"):
            raise ValueError("server needs factors that keep their meaning: aggregation ffa")
        return self

    @property
    def once(self) -> bool:
        """Whether adapters are merged once, at the end, and not after every round."""
        return self.method != "fedavg"

    @property
    def n_asked(self) -> int:
        """How often a silo is asked for an adapter of one arm."""
        return 1 if self.once else self.rounds

    def content(self) -> dict[str, Any]:
        """Plain JSON for hashes and messages."""
        return self.model_dump(mode="json")


# A day of training or scoring; other answers only read rows or count.
LONG_TIMEOUT_S, SHORT_TIMEOUT_S = 86_400.0, 3_600.0


class FederationSettings(Settings):
    """What the coordinator accepts from silos, and how long it waits for them.

    Attributes:
        quorum: number of silos below which a run stops; null for all of them. With a number, a
            run stops once for a person's approval, and then goes on without who still waits.
        norm_bound: how many times longer an update may be than the median of the silos' updates.
        max_share: the largest share that one of three silos or more has in an average, however
            many rows it says it has. Of two nobody can say which one is wrong.
        max_rows: the largest number of rows that a silo may say it has.
        max_message_mb: the largest answer, in MB of 10^6 bytes; null for the size of the adapters
            that the request asks for, plus 16 MB.
        wait_s: seconds that a silo on another machine may be out of reach.
        timeouts: seconds to wait for the answer to a message, per kind of message.
    """

    quorum: Count | None = None
    norm_bound: float = Field(default=10.0, gt=1.0, le=1e30)
    max_share: float = Field(default=0.5, gt=0.0, le=1.0)
    max_rows: Count = 10_000_000
    max_message_mb: Factor | None = None
    wait_s: Seconds = 900.0
    timeouts: dict[
        Literal["hello", "sketch", "leave", "train", "score", "select", "fit", "evaluate"], Seconds
    ] = Field(default_factory=dict)

    def timeout_s(self, kind: str) -> float:
        """Seconds to wait for the answer to a kind of message."""
        default = LONG_TIMEOUT_S if kind in ("train", "score", "fit") else SHORT_TIMEOUT_S
        return {str(k): v for k, v in self.timeouts.items()}.get(kind, default)
