"""Real processes of Flower, and a silo or a coordinator among them that means it.

Minutes: make federation-tests. The same without processes, and quickly: tests/test_incoming.py.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("flwr", reason="Flower is not installed: clues[flower]")

import httpx
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from federation_helpers import files_of
from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from clues.carriers.flower import GridTransport, from_content, to_content
from clues.config import FederationSettings, load_config
from clues.network.join import join
from clues.network.settings import Coordinator, load_coordinator, load_join
from clues.network.superlink import SuperLink, open_superlink
from clues.pipeline import open_run, run_until
from clues.progress import Silent
from clues.wall.ledger import Ledger, verify
from clues.wall.messages import REQUESTS, LeaveRequest, SelectRequest, from_bytes, kind_of
from clues.wall.transport import Missing
from deploy.rehearsal import Hospitals, write_hospitals

pytestmark = [
    pytest.mark.federation,
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),  # Flower, packing
]
LIAR, HONEST = "north-clinic", "south-clinic"
MARKER = "zqxsecret"
ANSWER = bytes(range(256)) * 30_000


@dataclass(frozen=True)
class Place:
    """A SuperLink with the keys of three silos, and a run's grid."""

    hospitals: Hospitals
    coordinator: Coordinator
    superlink: SuperLink
    nodes: dict[str, int]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    hospitals = write_hospitals(tmp_path_factory.mktemp("hospitals"))
    # Past the edge: what it lets through reaches the SuperLink as it is.
    coordinator = load_coordinator(hospitals.coordinator)
    with ExitStack() as stack:
        link = stack.enter_context(open_superlink(coordinator, coordinator.folder / "network"))
        yield Place(hospitals, coordinator, link, link.register(coordinator.keys))


@dataclass
class HostileNode:
    """A silo with a key of its own that speaks to the SuperLink without our program."""

    client: FleetHttpClient
    node: int

    def take(self, *, as_node: int | None = None):
        """The next message for a node, waited for."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            request = PullMessagesRequest(node=Node(node_id=as_node or self.node))
            found = self.client.PullMessages(request)
            if found.messages_list:
                return message_from_proto(found.messages_list[0])
            time.sleep(0.2)
        raise TimeoutError

    def push(self, asked: Message, data: bytes, *, parts: int | None = None, **forged):
        """Answer a message, with some of the answer's parts or all."""
        reply = Message(to_content(data), reply_to=asked)
        for name, value in forged.items():
            reply.metadata.__dict__[f"_{name}"] = value
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            tree, nested = get_object_tree(reply), get_all_nested_objects(reply)
            bare = Message(to_content(b""), reply_to=asked)
            bare.__dict__["_metadata"] = reply.metadata
            request = PushMessagesRequest(
                node=Node(node_id=self.node),
                messages_list=[message_to_proto(bare)],
                message_object_trees=[tree],
            )
            answer = self.client.PushMessages(request)
            for name in list(nested)[:parts]:
                content = nested[name].deflate()
                self.client.PushObject(
                    PushObjectRequest(
                        node=Node(node_id=self.node),
                        run_id=asked.metadata.run_id,
                        object_id=name,
                        object_content=content,
                        session_id=answer.session_id,
                    )
                )
        return answer


@contextmanager
def hostile(place: Place, name: str) -> Iterator[HostileNode]:
    settings = load_join(place.hospitals.silos[name])
    assert settings.key is not None
    assert settings.ca is not None
    private = load_ssh_private_key(settings.key.read_bytes(), None)
    public = private.public_key()
    with FleetHttpClient.from_server_address(
        place.superlink.address,
        False,
        str(settings.ca),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(private, public),  # pyright: ignore
        ],
    ) as client:
        request = ActivateNodeRequest(
            public_key=public_key_to_bytes(public),  # pyright: ignore
            heartbeat_interval=300,
        )
        node = client.ActivateNode(request).node_id
        assert node == place.nodes[name]
        yield HostileNode(client, node)


@contextmanager
def asking(place: Place, names: list[str], folder: Path, *, timeout_s: float):
    """The real transport to some silos, and what came of a request in a thread of its own."""
    with place.superlink.open_grid() as grid:
        settings = FederationSettings.model_validate(
            {"wait_s": 60, "timeouts": {"select": timeout_s}}
        )
        nodes = {name: place.nodes[name] for name in names}
        transport = GridTransport(
            grid,
            nodes,
            Ledger(folder / "ledger.jsonl"),
            settings=settings,
            pull=grid.pull_bounded,  # pyright: ignore
        )
        request = SelectRequest(recipe_hash="x", threshold={}).to_bytes()
        found: dict[str, tuple[float, bytes | Missing]] = {}

        def ask() -> None:
            began = time.monotonic()
            requests = dict.fromkeys(names, request)
            for name, data in transport.exchange(requests, most=dict.fromkeys(names, 20_000_000)):
                found[name] = (time.monotonic() - began, data)

        thread = threading.Thread(target=ask)
        thread.start()
        yield SimpleNamespace(found=found, thread=thread)
        thread.join(timeout_s + 60)
        assert not thread.is_alive(), "the coordinator waits for ever"


def test_a_silo_that_sends_in_drops_holds_up_nobody_else(place, tmp_path):
    """Flower's own grid waits for the parts of one answer, up to two hours, before it looks on."""
    with (
        hostile(place, LIAR) as liar,
        hostile(place, HONEST) as honest,
        asking(place, [LIAR, HONEST], tmp_path, timeout_s=30) as asked,
    ):
        liar.push(liar.take(), ANSWER, parts=1)
        honest.push(honest.take(), ANSWER)
        asked.thread.join(90)
    took, data = asked.found[HONEST]
    assert data == ANSWER
    assert took < asked.found[LIAR][0]
    assert isinstance(asked.found[LIAR][1], Missing)


