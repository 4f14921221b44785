"""Repeat one of the paper's tables: python -m experiments NAME, from the root of the repository."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clues.cli.calm import calm_libraries
from clues.cli.options import Json, Quiet, err, out
from clues.cli.program import run_to_exit
from clues.errors import UsageError
from experiments.paper import experiment_tables
from experiments.rehearsal import rehearse
from experiments.spec import known_experiments, load_experiment
from experiments.stored import read_seed

HERE = Path(__file__).parent

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def experiment(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Its name; --list shows all.", show_default=False)
    ] = "",
    scale: Annotated[
        str, typer.Option(help="small (two cores), laptop (a published model) or real (GPUs).")
    ] = "small",
    seeds: Annotated[int, typer.Option(min=1, help="How many; 0, 1, 2 and so on.")] = 3,
    first_seed: Annotated[
        int, typer.Option(min=0, help="The first; others than those a choice was made on.")
    ] = 0,
    model: Annotated[
        str | None, typer.Option(help="Another base model: a folder or a hub name.")
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder of the data files.")] = Path("data"),
    recipes: Annotated[
        Path, typer.Option(help="Another folder of experiments.", show_default=False)
    ] = HERE,
    work: Annotated[Path, typer.Option(help="Where runs go, so that they can go on.")] = Path(
        "runs/experiments"
    ),
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Deal the rows, read all settings, and run nothing; needs no base model.",
        ),
    ] = False,
    show_list: Annotated[bool, typer.Option("--list", help="List the experiments.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Repeat one of the paper's tables, all arms and seeds; goes on where it stopped.

    NAME is one that --list shows. Figures go to the folder results of the experiment; make results
    puts them on the page of results.
    """
    if show_list or not name:
        for known in known_experiments(recipes):
            out.print(f"{known:<12} {load_experiment(known, recipes).title}", highlight=False)
        return
    spec = load_experiment(name, recipes)
    chosen = spec.scales.get(scale)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if chosen is None:
        known = ", ".join(spec.scales)
        raise UsageError(f"experiment {name} has no scale {scale!r}; it has {known}.")
    if check:
        for line in rehearse(chosen, data=data, seed=first_seed):
            out.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    calm_libraries()
    from clues.progress import Silent, Terminal
    from experiments.run import (  # torch takes seconds to import
        Plan,
        is_stored,
        require_model,
        run_seed,
    )

    runs = work / (spec.with_runs_of or name)
    plan = Plan(name, chosen, scale, model, data, runs, recipes / name / "results")
    require_model(plan)
    err.print(f"{spec.title}. Cost: {chosen.cost}.", highlight=False)
    chosen_seeds = range(first_seed, first_seed + seeds)
    for seed in chosen_seeds:
        is_stored(plan, seed)  # of other settings: better said before the first hour than after it
    files = [
        run_seed(plan, seed, progress=Silent() if quiet else Terminal(err)) for seed in chosen_seeds
    ]
    if as_json:
        stored = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        out.print_json(json.dumps(stored))
        return
    tables = experiment_tables([read_seed(file) for file in files])
    out.print("\n".join(tables), markup=False, highlight=False, soft_wrap=True)
    out.print(f"\nStored: {', '.join(str(f) for f in files)}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_to_exit(app, name="python -m experiments")
