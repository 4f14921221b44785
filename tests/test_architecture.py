"""The house rules that a reader cannot see in one file: who imports whom, and what nobody does."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import clues

SOURCE = Path(clues.__file__).parent
ROOT = Path(__file__).parent.parent
# A module may import what stands before it, its own group included, and nothing after.
LAYERS = (
    ("errors", "extras", "imports", "atomic", "printable", "reading"),
    ("config",),
    ("rundir", "progress", "underway"),
    # What a run found: read by all that come after it, and without torch.
    ("results",),
    ("data",),
    # What a reader sees in a text; no model, no torch.
    ("findings",),
    ("model",),
    ("selection",),
    ("scoring",),
    # A silo's own cluster, below the silo: it scores and trains, and knows no message.
    ("cluster",),
    ("evaluation",),
    # Below the silo: it writes its own private report, in whatever process it runs.
    ("report",),
    # Bytes, and who carries them; what they mean to a side is the side's own.
    ("wall",),
    # The two sides. Neither may import the other: the wall is kept by a test of its own.
    ("silo", "coordinator"),
    ("carriers",),
    ("collect", "pipeline", "whatif", "prepare"),
    ("api",),
    ("network",),
    ("cli", "__main__"),
)
# What a room may never reach, however many imports away. Planted breaches are found below.
NEVER = {
    "coordinator": ("silo",),
    "silo": ("coordinator",),
    "wall": ("silo", "coordinator", "carriers", "scoring", "network"),
    "scoring": ("silo", "coordinator", "wall"),
    "cluster": ("silo", "coordinator", "wall"),
    "selection": ("silo", "coordinator", "wall", "scoring"),
    "data": ("silo", "coordinator", "wall"),
    "findings": ("silo", "coordinator", "wall", "model", "scoring"),
    "model": ("silo", "coordinator", "wall"),
    "evaluation": ("silo", "coordinator", "wall"),
    "report": ("silo", "coordinator", "wall"),
}
WITHOUT_TORCH = (
    "errors",
    "reading",
    "printable",
    "config",
    "rundir",
    "underway",
    "selection.units",
    "selection.weighing",
    "selection.threshold",
    "selection.decisions",
    "prepare.facts",
    "results.run",
    "report.shared",
    "report.private",
    "wall.ledger",
    "data.formats",
    "findings.look",
    "data.damage",
    "prepare.checklist",
    "prepare.scaffold",
    "prepare.interview",
    "network.children",
    "network.settings",
    "network.keys",
    "network.edge",
    "cli.program",
    "cli.verbs",
)
EXPERIMENTS_WITHOUT_TORCH = ("spec", "rows", "partition", "stored", "statistics", "paper")


@cache
def modules() -> tuple[str, ...]:
    """Every module as a dotted name below clues, packages without their __init__."""
    names = [".".join(p.relative_to(SOURCE).with_suffix("").parts) for p in SOURCE.rglob("*.py")]
    return tuple(sorted(n for n in names if not n.endswith("__init__")))


CONFIG = frozenset(name for name in modules() if name.startswith("config."))


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((SOURCE / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))


def every_node() -> Iterator[tuple[str, ast.AST]]:
    """Every piece of every module's text, with the module."""
    return ((module, node) for module in modules() for node in ast.walk(tree(module)))


@cache
def imports(module: str) -> frozenset[str]:
    """Modules of this package that a module imports, anywhere in its text."""
    known, found = set(modules()), set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("clues."):
            name = str(node.module).removeprefix("clues.")
            # The settings are one module to everyone else: what is in it is in all of it.
            found |= CONFIG if name == "config" else {name} & known
            found |= {f"{name}.{alias.name}" for alias in node.names} & known
        if isinstance(node, ast.Import):
            names = {alias.name.removeprefix("clues.") for alias in node.names}
            found |= names & known
    return frozenset(found)


@cache
def reachable(module: str) -> frozenset[str]:
    seen: set[str] = set()
    todo = [module]
    while todo:
        for name in imports(todo.pop()) - seen:
            seen.add(name)
            todo.append(name)
    return frozenset(seen)


def layer(module: str) -> int:
    group = module.split(".")[0]
    return next(n for n, groups in enumerate(LAYERS) if group in groups)


@pytest.mark.slow
def test_the_import_graph_is_read_at_all():
    assert len(modules()) > 30
    assert "errors" in imports("config.loading")
    assert "silo.silo" in reachable("pipeline")


def test_imports_point_down():
    for module in modules():
        upward = [name for name in imports(module) if layer(name) > layer(module)]
        assert not upward, f"{module} imports what stands above it"
        assert module not in reachable(module), f"{module} imports itself in a circle"


