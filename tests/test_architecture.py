"""The house rules that a reader cannot see in one file: who imports whom, and what nobody does."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import clues

SOURCE = Path(clues.__file__).parent
ROOT = Path(__file__).parent.parent
# A module may import what stands before it, its own group included, and nothing after.
LAYERS = (
    ("errors", "atomic", "facts"),
    ("config",),
    ("rundir", "progress"),
    ("data",),
    ("model",),
    ("scoring",),
    ("units",),
    ("selection", "weighing"),
    ("evaluation",),
    # Below: a silo writes its own private report, in whatever process it runs.
    ("report",),
    ("federation",),
    (
        *("checklist", "scaffold", "interview", "check"),
        *("judging", "results", "pipeline", "whatif", "demo"),
    ),
    ("network",),
    ("reference",),
    ("experiment",),
    ("cli", "__main__"),
)
WITHOUT_TORCH = (
    "errors",
    "config",
    "rundir",
    "units",
    "weighing",
    "selection",
    "facts",
    "report.shared",
    "report.private",
    "federation.ledger",
    "data.formats",
    "data.damage",
    "data.controls",
    "data.partition",
    "checklist",
    "scaffold",
    "interview",
    "network.children",
    "network.settings",
    "network.keys",
    "network.edge",
    "experiment.spec",
    "experiment.rows",
    "experiment.statistics",
    "experiment.tables",
    "cli.program",
)


def modules() -> list[str]:
    """Every module as a dotted name below clues, packages without their __init__."""
    names = [".".join(p.relative_to(SOURCE).with_suffix("").parts) for p in SOURCE.rglob("*.py")]
    return sorted(n for n in names if not n.endswith("__init__"))


CONFIG = frozenset(name for name in modules() if name.startswith("config."))


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((SOURCE / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))


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


def reachable(module: str) -> set[str]:
    seen: set[str] = set()
    todo = [module]
    while todo:
        for name in imports(todo.pop()) - seen:
            seen.add(name)
            todo.append(name)
    return seen


def layer(module: str) -> int:
    group = module.split(".")[0]
    return next(n for n, groups in enumerate(LAYERS) if group in groups)


def test_the_import_graph_is_read_at_all():
    assert len(modules()) > 30
    assert "errors" in imports("config.loading")
    assert "federation.silo" in reachable("pipeline")


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module):
    upward = [name for name in imports(module) if layer(name) > layer(module)]
    assert not upward, f"{module} imports what stands above it"
    assert module not in reachable(module), f"{module} imports itself in a circle"


def test_silo_and_coordinator_do_not_know_each_other():
    assert "federation.silo" not in reachable("federation.coordinator")
    assert "federation.coordinator" not in reachable("federation.silo")


def test_only_the_silo_looks_at_labels():
    judges_of_labels = {"evaluation.detection", "evaluation.compare"}
    readers = {m for m in modules() if judges_of_labels & imports(m)}
    assert readers - judges_of_labels == {
        "federation.silo",
        "federation.diagnostics",
        "federation.review",
        "experiment.analysis",
    }
    judges = ("scoring.", "model.", "selection", "federation.trajectory", "federation.coordinator")
    judges += ("federation.comparison", "federation.scoring", "federation.decisions")
    judges += ("federation.desk", "federation.warmup", "federation.anchoring")
    judges += ("federation.learning",)
    for module in (m for m in modules() if m.startswith(judges)):
        names = {n.id for n in ast.walk(tree(module)) if isinstance(n, ast.Name)}
        names |= {n.attr for n in ast.walk(tree(module)) if isinstance(n, ast.Attribute)}
        assert not {n for n in names if "label" in n.lower()}, f"{module} can see labels"


@pytest.mark.slow
def test_the_reading_half_works_without_torch():
    code = "import sys; {}; sys.exit('torch' in sys.modules)"
    for module in WITHOUT_TORCH:
        done = subprocess.run([sys.executable, "-c", code.format(f"import clues.{module}")])
        assert done.returncode == 0, f"clues.{module} imports torch"


@pytest.mark.parametrize("module", modules())
def test_nothing_unpickles_and_nothing_swallows(module):
    forbidden = {("torch", "load"), ("np", "load"), ("numpy", "load")}
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {a.name for a in node.names} | {str(getattr(node, "module", ""))}
            assert not names & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in forbidden
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            assert caught not in ("Exception", "BaseException", "everything"), caught
            assert not all(isinstance(s, ast.Pass) for s in node.body), "an error is swallowed"


@pytest.mark.parametrize("module", modules())
def test_public_names_have_docstrings(module):
    for node in ast.iter_child_nodes(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}.{node.name} has no docstring"
    assert ast.get_docstring(tree(module)), f"{module} has no docstring"


def test_the_readme_names_every_module():
    if not (ROOT / "README.md").exists():
        pytest.skip("the README is not beside the tests")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listing = text[text.index("## Files") :]
    missing = [m for m in modules() if m.split(".")[-1] not in listing]
    assert not missing, "the README's file tree is behind the code"
