"""Draw the rooms of the package, and count them, from its own imports: python -m docs.architecture.

Rewrites docs/images/architecture.svg and the table of rooms in docs/architecture.md. A room is a
folder of src/clues. One room has an arrow to another if one of its modules imports one of theirs.
"""

import ast
import re
from collections.abc import Mapping
from functools import cache
from html import escape
from pathlib import Path

from docs.blocks import table, write_block

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "clues"
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
NAME = "rooms"

RUN = "run"  # stands for the loose modules that put a run together
# Column, row and caption of every room in the picture; a place without a room stays empty.
PLACES: dict[str, tuple[float, float, str]] = {
    "cli": (1.0, 0, "the verbs"),
    "api": (2.4, 1, "import clues"),
    "network": (1.0, 1, "separate machines"),
    RUN: (1.0, 2, ""),  # its modules are named instead
    "carriers": (0.5, 3, "bring bytes across"),
    "silo": (0.0, 4, "may see rows"),
    "wall": (1.0, 4, "what crosses"),
    "coordinator": (2.0, 4, "never sees a row"),
    "prepare": (3.0, 3.5, "before a run"),
    "report": (0.0, 5, "pages for people"),
    "cluster": (1.0, 5, "a silo's own machines"),
    "evaluation": (2.0, 5, "is it better?"),
    "scoring": (2.0, 6, "a score per row"),
    "model": (1.0, 7, "trains and combines"),
    "selection": (2.0, 7, "threshold, decisions"),
    "findings": (0.0, 7, "what a reader sees"),
    "data": (1.0, 8, "rows in, tokens out"),
    "results": (0.0, 8, "what a run found"),
    "config": (2.0, 9, "settings"),
}
COLUMN, ROW, LEFT, TOP = 200, 92, 110, 56
WIDTH, HEIGHT = 156, 54  # of a box
STYLE = """
  text { font-family: system-ui, sans-serif; font-size: 12px; fill: #2b2f36; text-anchor: middle }
  .page { fill: #ffffff } .box { fill: #f3f4f7; stroke: #6b7280 }
  .name { font-size: 14px; font-weight: 600 }
  .arrow { stroke: #6b7280; stroke-width: 1.4; fill: none } .head { fill: #6b7280 }
  .private { fill: #fbe9e4 } .public { fill: #e3effb } .wall { stroke: #b4492f; stroke-width: 5 }
  .side { font-size: 12px; font-style: italic } .note { text-anchor: start }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e6ea } .page { fill: #1b1e24 } .box { fill: #2a2f38; stroke: #9aa3b2 }
    .arrow { stroke: #9aa3b2 } .head { fill: #9aa3b2 }
    .private { fill: #45281f } .public { fill: #1d3550 } .wall { stroke: #e2704f }
  }
"""


