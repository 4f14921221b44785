"""docs/configuration.md, made of the settings themselves: python docs/reference.py > FILE."""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from clues.config import RunConfig, Settings, SiloSettings
from clues.network.settings import CoordinatorSettings, JoinSettings

_OPENING = """# Configuration

There are two kinds of file. `clues.yaml` holds what all silos share, and the other settings of a run. A silo's
own file holds what never leaves it. Whatever can change a score or the threshold is in `recipe`; the public rows
are in it by the hash of their bytes. The recipe's hash travels with every message. On separate machines two
short files more say who talks to whom ([deployment.md](deployment.md)).

`clues init` writes a first pair of files. An unknown key is an error and comes with a suggestion;
`null` means off; paths start at the file that names them; every run writes
`config.resolved.yaml`, which can be run again.

A meaning with the word *Experimental* is that of a setting that no experiment here has shown to help. It may
change, or go.

This page is made of the settings' own explanations by `make reference`.
"""
# Every file that a user writes: its name in headings, and what reads it.
FILES: dict[str, type[Settings]] = {
    "clues.yaml": RunConfig,
    "A silo's file": SiloSettings,
    "The coordinator's file, for `clues serve`": CoordinatorSettings,
    "A silo's file, for `clues join`": JoinSettings,
}


def reference() -> str:
    """Return the page: one table per group of settings, in the order of the file."""
    parts = [_OPENING]
    for title, model in FILES.items():
        parts.append(f"## {title}\n")
        parts += _section(model, "")
    return "\n".join(parts)


def explanations(model: type[BaseModel]) -> dict[str, str]:
    """What a docstring's section Attributes says about each setting, bases included."""
    found: dict[str, str] = {}
    for parent in reversed([c for c in model.__mro__ if issubclass(c, Settings)]):
        text = inspect.cleandoc(parent.__dict__.get("__doc__") or "")
        _, marker, section = text.partition("Attributes:\n")
        for line in section.splitlines() if marker else ():
            if entry := re.match(r"    (\w+): (.*)", line):
                found[entry[1]] = entry[2]
            elif line.startswith(" " * 8) and found:
                name = next(reversed(found))
                found[name] = f"{found[name]} {line.strip()}"
    return found


def models() -> dict[str, type[BaseModel]]:
    """Every group of settings, by its key in the file, depth first."""
    found: dict[str, type[BaseModel]] = {}
    for title, model in FILES.items():
        found[title] = model
        found |= dict(_inner_models(model, ""))
    return found


def _section(model: type[BaseModel], path: str) -> Iterator[str]:
    if path:
        yield f"### `{path}`\n"
    summary = inspect.cleandoc(model.__doc__ or "").split("\n\nAttributes:")[0]
    yield _markdown(summary) + "\n"
    yield _table(model) + "\n"
    for key, inner in _children(model, path):
        # A silo's settings have their own chapter.
        if inner not in FILES.values():
            yield from _section(inner, key)


def _inner_models(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    for key, inner in _children(model, path):
        if inner not in FILES.values():
            yield key, inner
            yield from _inner_models(inner, key)


def _children(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Groups of settings directly below this one, with the key that leads there."""
    seen: set[type[BaseModel]] = set()
    for name, field in model.model_fields.items():
        for annotation, steps in _within(field.annotation, ""):
            if annotation not in seen:
                seen.add(annotation)
                yield f"{path}.{field.alias or name}{steps}".removeprefix("."), annotation


def _within(annotation: Any, steps: str) -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, steps
        return
    origin = getattr(annotation, "__origin__", None)
    added = {dict: ".NAME", tuple: "[]"}.get(origin, "") if isinstance(origin, type) else ""
    for inner in getattr(annotation, "__args__", ()):
        yield from _within(inner, steps + added)


def _table(model: type[BaseModel]) -> str:
    schema = model.model_json_schema(by_alias=False)
    said = explanations(model)
    lines = ["| setting | values | default | meaning |", "| :--- | :--- | :--- | :--- |"]
    for name, field in model.model_fields.items():
        kind = _kind(schema["properties"][name])
        shown = field.alias or name
        default = (
            "required"
            if field.is_required()
            else _default(field.get_default(call_default_factory=True))
        )
        cells = (f"`{shown}`", kind, default, _markdown(said.get(name, "")))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _kind(schema: Mapping[str, Any]) -> str:
    """Possible values in words."""
    if "anyOf" in schema:
        kinds = [_kind(one) for one in schema["anyOf"]]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in schema:
        return "settings"
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if values:
        return ", ".join(f"`{value}`" for value in values)
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        items = schema.get("items", {})
        return f"list of {_kind(items)}" if items else "list"
    if kind == "object":
        return f"mapping to {_kind(schema.get('additionalProperties', {}))}"
    if schema.get("format") in ("path", "file-path"):
        return "path"
    names = {
        "string": "text",
        "integer": "whole number",
        "boolean": "`true`, `false`",
        "null": "`null`",
    }
    return names.get(kind, kind) + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return f" {', '.join(found)}" if found else ""


def _default(value: Any) -> str:
    assert value is not PydanticUndefined
    if isinstance(value, BaseModel):
        return "see below"
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10_000)
    return f"`{text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}`"


def _markdown(text: str) -> str:
    """One paragraph of a docstring as Markdown."""
    return " ".join(text.split())


def main() -> None:
    """Write the page to the file that is named, or to stdout."""
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
    else:
        sys.stdout.write(reference())


if __name__ == "__main__":
    main()
