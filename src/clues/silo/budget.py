"""A silo's privacy budget: the epsilon that its trainings have spent, kept on its own disk."""

import hmac
from collections.abc import Sequence
from typing import Any

from clues.config import PrivacySettings
from clues.data.tokens import EncodedRow
from clues.errors import ConfigError, DataError
from clues.extras import require
from clues.model.noise import Spent, epsilon_of, noise_for, train_privately
from clues.model.training import Schedule, Trained
from clues.rundir import read_record, write_record
from clues.silo.workspace import Workspace


class Budget:
    """Trains with noise, and refuses a training that would cost more than the silo allows.

    Half of epsilon sets the noise of the warm-up, the other half that of the training of one arm.
    Together they cost no more than the whole epsilon. Often they cost less, and then another arm
    may be possible too. The same request again is the same training with the same noise, and
    costs nothing.
    """

    def __init__(self, space: Workspace) -> None:
        """Read what was spent."""
        self.space, self.path = space, space.private / "privacy.json"
        advice = "Put it back: it says what was spent. Or start the run in a new folder."
        stored = read_record(self.path, advice=advice) if self.path.exists() else {}
        self.booked: dict[str, Spent] = {key: tuple(value) for key, value in stored.items()}  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def settings(self) -> PrivacySettings:
        """What the silo allows."""
        assert self.space.settings.privacy is not None
        return self.space.settings.privacy

    def report(self) -> dict[str, float]:
        """Epsilon spent and its delta; empty where no noise is asked for."""
        if self.space.settings.privacy is None:
            return {}
        delta = self.settings.delta
        return {"epsilon": epsilon_of(list(self.booked.values()), delta=delta), "delta": delta}

    def train(
        self,
        rows: Sequence[EncodedRow],
        what: str,
        *,
        booked: str,
        schedule: Schedule,
        n_steps: int,
        proximal: float = 0.0,
        **how: Any,
    ) -> Trained:
        """Book a training, then run it.

        Args:
            rows: all rows of the silo, or the kept ones.
            what: name of the training, for the progress bar.
            booked: name of the entry in the budget: phase, round and hash of the request.
            schedule: the noise is set for all of its steps.
            n_steps: steps of this part of the schedule.
            proximal: must be 0, because FedProx has no accounting here.
            how: further arguments of `train_privately`; seed, order and observer are not taken.

        Raises:
            ExtraError: Opacus is not installed.
            ConfigError: this way of training has no accounting.
            DataError: the training would spend more epsilon than the silo allows.
        """
        require("opacus", what=f"silo {self.space.name}: privacy")
        if not booked or proximal or how.get("observer"):
            raise ConfigError(
                f"silo {self.space.name}: privacy works with score.trajectory global and without "
                "combine.proximal; other trainings are not accounted for."
            )
        batch = self.space.recipe().train.batch_size
        rate, wanted = min(1.0, batch / len(rows)), self.settings
        noise = noise_for(
            wanted.epsilon / 2, wanted.delta, sample_rate=rate, n_steps=schedule.total_steps
        )
        # The whole phase must fit into the budget, or its first rounds would be spent for nothing.
        phase = booked.split()[0]
        others = [spent for key, spent in self.booked.items() if key.split()[0] != phase]
        whole = [*others, (noise, rate, schedule.total_steps)]
        after: dict[str, Spent] = {**self.booked, booked: (noise, rate, n_steps)}
        # More than the phase can be booked, if a coordinator repeats its rounds.
        total = max(
            epsilon_of(spent, delta=wanted.delta) for spent in (whole, list(after.values()))
        )
        if total > wanted.epsilon * (1 + 1e-6):
            raise DataError(
                f"silo {self.space.name}: {what} would bring epsilon to {total:.3g}, and "
                f"privacy.epsilon is {wanted.epsilon:g}. What is spent is spent; one warm-up and "
                "one arm always fit into it (evaluate.arms: [clues])."
            )
        # Before the training: whether a killed training has sent anything cannot be known.
        write_record(self.path, after)
        with self.space.progress.task(f"{self.space.name}: {what}", n_steps) as advance:
            return train_privately(
                self.space.model(),
                rows,
                start=how["start"],
                settings=self.space.recipe().train,
                schedule=schedule,
                n_steps=n_steps,
                seed=self._secret_seed(booked),
                noise=noise,
                max_grad_norm=wanted.max_grad_norm,
                first_step=how["first_step"],
                checkpoint_at=how.get("checkpoint_at", ()),
                on_step=lambda: advance(1),
            )

    def _secret_seed(self, booked: str) -> int:
        """A seed from the silo's own key: noise from the public seed could be computed and removed."""
        return int.from_bytes(
            hmac.new(self.space.secret(), booked.encode(), "sha256").digest()[:6], "big"
        )
