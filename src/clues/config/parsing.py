"""From a file of YAML to plain values, bounded before they are built."""

from pathlib import Path
from typing import Any

import yaml

from clues.errors import ConfigError
from clues.reading import Unreadable, check_depth, read_text, visible

MAX_BYTES = 1_000_000  # of a file of settings; a thousand silos take 200 kB
MAX_EVENTS = 100_000  # pieces that the parser finds in it
MAX_DEPTH = 50
MAX_REFERENCES = 200  # uses of anchors; each copies what it names
# The C parser is thirty times faster where it is installed; both read the same language.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_plain_yaml(path: Path, *, where: str) -> Any:
    """Read a file of YAML into plain values.

    Args:
        path: a plain file.
        where: what to call it in errors.

    Raises:
        ConfigError: it cannot be read, is no YAML, too large, too deep, or has a key twice.
    """
    advice = "A configuration is smaller: did you mean another file?"
    text = read_text(path, limit=MAX_BYTES, advice=advice, error=ConfigError)
    try:
        return _parse(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        said = visible(str(getattr(error, "problem", None) or "cannot be read"))
        problem = f"not valid YAML: {said[:200]}"
    except Unreadable as error:
        line, problem = "", str(error)
    # An integer of thousands of digits, a thirteenth month.
    except (ValueError, OverflowError):
        line, problem = "", "a number or a date in it cannot be read"
    raise ConfigError(f"{where}{line}: {problem}.")


def _parse(text: str) -> Any:
    _check_events(text)
    loader = LOADER(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node)
        value = loader.construct_document(node)
    finally:
        loader.dispose()
    check_depth(value, max_depth=MAX_DEPTH, max_items=MAX_EVENTS)
    return value


def _check_events(text: str) -> None:
    """Depth and number of pieces, without building anything: building calls itself."""
    depth = n_references = 0
    for n_events, event in enumerate(yaml.parse(text, Loader=LOADER)):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        n_references += isinstance(event, yaml.AliasEvent)
        if depth > MAX_DEPTH:
            raise Unreadable(f"nested more than {MAX_DEPTH} deep")
        if n_events > MAX_EVENTS:
            raise Unreadable(f"more than {MAX_EVENTS:,} values")
        if n_references > MAX_REFERENCES:
            raise Unreadable(f"more than {MAX_REFERENCES} references (*name)")
        if getattr(event, "tag", None) is not None:
            raise Unreadable("values with a tag (!) are not read; write them plainly")


def _check_nodes(root: Any) -> None:
    """No key twice, and no merging (<<), which copies copies of copies."""
    seen: set[int] = set()
    left = [root]
    while left:
        node = left.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            left += node.value
            continue
        keys: set[str] = set()
        for key, value in node.value:
            left += [key, value]
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.tag == "tag:yaml.org,2002:merge":
                raise Unreadable("merging with << is not read; write the keys out")
            if key.value in keys:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark
                )
            keys.add(key.value)