def imported(text: str, package: tuple[str, ...]) -> set[str]:
    """Everything of clues that a module's text imports, as dotted names below clues.

    Relative imports, imports of a package's name and imports by a string
    (`importlib.import_module("clues.silo")`) count like any other.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            parts = [*above, *(node.module.split(".") if node.module else ())]
            if not node.level:
                if parts[0] != "clues":
                    continue
                parts = parts[1:]
            name = ".".join(parts)
            found |= {name, *(f"{name}.{a.name}".strip(".") for a in node.names)}
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.startswith("clues.")]
            found |= {name.removeprefix("clues.") for name in names}
        elif isinstance(node, ast.Constant) and str(node.value).startswith("clues."):
            found.add(str(node.value).removeprefix("clues."))
    return found


@cache
def house() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Text and package of every module, packages included."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        found[name] = (path.read_text(encoding="utf-8"), parts[:-1])
    return found


@cache
def arrows() -> dict[str, set[str]]:
    return {name: imported(*content) & set(house()) - {name} for name, content in house().items()}


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def breaches(graph: dict[str, set[str]], start: str) -> list[str]:
    """What a module reaches and its room never may, however many imports away."""
    seen, todo = {start}, [start]
    while todo:
        for name in graph[todo.pop()] - seen:
            seen.add(name)
            todo.append(name)
    forbidden = [other for room in NEVER if within(start, room) for other in NEVER[room]]
    return sorted(n for n in seen if any(within(n, other) for other in forbidden))


def test_the_wall_holds_in_every_file():
    found = {module: breaches(arrows(), module) for module in house()}
    assert not {m: n for m, n in found.items() if n}, "they reach through the wall"


def test_nothing_in_the_package_needs_what_stays_in_the_checkout():
    beside = {"experiments", "benchmarks", "deploy", "docs", "examples", "tests"}
    for module, node in every_node():
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not {name.split(".")[0] for name in names} & beside, f"{module}: not in the wheel"


PLANTED = (
    ("coordinator", "from clues.silo.workspace import Workspace"),
    ("coordinator", "import clues.silo.questions"),
    ("coordinator", "from clues.silo import silo"),
    ("coordinator", "from clues import silo"),
    ("coordinator", "from ..silo import workspace"),
    ("coordinator", 'import importlib\nx = importlib.import_module("clues.silo.workspace")'),
    ("coordinator", "from clues.pipeline import Run"),
    ("silo", "from clues.coordinator.desk import Desk"),
    ("silo", "def f():\n    from clues.coordinator import coordinator"),
    ("wall", "from clues.silo.gate import Gate"),
    ("wall", "from clues.coordinator.exchange import Exchange"),
    ("scoring", "from clues.wall.messages import TrainReply"),
)


@pytest.mark.parametrize(("room", "line"), PLANTED)
def test_a_planted_import_through_the_wall_is_found(room, line):
    for module in (m for m in house() if within(m, room)):
        planted = imported(line, house()[module][1]) & set(house()) - {module}
        graph = {**arrows(), module: arrows()[module] | planted}
        assert breaches(graph, module), f"planted in {module}: not found"


# What Flower documents; everything else of it is its inside.
OF_FLOWER = {
    *("flwr.app", "flwr.common", "flwr.simulation", "flwr.clientapp", "flwr.clientapp.mod"),
    *("flwr.serverapp", "flwr.serverapp.strategy"),
}


def inside_of_flower(text: str) -> list[str]:
    """What a module's text uses of Flower's inside, and of other objects' underscored names."""
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr":
            private = [a.name for a in node.names if a.name.startswith("_")]
            # `from flwr import proto` and `from flwr.app import message` lead inside as well.
            deep = [a.name for a in node.names if node.module == "flwr" or a.name.islower()]
            found += private + deep + [str(node.module)] * (node.module not in OF_FLOWER)
        elif isinstance(node, ast.Import):
            found += [
                a.name for a in node.names if {"flwr", a.name} <= {a.name.split(".")[0], a.name}
            ]
        elif isinstance(node, ast.Constant) and re.match(r"flwr\.\w", str(node.value)):
            found += [str(node.value)] * (str(node.value) not in OF_FLOWER)
        elif isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            found += [] if own else [ast.unparse(node)]
    return found


@pytest.mark.parametrize(
    "module", [m for m in modules() if m.startswith(("network.", "carriers."))]
)
def test_one_module_knows_flowers_inside(module):
    found = inside_of_flower(house()[module][0])
    assert bool(found) == (module == "network.flower_inside"), f"move to flower_inside: {found}"


