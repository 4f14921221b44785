"""Everything of Flower's inside that we use, called once: what a new Flower has moved fails here."""

import ast
import importlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed: the extra `flower`")

import httpx
from flwr.app import Context, Message, RecordDict

from clues.errors import ExtraError
from clues.network import flower_inside
from clues.network.children import FLOWER_ENVIRONMENT, Child, free_port
from clues.network.keys import make_node_key, read_public_key
from clues.network.secret import write_secret
from clues.network.superlink import APP

FLOWER = f"Flower {version('flwr')}"
FILES = {"pyproject.toml": APP.encode(), "app.py": b""}
SOURCE = Path(str(flower_inside.__file__)).read_text(encoding="utf-8")
# How long one side waits for the other here.
N_TRIES, PAUSE_S = 200, 0.1
# What a call raises whose ways have changed.
MOVED = (AttributeError, TypeError, ValueError, RuntimeError, ImportError, flower_inside.CallError)


def names() -> list[tuple[str, str]]:
    """Every name that is imported from Flower, with its module."""
    nodes = [n for n in ast.walk(ast.parse(SOURCE)) if isinstance(n, ast.ImportFrom)]
    return [(str(n.module), a.name) for n in nodes for a in n.names if "flwr" in str(n.module)]


@pytest.mark.parametrize(("module", "name"), names())
def test_what_we_import_stands_where_it_stood(module, name):
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        pytest.fail(f"{FLOWER} has no module {module} any more ({error}): find where {name} went")
    assert hasattr(found, name), f"{FLOWER} has no {name} in {module} any more"


@pytest.mark.parametrize("found", ["1.40.9", "1.43.0", "1.43.0.dev20261101", "2.0", "unknown"])
def test_another_version_is_refused_and_the_message_says_which_fits(found):
    with pytest.raises(ExtraError, match=r"needed is flwr>=1.41,<1.43.*pip install '\.\[flower\]'"):
        flower_inside.check_version(found)


def test_the_versions_that_fit_are_taken():
    for found in ("1.41.0", "1.42.0", "1.42.3.dev1"):
        flower_inside.check_version(found)


@dataclass
class Machines:
    """A SuperLink and a SuperNode on loopback, without TLS and keys.

    Attributes:
        superlink: address.
        supernode: address.
        secret: file of both.
        called: functions of the module that a test has called and found in order.
    """

    superlink: str
    supernode: str
    secret: bytes
    called: set[str] = field(default_factory=set)

    def call(self, name: str, *args, **how):
        """Call a function of the module, and say which one it is if it fails."""
        try:
            found = getattr(flower_inside, name)(*args, **how)
        except MOVED as error:
            pytest.fail(f"{FLOWER}: flower_inside.{name} does not work: {error!r}")
        self.called.add(name)
        return found


@pytest.fixture(scope="module")
def machines(tmp_path_factory) -> Iterator[Machines]:
    folder = tmp_path_factory.mktemp("flower")
    secret, link, node = write_secret(folder), free_port(), free_port()
    usual = ["--insecure", "--isolation", "process", "--host", "127.0.0.1"]
    usual += ["--superexec-auth-secret-file", str(secret)]
    commands = {
        "flower-superlink": (link, ["--disable-runtime-dependency-installation"]),
        "flower-supernode": (node, ["--superlink", f"127.0.0.1:{link}"]),
    }
    environment = {**FLOWER_ENVIRONMENT, "FLWR_HOME": str(folder)}
    with ExitStack() as stack:
        for program, (port, more) in commands.items():
            command = [program, *usual, "--port", str(port), *more]
            child = Child(program, command, log=folder / program, environment=environment)
            stack.enter_context(child).wait_for_port("127.0.0.1", port, wait_s=60)
        yield Machines(f"127.0.0.1:{link}", f"127.0.0.1:{node}", secret.read_bytes())


def until(there):
    """What a call returns, as soon as it is something."""
    for _ in range(N_TRIES):
        if found := there():
            return found
        time.sleep(PAUSE_S)
    pytest.fail(f"{FLOWER}: nothing came within {N_TRIES * PAUSE_S:.0f} seconds")


def answer_one(machines: Machines) -> None:
    """As a silo: take a message, and send it back."""
    client = machines.call("task_client", machines.supernode, None, secret=machines.secret)
    with closing(client):
        token = until(lambda: machines.call("take_task", client, flower_inside.CLIENT_TASK)[0])
    task = machines.call("token_client", machines.supernode, token)
    with closing(task), machines.call("beating", task):
        message, context = machines.call("pull_message", task)
        assert isinstance(message, Message)
        assert isinstance(context, Context)
        reply = Message(message.content, reply_to=message)
        machines.call("push_reply", task, reply, context)


def ask_one(machines: Machines, grid: flower_inside.PatientGrid) -> Message:
    """As a coordinator: send a message, have it answered, take the answer."""
    node = until(lambda: list(grid.get_node_ids()))[0]
    [sent] = grid.push_messages([Message(RecordDict(), node, "query.hello")])
    answer_one(machines)
    return until(lambda: grid.pull_bounded(sent, 10**6))[0]


@pytest.mark.walk
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower, packing
def test_every_function_does_what_it_says(machines, tmp_path):
    key = read_public_key(make_node_key(tmp_path, "north")[1].read_text(), silo="north")
    control = machines.call("control_client", machines.superlink, None)
    with closing(control):
        node = machines.call("register_node", control, key, "north")
        assert machines.call("known_nodes", control).get(key) == node
        run = machines.call("start_run", control, FILES)
    client = machines.call("task_client", machines.superlink, None, secret=machines.secret)
    with closing(client):
        token, of_run = until(lambda: machines.call("take_task", client, flower_inside.SERVER_TASK))
    assert of_run == run
    with machines.call("open_grid", machines.superlink, None, token, patience_s=5.0) as grid:
        assert grid._retry_invoker.max_time == 5.0
        assert grid.run.run_id == run
        reply = ask_one(machines, grid)
        assert not reply.has_error(), f"{FLOWER}: a message does not come back"
        machines.call("end_run", grid, completed=True)
    machines.call("identify", task_id=1, run_id=1, node_id=1)
    with httpx.Client(base_url=f"http://{machines.superlink}", trust_env=False) as stranger:
        for path in flower_inside.REQUESTS:
            reply = machines.call("ask", stranger, path)
            assert reply.status_code != 404, f"{FLOWER} has no {path} any more"
            machines.call("is_flowers_error", reply.text)
    assert flower_inside.is_flowers_error('{"code": 1, "detail": "x"}')
    assert not flower_inside.is_flowers_error("<html>403 Forbidden</html>")
    public = {n.name for n in ast.parse(SOURCE).body if isinstance(n, ast.FunctionDef)}
    left = {n for n in public if not n.startswith("_")} - machines.called - {"check_version"}
    assert not left, f"not called here: {left}"
