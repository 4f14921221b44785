"""Two Ray nodes on one machine, as `ray start` makes them; each can be killed as a machine dies."""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

RAY = Path(sys.executable).with_name("ray")
START_S = 120


class Cluster:
    """A head, and nodes that join it."""

    def __init__(self, folder: Path) -> None:
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        source = str(Path(__file__).parent.parent / "src")
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": source,
        }

    @property
    def address(self) -> str:
        """Host and port of the head."""
        return f"127.0.0.1:{self.port}"

    def start(self, *, head: bool, cpus: int) -> None:
        """Start one node.

        Raises:
            RuntimeError: Ray gives up; on a busy machine its own time limits are too short.
        """
        where = ["--head", f"--port={self.port}"] if head else [f"--address={self.address}"]
        command = [str(RAY), "start", *where, f"--num-cpus={cpus}", "--disable-usage-stats"]
        command += ["--object-store-memory=100000000"]
        command += [f"--temp-dir={self.folder}"] if head else []
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=START_S
        )
        if done.returncode:
            said = (done.stdout + done.stderr).strip().splitlines()
            raise RuntimeError(
                f"Ray does not start on this machine now: {said[-1] if said else ''}"
            )

    def processes(self) -> dict[int, str]:
        """Command lines of what belongs to this cluster."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(self.folder) in text:
                found[int(path.parent.name)] = text
        return found

    def raylets(self) -> list[int]:
        """Process ids of the nodes, the head's first."""
        found = [(pid, text) for pid, text in self.processes().items() if "/raylet " in text]
        return [pid for pid, text in sorted(found, key=lambda f: "--head" not in f[1])]

    def kill_last_node(self) -> None:
        """All at once, as if the power went: its raylet and every process below it."""
        raylet = self.raylets()[-1]
        for pid in (raylet, *below(raylet)):
            os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Kill what is left of this cluster, and nothing else."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def below(pid: int) -> list[int]:
    """Children of a process, and theirs."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            found = re.match(r"(\d+) \(.*\) \S (\d+)", path.read_text(), re.DOTALL)
        except OSError:
            continue
        if found:
            parents[int(found[1])] = int(found[2])
    children = [child for child, parent in parents.items() if parent == pid]
    return [*children, *(p for child in children for p in below(child))]


@contextmanager
def cluster(*cpus: int) -> Iterator[Cluster]:
    """A head with the first number of CPUs, and a node for each further one."""
    # Sockets lie in it, whose paths may have a hundred characters.
    with tempfile.TemporaryDirectory(prefix="clr-", ignore_cleanup_errors=True) as folder:
        found = Cluster(Path(folder))
        try:
            for number, n in enumerate(cpus):
                found.start(head=number == 0, cpus=n)
            yield found
        finally:
            found.stop()
