"""Whether a silo's own files are what it wrote, and fit the file of its rows as it is now.

What is damaged, missing, or made of another file is made again: the silo names in its answer to
hello the stage from which it has to be asked. It is asked the same as before, so that it answers
the same.
"""

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clues.errors import DataError
from clues.model.adapters import checkpoint_files, load_checkpoint
from clues.rundir import file_hash, hash_if_there, hash_of, read_record, write_record
from clues.silo.workspace import LEFT_OUT, Workspace

log = logging.getLogger("clues")
FILE = "files.json"
SCORES = ("scores.parquet", "anchors.json", "compared.json", "nonfinite.json", "weights.json")
TURNS = ("turns.parquet", "turn_anchors.json")  # beside the scores, where turns have their own
REVIEW = ("report.html", "card.md")
# Answers that are worthless once a stage has to be asked again.
ANSWERS = {
    "duplicates": ("sketch", "leave", "train", "score", "select", "evaluate"),
    "train": ("train", "score", "select", "evaluate"),
    "score": ("score", "select", "evaluate"),
    "select": ("select", "evaluate"),
}


def note(space: Workspace, stage: str, names: Iterable[str]) -> None:
    """Remember the files that a stage has just written.

    Args:
        space: of the silo.
        stage: score, select or review.
        names: of the files in `private`.
    """
    known = _read(space) or {}
    files = {name: file_hash(space.private / name) for name in names}
    known[stage] = {"of": selected_from(space), "files": files}
    write_record(space.private / FILE, known)


def selected_from(space: Workspace) -> str:
    """What kept rows, decisions and report are made of, beside the scores and the threshold."""
    agreed = space.settings.agreed()
    # Noise is in what was trained and told; which rows are above a threshold does not change with it.
    del agreed["privacy"]
    return hash_of([space.data_token(), space.source_hash(), agreed])


def first_to_repeat(space: Workspace, *, list_lost: bool = False) -> str:
    """The first stage that the silo has to be asked again; empty where all stands.

    What cannot be used any more is removed.

    Args:
        space: of the silo.
        list_lost: whether the list of the rows that another silo keeps is not here any more.
    """
    if list_lost:
        stage, why = "duplicates", f"{LEFT_OUT} is not what was written."
    else:
        stage, why = _first(space)
    if stage:
        log.warning("silo %s: %s Done again from %s on.", space.name, why, stage)
        for kind in ANSWERS[stage]:
            space.set_aside(kind)
    return stage


def _first(space: Workspace) -> tuple[str, str]:
    lost = _broken_trajectory(space)
    if lost is not None:
        shutil.rmtree(lost)
        return "train", "a checkpoint is not what training wrote."
    known = _read(space)
    if known is None:
        scored = (space.private / SCORES[0]).exists()
        return ("score", f"{FILE} is missing or damaged.") if scored else ("", "")
    for stage, repeat in (("score", "score"), ("select", "select"), ("review", "select")):
        if stage not in known:
            continue
        odd = [n for n, h in known[stage]["files"].items() if hash_if_there(space.private / n) != h]
        if odd:
            return repeat, f"{odd[0]} is not what was written."
    # Other rows are scored again anyway; here the rows are the same and what lies beside is not.
    selected = known.get("select")
    if selected and selected["of"] != selected_from(space):
        return "select", "its file of rows or its settings have changed."
    return "", ""


def _broken_trajectory(space: Workspace) -> Path | None:
    """A fold of the silo's own training that is finished and damaged."""
    recipe = space.recipe()
    if recipe.duplicates is not None and space.stored_left_out() is None:
        return None  # nothing can have been trained yet
    for fold in range(len(space.groups())) if not recipe.score.shared else ():
        folder = space.trajectory_folder(recipe, fold)
        if not (folder / "done").exists():
            continue
        n_found = len(list(folder.glob("checkpoint-*")))
        if n_found < recipe.train.checkpoints or any(
            not _stands(place) for place in folder.glob("checkpoint-*")
        ):
            return folder
    return None


def _stands(checkpoint: Path) -> bool:
    if not all(file.exists() for file in checkpoint_files(checkpoint)):
        return False
    try:
        load_checkpoint(checkpoint)
    except DataError:
        return False
    return True


def _read(space: Workspace) -> dict[str, Any] | None:
    path = space.private / FILE
    if not path.exists():
        return None
    try:
        return read_record(path, advice="Scores and selection are made again.")
    except DataError as error:
        log.warning("%s", error)
        return None
