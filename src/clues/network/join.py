"""A silo on a machine of its own: Flower's SuperNode as a child, and our worker beside it."""

import re
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from clues.atomic import make_private_folder
from clues.carriers.flower import make_client_app
from clues.errors import NetworkError
from clues.extras import needs
from clues.model.cache import ModelCache
from clues.network import flower_inside
from clues.network.children import FLOWER_ENVIRONMENT, Child, free_port
from clues.network.keys import check_private_key, trusting
from clues.network.secret import write_secret
from clues.network.settings import JoinSettings, split_address
from clues.network.worker import Worker
from clues.progress import Progress
from clues.silo.gate import Answer, Gate
from clues.silo.silo import Silo

with needs("flwr", what=flower_inside.WHAT):
    from flwr.app import Context
    from flwr.clientapp import ClientApp

REFUSED, AGAIN_S = "[code: 2004]", 5.0
# The last: from a port that answers to a connection that stands.
CONNECT_S, PORT_S, STANDS_S = 10.0, 60.0, 60.0
NODE = re.compile(r"SuperNode ID: (\d+)")


def join(
    settings: JoinSettings,
    *,
    progress: Progress,
    say: Callable[[str], None],
    going: Callable[[], bool] = lambda: True,
) -> None:
    """Answer the coordinator until somebody stops us.

    Args:
        settings: the silo's file.
        progress: where long steps report to.
        say: takes a line for the terminal.
        going: whether to go on; for tests.

    Raises:
        NetworkError: the coordinator refuses our key, or is not who it should be.
        KeyFileError: our key cannot be used.
    """
    if settings.key is not None and not settings.insecure:
        check_private_key(settings.key)
    folder = settings.folder / "network"
    make_private_folder(folder)
    app = make_client_app(_answering(settings, progress), lambda _: _errors(settings))
    say(f"Silo {settings.silo.name}: connecting to {settings.coordinator}.")
    refused_since: float | None = None
    while going():
        wait_for_coordinator(settings, say=say, going=going)
        started = time.monotonic()
        log = _connect_once(settings, app, folder, say=say, going=going)
        if not going():
            return
        if log is None:
            refused_since = None
            say("The connection ended; trying again.")
        else:
            refused_since = refused_since or started
            if time.monotonic() - refused_since > settings.refused_s:
                raise NetworkError(_why_refused(settings, log))
            say(f"{settings.coordinator} does not let this silo in yet; trying again.")
        time.sleep(AGAIN_S)


def _connect_once(
    settings: JoinSettings,
    app: ClientApp,
    folder: Path,
    *,
    say: Callable[[str], None],
    going: Callable[[], bool],
) -> Path | None:
    """Connect and answer until the SuperNode ends; its log, if it never got in."""
    secret_file, port = write_secret(folder), free_port()
    environment = {**FLOWER_ENVIRONMENT, "FLWR_HOME": str(folder / "flower")}
    with Child(
        "the SuperNode",
        _command(settings, secret_file, port),
        log=folder / "supernode.log",
        environment=environment,
    ) as node:
        node.wait_for_port("127.0.0.1", port, wait_s=PORT_S)
        secret = secret_file.read_bytes()
        told = _teller(settings.silo.name, say)
        worker = Worker(app, f"127.0.0.1:{port}", secret, _errors(settings), told)
        _work(worker, node, settings, say=say, going=going)
        return None if NODE.search(node.output()) else node.log


def _why_refused(settings: JoinSettings, log: Path) -> str:
    if REFUSED in log.read_text(encoding="utf-8", errors="replace"):
        return (
            f"{settings.coordinator} refuses this silo's key. It is not in the coordinator's "
            "file, or another process of this silo is connected with it. Send the coordinator the "
            f".pub file that belongs to {settings.key}, or end the other process."
        )
    return (
        f"{settings.coordinator} does not let this silo in. Ask whether `clues serve` runs there "
        "and names this silo, and compare the clocks: where they are five minutes apart, nobody is "
        f"let in. The end of this log may say more: {log}"
    )


def wait_for_coordinator(
    settings: JoinSettings, *, say: Callable[[str], None], going: Callable[[], bool]
) -> None:
    """Wait until the coordinator's port answers, and see that its certificate is the right one.

    Raises:
        KeyFileError: our copy of the authority's certificate cannot be used.
        NetworkError: the certificate was made by another authority or for another name.
    """
    host, port = split_address(settings.coordinator)
    context = trusting(settings.ca) if settings.ca and not settings.insecure else None
    told = False
    while going():
        try:
            with socket.create_connection((host, port), timeout=CONNECT_S) as plain:
                if context is not None:
                    _check_certificate(plain, host, context)
                return
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or error.reason or "no TLS"
            raise NetworkError(
                f"{settings.coordinator} is not the coordinator that {settings.ca} belongs to: "
                f"{reason}. Ask the coordinator for its ca.crt, and compare the address."
            ) from None
        except OSError as error:
            if not told:
                say(f"{settings.coordinator}: not reachable yet ({error.strerror or error}).")
            told = True
            time.sleep(AGAIN_S)


def _check_certificate(plain: socket.socket, host: str, context: ssl.SSLContext) -> None:
    with context.wrap_socket(plain, server_hostname=host):
        pass


def _answering(settings: JoinSettings, progress: Progress) -> Callable[[bytes, Context], bytes]:
    """Our answer to a message's bytes; silo and model stay in memory between messages."""
    cache, compute = ModelCache(), settings.silo.compute
    device = compute.device if compute else "auto"

    def open_silo() -> Answer:
        return Silo(
            settings.silo,
            settings.folder,
            load_model=partial(cache.load, device=device),
            progress=progress,
            allow_degenerate=settings.allow_degenerate,
        ).answer

    gate = Gate(settings.silo.name, settings.folder, open_silo)
    return lambda data, _: gate.answer(data)


def _work(
    worker: Worker,
    node: Child,
    settings: JoinSettings,
    *,
    say: Callable[[str], None],
    going: Callable[[], bool],
) -> None:
    """Answer messages as long as the SuperNode lives."""
    told, started = False, time.monotonic()

    def go_on() -> bool:
        nonlocal told
        if not told and NODE.search(node.output()):
            say(f"{settings.silo.name}: connected to {settings.coordinator}. Ctrl-C ends it.")
            told = True
        stuck = not told and time.monotonic() - started > STANDS_S
        return node.running and not stuck and going()

    try:
        worker.run(go_on)
    except flower_inside.CallError:
        # It ended under our hands; its log says why, and it is started again.
        node.stop()


def _command(settings: JoinSettings, secret_file: Path, port: int) -> list[str]:
    command = ["flower-supernode", "--superlink", settings.coordinator]
    command += ["--isolation", "process", "--superexec-auth-secret-file", str(secret_file)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    if settings.insecure:
        return [*command, "--insecure"]
    command += ["--root-certificates", str(settings.ca)]
    return [*command, "--auth-supernode-private-key", str(settings.key)]


def _errors(settings: JoinSettings) -> Path:
    return settings.folder / "private" / "errors.log"


def _teller(name: str, say: Callable[[str], None]) -> Callable[[str, float], None]:
    return lambda kind, seconds: say(f"{name}: answered {kind} in {seconds:.1f} s")
