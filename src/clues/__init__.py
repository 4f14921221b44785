"""One quality bar for every silo: select instruction rows across data owners.

    found = clues.score(rows, validation=checked[:60], anchors=checked[60:])
    good = found.kept()

The names below are what the library promises. Each is imported when it is first asked for, so that
`import clues` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clues.api.found import Found
    from clues.api.joint import merge, run
    from clues.api.scoring import score, select
    from clues.config import Recipe, load_config
    from clues.data.formats import read_rows, write_rows
    from clues.errors import CluesError
    from clues.selection.threshold import Threshold

__version__ = "0.2.0.dev0"
__all__ = [
    "CluesError",
    "Found",
    "Recipe",
    "Threshold",
    "__version__",
    "load_config",
    "merge",
    "read_rows",
    "run",
    "score",
    "select",
    "write_rows",
]
_HOMES = {
    "CluesError": "clues.errors",
    "Found": "clues.api.found",
    "Recipe": "clues.config",
    "Threshold": "clues.selection.threshold",
    "load_config": "clues.config",
    "merge": "clues.api.joint",
    "read_rows": "clues.data.formats",
    "run": "clues.api.joint",
    "score": "clues.api.scoring",
    "select": "clues.api.scoring",
    "write_rows": "clues.data.formats",
}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'clues' has no attribute {name!r}")
    # Here: this module is imported for nothing but a name, and must cost nothing.
    from clues.imports import import_quietly

    return getattr(import_quietly(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
