"""Child processes that write to a log file and never outlive us."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from clues.atomic import OTHERS, make_folder, private_opener
from clues.errors import NetworkError

# Nothing is reported to anybody and nothing is installed while a run is under way.
FLOWER_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# A silo under a coordinator's direction asks no hub for anything, whatever it is told to open.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
STOP_S = 10.0
PR_SET_PDEATHSIG = 1


class Child:
    """One program under way."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it.

        Args:
            name: for messages.
            command: program and arguments.
            log: file that its output is added to.
            environment: variables beside our own.

        Raises:
            NetworkError: there is no such program.
        """
        self.name, self.log = name, log
        make_folder(log.parent)
        program = find_program(command[0])
        with open(log, "ab", opener=private_opener) as output:
            self.start = output.tell()
            self.process = subprocess.Popen(
                [program, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                # Ctrl-C at our terminal is for us; we end the child.
                start_new_session=True,
                # What it writes is a silo's or the coordinator's own: state, logs, copies of messages.
                umask=OTHERS,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it, whatever happened."""
        self.stop()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def output(self) -> str:
        """What it has said since this start."""
        with self.log.open("rb") as file:
            file.seek(self.start)
            return file.read().decode("utf-8", errors="replace")

    def stop(self) -> None:
        """Ask it to end, and end it after ten seconds."""
        if self.running:
            self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait_for_port(self, host: str, port: int, *, wait_s: float) -> None:
        """Wait until it listens.

        Raises:
            NetworkError: it ended, or does not listen in time.
        """
        end = time.monotonic() + wait_s
        while time.monotonic() < end:
            if not self.running:
                raise NetworkError(
                    f"{self.name} ended at its start. The end of its log says why: {self.log}"
                )
            with socket.socket() as probe:
                probe.settimeout(0.5)
                if probe.connect_ex((host, port)) == 0:
                    return
            time.sleep(0.1)
        raise NetworkError(
            f"{self.name} does not listen on {host}:{port} after {wait_s:.0f} seconds. The end of "
            f"its log may say why: {self.log}. On a busy machine, call the same command again."
        )


def find_program(name: str) -> str:
    """Path of a program, first among those that were installed with this Python.

    Raises:
        NetworkError: there is none.
    """
    beside = Path(sys.executable).parent / name
    # nginx lies in a folder that only root's PATH has.
    found = (
        str(beside)
        if beside.exists()
        else shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    )
    if found is None:
        raise NetworkError(
            f"there is no program {name!r} on this machine, neither beside {sys.executable} nor on "
            f"PATH. Install it, and call the same command again."
        )
    return found


def free_port() -> int:
    """A port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_port_is_free(host: str, port: int, *, what: str) -> None:
    """Refuse a port that somebody listens on.

    Raises:
        NetworkError: it is taken.
    """
    with socket.socket() as probe:
        probe.settimeout(1.0)
        if probe.connect_ex((host, port)) == 0:
            raise NetworkError(
                f"{what}: {host}:{port} is in use, perhaps by an earlier run. End that program, "
                "or name another port."
            )


def _end_with_parent() -> None:
    """Have the kernel end the child when we are killed and can end nobody any more."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
