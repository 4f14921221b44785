"""Libraries that only an extra installs: declared, in versions that fit, and missed with one line."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from federation_helpers import edit_config, write_micro
from packaging.requirements import Requirement

import clues
from clues.extras import EXTRA_OF

SOURCE = Path(clues.__file__).parent
ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="pyproject.toml is not beside the tests"
)
# Which of them a silo has is its own choice, and no test needs one: the lock has none.
TRACKERS = {"mlflow", "tensorboard", "trackio", "wandb"}
PROGRAM = """
import json, os, sys
import clues.cli.program, clues.pipeline, sklearn.metrics, transformers.models.llama

def run(case):
    os.chdir(case["folder"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(case[name], os.O_WRONLY | os.O_CREAT), number)
    for name in [*sys.modules]:
        if name.startswith(case["without"] + "."):
            del sys.modules[name]
    sys.modules[case["without"]] = None
    sys.argv[1:] = case["arguments"]
    clues.cli.program.main()

for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.stdin.close()
        run(json.loads(line))
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Clues:
    """A process that has loaded what every verb needs, and runs each in a copy of itself."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self, without: str, *arguments: str, folder: Path) -> str:
        """What a verb says on stderr where libraries are missing; it must end with exit code 2."""
        said = {name: folder.parent / f"{folder.name}.{name}" for name in ("stdout", "stderr")}
        case = {"without": without, "arguments": arguments, "folder": str(folder)}
        case |= {name: str(path) for name, path in said.items()}
        for path in said.values():
            path.unlink(missing_ok=True)
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        code = self.process.stdout.readline().strip()
        stdout, stderr = (path.read_text() for path in said.values())
        assert code == "2", f"{arguments}: {stderr}"
        assert "Traceback" not in stderr
        assert stdout == ""
        return stderr


@pytest.fixture(scope="module")
def call() -> Iterator[Clues]:
    if not hasattr(os, "fork"):
        pytest.skip("processes are forked")
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Clues(process)


@cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(extra: str | None) -> dict[str, Requirement]:
    """What pyproject.toml asks for, by name of the distribution."""
    of = project()["optional-dependencies"][extra] if extra else project()["dependencies"]
    return {plain(r.name): r for r in map(Requirement, of)}


@cache
def imported(path: Path) -> list[tuple[str, bool, set[str]]]:
    """Every library that a module imports: its name, whether at once, and what `needs` names."""
    found: list[tuple[str, bool, set[str]]] = []

    def look(node: ast.AST, at_once: bool, named: set[str]) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            at_once = False
        if isinstance(node, ast.With):
            calls = [i.context_expr for i in node.items if isinstance(i.context_expr, ast.Call)]
            guards = [c for c in calls if ast.unparse(c.func) == "needs"]
            named = named | {a.value for c in guards for a in c.args if isinstance(a, ast.Constant)}
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [str(node.module)]
        found.extend((name, at_once, named) for name in names)
        for child in ast.iter_child_nodes(node):
            look(child, at_once, named)

    look(ast.parse(path.read_text(encoding="utf-8")), True, set())
    return found


def optional(name: str) -> str | None:
    """The key of `EXTRA_OF` that an imported module belongs to."""
    return next((key for key in EXTRA_OF if f"{name}.".startswith(f"{key}.")), None)


@pytest.mark.slow
def test_what_is_imported_is_declared_in_the_list_that_it_needs():
    owners = packages_distributions()
    for path in SOURCE.rglob("*.py"):
        for name, _, _ in imported(path):
            top = name.split(".")[0]
            if top == "clues" or top in sys.stdlib_module_names:
                continue
            key = optional(name)
            lists = declared(EXTRA_OF[key] if key else None)
            # `google` is of many; the extra names the one that is meant.
            names = {"protobuf"} if top == "google" else {plain(o) for o in owners.get(top, [top])}
            assert names & set(lists), f"{path.name} imports {name}: declared nowhere"


def test_an_import_of_an_extra_is_guarded_or_comes_late():
    for path in SOURCE.rglob("*.py"):
        for name, at_once, named in imported(path):
            key = optional(name)
            if key and at_once:
                assert key in named, (
                    f"{path.name}: {name} stands outside `with needs({key!r}, ...)`"
                )


def test_the_lock_has_a_version_of_everything_that_fits():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = {plain(n): v for n, v in re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)}
    for extra in (None, *(project()["optional-dependencies"].keys() - TRACKERS)):
        for name, requirement in declared(extra).items():
            assert name in locked, f"{name} is not in requirements.lock"
            assert requirement.specifier.contains(locked[name], prereleases=True), name


def test_the_versions_of_flower_are_those_of_the_project():
    pytest.importorskip("flwr", reason="Flower is not installed: the extra `flower`")
    from clues.network.flower_inside import KNOWN_VERSIONS

    first, end = (".".join(map(str, v)) for v in KNOWN_VERSIONS)
    assert str(declared("flower")["flwr"].specifier) == f"<{end},>={first}"


def says(said: str, what: str, missing: str, extra: str) -> None:
    install = f"In the source folder of clues, call: pip install '.[{extra}]'"
    assert said == f"clues: {what}: not installed: {missing}. {install}\n"


@pytest.mark.walk
@pytest.mark.parametrize("verb", [["ca"], ["server", "a.org"], ["node", "north"]])
def test_without_cryptography_no_key_is_made(call, tmp_path, verb):
    said = call("cryptography", "keys", *verb, folder=tmp_path)
    says(said, "keys and certificates", "cryptography", "flower")
    assert not list(tmp_path.iterdir())


@pytest.mark.walk
@pytest.mark.parametrize("missing", ["flwr", "google.protobuf", "httpx"])
def test_without_flower_nobody_serves_joins_or_probes(call, micro_model, tmp_path, missing):
    config = write_micro(tmp_path, micro_model)
    shared = config.read_text().split("silos:")[0]
    (tmp_path / "shared.yaml").write_text(shared)
    usual = "insecure: true\n"
    (tmp_path / "coordinator.yaml").write_text(
        f"run: shared.yaml\npublic: 127.0.0.1:8000\nsilos: [north]\n{usual}"
    )
    (tmp_path / "silo.yaml").write_text(
        "coordinator: 127.0.0.1:8000\nfolder: here\n"
        f"silo: {{name: north, data: rows.jsonl, domain: m}}\n{usual}"
    )
    for arguments in (
        ("serve", "coordinator.yaml"),
        ("join", "silo.yaml"),
        ("check", "--federation", "127.0.0.1:9"),
    ):
        said = call(missing, *arguments, folder=tmp_path)
        assert f"not installed: {missing}. " in said, arguments
        assert said.endswith("pip install '.[flower]'\n")
        assert said.count("\n") == 1


@pytest.mark.walk
@pytest.mark.parametrize(
    ("missing", "extra", "changes", "verb"),
    [
        (
            "openai",
            "judge",
            {"judge": {"base_url": "http://127.0.0.1:9/v1", "model": "m"}},
            "judge",
        ),
        ("lm_eval", "eval", {"lm_eval": ["arc_easy"]}, "run"),
    ],
)
def test_without_what_measures_nothing_is_measured(
    call, micro_model, tmp_path, missing, extra, changes, verb
):
    config = write_micro(tmp_path / "in", micro_model)
    edit_config(config, {"evaluate": {"arms": ["mixed", "clues"], **changes}})
    said = call(missing, verb, str(config), "--out", "run", "-q", folder=tmp_path)
    last = said.splitlines(keepends=True)[-1]
    says(last, f"evaluate.{next(iter(changes))}", missing, extra)


@pytest.mark.walk
def test_without_opacus_no_silo_trains_privately(call, micro_model, tmp_path):
    config = write_micro(tmp_path / "in", micro_model)
    import yaml

    content = yaml.safe_load(config.read_text())
    content["silos"][0]["share_diagnostics"] = False
    content["silos"][0]["privacy"] = {"epsilon": 8, "delta": 1e-5, "max_grad_norm": 1.0}
    content["recipe"].setdefault("score", {})["trajectory"] = "global"
    config.write_text(yaml.safe_dump(content))
    said = call("opacus", "run", str(config), "--out", "run", "-q", folder=tmp_path)
    name = content["silos"][0]["name"]
    says(said, f"silo {name}: privacy", "opacus", "dp")
