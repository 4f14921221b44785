"""The verb that puts a joint adapter on a model hub."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clues.cli.options import Json, out


def push(
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="A finished run's folder.")],
    repo: Annotated[
        str, typer.Option("--repo", metavar="OWNER/NAME", help="Where to, on the Hugging Face hub.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody read it. Else it is private.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Upload. Without it this only shows what would be.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put the joint adapter and its card on the Hugging Face hub; nothing does so by itself.

    Three files are uploaded: weights, their configuration and the card. No row, score or reply of a silo
    is among them; but weights can give text away, so the owners of the rows should agree first:

    clues push runs/demo --repo our-lab/joint-adapter
    """
    from clues.coordinator.push import FILES, parcel
    from clues.coordinator.push import push as upload

    found = parcel(folder, repo)
    seen = "everybody can read it" if public else "private"
    sizes = {name: len(data) for name, data in found.content.items()}
    if not as_json:
        out.print(f"To {repo} ({seen}):", highlight=False, soft_wrap=True)
        for name, size in sizes.items():
            text = f"  {name}  {size / 1000:,.1f} kB  {FILES[name]}"
            out.print(text, highlight=False, soft_wrap=True)
        base = found.base_model or "not named"
        text = f"Base model {base}, license {found.license}."
        out.print(text, highlight=False, soft_wrap=True)
    said = {"repo": repo, "public": public, "files": sizes, "url": None}
    if not yes:
        if as_json:
            out.print_json(json.dumps(said))
            return
        out.print("Nothing was uploaded. To do it, add --yes.", highlight=False)
        return
    place = upload(found, public=public)
    if as_json:
        out.print_json(json.dumps({**said, "url": place}))
        return
    out.print(f"Uploaded: {place}", highlight=False, soft_wrap=True)
