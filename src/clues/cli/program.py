"""The command line: all verbs in one program, and how it ends."""

import sys

import typer

from clues.cli import audit, network, stages, whole
from clues.cli.options import err
from clues.errors import CluesError

app = typer.Typer(
    help=(
        "Select good instruction rows across data owners, with one threshold for all.\n\n"
        "New here? clues demo shows everything on generated rows, clues init writes a "
        "configuration for your own files, clues check looks at it, clues run runs it."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    suggest_commands=False,  # click suggests already
    context_settings={"help_option_names": ["-h", "--help"]},
)
WHOLE, STAGE, AUDIT = "Whole runs", "One stage (what it needs runs first)", "Audit"

for panel, verbs in (
    (WHOLE, (whole.demo, whole.init, whole.run, whole.check)),
    (STAGE, (stages.train, stages.score, stages.threshold, stages.select)),
    (STAGE, (stages.merge, stages.evaluate, stages.judge)),
    (WHOLE, (whole.report,)),
    (AUDIT, (audit.ledger, audit.approve, audit.version)),
    (network.PANEL, (network.serve, network.join, network.edge)),
):
    for verb in verbs:
        app.command(rich_help_panel=panel)(verb)
app.add_typer(network.keys, name="keys", rich_help_panel=network.PANEL)


def run_to_exit(program: typer.Typer, *, name: str) -> None:
    """Run a program; a user's error becomes one message and an exit code."""
    try:
        program(prog_name=name)
    except CluesError as error:
        err.print(f"{name}: {error}", markup=False, highlight=False, style="red", soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("Interrupted. The same command goes on where it stopped.", highlight=False)
        sys.exit(130)


def main() -> None:
    """Run a verb of `clues`."""
    run_to_exit(app, name="clues")
