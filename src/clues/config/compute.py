"""Where and how a silo computes: in its own process or on its own Ray cluster, and on which device."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from clues.config.base import Seconds, Settings

RAY = "ray"
# These are of any engine.
OF_ALL = ("engine", "device", "gradient_checkpointing", "report_to")
Workers = Annotated[int, Field(ge=1, le=10_000)]


class ComputeSettings(Settings):
    """Where a silo scores and trains. No number is meant to follow from it, so no recipe has it.

    Attributes:
        engine: `local`, the silo's own process; or `ray`, the silo's own Ray cluster, which the extra
            `ray` reaches.
        address: host and port of the cluster's head, such as 10.0.0.5:6379. Our process must run on
            a machine that belongs to the cluster. Null starts Ray on this machine alone, for as long
            as the run takes.
        workers: processes that score, each with the base model in its memory. Those that the cluster
            has no room for wait until it has.
        cpus: processor cores per worker.
        gpus: GPUs per worker; a fraction lets several share one.
        train_workers: workers that share every step of a training. 1 trains in the silo's own
            process.
        wait_s: seconds until Ray must have answered, and until a worker must be ready where none is.
        device: where this process computes: `cpu`, `cuda`, or `mps` (Apple). `auto` is `cuda` where
            there is one, else `cpu`; `mps` is taken where it is asked for. Last digits differ
            between devices.
        gradient_checkpointing: keep less of the way forward in trainings, and compute the rest again
            on the way back: less memory, a third more time, the same gradients.
        report_to: a tracker that is told loss, learning rate and number of rows at every step of
            trainings, and nothing else. Each needs the extra of its name (`pip install '.[wandb]'` in
            the source folder). Where it keeps or sends them is set as it says itself.
    """

    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    workers: Workers = 1
    cpus: Workers = 1
    gpus: float = Field(default=0.0, ge=0.0, le=64.0)
    train_workers: Workers = 1
    wait_s: Seconds = 120.0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    gradient_checkpointing: bool = False
    report_to: Literal["none", "tensorboard", "trackio", "wandb", "mlflow"] = "none"

    @field_validator("address")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        host, colon, port = value.rpartition(":")
        if "://" in value:
            raise ValueError(
                "address is a host and a port, such as 10.0.0.5:6379. Ray's client (ray://) is not "
                "used: run clues on a machine of the cluster"
            )
        if not host or not colon or not port.isdigit() or not 0 < int(port) < 2**16:
            raise ValueError("address needs a host and a port, such as 10.0.0.5:6379")
        return value

    @model_validator(mode="after")
    def _fits(self) -> "ComputeSettings":
        # Defaults may be written out, as in config.resolved.yaml.
        fields = type(self).model_fields
        said = [n for n in fields if n not in OF_ALL and getattr(self, n) != fields[n].default]
        if self.engine != RAY and said:
            raise ValueError(f"{said[0]} is of engine ray; set engine: ray, or remove it")
        return self


def short_form(value: Any) -> Any:
    """Accept the engine's name alone."""
    return {"engine": value} if isinstance(value, str) else value
