"""The run that cleans one file: settings for the model at hand, and what there is to warn of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from clues.atomic import atomic_write_bytes, make_private_folder
from clues.config import BUILT_IN, Columns, LowTurn, RunConfig, TrainSettings, load_config
from clues.data.formats import RowFile, fitting, read_rows
from clues.data.roundtrip import characters_lost
from clues.errors import CluesError, UsageError
from clues.model.adapters import load_tokenizer
from clues.model.layers import suggested
from clues.prepare.athand import at_hand
from clues.prepare.modelfit import shape_of
from clues.prepare.scaffold import (
    ONE_DOMAIN,
    PublicAnswer,
    check_data,
    check_model,
    halves_of,
)
from clues.scoring.trajectory import n_train_steps

# A warm-up only has to be begun: adapters after 3 to 15 steps ranked rows as well as later ones, or
# better. These are 512 rows; without a limit the warm-up of a large file takes as long as its scores.
MOST_STEPS = 32
LOSSY = 0.01  # share of the characters from which a tokenizer is worth a word


def configure(
    rows: str,
    checked: Path,
    folder: Path,
    *,
    model: str,
    schema: str | None,
    columns: Columns | None = None,
    rejected: Path | None = None,
    low_turn: LowTurn | None = None,
) -> tuple[RunConfig, list[str]]:
    """Write the run's configuration for the model at hand, and what there is to warn of."""
    mapped = fitting(rows, columns) if Path(rows).exists() else columns
    if columns and not mapped and not fitting(checked, columns):
        named = ", ".join(str(column) for column in columns.values() if column)
        raise UsageError(f"--map: no file has all the columns {named}. Name columns of one file.")
    file = check_data(rows, columns, schema=schema)
    file = file or read_rows(rows, schema=schema, columns=columns, lenient=True)
    model = model if check_model(model) == BUILT_IN else _place(model)
    hand = at_hand(model)
    make_private_folder(folder)
    path = folder / "clues.yaml"
    public = halves_of(PublicAnswer(ONE_DOMAIN, checked, None), folder / "input", columns)
    theirs = fitting(checked, columns)
    built_in = model == BUILT_IN
    targets = "all-linear" if built_in else suggested(shape_of(model))
    recipe = {
        "model": {"name": model, "dtype": _dtype_of(path, model) or hand.dtype},
        "lora": {"target_modules": targets, **({"dropout": 0.0} if built_in else {})},
        "tokens": {"max_length": hand.max_length, "overlong": "truncate", "odd_turns": "fold"},
        "train": {"learning_rate": 2e-3 if built_in else 2e-4, **_steps(file.n_rows)},
        "public": {
            ONE_DOMAIN: {
                "validation": _named(public.validation, theirs),
                "anchor": _named(public.anchor or public.validation, theirs),
                **({"reject": _named(rejected, fitting(rejected, columns))} if rejected else {}),
            }
        },
    }
    if low_turn:
        recipe |= {"score": {"turns": True}, "threshold": {"low_turn": low_turn}}
    silo = {
        # Not the file's: that may be no name, and its order of rows would hang on it.
        "name": "rows",
        "data": str(Path(rows).resolve()) if Path(rows).exists() else rows,
        "domain": ONE_DOMAIN,
        "schema": schema,
        "columns": dict(mapped) if mapped else None,
        "findings": "set_aside",
        "cleans": Path(rows).name,
        # Nothing leaves and nothing is trained on the kept rows: there is no number to guard.
        "min_kept": 1,
        "max_selections": 1_000_000,
    }
    content = {"name": "clean", "recipe": recipe, "evaluate": {"arms": []}, "silos": [silo]}
    atomic_write_bytes(path, yaml.safe_dump(content, sort_keys=False).encode(), private=True)
    config = load_config(path)
    warned = _warnings(config, file, tight=hand.tight)
    if low_turn and not _has_chats(read_rows(checked, columns=theirs)):
        warned.append(
            "no checked row has several answers, and a later turn has read more than a first one: a low "
            "turn means little. Check chats, or leave --turns out."
        )
    return config, warned


def _dtype_of(path: Path, model: str) -> str | None:
    """The number type of a run that this one may go on with; None where there is none.

    Another machine, or less free memory, would take another one, and begin anew.
    """
    if not path.is_file():
        return None
    try:
        known = load_config(path).recipe.model
    except CluesError:
        return None  # a run that cannot be read is none to go on with
    return known.dtype if known.name == model else None


def _steps(n_rows: int) -> dict[str, int]:
    """A limit on the warm-up, for a file that would exceed it."""
    usual = n_train_steps(TrainSettings(), n_rows)
    return {"steps": MOST_STEPS} if usual > MOST_STEPS else {}


def _has_chats(rows: RowFile) -> bool:
    """Whether an assistant answers more than once in some row."""
    n_turns = ([m.role for m in sample.messages].count("assistant") for sample in rows.samples)
    return any(n > 1 for n in n_turns)


def _warnings(config: RunConfig, rows: RowFile, *, tight: bool) -> list[str]:
    model = config.recipe.model
    warned: list[str] = []
    if tight:
        warned.append(
            "the base model may not fit into the free memory, even with one row at a time. Close "
            "other programs, or take a smaller model."
        )
    if model.name == BUILT_IN:
        warned.append(
            "the built-in model is for trying things out, and judges only what it understands. Name "
            "your own with --model."
        )
    lost = characters_lost(load_tokenizer(model), rows.samples)
    if lost.share > LOSSY:
        signs = f", among them {' '.join(lost.signs)}" if lost.signs else ""
        warned.append(f"the tokenizer loses {lost.share:.0%} of the characters{signs}.")
    return warned


def _place(model: str) -> str:
    return str(Path(model).resolve()) if Path(model).exists() else model


def _named(file: Path, columns: Mapping[str, str | None] | None) -> Any:
    """A public file as a recipe names it."""
    place = str(file.resolve())
    return {"path": place, "columns": dict(columns)} if columns else place