def test_no_other_room_knows_flower_at_all():
    for module, (text, _) in house().items():
        if not module.startswith(("network", "carriers")):
            assert not re.search(r"^\s*(import|from) flwr\b", text, re.MULTILINE), module


@pytest.mark.parametrize(
    "line",
    [
        "from flwr.supercore.control import ControlHttpClient",
        "from flwr.common.serde import run_from_proto",
        "from flwr.proto import control_pb2",
        "from flwr import supercore",
        "from flwr.app import message",
        "import flwr.superlink.grid",
        'import importlib\nx = importlib.import_module("flwr.supercore")',
        "def f(grid):\n    return grid._runtime_client",
    ],
)
def test_a_planted_use_of_flowers_inside_is_found(line):
    assert inside_of_flower(line), "not found"


def test_only_the_silo_looks_at_labels():
    judges_of_labels = {"evaluation.detection", "evaluation.compare"}
    readers = {m for m in modules() if judges_of_labels & imports(m)}
    assert readers - judges_of_labels == {"silo.silo", "silo.evaluate", "silo.review"}
    judges = ("scoring.", "model.", "selection.", "coordinator.", "wall.")
    judges += ("silo.train", "silo.score", "silo.select")
    for module in (m for m in modules() if m.startswith(judges)):
        names = {n.id for n in ast.walk(tree(module)) if isinstance(n, ast.Name)}
        names |= {n.attr for n in ast.walk(tree(module)) if isinstance(n, ast.Attribute)}
        # `labelled`: whether the configuration names labels at all, which is no label.
        assert not {n for n in names - {"labelled"} if "label" in n.lower()}, (
            f"{module} can see labels"
        )


@pytest.mark.slow
def test_the_reading_half_works_without_torch():
    names = [f"clues.{module}" for module in WITHOUT_TORCH]
    names += [f"experiments.{module}" for module in EXPERIMENTS_WITHOUT_TORCH]
    # One process for all: the first that brings torch is named, the others wait for it.
    # The hub's client reads HF_HUB_OFFLINE when it is imported; `clues join` sets it before.
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    bad = {'torch', 'huggingface_hub'} & set(sys.modules)\n"
        "    sys.exit(f'{name} imports {bad}') if bad else None\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_unpickles_and_nothing_swallows():
    forbidden = {("torch", "load"), ("np", "load"), ("numpy", "load")}
    unsafe = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for module, node in every_node():
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {a.name for a in node.names} | {str(getattr(node, "module", ""))}
            assert not names & unsafe, module
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in forbidden, module
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            assert caught not in ("Exception", "BaseException", "everything"), (module, caught)
            passed = all(isinstance(s, ast.Pass) for s in node.body)
            assert not passed, f"{module}: an error is swallowed"


def test_public_names_have_docstrings():
    for module in modules():
        for node in ast.iter_child_nodes(tree(module)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{module}.{node.name} has no docstring"
        assert ast.get_docstring(tree(module)), f"{module} has no docstring"


def readme_tree() -> dict[str, list[str]]:
    """Modules by room as the README's tree lists them; rooms in its order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text[text.index("\nsrc/clues/\n") :].split("\n", 2)[2]
    found: dict[str, list[str]] = {"": []}
    rooms: list[str] = []
    room = ""
    for line in block[: block.index("\ntests/")].splitlines():
        depth, content = len(line) - len(line.lstrip()), line.split()
        if content[0].endswith("/"):
            rooms = [*rooms[: depth // 2 - 1], content[0].rstrip("/")]
            room = ".".join(rooms)
            _, colon, names = line.partition(": ")
            found[room] = names.split() if colon else []
        elif depth == 2:
            found[room := ""] += content
        else:
            found[room] += content
    return found


def test_the_readme_tree_is_the_code():
    if not (ROOT / "README.md").exists():
        pytest.skip("the README is not beside the tests")
    listed = readme_tree()
    assert listed.pop("assets") == []
    code: dict[str, list[str]] = {}
    for module in modules():
        room, _, name = module.rpartition(".")
        code.setdefault(room, []).append(name)
    assert {r: sorted(n) for r, n in listed.items()} == {r: sorted(n) for r, n in code.items()}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    top = set(re.findall(r"^([a-z.]+)/", text[text.index("## Files") :], re.MULTILINE))
    known = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if known.returncode == 0:
        assert top == {f.split("/")[0] for f in known.stdout.splitlines() if "/" in f}
