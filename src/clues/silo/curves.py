"""The curve of a training in a tracker of the silo's own choice: losses and counts, and nothing else.

The libraries' own calls, not the callbacks of transformers: these also send settings, paths, and the
name of the machine. Where a library keeps or sends what it is given is set as it says itself.
"""

import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from clues.errors import ConfigError
from clues.extras import needs
from clues.model.place import first_line

PROJECT = "clues"
Log = Callable[[int, Mapping[str, float]], None]
OnLoss = Callable[[int, float, float], None]
Opened = tuple[Log, Callable[[], None]]

WARM_UP = "warm-up"
log = logging.getLogger("clues")


class Piece(NamedTuple):
    """What one call trains: a whole training, or a round of one.

    Attributes:
        training: `warm-up`, an arm, or what the silo trains for itself.
        number: of the round, from 1 on; 0 where there are no rounds.
        n_rounds: how many there are.
    """

    training: str
    number: int = 0
    n_rounds: int = 0

    @property
    def named(self) -> str:
        """In a sentence. A round alone is one of the warm-up."""
        if not self.number:
            return self.training
        part = f"round {self.number}"
        return part if self.training == WARM_UP else f"{self.training}, {part}"

    @property
    def shown(self) -> str:
        """For a bar."""
        return f"{self.named} of {self.n_rounds}" if self.number else self.named


@dataclass(frozen=True)
class Curve:
    """One training, whose rounds are one curve.

    Attributes:
        name: the silo's, the training's, and the beginning of the recipe's hash.
        folder: for what lies on this disk; private.
    """

    name: str
    folder: Path

    @property
    def key(self) -> str:
        """By which a tracker finds the curve again at the next round."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:16]


@contextmanager
def reported(kind: str, curve: Curve, *, n_rows: int) -> Iterator[OnLoss | None]:
    """Inside, every step's loss goes to a tracker; yields whom to tell, or None with kind `none`.

    Args:
        kind: setting `compute.report_to`.
        curve: what the steps belong to.
        n_rows: rows that the training draws from.

    Raises:
        ExtraError: the library is not installed.
        ConfigError: it cannot begin, for example because nobody is logged in.
    """
    if kind == "none":
        yield None
        return
    with needs(kind, what=f"compute.report_to: {kind}"):
        write, close = OPENERS[kind](curve)

    def on_loss(step: int, loss: float, learning_rate: float) -> None:
        write(step, {"loss": loss, "learning_rate": learning_rate, "rows": float(n_rows)})

    try:
        yield on_loss
    finally:
        close()


def _tensorboard(curve: Curve) -> Opened:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(curve.folder / "tensorboard" / curve.name))

    def write(step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    return write, writer.close


def _trackio(curve: Curve) -> Opened:
    import trackio  # pyright: ignore[reportMissingImports]

    # What it says on the way would stand in the midst of our own answers.
    with _beginning("trackio", ValueError, OSError, RuntimeError), redirect_stdout(sys.stderr):
        run = trackio.init(
            project=PROJECT,
            name=curve.name,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def close() -> None:
        with redirect_stdout(sys.stderr):
            trackio.finish()

    return lambda step, values: run.log(dict(values), step=step), close


def _wandb(curve: Curve) -> Opened:
    import wandb  # pyright: ignore[reportMissingImports]

    # Nothing of the machine, of our code, or of what stands on the terminal.
    settings = wandb.Settings(
        silent=True,
        console="off",
        host="silo",
        disable_code=True,
        disable_git=True,
        save_code=False,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        x_disable_machine_info=True,
    )
    curve.folder.mkdir(parents=True, exist_ok=True)
    with _beginning("wandb", wandb.Error):
        run = wandb.init(
            project=PROJECT,
            name=curve.name,
            id=curve.key,
            resume="allow",
            dir=str(curve.folder),
            settings=settings,
        )
    return lambda step, values: run.log(dict(values), step=step), run.finish


def _mlflow(curve: Curve) -> Opened:
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
    from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]

    # Its own default is a file in the folder where the program was called.
    own = f"sqlite:///{curve.folder / 'mlflow.db'}"
    curve.folder.mkdir(parents=True, exist_ok=True)
    with _beginning("mlflow", MlflowException):
        client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", own))
        found = client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else client.create_experiment(PROJECT)
        same = client.search_runs([experiment], f"tags.clues = '{curve.key}'", max_results=1)
        run = same[0] if same else None
        if run is None:
            tags = {"clues": curve.key}
            run = client.create_run(experiment, run_name=curve.name, tags=tags)
    key, failed = run.info.run_id, False

    def write(step: int, values: Mapping[str, float]) -> None:
        nonlocal failed
        if failed:
            return
        try:
            for name, value in values.items():
                client.log_metric(key, name, value, step=step)
        except MlflowException as error:
            failed = True
            log.warning("mlflow takes no more of %s (%s); the training goes on.", curve.name, error)

    def close() -> None:
        if not failed:
            client.set_terminated(key)

    return write, close


OPENERS: dict[str, Callable[[Curve], Opened]] = {
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


@contextmanager
def _beginning(kind: str, *errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise ConfigError(
            f"compute.report_to: {kind} does not begin ({first_line(error)}). Set it up as its own "
            "documentation says, or leave report_to out."
        ) from error
