"""The configuration of one silo whose rows are the caller's: what `clues init` writes, and changes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from clues.api.rows import CONFIG, Given, plain_value, take_rows
from clues.atomic import atomic_write_bytes
from clues.config import BUILT_IN, Recipe, RunConfig, load_config, read_yaml
from clues.errors import ConfigError, DataError, UsageError
from clues.model.borrowed import BorrowedModel
from clues.prepare.modelfit import fitted
from clues.prepare.scaffold import Answers, PublicAnswer, SiloAnswer, check_model, write_scaffold
from clues.selection.units import MIN_ANCHORS


def take_all(
    rows: Any,
    public: Mapping[str, Any],
    folder: Path,
    *,
    name: str,
    domain: str,
    schema: str | None,
    columns: Mapping[str, str | None] | None = None,
) -> tuple[Given, Answers]:
    """Read rows and public sets, refuse what would make the figures worthless, write them.

    Raises:
        UsageError: the public sets are not named as they should be.
        DataError: too few of them, or rows that stand in two sets.
    """
    named = {n: value for n, value in public.items() if value is not None}
    if set(named) not in ({"validation", "anchors"}, {"checked"}):
        raise UsageError(
            "give validation and anchors, or checked alone: good rows that are dealt into the two. "
            f"Given: {', '.join(named) or 'neither'}."
        )
    given = take_rows(rows, "rows", folder, schema=schema, columns=columns, lenient=True)
    sets = {n: take_rows(value, n, folder, one_file=True) for n, value in named.items()}
    _check_sets(given, sets)
    first, *second = (Path(taken.file) for taken in sets.values())
    answer = PublicAnswer(domain, first, second[0] if second else None)
    silos = (SiloAnswer(name, given.file, domain),)
    return given, Answers(folder / CONFIG, "all", "score", silos, (answer,))


def take_rejected(rejected: Any, folder: Path) -> str | None:
    """Where rows lie that must not be; None without any.

    Raises:
        UsageError: of another type, or none.
        DataError: a row cannot be used.
    """
    if rejected is None:
        return None
    return str(take_rows(rejected, "rejected", folder, one_file=True).file)


def _check_sets(given: Given, sets: Mapping[str, Given]) -> None:
    measure = "checked" if "checked" in sets else "anchors"
    needed = MIN_ANCHORS * (2 if measure == "checked" else 1)
    judges = sets[measure]
    if judges.rows.n_rows < needed:
        raise DataError(
            f"{measure}: {judges.rows.n_rows} rows, and {needed} are needed at least; "
            "60 anchors or more give a steady threshold."
        )
    # A row that is its own anchor moves the threshold that judges it.
    for other in (given, *(taken for n, taken in sets.items() if n != measure)):
        there = set(other.ids)
        both = [n for n, id_ in enumerate(judges.ids) if id_ in there]
        if both:
            raise DataError(
                f"{measure}: {len(both)} of {judges.rows.n_rows} also stand in {other.name}, the "
                f"first is {measure}[{both[0]}]. Remove them from one of the two."
            )


def _scaffold_model(model: Any, recipe: Any) -> str:
    """The model for which `clues init` chooses its settings."""
    if isinstance(model, BorrowedModel):
        return "loaded"
    if model is not None:
        path = Path(model).expanduser()
        local = str(model) != BUILT_IN and path.exists()
        return check_model(str(path.resolve()) if local else str(model))
    own = recipe.model.name if isinstance(recipe, Recipe) else (recipe or {}).get("model", {})
    return str(own.get("name", BUILT_IN) if isinstance(own, Mapping) else own)


def configure(
    answers: Answers,
    *,
    model: Any,
    recipe: Recipe | Mapping[str, Any] | None,
    seed: int | None,
    rejected: str | None = None,
    schema: str | None,
    columns: Mapping[str, str | None] | None = None,
    compute: str | Mapping[str, Any] | None = None,
    findings: str | Mapping[str, str] = "set_aside",
) -> RunConfig:
    """What `clues init` writes for one silo, with the caller's settings over it.

    Raises:
        ConfigError: a setting is not known or out of range.
    """
    (silo,) = answers.silos
    base = model.model if isinstance(model, BorrowedModel) else None
    answers = fitted(replace(answers, model=_scaffold_model(model, recipe)), base)
    write_scaffold(answers)
    content = read_yaml(answers.path)
    own = read_yaml(answers.path.parent / f"{silo.name}.yaml")
    # Nothing leaves and nothing is trained on the kept rows: there is no number to guard.
    content["silos"] = [
        own
        | {
            "min_kept": 1,
            "findings": dict(findings) if isinstance(findings, Mapping) else findings,
            "schema": schema,
            "columns": dict(columns) if columns else None,
            "compute": dict(compute) if isinstance(compute, Mapping) else compute,
        }
    ]
    content["recipe"] = _recipe_content(content["recipe"], recipe)
    if rejected:
        (public,) = content["recipe"]["public"].values()
        public["reject"] = rejected
    wanted = content["recipe"]["model"]
    if isinstance(model, BorrowedModel):
        wanted |= {"name": model.name, "dtype": model.dtype, "files": None}
    elif model is not None:
        wanted |= {"name": answers.model, "files": None}
    if seed is not None:
        content["recipe"]["seed"] = seed
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    atomic_write_bytes(answers.path, text.encode())
    return load_config(answers.path)


def _recipe_content(
    start: dict[str, Any], recipe: Recipe | Mapping[str, Any] | None
) -> dict[str, Any]:
    if isinstance(recipe, Recipe):
        return {**recipe.model_dump(mode="json"), "public": start["public"]}
    if recipe is None:
        return start
    if not isinstance(recipe, Mapping):
        raise UsageError(
            f"recipe: type {type(recipe).__name__}. Give a dict of settings or a Recipe."
        )
    if "public" in recipe:
        raise ConfigError("recipe.public: here public rows come as validation and anchors.")
    return _overlaid(start, recipe, where="recipe")


def _overlaid(base: Mapping[str, Any], changes: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """`base` with `changes` over it, key by key.

    Raises:
        ConfigError: a value that no YAML holds.
    """
    result = dict(base)
    for key, value in changes.items():
        old, place = result.get(key), f"{where}.{key}"
        if isinstance(value, Mapping):
            result[key] = _overlaid(old if isinstance(old, Mapping) else {}, value, where=place)
            continue
        try:
            result[key] = plain_value(str(value) if isinstance(value, Path) else value)
        except TypeError:
            raise ConfigError(
                f"{place}: a value of type {type(value).__name__} is no setting."
            ) from None
    return result
