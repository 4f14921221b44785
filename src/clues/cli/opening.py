"""Open a run for a verb, take it to a stage, and say what came out and what to do next."""

import atexit
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from clues.cli.calm import calm_libraries
from clues.cli.options import err, out
from clues.config import RunConfig, SiloModel, load_config
from clues.results.run import Results


def open_for_verb(
    config: RunConfig,
    folder: Path | None,
    *,
    quiet: bool,
    degenerate: bool = False,
    skip_nonfinite: bool = False,
) -> Any:
    """Create or continue a run; a process that only helps to score does so, and ends here.

    Args:
        config: the run's.
        folder: its folder; None for runs/NAME.
        quiet: no progress on stderr.
        degenerate: accept a selection that keeps nothing or everything.
        skip_nonfinite: drop rows whose score is not finite.
    """
    root = folder or Path("runs") / config.name
    models = {silo.name: silo.model for silo in config.silos}
    team = team_for(root, models=models, device=config.compute.device)
    from clues.pipeline import open_run  # torch takes seconds to import
    from clues.progress import Silent, Terminal

    return open_run(
        config,
        root,
        progress=Silent() if quiet else Terminal(err),
        allow_degenerate=degenerate,
        skip_nonfinite=skip_nonfinite,
        team=team,
    )


def team_for(root: Path, *, models: Mapping[str, SiloModel | None], device: str = "auto") -> Any:
    """The processes that a launcher has started for a run; one that only helps to score ends here.

    Args:
        root: the run's folder.
        models: by silo, where its base model lies; the stored recipe says it for none.
        device: as `compute.device`.
    """
    from clues.silo.helpers import finish, help_scoring, team_of_environment

    team, local_rank = team_of_environment()
    calm_libraries()
    if team.rank > 0:
        help_scoring(root, team, models=models, local_rank=local_rank, device=device)
        raise typer.Exit
    if team.size > 1:
        atexit.register(finish, root)
    return team


def run_stage(config: Path, folder: Path | None, stage: str, **how: bool) -> tuple[Any, Any]:
    """Open the run of a configuration file and run all stages up to this one.

    Returns:
        The run, and what it has found so far.
    """
    run = open_for_verb(load_config(config), folder, **how)
    from clues.pipeline import run_until

    return run, run_until(run, stage)


def show(results: Results | None, *, as_json: bool) -> None:
    """Print a run's results as tables, or as JSON."""
    assert results is not None
    if as_json:
        out.print_json(json.dumps(results.to_json(), allow_nan=False))
        return
    from clues.report.terminal import print_table

    print_table(results, out)


def show_path(path: Path, what: str, *, as_json: bool) -> None:
    """Print where something lies, or the same as JSON under the name `what`."""
    if as_json:
        out.print_json(json.dumps({what: str(path)}))
    else:
        out.print(path, highlight=False, soft_wrap=True)


def say_where(opened: Any, config: Path) -> None:
    """Tell what to open next, and how to overrule rows."""
    from clues.report.terminal import print_next

    root = opened.run_dir.root
    if len(opened.silos) == 1:
        # Who has both sides may know how many they are; what is rounded above is for others.
        for silo in opened.silos.values():
            out.print(
                f"\nExactly, as on the private page: {silo.summary()}",
                highlight=False,
                soft_wrap=True,
            )
    print_next(root, list(opened.silos), out, program=program(), arguments=again(opened, config))


def again(opened: Any, config: Path) -> str:
    """What to type after a verb to mean the same run."""
    root, usual = opened.run_dir.root, Path("runs") / opened.config.name
    return str(config) if root == usual else f"{config} --out {root}"


def program() -> str:
    """This program as the user can type it: its name alone only where the shell finds it."""
    own = Path(sys.argv[0])
    if own.name == "__main__.py":
        return "clues" if shutil.which("clues") else "python -m clues"
    found = shutil.which("clues")
    if found and Path(found).resolve() == own.resolve():
        return "clues"
    return os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own)
