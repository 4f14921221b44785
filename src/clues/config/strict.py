"""From plain values to settings, with an error that says which key is wrong; and back."""

from difflib import get_close_matches
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from clues.errors import ConfigError
from clues.reading import visible

MAX_SHOWN = 20
Model = TypeVar("Model", bound=BaseModel)


def validate(
    model: type[Model], content: Any, *, where: str, keys_are_public: bool = True
) -> Model:
    """Build a settings object, or say which key is wrong and what was probably meant.

    Args:
        model: of the settings.
        content: plain values.
        where: what to call them in errors.
        keys_are_public: whether an unknown key may be shown; in a file that quotes rows it may
            be a row's text.

    Raises:
        ConfigError: with one line per problem, at most twenty.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False, include_context=False)
    lines = [
        f"{where}: {_describe(model, problem, keys_are_public=keys_are_public)}"
        for problem in problems[:MAX_SHOWN]
    ]
    if len(problems) > MAX_SHOWN:
        lines.append(f"{where}: and {len(problems) - MAX_SHOWN} more.")
    raise ConfigError("\n".join(lines))


def dump_yaml(config: BaseModel) -> str:
    """Return settings as YAML that can be read again."""
    content = config.model_dump(mode="json", by_alias=True)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _describe(model: type[BaseModel], problem: Any, *, keys_are_public: bool) -> str:
    keys = [visible(str(part))[:80] for part in problem["loc"]]
    dotted = ".".join(keys) or "the file"
    if problem["type"] == "extra_forbidden":
        if not keys_are_public:
            place = ".".join(keys[:-1]) or "the file"
            return f"{place}: has an unknown key, which is not shown. Known: {', '.join(sorted(_known_keys(model, keys[:-1])))}."
        close = get_close_matches(keys[-1], _known_keys(model, keys[:-1]), n=1)
        known = sorted(set(_known_keys(model, keys[:-1])))
        hint = f" Did you mean {close[0]!r}?" if close else f" Known here: {', '.join(known)}."
        return f"unknown key {dotted}.{hint}"
    if problem["type"] == "missing":
        return f"{dotted} is missing."
    return f"{dotted}: {visible(problem['msg'].removeprefix('Value error, '))}."


def _known_keys(model: type[BaseModel], parents: list[str]) -> list[str]:
    """Keys allowed under a dotted path, found by walking the annotations."""
    models: list[Any] = [model]
    for key in parents:
        following: list[Any] = []
        for candidate in models:
            field = getattr(candidate, "model_fields", {}).get(key)
            inner = [field.annotation] if field else [candidate]
            following += _models_within(inner)
        models = following or models
    return [f.alias or name for m in models for name, f in getattr(m, "model_fields", {}).items()]


def _models_within(annotations: list[Any]) -> list[Any]:
    found: list[Any] = []
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        found += _models_within(list(getattr(annotation, "__args__", ())))
    return found
