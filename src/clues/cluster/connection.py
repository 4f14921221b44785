"""Reach a silo's Ray cluster, or start Ray on this machine, within a time limit and in one line.

Inside a cluster Ray's own serialisation carries calls and answers, which runs code by design: a
cluster is one machine of many parts and belongs to one silo. What we hand over ourselves is plain
values, Arrow and safetensors. Nothing of a cluster crosses the wall.
"""

import atexit
import logging
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from threading import current_thread, main_thread
from types import TracebackType
from typing import Any

from clues import errors
from clues.atomic import make_private_folder
from clues.config import ComputeSettings
from clues.errors import CluesError, ClusterError
from clues.extras import needs
from clues.model.place import first_line

WHAT = "compute: ray"
AUTH_MODE = "RAY_AUTH_MODE"
NO_MEMORY = "its machine ran out of memory"
# What every HTTP/2 client says first (RFC 9113), and the type of the frame that must come back.
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
SETTINGS_FRAME, FRAME_HEAD = 4, 9
log = logging.getLogger("clues")
# Of a runtime environment: everything else brings code from somewhere.
HARMLESS = {"env_vars"}
ACCESS = (
    "The token is read from RAY_AUTH_TOKEN, from the file in RAY_AUTH_TOKEN_PATH, or from "
    "~/.ray/auth_token, and must be the cluster's; and this machine must belong to the cluster "
    "(ray start --address)."
)


def connect(settings: ComputeSettings) -> Any:
    """Connect this process with the cluster once, and return the library.

    Raises:
        ExtraError: Ray is not installed.
        ClusterError: no Ray answers at the address in time, or it does not let us in, or the job
            would bring code into the cluster.
    """
    # Before Ray reads it. With another mode in the environment the owner of the cluster has chosen.
    if os.environ.setdefault(AUTH_MODE, "token") != "token":
        log.warning(
            "%s is %s: whoever reaches this cluster runs code as the silo. Set it to token on every "
            "machine.",
            AUTH_MODE,
            os.environ[AUTH_MODE],
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with needs("ray", what=WHAT):
        import ray
    if ray.is_initialized():
        return ray
    where = settings.address or "this machine"
    if settings.address:
        check_answers(settings.address, wait_s=settings.wait_s)
        how: dict[str, Any] = {"address": settings.address}
    else:
        how = _own_node(settings)
    with _Handlers(), _Connecting(where):
        ray.init(
            **how,
            namespace="clues",
            log_to_driver=False,
            configure_logging=False,
            ignore_reinit_error=True,
        )
    refuse_code(dict(ray.get_runtime_context().runtime_env))
    return ray


def check_answers(address: str, *, wait_s: float) -> None:
    """See that something at an address speaks as Ray does; Ray's own client would wait for minutes.

    Raises:
        ClusterError: nothing answers, or something else.
    """
    host, _, port = address.rpartition(":")
    advice = "Start the cluster (ray start --head), or mend compute.address."
    try:
        with socket.create_connection((host, int(port)), timeout=wait_s) as plain:
            plain.sendall(GREETING)
            head = b""
            while len(head) < FRAME_HEAD and (part := plain.recv(FRAME_HEAD - len(head))):
                head += part
    except TimeoutError:
        raise ClusterError(
            f"{address}: no Ray answers there within {wait_s:.0f} s. {advice}"
        ) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ClusterError(f"{address}: no Ray answers there ({reason}). {advice}") from None
    if len(head) < FRAME_HEAD or head[3] != SETTINGS_FRAME:
        raise ClusterError(f"{address}: what answers there is not Ray. {advice}")


def refuse_code(environment: dict[str, Any]) -> None:
    """Refuse a runtime environment that brings code into the cluster.

    Raises:
        ClusterError: it does.
    """
    if odd := sorted(set(environment) - HARMLESS):
        raise ClusterError(
            f"the Ray job that runs clues brings {', '.join(odd)} with it. Install clues on every "
            "machine of the cluster, and start it without a runtime environment."
        )


def _own_node(settings: ComputeSettings) -> dict[str, Any]:
    """How Ray is started on this machine: for this process, without a dashboard."""
    # Ray makes a token there that others could read.
    make_private_folder(Path.home() / ".ray")
    # Short, because sockets lie in it; private, because rows may be put aside in it.
    folder = tempfile.mkdtemp(prefix="clues-ray-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    n_workers = max(settings.workers, settings.train_workers)
    return {
        "address": "local",
        "num_cpus": n_workers * settings.cpus,
        "include_dashboard": False,
        "_temp_dir": folder,
    }


class _Handlers:
    """Keeps this program's own answers to signals, which Ray replaces when it starts."""

    def __enter__(self) -> None:
        self.before = {}
        if current_thread() is main_thread():
            self.before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class _Connecting:
    """Turns whatever Ray raises while it connects into one line: some of it is plain `Exception`."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, CluesError):
            raise ClusterError(
                f"{self.where}: Ray cannot be used ({first_line(error)}). {ACCESS}"
            ) from None


def error_of(kind: str, text: str) -> CluesError:
    """The error that a worker has met, by the name of its class; a plain one if it is none of ours."""
    found = getattr(errors, kind, ClusterError)
    return found(text) if issubclass(found, CluesError) else ClusterError(text)


def why_lost(error: Exception) -> str:
    """Why a worker is gone, as far as Ray knows; its own text is a page long and has no line to show."""
    if "OutOfMemory" in type(error).__name__ or "running low on memory" in str(error):
        return NO_MEMORY
    return type(error).__name__
