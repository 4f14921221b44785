"""The same question in several silos: what a silo tells of its questions, and which rows it leaves out.

Who has the shared key can test whether a silo has a question. The coordinator has not, and without
it a sketch only shows how alike two questions are. Rows that are left out stay in the file and in
its announced number; they neither train nor are scored nor kept.
"""

from pathlib import Path

import torch

from clues.config import Recipe
from clues.data.rowskey import read_rows_key
from clues.data.sketches import (
    key_token,
    padded,
    question_of,
    random_order,
    random_sketches,
    run_key,
    sketch,
)
from clues.errors import ConfigError, DataError
from clues.rundir import write_record
from clues.silo.counts import told_of_left_out
from clues.silo.crowd import secret_seed
from clues.silo.questions import Questions
from clues.silo.workspace import LEFT_OUT, Workspace
from clues.wall.messages import LeaveReply, LeaveRequest, SketchReply, SketchRequest


def check_duplicates(space: Workspace, recipe: Recipe) -> None:
    """Whether the silo can do what a recipe says about the same question in several silos.

    Raises:
        ConfigError: the silo asks for privacy, names no key, or the key cannot be used.
    """
    if recipe.duplicates is None:
        return
    if space.settings.privacy is not None:
        raise ConfigError(
            f"silo {space.name}: recipe.duplicates compares the questions of single rows, and "
            "privacy does not account for that. Leave one of the two out."
        )
    shared_key(space, recipe.hash)


def shared_key(space: Workspace, recipe_hash: str) -> bytes:
    """The key for this recipe, made of the one that silos share.

    Raises:
        ConfigError: the silo's file names none.
        KeyFileError: it is missing, weak, or open to others.
    """
    path = space.settings.duplicates_key
    if path is None:
        raise ConfigError(
            f"silo {space.name}: the recipe looks for the same question in several silos "
            "(recipe.duplicates), and this silo has no key for it. Set duplicates_key in the silo's "
            "file to a key that the silos share and the coordinator does not have (clues keys rows "
            "FILE makes one)."
        )
    return run_key(read_rows_key(Path(path)), recipe_hash)


def key_mark(space: Workspace) -> str:
    """Changes with the shared key; for the names of stored answers, which never leave the silo."""
    return space.token(shared_key(space, space.recipe().hash).hex())


def sketch_questions(space: Workspace, request: SketchRequest) -> SketchReply:
    """A sketch of each different question, among random ones, in an order of the silo's own.

    Raises:
        CluesError: the key or the rows cannot be used.
    """
    recipe = space.recipe()
    assert recipe.duplicates is not None
    key, questions = shared_key(space, request.recipe_hash), _questions(space)
    n = padded(len(questions))
    found = random_sketches(n, _own_seed(space)).copy()
    # In place of a question without usable rows stays a random sketch: how many rows are usable
    # depends on the recipe, and how many questions there are must not.
    usable = [i for i, rows in enumerate(questions.values()) if rows]
    texts = list(questions)
    asked = [texts[i] for i in usable]
    found[usable] = sketch(asked, key, similarity=recipe.duplicates.similarity)
    shuffled = found[random_order(n, _own_seed(space))]
    content = torch.from_numpy(shuffled.astype("<u4").view("u1").reshape(n, -1))
    return SketchReply(
        recipe_hash=recipe.hash, key_token=key_token(key), sketches={"sketches": content}
    )


def leave_out(space: Workspace, request: LeaveRequest) -> LeaveReply:
    """Leave out the rows behind these handles.

    Raises:
        DataError: a handle was never sent or comes twice, or more rows would go than the silo
            allows, or too few would be left.
    """
    behind = _behind_handles(space)
    handles = request.handles
    if len(set(handles)) < len(handles) or not all(0 <= h < len(behind) for h in handles):
        raise DataError(
            f"silo {space.name}: the coordinator names sketches that this silo has not sent, or one "
            "twice. It runs another program."
        )
    rows = sorted(row for handle in handles for row in behind[handle])
    n_usable, limit = len(space.usable().rows), space.settings.max_duplicates
    if len(rows) > limit * n_usable:
        raise DataError(
            f"silo {space.name}: {len(rows)} of {n_usable} usable rows would be left out because "
            f"their question is said to stand in other silos, and max_duplicates is {limit:g}. "
            "Raise it in the silo's file if the silos do hold so many equal questions."
        )
    if rows and n_usable - len(rows) < space.fewest_kept():
        raise DataError(
            f"silo {space.name}: without {len(rows)} rows whose question is said to stand in other "
            f"silos, fewer than the {space.fewest_kept()} that min_kept asks for would be left."
        )
    made_of = {"recipe": request.recipe_hash, "rows": space.data_token()}
    write_record(space.private / LEFT_OUT, {**made_of, "left": rows})
    for name in ("left_out", "encoded"):
        space.memory.pop(name, None)
    told = told_of_left_out(space, len(rows))
    return LeaveReply(recipe_hash=request.recipe_hash, n_left_out=told)


def list_is_lost(space: Workspace) -> bool:
    """Whether the coordinator has said which rows to leave out, and the list is not here any more."""
    recipe = space.recipe()
    if recipe.duplicates is None or not Questions(space).has_asked(recipe.hash, LeaveRequest.kind):
        return False
    return space.stored_left_out() is None


def _questions(space: Workspace) -> dict[str, list[int]]:
    """Usable rows by question, for all rows that ask something."""
    usable = {row.row for row in space.usable().rows}
    found: dict[str, list[int]] = {}
    for sample in space.rows().samples:
        if question := question_of(sample):
            rows = found.setdefault(question, [])
            rows += [sample.row] if sample.row in usable else []
    return found


def _behind_handles(space: Workspace) -> list[list[int]]:
    """Rows behind every handle; none behind a random sketch."""
    rows = list(_questions(space).values())
    n = padded(len(rows))
    rows += [[] for _ in range(n - len(rows))]
    return [rows[place] for place in random_order(n, _own_seed(space))]


def _own_seed(space: Workspace) -> bytes:
    """Of the order and of the random sketches: nobody else can know it, and it can be had again."""
    seed = secret_seed(space, "sketches", space.recipe().hash, space.data_token())
    return seed.to_bytes(32, "big")