def test_an_answer_that_floods_is_not_fetched_and_its_silo_is_named(place, tmp_path):
    with (
        hostile(place, LIAR) as liar,
        asking(place, [LIAR], tmp_path, timeout_s=60) as asked,
    ):
        liar.push(liar.take(), bytes(1) + ANSWER * 4)
        asked.thread.join(90)
    [(_, missing)] = asked.found.values()
    assert isinstance(missing, Missing)
    assert "was not fetched" in missing.why


def test_a_silo_takes_and_answers_no_message_of_another(place, tmp_path):
    """A key opens its own node alone; and an answer counts only from the node that was asked."""
    with (
        hostile(place, LIAR) as liar,
        hostile(place, HONEST) as honest,
        asking(place, [HONEST], tmp_path, timeout_s=20) as asked,
    ):
        with pytest.raises(httpx.HTTPStatusError) as refused:
            liar.take(as_node=place.nodes[HONEST])
        assert refused.value.response.status_code == 401
        # Even with everything that only the two others know, under its own name nothing is taken.
        message = honest.take()
        liar.push(message, b"forged", src_node_id=place.nodes[LIAR])
        honest.push(message, ANSWER)
        asked.thread.join(60)
    assert asked.found[HONEST][1] == ANSWER


@dataclass(frozen=True)
class Recorded:
    """What crosses in an honest run of one silo, in order."""

    requests: list[bytes]
    replies: list[bytes]


def marked_run(hospitals: Hospitals, folder: Path) -> Recorded:
    """A run in one process on rows that all hold a marker, down to its messages."""
    config = load_config(hospitals.whole)
    run = open_run(config, folder / "one", progress=Silent(), allow_degenerate=True)
    transport = run.coordinator.exchange.transport
    answer = transport.answers[LIAR]  # pyright: ignore
    crossed: list[tuple[bytes, bytes]] = []

    def recorded(data: bytes) -> bytes:
        reply = answer(data)
        crossed.append((data, reply))
        return reply

    transport.answers[LIAR] = recorded  # pyright: ignore
    run_until(run, "select")
    return Recorded([q for q, _ in crossed], [r for _, r in crossed])


def test_over_real_processes_replays_and_foreign_tasks_draw_nothing_new_and_no_text(tmp_path):
    """Requests again, in any order, of other silos and of no sense; a marker stands in every row."""
    hospitals = write_hospitals(tmp_path / "hospitals")
    rows = hospitals.folder / f"files/rows/{LIAR}.jsonl"
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    rows.write_text(
        "".join(json.dumps({**r, "output": f"{MARKER} {r['output']}"}) + "\n" for r in lines)
    )
    honest = marked_run(hospitals, tmp_path)
    of = {kind_of(data): from_bytes(data, allowed=REQUESTS, sender="") for data in honest.requests}
    foreign = [
        LeaveRequest(recipe_hash=of["hello"].recipe_hash, handles=[0, 1, 2]).to_bytes(),
        replace(of["select"], threshold={"value": MARKER}).to_bytes(),
        replace(of["train"], round=7).to_bytes(),
        honest.requests[0][:-7],
        b"\x80\x04no message",
    ]
    coordinator = load_coordinator(hospitals.coordinator)
    settings = load_join(hospitals.silos[LIAR]).model_copy(update={"allow_degenerate": True})
    going, said = threading.Event(), []
    # Straight to the SuperLink: nginx has tests of its own.
    settings = settings.model_copy(update={"coordinator": coordinator.settings.superlink})
    worker = threading.Thread(
        target=join,
        args=(settings,),
        kwargs={"progress": Silent(), "say": said.append, "going": lambda: not going.is_set()},
    )
    with ExitStack() as stack:
        link = stack.enter_context(open_superlink(coordinator, coordinator.folder / "network"))
        nodes = link.register(coordinator.keys)
        worker.start()
        stack.callback(worker.join, 60)
        stack.callback(going.set)
        grid = stack.enter_context(link.open_grid())
        transport = GridTransport(
            grid,
            {LIAR: nodes[LIAR]},
            Ledger(tmp_path / "ledger.jsonl"),
            settings=FederationSettings.model_validate({"wait_s": 120}),
            pull=grid.pull_bounded,  # pyright: ignore
        )

        def ask(data: bytes) -> bytes | Missing:
            [(_, reply)] = transport.exchange({LIAR: data}, most={LIAR: 100_000_000})
            return reply

        first = [ask(data) for data in honest.requests]
        again = [ask(data) for data in (*reversed(honest.requests), *honest.requests[::2])]
        odd = [ask(data) for data in foreign]
    assert {kind_of(r) for r in first if isinstance(r, bytes)} == {
        kind_of(r) for r in honest.replies
    }
    assert set(again) <= set(first), "a replayed message drew something new"
    kinds = {kind_of(r) if isinstance(r, bytes) else "missing" for r in odd}
    assert kinds <= {"failure", "missing"}
    ours = verify(tmp_path / "ledger.jsonl")
    theirs = verify(hospitals.silo_run(LIAR) / "ledger.jsonl")
    assert [e.sha256 for e in ours if e.direction == "out"] == [
        e.sha256 for e in theirs if e.direction == "out"
    ]
    open_files = [
        file
        for root in (hospitals.silo_run(LIAR), coordinator.folder, tmp_path)
        for file in files_of(root)
        if "private" not in file.parts and "rows" not in file.parts and "one" not in file.parts
    ]
    assert len(open_files) > 10
    told = [file for file in open_files if MARKER.encode() in file.read_bytes()]
    assert not told, told
    assert MARKER not in "".join(said)
    assert MARKER not in from_content(to_content(b"")).decode()
