"""One setting in place of a file's, as it is typed behind a command: `recipe.seed=1`."""

from typing import Any

import yaml

from clues.errors import UsageError
from clues.reading import visible


def apply_change(content: dict[str, Any], change: str) -> None:
    """Put a setting into the content of a configuration.

    A silo's settings are reached by its name: `silos.north.min_kept=9`.

    Raises:
        UsageError: not of this form, or the way leads through something that has no keys.
    """
    dotted, equals, text = change.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(
            f"{visible(change)[:80]!r} is no setting. Write it as recipe.seed=1, without spaces."
        )
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        value = text
    place: Any = content
    for done, key in enumerate(keys[:-1]):
        place = _inside(place, key, ".".join(keys[: done + 1]))
    if not isinstance(place, dict):
        raise UsageError(
            f"{'.'.join(keys[:-1])} has no keys, so {visible(dotted)[:80]} cannot be set."
        )
    place[keys[-1]] = value


def _inside(place: Any, key: str, dotted: str) -> Any:
    if isinstance(place, list):
        named = [entry for entry in place if isinstance(entry, dict) and entry.get("name") == key]
        if not named:
            known = ", ".join(str(e.get("name")) for e in place if isinstance(e, dict))
            raise UsageError(
                f"{visible(dotted)[:80]}: there is none of this name. There are: {known}."
            )
        return named[0]
    if not isinstance(place, dict):
        raise UsageError(f"{visible(dotted)[:80]} has no keys.")
    if place.get(key) is None:
        place[key] = {}
    return place[key]
