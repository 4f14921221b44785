"""Verbs of whole runs: demo, init, run, check, report."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from clues.cli import network
from clues.cli.calm import calm_libraries
from clues.cli.compare import seeds_of, show_comparison
from clues.cli.opening import open_for_verb, run_stage, say_where, show, show_path
from clues.cli.options import (
    BadRows,
    Changes,
    Config,
    Degenerate,
    Json,
    Map,
    Out,
    Quiet,
    SkipNonfinite,
    err,
    mapping_of,
    out,
)
from clues.config import BUILT_IN, load_config
from clues.errors import CluesError, UsageError
from clues.prepare.scaffold import Side
from clues.results.run import Results


def demo(
    folder: Annotated[Path, typer.Option("--out", help="Where data and run go.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Of data, training and threshold.")] = 42,
    data_only: Annotated[
        bool, typer.Option("--data-only", help="Write the rows and the configuration, and stop.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the whole method on five generated silos; needs no network and no GPU.

    Six to ten minutes on two cores. Data go to runs/demo/input, everything else beside them.
    """
    from clues.prepare.demo import write_demo

    path = write_demo(folder / "input", seed=seed)
    if data_only:
        show_path(path, "config", as_json=as_json)
        return
    from clues.pipeline import run_until

    config = load_config(path)
    err.print(
        "Five silos, questions in two languages, 80 / 50 / 40 / 20 / 10 % of the rows damaged.",
        highlight=False,
    )
    run = open_for_verb(config, folder, quiet=quiet)
    show(run_until(run).results, as_json=as_json)
    if not as_json:
        say_where(run, path)


def init(
    path: Annotated[Path, typer.Argument(metavar="[CLUES.YAML]", show_default=False)] = Path(
        "clues.yaml"
    ),
    silos: Annotated[
        list[str] | None,
        typer.Option(
            "--silo",
            metavar="NAME=FILE",
            help="Private rows of one owner; once for each. NAME:DOMAIN=FILE where there are "
            "several domains.",
        ),
    ] = None,
    public: Annotated[
        list[str] | None,
        typer.Option(
            "--public",
            metavar="[DOMAIN=]FILE",
            help="Checked rows, which somebody has found good (with several owners: public ones), dealt "
            "at random into validation and anchor rows; or VALIDATION,ANCHOR. Once for each domain.",
        ),
    ] = None,
    heldout: Annotated[
        Path | None, typer.Option("--heldout", help="Public test rows to compare models on.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Base model: built-in, a folder or a hub name."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", help="Experiments: column that is empty where a row is good."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Of the run. Default: the folder's name.")
    ] = None,
    side: Annotated[
        Side,
        typer.Option(
            "--for",
            help="all: everything on this machine. coordinator: without silos. silo: one silo's "
            "file alone.",
        ),
    ] = "all",
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="HOST:PORT",
            help="Where silos on other machines reach the coordinator. With --for silo, what clues join "
            "reads is written as well; with --for coordinator and a --silo NAME for each, what clues "
            "serve reads.",
        ),
    ] = None,
    columns: Map = None,
    as_json: Json = False,
) -> None:
    """Write a commented configuration for your own files; asks for what no option says.

    CLUES.YAML is where to write it (default: clues.yaml); each silo's own file goes beside it. No
    file is overwritten. One silo alone gets a configuration that cleans its rows and trains no
    joint model. Without a terminal nothing is asked:

    clues init --silo hospital-a=rows.jsonl --public checked.jsonl
    """
    from clues.prepare.interview import Flags, answers_of
    from clues.prepare.scaffold import FOR_SIDE, write_scaffold

    mapped = mapping_of(columns)
    if address is not None:
        _check_address(address)
    flags = Flags(
        path, side, name, silos or (), public or (), heldout, model, labels, mapped, address
    )
    answers = answers_of(flags, _ask if sys.stdin.isatty() else None)
    if answers.model != BUILT_IN and side != "silo":
        from clues.prepare.modelfit import fitted

        answers = fitted(answers)
    written = write_scaffold(answers)
    if as_json:
        out.print_json(json.dumps({"written": [str(file) for file in written]}))
        return
    for file in written:
        out.print(f"written: {file}", highlight=False, soft_wrap=True)
    if side == "all":
        out.print(f"Next: clues check {path}", highlight=False, soft_wrap=True)
    elif address is not None:
        out.print(
            f"Next: the keys, as {path.parent / FOR_SIDE[side]} says in its first lines.",
            highlight=False,
            soft_wrap=True,
        )


