"""Who may come in: a real SuperLink behind a real nginx, and strangers at the public port."""

import contextlib
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

pytest.importorskip("flwr", reason="Flower is not installed: clues[flower]")

from flwr.app import Message

from clues.carriers.flower import make_client_app, to_content
from clues.errors import NetworkError
from clues.network import flower_inside, worker
from clues.network.children import Child, check_port_is_free, free_port
from clues.network.edge import edge_configuration, open_edge
from clues.network.join import join
from clues.network.keys import make_authority, make_node_key
from clues.network.probe import probe
from clues.network.settings import Coordinator, load_coordinator, load_join
from clues.network.superlink import APP, SuperLink, forget_other_keys, open_superlink
from clues.progress import Silent
from deploy.rehearsal import Hospitals, write_hospitals

pytestmark = pytest.mark.slow
SILO = "north-clinic"
needs_nginx = pytest.mark.skipif(
    shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") is None,
    reason="no nginx on this machine",
)


@dataclass(frozen=True)
class Doorway:
    """A SuperLink behind its edge."""

    hospitals: Hospitals
    coordinator: Coordinator
    superlink: SuperLink
    nodes: dict[str, int]


@pytest.fixture(scope="module")
def doorway(tmp_path_factory) -> Iterator[Doorway]:
    hospitals = write_hospitals(tmp_path_factory.mktemp("hospitals"))
    coordinator = load_coordinator(hospitals.coordinator)
    network = coordinator.folder / "network"
    with ExitStack() as stack:
        superlink = stack.enter_context(open_superlink(coordinator, network))
        nodes = superlink.register(coordinator.keys)
        stack.enter_context(open_edge(coordinator.settings, network))
        yield Doorway(hospitals, coordinator, superlink, nodes)


@needs_nginx
def test_the_public_port_answers_silos_and_nobody_else(doorway):
    settings = doorway.coordinator.settings
    found = probe(settings.public, ca=settings.ca)
    assert found.safe, found.lines()
    assert found.fleet
    assert found.open_doors == ()


@needs_nginx
def test_without_the_edge_the_probe_finds_what_is_open(doorway):
    settings = doorway.coordinator.settings
    found = probe(settings.superlink, ca=settings.ca)
    assert not found.safe
    assert {"Control", "Runtime"} <= set(found.open_doors)


