"""docs/results-json.md, made of the types of the results themselves: python -m docs.results_json."""

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, JsonValue

from clues.results.base import Figures
from clues.results.run import VERSION, Results
from docs.blocks import table

PAGE = Path(__file__).parent / "results-json.md"
_OPENING = f"""# results.json

Every run writes `results.json` into its folder when it ends, and `clues report` writes it again. The file holds what
the run found: aggregates, no row's text and no row's score. `results.md` and `report.html` are made of it.

`results_version` is the version of the format; this page is about version {VERSION}. It changes when a key goes or
means something else. A figure that was not measured is `null`. A key that is not always there is absent where
nothing is known. NAME stands for the name of an arm, a silo, a task and the like.

```python
from clues.results.run import Results

results = Results.load("runs/demo/results.json")
results.arms["clues"].heldout_loss
```

`clues.run` returns the same type. `Results.load` refuses a file that is broken or of another version. It says what is
wrong, where, and what to do. An absent key is `None` or empty there.

**Exact counts.** A silo that shares its diagnostics sends exact numbers of rows, and they stand in the file. The pages
round all numbers of rows to tens. Think of that before you pass the file on.

This page is made of the types' own explanations by `make reference`.
"""
_WORDS = {
    str: "text",
    int: "whole number",
    float: "number",
    type(None): "`null`",
}


def reference() -> str:
    """Return the page: one table per group of figures, in the order of the file."""
    return "\n".join([_OPENING, *_section(Results, "", {})])


def groups(
    model: type[BaseModel] = Results, path: str = ""
) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every group of figures with the keys that lead to it, depth first."""
    yield path or "the file", model
    for name, field in model.model_fields.items():
        for inner, steps in _within(field.annotation):
            yield from groups(inner, f"{path}.{name}{steps}".removeprefix("."))


def explanations(model: type[BaseModel]) -> dict[str, str]:
    """What a docstring's section Attributes says about each key."""
    _, _, section = inspect.cleandoc(model.__doc__ or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    for line in section.splitlines():
        if entry := re.match(r"    (\w+): (.*)", line):
            found[entry[1]] = entry[2]
        elif line.startswith(" " * 8) and found:
            name = next(reversed(found))
            found[name] = f"{found[name]} {line.strip()}"
    return found


def _section(model: type[BaseModel], path: str, seen: dict[type[BaseModel], str]) -> Iterator[str]:
    """The table of a group and of all groups inside it; `seen` says where a group stood before."""
    if path:
        yield f"## `{path}`\n"
        if model in seen:
            yield f"As in `{seen[model]}`.\n"
            return
        seen[model] = path
        summary = inspect.cleandoc(model.__doc__ or "").partition("\n\nAttributes:")[0]
        yield "\n\n".join(" ".join(part.split()) for part in summary.split("\n\n")) + "\n"
    said = explanations(model)
    rows = [
        (
            f"`{name}`",
            _kind(field.annotation),
            "yes" if field.is_required() else "no",
            said[name],
        )
        for name, field in model.model_fields.items()
    ]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    yield table(("key", "value", "always there", "meaning"), escaped) + "\n"
    for name, field in model.model_fields.items():
        for inner, steps in _within(field.annotation):
            yield from _section(inner, f"{path}.{name}{steps}".removeprefix("."), seen)


def _within(annotation: Any, steps: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    """Groups of figures inside an annotation, with the steps that lead there."""
    if isinstance(annotation, type) and issubclass(annotation, Figures):
        yield annotation, steps
        return
    origin = get_origin(annotation)
    is_mapping = isinstance(origin, type) and issubclass(origin, Mapping)
    added = ".NAME" if is_mapping else "[]" if origin is tuple else ""
    for inner in get_args(annotation):
        yield from _within(inner, steps + added)


def _kind(annotation: Any) -> str:
    """Possible values in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation == JsonValue:
        return "any value"
    if annotation in _WORDS:
        return _WORDS[annotation]
    if isinstance(annotation, type) and issubclass(annotation, Figures):
        return "see below"
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if origin in (Union, UnionType):
        return " or ".join(_kind(part) for part in parts)
    if origin is tuple and parts[-1] is Ellipsis:
        return f"list of {_kind(parts[0])}"
    if origin is tuple:
        kinds = list(dict.fromkeys(_kind(part) for part in parts))
        return (
            f"pair of {'s'.join(kinds)}s" if len(kinds) == 1 else f"pair of {' and '.join(kinds)}"
        )
    return f"by name, {_kind(parts[1])}"


def main() -> None:
    """Bring the page up to date."""
    PAGE.write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
