"""The public port: nginx, which passes what SuperNodes say and refuses everything else."""

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from clues.atomic import atomic_write_bytes, make_folder
from clues.network.children import Child, check_port_is_free
from clues.network.settings import CoordinatorSettings, is_loopback, split_address

TEMPLATE = "nginx.conf.j2"


def edge_configuration(settings: CoordinatorSettings, *, folder: Path | None) -> str:
    """The nginx configuration of a coordinator.

    Args:
        settings: the coordinator's file.
        folder: where an nginx of our own keeps its files; None for the machine's nginx, which
            takes only the `server` part.
    """
    source = files("clues") / "assets" / "network" / TEMPLATE
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(source.read_text(encoding="utf-8"))
    return (
        template.render(
            listen=settings.listens_at,
            name=split_address(settings.public)[0],
            superlink=settings.superlink,
            certificate=settings.certificate,
            key=settings.key,
            ca=settings.ca,
            folder=folder,
            # nginx of root works as another user, who must be able to write into its folder.
            user=getpass.getuser() if folder is not None and os.geteuid() == 0 else None,
        )
        + "\n"
    )


@contextmanager
def open_edge(settings: CoordinatorSettings, folder: Path) -> Iterator[None]:
    """Start an nginx for a coordinator, and end it in the end; none where the site has its own.

    Raises:
        NetworkError: no nginx, its port is taken, or it does not start.
    """
    if settings.edge == "own":
        yield
        return
    host, port = split_address(settings.listens_at)
    here = host if is_loopback(settings.listens_at) else "127.0.0.1"
    probe = here if host in ("0.0.0.0", "::") else host
    check_port_is_free(probe, port, what="the public port")
    place = folder.resolve() / "edge"
    make_folder(place / "temp")
    configuration = place / "nginx.conf"
    atomic_write_bytes(configuration, edge_configuration(settings, folder=place).encode())
    command = ["nginx", "-p", str(place), "-e", str(place / "error.log"), "-c", str(configuration)]
    with Child("the edge (nginx)", command, log=folder / "edge.log") as child:
        child.wait_for_port(probe, port, wait_s=settings.start_s)
        yield
