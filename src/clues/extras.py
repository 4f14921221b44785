"""Libraries that only an extra installs: what needs one asks here, and is told how to get it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from clues.errors import ExtraError

# The extra of pyproject.toml that brings a library, by the name under which it is imported.
EXTRA_OF = {
    "bitsandbytes": "quant",
    "cryptography": "flower",
    "flwr": "flower",
    "google.protobuf": "flower",
    "httpx": "flower",
    "httpx2": "judge",
    "lm_eval": "eval",
    "mlflow": "mlflow",
    "opacus": "dp",
    "openai": "judge",
    "ray": "ray",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}


def require(*names: str, what: str) -> None:
    """Refuse where a library is missing; nothing is imported, so it costs no time.

    Args:
        names: libraries, as they are imported.
        what: needs them; stands in front of the message.

    Raises:
        ExtraError: with the libraries and the command that installs them.
    """
    missing = [name for name in names if not _is_there(name)]
    if missing:
        raise ExtraError(f"{what}: not installed: {', '.join(missing)}. {advice(missing[0])}")


@contextmanager
def needs(*names: str, what: str) -> Iterator[None]:
    """Stand around the imports of libraries that only an extra installs.

    Args:
        names: the libraries that are imported inside.
        what: needs them; stands in front of the message.

    Raises:
        ExtraError: one is missing, or lacks a name that is imported.
    """
    require(*names, what=what)
    try:
        yield
    except ImportError as error:
        # A library that is there may miss one of its own.
        lost = isinstance(error, ModuleNotFoundError) and error.name
        problem = f"not installed: {lost}" if lost else error.msg
        raise ExtraError(f"{what}: {problem}. {advice(names[0])}") from error


def advice(name: str) -> str:
    """The command that installs a library in a version that fits."""
    return f"In the source folder of clues, call: pip install '.[{EXTRA_OF[name]}]'"


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent, such as `google`
        return False
