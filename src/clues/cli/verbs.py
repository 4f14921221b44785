"""The command line: all verbs in one program."""

from typing import Annotated

import typer

from clues import __version__
from clues.cli import audit, cleaning, network, stages, whole
from clues.cli.compare import compare
from clues.cli.options import out
from clues.cli.pairs import pairs
from clues.cli.push import push
from clues.cli.reviews import reviews

app = typer.Typer(
    help=(
        "Select good instruction rows across data owners, with one threshold for all.\n\n"
        "Rows to clean? clues clean rows.json --checked checked.json --model ./m --out cleaned\n\n"
        "New here? clues demo shows everything on generated rows, clues init writes a "
        "configuration for your own files, clues check looks at it, clues run runs it."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    suggest_commands=False,  # click suggests already
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(wanted: bool) -> None:
    if wanted:
        out.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def program(
    _: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_say_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Take what stands before a verb."""


WHOLE, STAGE, AUDIT = "Whole runs", "One stage (what it needs runs first)", "Audit"

ONE_FILE = "One file of rows"

for panel, verbs in (
    (ONE_FILE, (cleaning.clean, cleaning.sample)),
    (WHOLE, (whole.demo, whole.init, whole.run, whole.check)),
    (STAGE, (stages.train, stages.score, stages.threshold, stages.select)),
    (STAGE, (stages.merge, stages.evaluate, stages.judge)),
    (WHOLE, (whole.report, compare, reviews, pairs, push)),
    (AUDIT, (audit.status, audit.ledger, audit.approve, audit.version)),
    (network.PANEL, (network.serve, network.join, network.edge)),
):
    for verb in verbs:
        app.command(rich_help_panel=panel)(verb)
app.add_typer(network.keys, name="keys", rich_help_panel=network.PANEL)