@cache
def imports() -> dict[str, set[str]]:
    """What each module imports of the package, as dotted names; an `__init__` is no module."""
    texts = {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in sorted(SOURCE.rglob("*.py"))
    }
    rooms = {name.split(".")[0] for name in texts if "." in name}
    known = {name for name in texts if not name.endswith("__init__")}
    found: dict[str, set[str]] = {}
    for name in sorted(known):
        named: set[str] = set()
        for node in ast.walk(ast.parse(texts[name])):
            if isinstance(node, ast.ImportFrom) and re.match(r"clues\b", node.module or ""):
                of = f"{node.module}.".removeprefix("clues.")
                named |= {of.rstrip(".")} | {f"{of}{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                named |= {a.name.removeprefix("clues.") for a in node.names if "." in a.name}
        # The name of a folder stays: a module may import what the folder itself offers.
        found[name] = {n for n in named if n in known | rooms} - {name}
    return found


def loose() -> dict[str, tuple[str, ...]]:
    """Modules in no room: the ground that all stand on, those that make a run, and the doors.

    The ground reaches no room but the settings. Nobody imports a door.
    """
    graph = imports()
    alone = [name for name in graph if "." not in name]
    imported = set().union(*graph.values())
    ground = [name for name in alone if _rooms_below(name, graph) <= {"config"}]
    others = [name for name in alone if name not in ground]
    return {
        "ground": tuple(ground),
        RUN: tuple(name for name in others if name in imported),
        "doors": tuple(name for name in others if name not in imported),
    }


def rooms() -> dict[str, tuple[str, ...]]:
    """Modules by room; `run` holds the loose ones that make a run."""
    found: dict[str, list[str]] = {RUN: list(loose()[RUN])}
    for name in imports():
        if "." in name:
            found.setdefault(name.split(".")[0], []).append(name)
    return {room: tuple(names) for room, names in sorted(found.items())}


def arrows() -> dict[str, set[str]]:
    """Rooms that each room imports."""
    home = {name: room for room, names in rooms().items() for name in names}
    home |= {room: room for room in rooms()}
    found: dict[str, set[str]] = {room: set() for room in rooms()}
    for name, named in imports().items():
        if name in home:
            found[home[name]] |= {home[n] for n in named if n in home} - {home[name]}
    return found


def drawn(graph: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Arrows that no chain of other arrows stands for."""
    return [
        (room, other)
        for room in sorted(graph)
        for other in sorted(graph[room])
        if not any(other in _below(step, graph) for step in graph[room] - {other})
    ]


def figures() -> str:
    """The table of rooms and a sentence of totals, in Markdown."""
    graph, kinds, order = arrows(), loose(), list(PLACES)
    rows = []
    for room, names in sorted(rooms().items(), key=lambda entry: order.index(entry[0])):
        title = f"`{room}/`" if room != RUN else "run: " + ", ".join(f"`{n}`" for n in names)
        below = ", ".join(sorted(graph[room])) or "none"
        rows.append((title, str(len(names)), _purpose(room), below))
    n_modules = len(imports())
    n_arrows = sum(len(others) for others in graph.values())
    heads = ("room", "modules", "what it is for", "rooms that it imports")
    listed = {k: ", ".join(f"`{n}`" for n in kinds[k]) or "none" for k in ("ground", "doors")}
    return f"""{table(heads, rows)}

The package has {n_modules} modules, {sum(map(len, rooms().values()))} of them in this table, and {n_arrows} arrows \
between its rooms. Every room also uses the ground: {listed["ground"]}. Modules that no other imports: {listed["doors"]}."""


def picture() -> str:
    """The rooms and the wall as SVG."""
    missing = set(rooms()) - set(PLACES)
    if missing:
        raise ValueError(f"docs/architecture.py: give {sorted(missing)} a place in PLACES.")
    graph = arrows()
    width, height = LEFT + 3 * COLUMN + LEFT, TOP + 9 * ROW + 60
    x, y = _centre("wall")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "<title>The rooms of clues, and the wall between silo and coordinator</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path class="head" d="M0 0L8 4L0 8z"/></marker></defs>',
        f'<rect class="page" width="{width}" height="{height}" rx="8"/>',
        _zone("private", "silo"),
        _zone("public", "coordinator"),
    ]
    parts += [_arrow(room, other) for room, other in drawn(graph)]
    parts.append(f'<path class="wall" d="M{x:g} {y - 62:g}V{y + 40:g}"/>')
    parts += [_box(room, len(names)) for room, names in rooms().items()]
    notes = (
        "An arrow: imports.",
        "An arrow that a chain of others",
        "stands for is left out.",
        "All rooms also use the ground:",
        " ".join(loose()["ground"]) + ".",
    )
    left, top = LEFT - WIDTH / 2, TOP + 6.9 * ROW
    parts += [
        f'<text class="note" x="{left:g}" y="{top + 17 * n:g}">{escape(note)}</text>'
        for n, note in enumerate(notes)
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _zone(side: str, room: str) -> str:
    """The ground of one side; its title stands where no arrow comes in."""
    x, y = _centre(room)
    outwards = -34 if side == "private" else 34
    return (
        f'<rect class="{side}" x="{x - 94:g}" y="{y - 58:g}" width="188" height="98" rx="8"/>'
        f'<text class="side" x="{x + outwards:g}" y="{y - 38:g}">the {side} side</text>'
    )


def _box(room: str, n_modules: int) -> str:
    x, y = _centre(room)
    name, caption = room, PLACES[room][2]
    if room == RUN:
        name, caption = "a whole run", ", ".join(loose()[RUN])
    unit = "module" if n_modules == 1 else "modules"
    return (
        f'<rect class="box" x="{x - WIDTH / 2:g}" y="{y - HEIGHT / 2:g}" width="{WIDTH}" '
        f'height="{HEIGHT}" rx="6"/><text class="name" x="{x:g}" y="{y - 9:g}">{name}</text>'
        f'<text x="{x:g}" y="{y + 6:g}">{escape(caption)}</text>'
        f'<text x="{x:g}" y="{y + 21:g}">{n_modules} {unit}</text>'
    )


def _arrow(room: str, other: str) -> str:
    """A straight line between two boxes, from edge to edge."""
    (x0, y0), (x1, y1) = _centre(room), _centre(other)
    dx, dy = x1 - x0, y1 - y0
    sides = (WIDTH / 2 / abs(dx) if dx else 1.0, HEIGHT / 2 / abs(dy) if dy else 1.0)
    near = min(sides)
    line = (x0 + near * dx, y0 + near * dy, x1 - near * dx, y1 - near * dy)
    return '<path class="arrow" marker-end="url(#head)" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>'.format(
        *line
    )


def _centre(room: str) -> tuple[float, float]:
    column, row, _ = PLACES[room]
    return LEFT + column * COLUMN, TOP + row * ROW


def _purpose(room: str) -> str:
    """The first sentence of a room's docstring; for loose modules, the first of theirs."""
    path = SOURCE / room / "__init__.py" if room != RUN else SOURCE / f"{loose()[RUN][0]}.py"
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"\.(?:\s|$)", said)[0]


def _below(room: str, graph: Mapping[str, set[str]]) -> set[str]:
    """Everything that is reached from a name, and not the name itself."""
    seen: set[str] = set()
    todo = [room]
    while todo:
        for name in graph.get(todo.pop(), set()) - seen:
            seen.add(name)
            todo.append(name)
    return seen


def _rooms_below(name: str, graph: Mapping[str, set[str]]) -> set[str]:
    below = _below(name, graph)
    return {n.split(".")[0] for n in below if "." in n or (SOURCE / n).is_dir()}


def main() -> None:
    """Bring picture and page up to date."""
    PICTURE.write_text(picture(), encoding="utf-8")
    write_block(PAGE, NAME, figures())


if __name__ == "__main__":
    main()
