"""From plain values to settings, with an error that says which key is wrong; and back."""

from difflib import get_close_matches
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from clues.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], content: Any, *, where: str) -> Model:
    """Build a settings object, or say which key is wrong and what was probably meant.

    Raises:
        ConfigError: with one line per problem.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False, include_context=False)
    lines = [f"{where}: {_describe(model, problem)}" for problem in problems]
    raise ConfigError("\n".join(lines))


def dump_yaml(config: BaseModel) -> str:
    """Return settings as YAML that can be read again."""
    content = config.model_dump(mode="json", by_alias=True)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _describe(model: type[BaseModel], problem: Any) -> str:
    # A key may have come in a message: nothing of it may steer a terminal.
    keys = [str(part)[:200].encode("unicode_escape").decode() for part in problem["loc"]]
    dotted = ".".join(keys) or "the file"
    if problem["type"] == "extra_forbidden":
        close = get_close_matches(keys[-1], _known_keys(model, keys[:-1]), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"unknown key {dotted}.{hint}"
    if problem["type"] == "missing":
        return f"{dotted} is missing."
    return f"{dotted}: {problem['msg'].removeprefix('Value error, ')}."


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