@needs_nginx
@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "//v1/control/start-run",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/V1/CONTROL/start-run",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/responses",
        "/health",
        "/",
    ],
)
def test_no_way_of_writing_a_path_leads_past_the_edge(doorway, path):
    settings = doorway.coordinator.settings
    import socket
    import ssl

    host, _, port = settings.public.rpartition(":")
    context = ssl.create_default_context(cafile=str(settings.ca))
    with (
        socket.create_connection((host, int(port))) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        # By hand: a client would tidy the path up first.
        secure.sendall(
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n"
            "Content-Type: application/x-protobuf\r\nConnection: close\r\n\r\n".encode()
        )
        status = secure.recv(64).split()[1]
    assert status in (b"403", b"400"), path


@needs_nginx
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower, packing
def test_a_stranger_cannot_start_a_run_through_the_public_port(doorway):
    settings = doorway.coordinator.settings
    ca, app = settings.ca.read_bytes(), {"pyproject.toml": APP.encode(), "app.py": b""}
    client = flower_inside.control_client(settings.public, ca)
    with pytest.raises(flower_inside.CallError) as refused:
        flower_inside.start_run(client, app)
    client.close()
    assert refused.value.response.status_code == 403
    # The edge alone stands in the way: past it, the SuperLink takes the same app of the same stranger.
    client = flower_inside.control_client(settings.superlink, ca)
    assert flower_inside.start_run(client, app) > 0
    client.close()


@needs_nginx
def test_a_key_that_the_coordinator_does_not_know_is_refused(doorway, tmp_path):
    settings = load_join(doorway.hospitals.silos[SILO])
    stranger, _ = make_node_key(tmp_path, "stranger")
    settings = settings.model_copy(
        update={"key": stranger, "refused_s": 0.1, "folder": tmp_path / "silo"}
    )
    with pytest.raises(NetworkError, match="refuses this silo's key"):
        join(settings, progress=Silent(), say=lambda _: None)


@needs_nginx
def test_a_silo_leaves_a_coordinator_with_the_wrong_certificate(doorway, tmp_path):
    settings = load_join(doorway.hospitals.silos[SILO])
    other, _ = make_authority(tmp_path)
    settings = settings.model_copy(update={"ca": other, "folder": tmp_path / "silo"})
    with pytest.raises(NetworkError, match="is not the coordinator that"):
        join(settings, progress=Silent(), say=lambda _: None)


@pytest.mark.walk
@needs_nginx
def test_flower_itself_refuses_wrong_and_missing_certificates_and_keys(doorway, tmp_path):
    """Side by side, as each takes a second to start."""
    settings = load_join(doorway.hospitals.silos[SILO])
    other, _ = make_authority(tmp_path)
    start = ["flower-supernode", "--superlink", settings.coordinator, "--isolation", "process"]
    key = ["--auth-supernode-private-key", str(settings.key)]
    ways = {
        "wrong certificate": [*key, "--root-certificates", str(other)],
        "missing certificate": [*key],
        "no TLS": ["--insecure"],
        "no key": ["--root-certificates", str(settings.ca)],
    }
    with ExitStack() as stack:
        nodes = {
            name: stack.enter_context(
                Child(
                    name,
                    [*start, "--port", str(free_port()), "--max-retries", "0", *options],
                    log=tmp_path / f"{name}.log",
                    environment={"FLWR_HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "0"},
                )
            )
            for name, options in ways.items()
        }
        # Refused registration, a SuperNode without a key stays and does nothing.
        ending = [node for name, node in nodes.items() if name != "no key"]
        end = time.monotonic() + 60
        while any(node.running for node in ending) and time.monotonic() < end:
            time.sleep(0.2)
        assert all(node.process.poll() not in (None, 0) for node in ending)
        for name, node in nodes.items():
            assert "SuperNode ID" not in node.output(), f"{name}: it was let in"
    ca = settings.ca.read_bytes()
    client = flower_inside.control_client(doorway.coordinator.settings.superlink, ca)
    known = flower_inside.known_nodes(client)
    client.close()
    assert set(known.values()) == set(doorway.nodes.values())


def test_keys_of_an_earlier_file_are_forgotten_and_the_same_ones_are_not(tmp_path):
    state, keys = tmp_path / "superlink.db", {"north": "key 1", "south": "key 2"}
    for given, kept in ((keys, False), (keys, True), ({"north": "key 1"}, False), (keys, False)):
        state.write_text("")
        forget_other_keys(tmp_path, given)
        assert state.exists() == kept, given


@needs_nginx
def test_nginx_accepts_both_configurations(doorway, tmp_path):
    settings = doorway.coordinator.settings
    (tmp_path / "temp").mkdir()
    whole = tmp_path / "nginx.conf"
    whole.write_text(edge_configuration(settings, folder=tmp_path))
    part = tmp_path / "part.conf"
    part.write_text(edge_configuration(settings, folder=None))
    around = tmp_path / "around.conf"
    around.write_text(f"events {{}}\nhttp {{\ninclude {part};\n}}\n")
    for file in (whole, around):
        command = ["nginx", "-t", "-q", "-e", str(tmp_path / "log"), "-c", str(file)]
        command += ["-p", str(tmp_path)]
        with Child("nginx -t", command, log=tmp_path / "out") as child:
            assert child.process.wait(20) == 0, child.output()


def test_a_message_that_cannot_be_read_stays_inside_and_the_next_is_taken(tmp_path, monkeypatch):
    tokens = ["bad", "good", ""]
    client = SimpleNamespace(
        SendTaskHeartbeat=lambda _: SimpleNamespace(success=True),
        close=lambda: None,
    )
    message = SimpleNamespace(metadata=SimpleNamespace(message_type="query.hello"))
    pulls = iter([ValueError("zqxsecret"), (message, None)])

    def pull(_):
        found = next(pulls)
        if isinstance(found, Exception):
            raise found
        return found

    for name, answer in {
        "task_client": lambda *_, **__: client,
        "token_client": lambda *_: client,
        "take_task": lambda *_: (tokens.pop(0), 1),
        "pull_message": pull,
        "push_reply": lambda *_: None,
    }.items():
        monkeypatch.setattr(flower_inside, name, answer)
    told = []
    made = worker.Worker(
        lambda message, context: message,  # pyright: ignore[reportArgumentType]
        "127.0.0.1:1",
        b"secret",
        tmp_path / "private" / "errors.log",
        lambda kind, seconds: told.append(kind),
    )
    made.run(lambda: bool(tokens))
    assert told == ["hello"]
    assert "zqxsecret" in (tmp_path / "private" / "errors.log").read_text()


def test_a_message_of_a_kind_that_nobody_knows_is_answered_and_its_text_stays_inside(
    tmp_path, monkeypatch
):
    """Without an answer the coordinator waits a day, and the SuperNode takes nothing else."""
    flower_inside.identify(task_id=1, run_id=1, node_id=1)
    kind = "query.zqxsecret" + "x" * 100_000
    message = Message(to_content(b"x"), dst_node_id=1, message_type=kind)
    pushed, told = [], []
    client = SimpleNamespace(
        AcquireTask=lambda _: None, SendTaskHeartbeat=lambda _: None, close=lambda: None
    )
    monkeypatch.setattr(flower_inside, "beating", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(flower_inside, "token_client", lambda *_: client)
    monkeypatch.setattr(flower_inside, "pull_message", lambda _: (message, None))
    monkeypatch.setattr(flower_inside, "push_reply", lambda _, reply, __: pushed.append(reply))
    log = tmp_path / "private" / "errors.log"
    app = make_client_app(lambda *_: b"", lambda _: log)
    made = worker.Worker(app, "127.0.0.1:1", b"s", log, lambda kind, _: told.append(kind))
    made._answer("token")
    [reply] = pushed
    assert reply.has_error()
    assert "zqx" not in reply.error.reason
    assert len(told[0]) <= 20
    assert log.stat().st_size < 25_000


def test_a_taken_port_is_named(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(NetworkError, match=f"superlink: 127.0.0.1:{port} is in use"):
            check_port_is_free("127.0.0.1", port, what="superlink")


def test_a_child_ends_with_us_and_a_missing_program_is_named(tmp_path):
    with Child("sleep", ["sleep", "100"], log=tmp_path / "log") as child:
        assert child.running
    assert not child.running
    with pytest.raises(NetworkError, match="no program 'no-such-program'"):
        Child("x", ["no-such-program"], log=tmp_path / "log")


def test_a_child_ends_even_when_we_are_killed(tmp_path):
    import os
    import signal
    import subprocess
    import sys

    if sys.platform != "linux":
        pytest.skip("the kernel's help is Linux's")
    code = (
        "import sys, time; from pathlib import Path; from clues.network.children import Child\n"
        "child = Child('sleep', ['sleep', '100'], log=Path(sys.argv[1]))\n"
        "print(child.process.pid, flush=True); time.sleep(100)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True)
        if status.stdout.strip()[:1] in (b"", b"Z"):
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the child outlived us")
