"""Who answers at a coordinator's public address, asked as a stranger would ask."""

import contextlib
import socket
import ssl
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clues.errors import NetworkError, UsageError
from clues.extras import needs
from clues.network import flower_inside
from clues.network.keys import trusting
from clues.network.settings import load_coordinator, split_address

with needs("httpx", what=flower_inside.WHAT):
    import httpx

WAIT_S = 10.0
# What a stranger may try, by interface; any answer of the SuperLink itself is one too many.
DOORS = {
    "Control": ("/v1/control/list-nodes",),
    "Runtime": ("/v1/runtime/acquire-task", "/v1/runtime/get-nodes"),
    "Registration": ("/v1/fleet/register-node",),
    "Documentation": ("/docs", "/openapi.json", "/health"),
}
FLEET = "/v1/fleet/pull-messages"


@dataclass(frozen=True)
class Probe:
    """What was found.

    Attributes:
        address: that was asked.
        encrypted: whether it speaks TLS, and with a certificate of the right authority.
        fleet: whether silos are answered.
        open_doors: interfaces that answer and must not.
    """

    address: str
    encrypted: bool
    fleet: bool
    open_doors: tuple[str, ...]

    @property
    def safe(self) -> bool:
        """Whether the address answers silos and nobody else."""
        return self.encrypted and self.fleet and not self.open_doors

    def lines(self) -> list[str]:
        """For the terminal."""
        said = {True: "answers", False: "does not answer"}
        lines = [f"{self.address}, asked from outside without a key:"]
        lines += [f"  TLS: {'yes' if self.encrypted else 'no'}"]
        lines += [f"  Fleet (for silos): {said[self.fleet]}"]
        lines += [f"  {name}: {said[name in self.open_doors]}" for name in DOORS]
        if self.open_doors:
            lines += [
                "Whoever reaches this address can use what answers: Control starts programs and has "
                "no login. Put the edge in front (clues edge), and let nobody past it."
            ]
        elif not self.encrypted:
            lines += ["Everything crosses unencrypted. Leave `insecure` out."]
        elif not self.fleet:
            lines += ["Silos cannot come in. Is `clues serve` running?"]
        else:
            lines += ["As it should be."]
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "open_doors": list(self.open_doors), "safe": self.safe}


def probe_target(target: str, *, ca: Path | None) -> Probe:
    """Probe HOST:PORT, or the public address in a coordinator's file.

    Raises:
        UsageError: it is neither.
        NetworkError: nobody listens, or the certificate is of another authority.
    """
    if Path(target).suffix in (".yaml", ".yml"):
        settings = load_coordinator(Path(target)).settings
        return probe(settings.public, ca=ca or settings.ca)
    try:
        split_address(target)
    except ValueError as error:
        raise UsageError(f"--federation: {error}, or be a coordinator's .yaml file.") from None
    return probe(target, ca=ca)


def probe(address: str, *, ca: Path | None) -> Probe:
    """Ask every interface at an address.

    Args:
        address: host and port.
        ca: of the coordinator's authority; None for those that this machine trusts.

    Raises:
        KeyFileError: the authority's certificate cannot be used.
        NetworkError: nobody listens, or the certificate is of another authority.
    """
    encrypted = _speaks_tls(address)
    verify: ssl.SSLContext | bool = trusting(ca) if ca else True
    scheme = "https" if encrypted else "http"
    with httpx.Client(
        base_url=f"{scheme}://{address}", verify=verify, timeout=WAIT_S, trust_env=False
    ) as client:
        try:
            doors = tuple(n for n, ways in DOORS.items() if any(_answers(client, w) for w in ways))
            fleet = _answers(client, FLEET)
        except httpx.ConnectError as error:
            reason = str(error)
            raise NetworkError(
                f"{address}: no connection ({reason}). A private authority's certificate goes with "
                "--ca ca.crt."
            ) from None
        except httpx.HTTPError as error:
            raise NetworkError(
                f"{address}: {type(error).__name__} while it was asked. Call the same command again; "
                "if it stays so, the coordinator's network/edge.log may say why."
            ) from None
    return Probe(address, encrypted, fleet, doors)


def _answers(client: httpx.Client, path: str) -> bool:
    """Whether the SuperLink itself answers: anything but the edge's refusal."""
    if path not in flower_inside.REQUESTS:
        return client.get(path).status_code not in (403, 404)
    reply = flower_inside.ask(client, path)
    ours = flower_inside.is_flowers_error(reply.text)
    return ours or reply.status_code not in (403, 404, 502, 503, 504)


def _speaks_tls(address: str) -> bool:
    """Whether there is TLS at all, whoever signed it."""
    host, port = split_address(address)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=WAIT_S) as plain,
            contextlib.suppress(ssl.SSLError, ConnectionError, TimeoutError),
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except OSError as error:
        raise NetworkError(
            f"{address}: nobody answers ({error.strerror or error}). Compare the address, and ask "
            "whether `clues serve` runs there."
        ) from None
    return False