def _check_address(address: str) -> None:
    from clues.network.settings import split_address

    try:
        split_address(address)
    except ValueError as error:
        raise UsageError(f"--address: {error}") from None


def _ask(question: str, read: Callable[[str], Any], *, default: str = "") -> Any:
    """Ask on the terminal until the answer can be used."""

    def value(text: str) -> Any:
        try:
            return read(text.strip())
        except CluesError as error:
            raise typer.BadParameter(str(error)) from None

    return typer.prompt(question, default=default, show_default=bool(default), value_proc=value)


def run(
    config: Config,
    changes: Changes = None,
    folder: Out = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            metavar="0..4|1,2,7",
            help="Run once for each of these seeds, into FOLDER-seed-N, and compare the runs.",
        ),
    ] = None,
    as_json: Json = False,
    degenerate: Degenerate = False,
    skip_nonfinite: SkipNonfinite = False,
    quiet: Quiet = False,
) -> None:
    """Run everything; a run that was interrupted goes on where it stopped."""
    how = {"degenerate": degenerate, "skip_nonfinite": skip_nonfinite}
    if seeds is not None:
        _run_seeds(config, changes or (), folder, seeds, as_json=as_json, quiet=quiet, **how)
        return
    settings = load_config(config, changes=changes or ())
    opened = open_for_verb(settings, folder, quiet=quiet, **how)
    from clues.pipeline import run_until

    show(run_until(opened).results, as_json=as_json)
    if not as_json:
        # What is typed next has to mean the settings that were changed, too.
        resolved = opened.run_dir.root / "config.resolved.yaml"
        say_where(opened, resolved if changes else config)


def _run_seeds(
    config: Path,
    changes: Sequence[str],
    folder: Path | None,
    text: str,
    *,
    as_json: bool,
    quiet: bool,
    **how: bool,
) -> None:
    """One run for each seed, one after the other, and their comparison."""
    if any(change.partition("=")[0].strip() == "recipe.seed" for change in changes):
        raise UsageError("give recipe.seed or --seeds, not both.")
    found: list[Results] = []
    wanted = seeds_of(text)
    for n, seed in enumerate(wanted, 1):
        settings = load_config(config, changes=[*changes, f"recipe.seed={seed}"])
        root = folder or Path("runs") / settings.name
        place = root.with_name(f"{root.name}-seed-{seed}")
        if not quiet:
            err.print(f"Seed {seed}, {n} of {len(wanted)}: {place}", style="bold", highlight=False)
        opened = open_for_verb(settings, place, quiet=quiet, **how)
        from clues.pipeline import run_until

        results = run_until(opened).results
        assert results is not None
        found.append(results)
    show_comparison(found, as_json=as_json)


def check(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CLUES.YAML", help="The run's configuration.", show_default=False),
    ] = None,
    changes: Changes = None,
    as_json: Json = False,
    rows: Annotated[int, typer.Option(help="Rows to show with their loss mask.", min=0)] = 2,
    federation: Annotated[
        str | None,
        typer.Option(
            "--federation",
            metavar="COORD.YAML|HOST:PORT",
            help="Instead: look at a coordinator's public address from outside, and say who "
            "answers there.",
        ),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", help="With --federation HOST:PORT: its authority.")
    ] = None,
    bad_rows: BadRows = None,
) -> None:
    """Look at data, masks, lengths, overlaps and cost before anything heavy starts.

    Errors stop a run or make its figures worthless; notes may be meant. Rows are shown on this
    terminal only; --rows 0 shows none, and neither does --json.
    """
    if federation is not None:
        if config is not None:
            raise UsageError("give CLUES.YAML or --federation, not both.")
        network.check_federation(federation, ca=ca, as_json=as_json)
        return
    if config is None:
        raise UsageError("name the run's configuration: clues check CLUES.YAML")
    settings = load_config(config, changes=changes or ())
    calm_libraries()
    from clues.prepare.check import check_run
    from clues.prepare.checklist import print_check, write_bad_rows

    found = check_run(settings, n_shown=0 if as_json else rows)
    if bad_rows is not None:
        write_bad_rows(found.bad, bad_rows)
    if as_json:
        out.print_json(json.dumps(found.to_json()))
    else:
        print_check(found, out, command=f"clues run {config}")
    if found.errors:
        raise typer.Exit(3)


def report(config: Config, folder: Out = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Write results.json, results.md, report.html and every silo's private report again."""
    opened, _ = run_stage(config, folder, "report", quiet=quiet)
    for silo in opened.silos.values():
        silo.write_review()
    show_path(opened.run_dir.root / "report.html", "report", as_json=as_json)
