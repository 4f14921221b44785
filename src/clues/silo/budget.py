"""A silo's privacy budget: what its trainings and its counts have spent, kept on its own disk.

With `privacy` in the silo's file, a training draws rows at random, clips their gradients and adds
noise (Opacus), and a number of rows leaves with noise of its own. Both are booked here before they
are made, and together they cost no more than `privacy.epsilon`.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from clues.config import PrivacySettings, Recipe, Settings, validate
from clues.data.tokens import EncodedRow
from clues.errors import ConfigError, DataError
from clues.extras import require
from clues.model.noise import Spent, epsilon_of, noise_for, train_privately
from clues.model.recording import Schedule
from clues.model.training import Trained
from clues.rundir import hash_of, read_record, write_record
from clues.silo.crowd import identity, secret_seed
from clues.silo.curves import Piece
from clues.silo.questions import Questions
from clues.silo.workspace import Workspace

FILE = "privacy.json"


class Phase(Settings):
    """A training that may come in several rounds: the warm-up, or that of one arm."""

    kind: Literal["train", "fit"]
    arm: str = ""


class BookedTraining(Settings):
    """One round of a training.

    Attributes:
        phase: the training that it is a part of.
        request: hash of all that the training follows from, the request and the rows too; the same
            again is the same noise, and free.
        noise: multiplier of the noise.
        rate: probability with which a step draws a row.
        steps: how many steps it takes.
    """

    phase: Phase
    request: str
    noise: float
    rate: float
    steps: int

    @property
    def spent(self) -> Spent:
        """As the accountant takes it."""
        return (self.noise, self.rate, self.steps)


class BookedCount(Settings):
    """One number of rows that was told.

    Attributes:
        what: the rows that are counted.
        of: hash of what they follow from; the same again is the same noise, and free.
        epsilon: that it cost.
    """

    what: str
    of: str
    epsilon: float


class Record(Settings):
    """The whole file."""

    version: Literal[1] = 1
    trainings: tuple[BookedTraining, ...] = ()
    counts: tuple[BookedCount, ...] = ()


class Budget:
    """Trains and counts with noise, and refuses what would cost more than the silo allows.

    Each count costs `count_epsilon`. Of what two counts leave, one half sets the noise of the
    warm-up, the other half that of the training of one arm. Together they cost no more than the
    whole epsilon. Often they cost less, and then another arm may be possible too.
    """

    def __init__(self, space: Workspace) -> None:
        """Read what was spent.

        Raises:
            DataError: it cannot be read, or is missing where something was spent.
        """
        self.space, self.path = space, space.private / FILE
        self.record, asked = Record(), Questions(space)
        if self.path.exists():
            advice = "Put it back: it says what was spent. Or start the run in a new folder."
            content = read_record(self.path, advice=advice)
            self.record = validate(Record, content, where=str(self.path))
        elif space.settings.privacy is not None and asked.trained():
            # An epsilon that began now would not count what has left before.
            raise DataError(
                f"silo {space.name}: rows have been trained on in this folder, and {FILE} does not "
                "say what that spent. Put the file back; if privacy was set later, start in a new "
                "folder."
            )
        if self.n_booked < asked.record.booked:
            raise DataError(
                f"silo {space.name}: {self.path} is missing or an older copy: it has "
                f"{self.n_booked} entries, and {asked.record.booked} were written. Put "
                "the last one back: it says what was spent. Or start the run in a new folder."
            )

    @property
    def n_booked(self) -> int:
        """Trainings and counts that were booked; it never falls."""
        return len(self.record.trainings) + len(self.record.counts)

    @property
    def settings(self) -> PrivacySettings:
        """What the silo allows."""
        assert self.space.settings.privacy is not None
        return self.space.settings.privacy

    def report(self) -> dict[str, float]:
        """Epsilon spent and its delta; empty where no noise is asked for."""
        if self.space.settings.privacy is None:
            return {}
        return {"epsilon": self._epsilon(self.record), "delta": self.settings.delta}

    def count(self, n: int, *, what: str, of: str) -> int:
        """A number of rows with discrete Laplace noise, booked before it is told.

        Args:
            n: the number. One row more or less changes it by at most one.
            what: the rows that are counted.
            of: hash of what they follow from: other rows, or another selection, are another count.

        Raises:
            DataError: it would spend more epsilon than the silo allows.
        """
        from scipy.stats import dlaplace  # half a second to import, for silos with privacy alone

        known = {(c.what, c.of): c.epsilon for c in self.record.counts}
        epsilon = known.get((what, of), self.settings.count_epsilon)
        if (what, of) not in known:
            booked = BookedCount(what=what, of=of, epsilon=epsilon)
            after = self.record.model_copy(update={"counts": (*self.record.counts, booked)})
            self._book(after, f"the number of {what} rows")
        rng = np.random.default_rng(secret_seed(self.space, "count", what, of))
        return n + int(dlaplace.rvs(epsilon, random_state=rng))

    def train(
        self,
        rows: Sequence[EncodedRow],
        what: Piece,
        *,
        phase: Phase,
        request: str,
        n_told: int,
        schedule: Schedule,
        n_steps: int,
        proximal: float = 0.0,
        **how: Any,
    ) -> Trained:
        """Book a training, then run it.

        Args:
            rows: all rows of the silo, or the kept ones.
            what: the training, for the progress bar.
            phase: that it is a part of.
            request: checksum of the request.
            n_told: how many rows the coordinator has been told; the rate follows from it, since an
                exact number would be in the account.
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
        if proximal or how.get("observer"):
            raise ConfigError(
                f"silo {self.space.name}: privacy works with score.trajectory global and without "
                "combine.proximal; other trainings are not accounted for."
            )
        batch, wanted = self.space.recipe().train.batch_size, self.settings
        rate = min(1.0, batch / n_told)
        noise = noise_for(
            wanted.training_epsilon / 2,
            wanted.delta,
            sample_rate=rate,
            n_steps=schedule.total_steps,
        )
        # Everything that the answer follows from. Under the same noise, what two answers differ by
        # would be a row that was edited in between, or a noise that was set anew: without noise.
        content = [
            request,
            identity(self.space, [row.row for row in rows]),
            noise,
            rate,
            n_steps,
            wanted.max_grad_norm,
        ]
        request = hash_of(content)
        part = BookedTraining(phase=phase, request=request, noise=noise, rate=rate, steps=n_steps)
        known = [t for t in self.record.trainings if (t.phase, t.request) != (phase, request)]
        # The whole phase must fit into the budget, or its first rounds would be spent for nothing.
        whole = part.model_copy(update={"steps": schedule.total_steps})
        others = [t for t in known if t.phase != phase]
        self._refuse_above(
            self.record.model_copy(update={"trainings": (*others, whole)}), what.named
        )
        # More than the phase can be booked, if a coordinator repeats its rounds.
        self._book(self.record.model_copy(update={"trainings": (*known, part)}), what.named)
        with self.space.progress.task(f"{self.space.name}: {what.shown}", n_steps) as advance:
            return train_privately(
                self.space.model(),
                rows,
                start=how["start"],
                settings=self.space.recipe().train,
                schedule=schedule,
                n_steps=n_steps,
                seed=secret_seed(self.space, "noise", phase.kind, phase.arm, request),
                noise=noise,
                max_grad_norm=wanted.max_grad_norm,
                n_told=n_told,
                first_step=how["first_step"],
                checkpoint_at=how.get("checkpoint_at", ()),
                on_step=lambda: advance(1),
            )

    def _book(self, after: Record, what: str) -> None:
        """Write down what something costs, before it is made.

        Whether a killed training has sent anything cannot be known.
        """
        self._refuse_above(after, what)
        self.record = after
        write_record(self.path, after.model_dump(mode="json"))
        Questions(self.space).note_booked(self.n_booked)

    def _refuse_above(self, after: Record, what: str) -> None:
        total, allowed = self._epsilon(after), self.settings.epsilon
        if total > allowed * (1 + 1e-6):
            raise DataError(
                f"silo {self.space.name}: {what} would bring epsilon to {total:.3g}, and "
                f"privacy.epsilon is {allowed:g}. What is spent is spent; one warm-up and one arm "
                "always fit into it (evaluate.arms: [clues])."
            )

    def _epsilon(self, record: Record) -> float:
        """Trainings by their accountant; pure epsilons of counts add up, and add to it."""
        trainings = [training.spent for training in record.trainings]
        spent = epsilon_of(trainings, delta=self.settings.delta) if trainings else 0.0
        return spent + sum(count.epsilon for count in record.counts)


def check_private(space: Workspace, recipe: Recipe) -> None:
    """Whether a recipe can be accounted for, where the silo asks for privacy.

    Raises:
        ConfigError: its threshold is made of private scores, so that one row changes what is
            decided about others.
    """
    rule = recipe.threshold.rule
    if space.settings.privacy is not None and rule in ("ratio", "mixture"):
        raise ConfigError(
            f"silo {space.name}: rule {rule} makes its cut of private scores, so one row changes "
            "what is decided about others, and privacy does not account for that. Use a rule of "
            "the anchors."
        )
