"""Flower's SuperLink as a child: who may come, one run, and the grid that reaches the silos.

The run's program is this process. Flower's own way would send a packed app to every silo and run it
there; here an app of no content goes, and silos run nothing but what is installed with them.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clues.atomic import atomic_write_bytes, make_private_folder
from clues.errors import NetworkError
from clues.extras import needs
from clues.network import flower_inside
from clues.network.children import FLOWER_ENVIRONMENT, Child, check_port_is_free
from clues.network.keys import read_public_key
from clues.network.secret import write_secret
from clues.network.settings import Coordinator, split_address
from clues.rundir import hash_of

with needs("flwr", "httpx", what=flower_inside.WHAT):
    import httpx

TASK_WAIT_S, TASK_POLL_S = 30.0, 0.2
# Requests to our own child, on this machine: who cannot get through now will not later.
PATIENCE_S = 30.0
APP = """
[project]
name = "clues"
version = "1.0.0"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "clues"

[tool.flwr.app.components]
serverapp = "clues.network.serve:none"
clientapp = "clues.network.worker:none"

[tool.flwr.app.config]
"""


@dataclass(frozen=True)
class SuperLink:
    """A SuperLink under way, and how to reach it.

    Attributes:
        child: its process.
        address: host and port on loopback.
        ca: of its certificate; None without TLS.
        secret: that only we and it know; without it nobody gets a task.
    """

    child: Child
    address: str
    ca: bytes | None
    secret: bytes

    def register(self, keys: Mapping[str, str]) -> dict[str, int]:
        """Let these keys in, and return the silos' node ids.

        Raises:
            KeyFileError: not a key.
            NetworkError: the SuperLink refuses one.
        """
        wanted = {name: read_public_key(line, silo=name) for name, line in keys.items()}
        client = flower_inside.control_client(self.address, self.ca)
        known = flower_inside.known_nodes(client)
        for name, key in wanted.items():
            if key not in known:
                known[key] = flower_inside.register_node(client, key, name)
        client.close()
        return {name: known[key] for name, key in wanted.items()}

    @contextmanager
    def open_grid(self) -> Iterator[flower_inside.PatientGrid]:
        """Start a run whose program is this process, and close it in the end.

        Raises:
            NetworkError: the SuperLink gives us no task.
        """
        control = flower_inside.control_client(self.address, self.ca)
        files = {"pyproject.toml": APP.encode(), "app.py": b""}
        run_id = flower_inside.start_run(control, files)
        control.close()
        token = self._acquire(run_id)
        with flower_inside.open_grid(self.address, self.ca, token, patience_s=PATIENCE_S) as grid:
            completed = False
            try:
                yield grid
                completed = True
            finally:
                if self.child.running:
                    flower_inside.end_run(grid, completed=completed)

    def _acquire(self, run_id: int) -> str:
        """The token of our run's task; tasks of other runs are left to die."""
        client = flower_inside.task_client(self.address, self.ca, secret=self.secret)
        end = time.monotonic() + TASK_WAIT_S
        try:
            while time.monotonic() < end:
                token, of_run = flower_inside.take_task(client, flower_inside.SERVER_TASK)
                if token and of_run == run_id:
                    return token
                if not token:
                    time.sleep(TASK_POLL_S)
        finally:
            client.close()
        raise NetworkError(
            f"the SuperLink gave no task within {TASK_WAIT_S:.0f} s. The end of its log may say why: "
            f"{self.child.log}. The same command goes on where it stopped."
        )


@contextmanager
def open_superlink(coordinator: Coordinator, folder: Path) -> Iterator[SuperLink]:
    """Start a SuperLink for a coordinator, and end it in the end.

    Args:
        coordinator: its file.
        folder: for log, state and secret; not shown to anybody.

    Raises:
        NetworkError: its port is taken, or it does not start.
    """
    settings = coordinator.settings
    host, port = split_address(settings.superlink)
    check_port_is_free(host, port, what="superlink")
    make_private_folder(folder)
    forget_other_keys(folder, coordinator.keys)
    secret_file = write_secret(folder)
    command = ["flower-superlink", "--isolation", "process"]
    command += ["--superexec-auth-secret-file", str(secret_file)]
    command += ["--disable-runtime-dependency-installation"]
    command += ["--host", host, "--port", str(port), "--database", str(folder / "superlink.db")]
    if settings.insecure:
        command += ["--insecure"]
    else:
        command += ["--ssl-ca-certfile", str(settings.ca), "--ssl-certfile"]
        command += [str(settings.certificate), "--ssl-keyfile", str(settings.key)]
        command += ["--enable-supernode-auth"]
    environment = {**FLOWER_ENVIRONMENT, "FLWR_HOME": str(folder / "flower")}
    log = folder / "superlink.log"
    with Child("the SuperLink", command, log=log, environment=environment) as child:
        child.wait_for_port(host, port, wait_s=settings.start_s)
        ca = settings.ca.read_bytes() if settings.ca and not settings.insecure else None
        yield SuperLink(child, settings.superlink, ca, secret_file.read_bytes())


def forget_other_keys(folder: Path, keys: Mapping[str, str]) -> None:
    """Begin with an empty state where the coordinator's file has had other keys.

    A SuperLink that has shut a key out never takes it again, and one that has not lets it in.
    """
    digest, noted = hash_of(dict(keys)), folder / "keys.sha256"
    if noted.exists() and noted.read_text() == digest:
        return
    for old in folder.glob("superlink.db*"):
        old.unlink()
    atomic_write_bytes(noted, digest.encode())


def explain(error: httpx.HTTPError) -> NetworkError:
    """What a failed call to the SuperLink on this machine means."""
    if isinstance(error, httpx.HTTPStatusError):
        return NetworkError(
            f"the SuperLink refused {error.request.url.path} ({error.response.status_code}). The end "
            "of its log says why: network/superlink.log in the run's folder. The same command goes "
            "on where it stopped."
        )
    return NetworkError(
        "the SuperLink on this machine does not answer any more. Its log is in the run's folder, "
        "network/superlink.log. The same command goes on where it stopped."
    )
