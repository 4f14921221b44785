"""The two short files: what `clues serve` and what `clues join` need to know. No Flower here."""

from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from clues.config import (
    Name,
    Seconds,
    Settings,
    SharedConfig,
    SiloSettings,
    load_shared,
    load_silo,
    read_yaml,
    validate,
)
from clues.config.loading import with_place
from clues.errors import ConfigError
from clues.reading import shown, status

SUPERLINK = "127.0.0.1:8000"


class CoordinatorSettings(Settings):
    """A coordinator, as `clues serve` reads it.

    Attributes:
        run: the run's file, without silos.
        public: host and port that silos connect to.
        silos: every expected silo and its public key: a file, or the line in it. Nobody else is
            asked, whoever connects. Without TLS, names alone.
        ca: certificate of the private authority (`clues keys ca`).
        certificate: of this coordinator, for the name in `public` (`clues keys server`).
        key: of that certificate.
        listen: address and port where the edge listens; null for all addresses of this machine
            and the port in `public`.
        edge: `nginx` starts one with a configuration made from this file; `own` leaves the public
            port to one that runs already (`clues edge` prints its configuration).
        superlink: where Flower's SuperLink listens, on loopback, behind the edge.
        insecure: neither TLS nor keys nor an edge; on loopback only, for a try.
        folder: where the run goes; null for runs/NAME beside this file.
        start_s: seconds that a program of ours may take to start.
    """

    run: Path
    public: str
    silos: dict[Name, str] | tuple[Name, ...]
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    listen: str | None = None
    edge: Literal["nginx", "own"] = "nginx"
    superlink: str = SUPERLINK
    insecure: bool = False
    folder: Path | None = None
    start_s: Seconds = 60.0

    @field_validator("public", "superlink", "listen")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is not None:
            split_address(value)
        return value

    @model_validator(mode="after")
    def _is_safe(self) -> "CoordinatorSettings":
        if not is_loopback(self.superlink):
            raise ValueError(
                "superlink must be on loopback, such as 127.0.0.1:8000: its port also answers "
                "whoever wants to start programs. Silos come through `public`"
            )
        if not self.names:
            raise ValueError("silos lists nobody. Name every silo that is expected")
        if self.insecure and not is_loopback(self.public):
            raise ValueError("insecure is for loopback. Off it, make keys (`clues keys --help`)")
        if self.insecure and self.public != self.superlink:
            raise ValueError("without TLS there is no edge: public and superlink must be the same")
        if not self.insecure and isinstance(self.silos, tuple):
            raise ValueError("silos must give each silo's public key: `NAME: NAME.pub`")
        missing = [name for name in ("ca", "certificate", "key") if getattr(self, name) is None]
        if not self.insecure and missing:
            raise ValueError(f"{missing[0]} is missing (`clues keys --help` says how to make it)")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the expected silos."""
        return tuple(self.silos)

    @property
    def listens_at(self) -> str:
        """Where the edge listens."""
        return self.listen or f"0.0.0.0:{split_address(self.public)[1]}"


class JoinSettings(Settings):
    """A silo, as `clues join` reads it.

    Attributes:
        coordinator: host and port of the coordinator's public address.
        silo: the silo's settings, here or in a file: name, data, domain and so on.
        folder: the silo's own folder; everything private stays in it.
        ca: certificate of the coordinator's private authority.
        key: this silo's node key (`clues keys node`).
        insecure: neither TLS nor key; on loopback only, for a try.
        refused_s: seconds to try again while the coordinator lets this silo not in. After a crash
            it takes a minute for the coordinator to see that the old connection is gone.
        allow_degenerate: accept a threshold that keeps nothing or everything.
    """

    coordinator: str
    silo: SiloSettings
    folder: Path
    ca: Path | None = None
    key: Path | None = None
    insecure: bool = False
    refused_s: Seconds = 150.0
    allow_degenerate: bool = False

    @field_validator("coordinator")
    @classmethod
    def _is_address(cls, value: str) -> str:
        split_address(value)
        return value

    @model_validator(mode="after")
    def _is_safe(self) -> "JoinSettings":
        if self.insecure and not is_loopback(self.coordinator):
            raise ValueError("insecure is for loopback. Off it, use the coordinator's ca and a key")
        missing = [name for name in ("ca", "key") if getattr(self, name) is None]
        if not self.insecure and missing:
            raise ValueError(
                f"{missing[0]} is missing (`clues keys --help` says where it comes from)"
            )
        return self


class Coordinator(Settings):
    """A coordinator's file with what it names: paths made absolute, keys and run read."""

    settings: CoordinatorSettings
    run: SharedConfig
    keys: dict[str, str]
    folder: Path = Field(description="absolute")


