"""The verbs of separate machines: serve, join, keys, edge."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from clues.cli.calm import calm_libraries
from clues.cli.terminal import Shown
from clues.errors import UsageError
from clues.network.children import FLOWER_ENVIRONMENT, OFFLINE

PANEL = "Separate machines"
out, err = Shown(), Shown(stderr=True)
keys = typer.Typer(
    help="Make a private authority, the coordinator's certificate, node keys, and a rows key.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Folder = Annotated[Path, typer.Option("--out", help="Where the files go.")]


def serve(
    config: Annotated[Path, typer.Argument(metavar="COORD.YAML", help="The coordinator's file.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run everything with silos on other machines; an interrupted run goes on where it stopped.

    COORD.YAML names the run's file, the public address, and each expected silo with its public
    key. Nobody else is asked, whoever connects. docs/deployment.md goes through it step by step.
    """
    from clues.network.settings import load_coordinator

    coordinator = load_coordinator(config)
    _calm_flower()
    from clues.network.serve import serve as serve_run
    from clues.progress import Silent, Terminal
    from clues.report.terminal import print_table

    progress = Silent() if quiet else Terminal(err)
    results = serve_run(coordinator, progress=progress, say=_sayer(quiet=quiet))
    if as_json:
        out.print_json(json.dumps(results.to_json(), allow_nan=False))
        return
    print_table(results, out)
    out.print(f"\nReport: {coordinator.folder / 'report.html'}", highlight=False, soft_wrap=True)


def join(
    config: Annotated[Path, typer.Argument(metavar="SILO.YAML", help="The silo's file.")],
    quiet: Quiet = False,
) -> None:
    """Take part in runs as one silo, on the machine where its rows lie; Ctrl-C ends it.

    SILO.YAML names the coordinator, its certificate, this silo's key, its rows and its folder. One
    connection goes out; nothing has to come in.
    """
    # Before any library that reads them. Nobody but the coordinator is asked for anything.
    os.environ.update(OFFLINE)
    from clues.network.settings import load_join

    settings = load_join(config)
    _calm_flower()
    from clues.network.join import join as join_run
    from clues.progress import Silent, Terminal

    progress = Silent() if quiet else Terminal(err)
    try:
        join_run(settings, progress=progress, say=_sayer(quiet=quiet))
    except KeyboardInterrupt:
        err.print(f"{settings.silo.name}: ended.", highlight=False)


def edge(
    config: Annotated[Path, typer.Argument(metavar="COORD.YAML", help="The coordinator's file.")],
) -> None:
    """Print the nginx configuration of the public port, for an nginx that runs already.

    Then set `edge: own` in COORD.YAML. Without it, `clues serve` starts an nginx by itself.
    """
    from clues.network.edge import edge_configuration
    from clues.network.settings import load_coordinator

    settings = load_coordinator(config).settings
    if settings.insecure:
        raise UsageError(
            f"{config.name}: insecure is set, and without TLS there is no edge. Take insecure out, "
            "and name ca, certificate and key (clues keys --help)."
        )
    sys.stdout.write(edge_configuration(settings, folder=None))


@keys.command("ca")
def make_ca(folder: Folder = Path("keys"), as_json: Json = False) -> None:
    """Make a private authority: ca.crt for every silo, ca.key for a safe place."""
    from clues.network.keys import make_authority

    certificate, key = make_authority(folder)
    _show({"certificate": certificate, "key": key}, as_json=as_json)


@keys.command("server")
def make_server(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="Host names or addresses that silos connect to."),
    ],
    folder: Folder = Path("keys"),
    as_json: Json = False,
) -> None:
    """Make the coordinator's certificate, signed by the authority in the same folder.

    It holds for 397 days. NAME is the public host name or address, several if there are more.
    """
    from clues.network.keys import make_server_certificate

    certificate = make_server_certificate(folder, names, authority=folder)
    shown = {"certificate": certificate, "key": certificate.with_suffix(".key")}
    _show(shown, as_json=as_json)


@keys.command("node")
def make_node(
    name: Annotated[str, typer.Argument(metavar="SILO", help="The silo's name.")],
    folder: Folder = Path("keys"),
    as_json: Json = False,
) -> None:
    """Make a silo's key, on its own machine: SILO.pub goes to the coordinator, SILO.key nowhere.

    Compare the fingerprint with what `clues serve` shows, over another channel than the file.
    """
    from clues.network.keys import fingerprint, make_node_key, read_public_key

    private, public = make_node_key(folder, name)
    print_of = fingerprint(read_public_key(public.read_text(), silo=name))
    _show({"public": public, "key": private, "fingerprint": print_of}, as_json=as_json)


@keys.command("rows")
def make_rows(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the key goes.")],
    as_json: Json = False,
) -> None:
    """Make the key under which silos compare their questions; the coordinator must not have it.

    One silo makes it and gives it to the others, over a way that the coordinator cannot see.
    """
    from clues.data.rowskey import make_rows_key

    _show({"key": make_rows_key(file)}, as_json=as_json)


def check_federation(target: str, *, ca: Path | None, as_json: bool) -> None:
    """Look at a public address from outside, for `clues check --federation`."""
    _calm_flower()
    from clues.network.probe import probe_target

    found = probe_target(target, ca=ca)
    if as_json:
        out.print_json(json.dumps(found.to_json()))
    else:
        for line in found.lines():
            out.print(line, highlight=False, soft_wrap=True)
    if not found.safe:
        raise typer.Exit(8)


def _show(files: dict[str, Any], *, as_json: bool) -> None:
    shown = {name: str(value) for name, value in files.items()}
    if as_json:
        out.print_json(json.dumps(shown))
        return
    for name, value in shown.items():
        out.print(f"{name}: {value}", highlight=False, soft_wrap=True)


def _sayer(*, quiet: bool):
    def say(line: str) -> None:
        if not quiet:
            err.print(line, highlight=False, markup=False, soft_wrap=True)

    return say


def _calm_flower() -> None:
    """No telemetry, no update check, nothing of Flower's own talk."""
    os.environ.update(FLOWER_ENVIRONMENT)
    calm_libraries()
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    logging.getLogger("httpx").setLevel(logging.WARNING)