def load_coordinator(path: Path) -> Coordinator:
    """Read a coordinator's file, and the files that it names.

    Raises:
        ConfigError: as for a run's file; or a key file is missing, or two silos have one key.
    """
    settings = validate(CoordinatorSettings, read_yaml(path), where=path.name)
    base = path.parent.resolve()
    for name in settings.names:
        validate(_Name, {"name": name}, where=f"{path.name}, silos")
    run = load_shared(base / settings.run)
    if (run.federation.quorum or 0) > len(settings.names):
        raise ConfigError(
            f"{settings.run.name}: federation.quorum exceeds the number of silos in {path.name}. "
            "Lower it, or list the silos that are missing."
        )
    keys = {}
    if isinstance(settings.silos, dict):
        keys = {n: _key_line(value, base, n, path) for n, value in settings.silos.items()}
    bare = [" ".join(line.split()[:2]) for line in keys.values()]
    if len(set(bare)) < len(bare):
        raise ConfigError(
            f"{path.name}: two silos have the same public key. Each makes its own, on its own "
            "machine, with `clues keys node`."
        )
    found = {k: _file(getattr(settings, k), base, path) for k in ("ca", "certificate", "key")}
    status(base / (settings.folder or Path("runs")), error=ConfigError)  # no folder has such a name
    folder = (base / (settings.folder or Path("runs", run.name))).resolve()
    return Coordinator(
        settings=settings.model_copy(update=found), run=run, keys=keys, folder=folder
    )


def load_join(path: Path) -> JoinSettings:
    """Read a silo's file for `clues join`.

    Raises:
        ConfigError: as for a silo's file; or a key or certificate is missing.
    """
    content = read_yaml(path)
    base = path.parent.resolve()
    silo: Any = content.get("silo")
    if isinstance(silo, str):
        content["silo"] = load_silo(base / silo).model_dump(by_alias=True)
    elif isinstance(silo, dict):
        local = base / str(silo.get("data", ""))
        # A name that is no file may still be a data set on a hub; reading it decides.
        if "data" in silo and (local.suffix or status(local, error=ConfigError)):
            silo = {**silo, "data": str(local)}
        content["silo"] = with_place(silo, base)
    settings = validate(JoinSettings, content, where=path.name)
    found = {k: _file(getattr(settings, k), base, path) for k in ("ca", "key")}
    status(base / settings.folder, error=ConfigError)  # a name that no folder can have
    return settings.model_copy(update={**found, "folder": (base / settings.folder).resolve()})


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or [IPv6]:PORT.

    Raises:
        ValueError: it is neither.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} must look like host:443")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError("an IPv6 address needs brackets, such as [::1]:443")
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Whether an address is on this machine and reachable from nowhere else."""
    host, _ = split_address(address)
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class _Name(Settings):
    name: Name


def _key_line(value: str, base: Path, silo: str, source: Path) -> str:
    """A public key's line, from a file unless it stands here."""
    if value.startswith("ecdsa-"):
        return value
    path = base / value
    if status(path, error=ConfigError) is None or not path.is_file():
        raise ConfigError(
            f"{source.name}: silos.{silo}: there is no file {shown(value)}. The silo makes it with "
            "`clues keys node` and sends it."
        )
    return path.read_text(encoding="utf-8", errors="replace").strip()


def _file(value: Path | None, base: Path, source: Path) -> Path | None:
    if value is None:
        return None
    status(base / value, error=ConfigError)  # a name that no file can have
    path = (base / value).resolve()
    if not path.is_file():
        raise ConfigError(
            f"{source.name}: {shown(value)}: there is no such file. `clues keys --help` says how to "
            "make keys and certificates."
        )
    return path
