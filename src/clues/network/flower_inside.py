"""What we use of Flower's inside, which Flower neither documents nor promises to keep.

No other module imports it (a test keeps that). A new version of Flower that moves something of it
fails in tests/test_flower_inside.py, which calls every function here.
"""

import hashlib
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from clues.carriers.flower import LostError, TooLargeError
from clues.errors import ExtraError
from clues.extras import advice, needs

WHAT = "separate machines"
# From the first version, and below the second: as pyproject.toml has it.
KNOWN_VERSIONS = ((1, 41), (1, 43))


def check_version(found: str) -> None:
    """Refuse a version of Flower whose inside we do not know.

    Raises:
        ExtraError: it is older or newer than those of pyproject.toml.
    """
    first, end = KNOWN_VERSIONS
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers is None or not first <= tuple(map(int, numbers.groups())) < end:
        known = f"flwr>={first[0]}.{first[1]},<{end[0]}.{end[1]}"
        raise ExtraError(f"{WHAT}: flwr {found} is installed, needed is {known}. {advice('flwr')}")


with needs("flwr", "google.protobuf", "httpx", what=WHAT):
    check_version(version("flwr"))
    import httpx
    from flwr.app import Array, Context, Message
    from flwr.cli.build import build_fab_from_files
    from flwr.common.constant import SubStatus
    from flwr.common.serde import context_from_proto, run_from_proto
    from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
    from flwr.proto.fab_pb2 import Fab
    from flwr.proto.fleet_pb2 import PullMessagesRequest, RegisterNodeFleetRequest
    from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
    from flwr.proto.node_pb2 import Node
    from flwr.proto.runtime_pb2 import (
        AcquireTaskRequest,
        GetNodesRequest,
        PullAppMessagesRequest,
        PullTaskInputRequest,
        PushTaskOutputRequest,
    )
    from flwr.supercore.constant import TaskType
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.error import FlowerError
    from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
    from flwr.supercore.inflatable.inflatable_object import (
        get_object_body,
        get_object_head_values_from_object_content,
        iterate_object_tree,
    )
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
    from flwr.supercore.interceptors import (
        RuntimeTokenHttpInterceptor,
        RuntimeVersionHttpInterceptor,
        SuperExecAuthHttpInterceptor,
    )
    from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.superlink.grid import HttpGrid
    from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

# What every call below raises that does not get through, or is refused.
CallError = httpx.HTTPError
# The kinds of task that a SuperLink has for a coordinator, and a SuperNode for a silo.
SERVER_TASK, CLIENT_TASK = TaskType.SERVER_APP, TaskType.CLIENT_APP
# The calls that the secret between Flower's processes and ours opens.
_SIGNED = frozenset({"/flwr.proto.Runtime/AcquireTask"})
_CONTENT_TYPE = {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}
# Bytes beside a message's own: its names, and those of its parts.
_ROOM = 1_000_000
# Parts of a message beside the pieces of its one array, and the smallest piece that Flower cuts.
_FEW_PARTS, _PIECE = 16, 1_000_000
# How many times as large as its parts a request may be, and how much more: pieces that are alike
# are sent once.
_REPEATED, _ALIKE = 4, 256_000_000
# As long as Flower itself waits for a request's parts, which the SuperNode fetches.
_PARTS_S, _PARTS_POLL_S = 7200.0, 0.2
# The smallest request of each call that `probe` tries; one more is what silos say.
REQUESTS = {
    "/v1/control/list-nodes": ListNodesRequest(),
    "/v1/runtime/acquire-task": AcquireTaskRequest(),
    "/v1/runtime/get-nodes": GetNodesRequest(),
    "/v1/fleet/register-node": RegisterNodeFleetRequest(),
    "/v1/fleet/pull-messages": PullMessagesRequest(),
}


def control_client(address: str, ca: bytes | None) -> ControlHttpClient:
    """Reach what a SuperLink offers to those who run it; plain http without a certificate."""
    return ControlHttpClient.from_server_address(address, ca is None, ca, [_version()])


def task_client(address: str, ca: bytes | None, *, secret: bytes) -> RuntimeHttpClient:
    """Reach the tasks of a SuperLink or a SuperNode, whose secret we have."""
    signer = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_SIGNED)
    return RuntimeHttpClient.from_server_address(address, ca is None, ca, [_version(), signer])


def token_client(address: str, token: str) -> RuntimeHttpClient:
    """Reach one task of a SuperNode on this machine, by the token that came with it."""
    # Plain http: it is loopback, and the token says who we are.
    bearer = RuntimeTokenHttpInterceptor(token)
    return RuntimeHttpClient.from_server_address(address, True, None, [_version(), bearer])


def known_nodes(client: ControlHttpClient) -> dict[bytes, int]:
    """Public keys that a SuperLink lets in, and their node ids."""
    nodes = client.ListNodes(ListNodesRequest()).nodes_info
    return {node.public_key: node.node_id for node in nodes}


def register_node(client: ControlHttpClient, key: bytes, name: str) -> int:
    """Let a public key in; the node id that it gets."""
    return client.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id


def start_run(client: ControlHttpClient, files: Mapping[str, bytes]) -> int:
    """Start a run of an app that consists of these files; the run's id."""
    packed, _ = build_fab_from_files(files)
    app = Fab(hash_str=hashlib.sha256(packed).hexdigest(), content=packed)
    return client.StartRun(StartRunRequest(fab=app)).run_id


def take_task(client: RuntimeHttpClient, kind: str) -> tuple[str, int]:
    """Token and run id of the next task of a kind; the token is empty where there is none."""
    found = client.AcquireTask(AcquireTaskRequest(supported_task_types=[kind]))
    return found.token, found.task.run_id


@contextmanager
def beating(client: RuntimeHttpClient) -> Iterator[None]:
    """Tell the other side from time to time that a task is alive; else it is given up."""
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeat.start()
    try:
        yield
    finally:
        if heartbeat.is_running:
            heartbeat.stop()


@contextmanager
def open_grid(
    address: str, ca: bytes | None, token: str, *, patience_s: float
) -> Iterator["PatientGrid"]:
    """The grid of a run whose program is this process; closed in the end.

    Args:
        address: of the SuperLink.
        ca: of its certificate; None without TLS.
        token: of the run's task.
        patience_s: how long a call is tried again.
    """
    grid = PatientGrid(address, insecure=ca is None, root_certificates=ca, token=token)
    grid._retry_invoker.max_time = patience_s
    try:
        client = grid._runtime_client
        with beating(client):
            found = client.PullTaskInput(PullTaskInputRequest())
            node = context_from_proto(found.context).node_id
            identify(task_id=found.task_id, run_id=found.run.run_id, node_id=node)
            grid.set_run(run_from_proto(found.run))
            yield grid
    finally:
        grid.close()


def end_run(grid: HttpGrid, *, completed: bool) -> None:
    """Tell the SuperLink, once, how the run of an open grid ended."""
    grid._retry_invoker.max_tries = 1
    outcome = SubStatus.COMPLETED if completed else SubStatus.FAILED
    grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=outcome, details=""))


def identify(*, task_id: int, run_id: int, node_id: int) -> None:
    """Say whose task this process works on; Flower makes no message before."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, node_id


@dataclass
class _Coming:
    """A message whose parts come one by one."""

    id: str
    node: Node
    run_id: int
    parts: list[str]
    there: dict[str, bytes] = field(default_factory=dict[str, bytes])

    @property
    def n_bytes(self) -> int:
        return sum(map(len, self.there.values()))


class PatientGrid(HttpGrid):
    """A grid that holds up nobody for one silo's answer, and takes none that is too large.

    Flower's own waits up to two hours for the parts of an answer, whoever else has answered, and
    puts parts together that name a piece of 5 MB a million times.
    """

    def __init__(self, *address: Any, **how: Any) -> None:
        """As Flower's."""
        super().__init__(*address, **how)
        self._coming: dict[str, _Coming] = {}

    def pull_bounded(self, message_id: str, most: int) -> list[Message]:
        """The answer to a message, if all of it is there.

        Args:
            message_id: of the message that was sent.
            most: bytes that the answer may have.

        Raises:
            TooLargeError: it has more. What follows of it is not looked at.
            LostError: parts of it are gone.
            ValueError: it cannot be put together; or KeyError, TypeError and the like.
        """
        client = self._runtime_client
        if message_id not in self._coming:
            found = client.PullMessages(PullAppMessagesRequest(message_ids=[message_id]))
            if not found.messages_list:
                return []
            metadata, tree = found.messages_list[0].metadata, found.message_object_trees[0]
            parts = _parts_of(tree, most)
            coming = _Coming(metadata.message_id, self.node, self.run.run_id, parts)
            self._coming[message_id] = coming
        # Out of the way, unless more of it will come: it is used now, or cannot be used.
        coming = self._coming.pop(message_id)
        if not _take_parts(client, coming, most):
            self._coming[message_id] = coming
            return []
        _refuse_repeated(coming.there, most)
        return [_put_together(client, coming)]


def _parts_of(tree: Any, most: int) -> list[str]:
    parts = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
    if len(parts) > _FEW_PARTS + most // _PIECE:
        raise TooLargeError
    return parts


def _take_parts(client: RuntimeHttpClient, coming: _Coming, most: int) -> bool:
    """Take the parts that are there; whether that is all of them."""
    for part in coming.parts:
        if part in coming.there:
            continue
        request = PullObjectRequest(node=coming.node, run_id=coming.run_id, object_id=part)
        found = client.PullObject(request)
        if not found.object_found:
            raise LostError
        if not found.object_available:
            return False
        coming.there[part] = found.object_content
        if coming.n_bytes > most + _ROOM:
            raise TooLargeError
    return True


def _refuse_repeated(parts: Mapping[str, bytes], most: int) -> None:
    """Refuse an array that names its pieces so often that it would be larger than allowed.

    Raises:
        TooLargeError: it does.
    """
    total = 0
    for content in parts.values():
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind != Array.__qualname__:
            continue
        body = get_object_body(content, Array)
        if len(body) > _ROOM:
            raise TooLargeError
        total += sum(len(parts[children[n]]) for n in json.loads(body)["arraychunk_ids"])
    if total > most + _ROOM:
        raise TooLargeError


def _put_together(client: RuntimeHttpClient, coming: _Coming) -> Message:
    client.ConfirmMessageReceived(
        ConfirmMessageReceivedRequest(
            node=coming.node, run_id=coming.run_id, message_object_id=coming.id
        )
    )
    message = inflate_object_from_contents(coming.id, coming.there)
    if not isinstance(message, Message):
        raise TypeError
    # What is sent does not hold its own id.
    message.metadata.__dict__["_message_id"] = coming.id
    return message


def pull_message(client: RuntimeHttpClient) -> tuple[Message, Context]:
    """The message of a SuperNode's task; the app that came with it is left where it is.

    Raises:
        TooLargeError: the message is many times larger than what was sent of it.
        LostError: parts of it are gone, or do not come.
        ValueError: it cannot be put together; or KeyError, TypeError and the like.
    """
    found = client.PullTaskInput(PullTaskInputRequest())
    context = context_from_proto(found.context)
    identify(task_id=found.task_id, run_id=found.run.run_id, node_id=context.node_id)
    sent = client.PullMessages(PullAppMessagesRequest())
    tree = sent.message_object_trees[0]
    parts = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
    node = Node(node_id=context.node_id)
    coming = _Coming(tree.object_id, node, context.run_id, parts)
    end = time.monotonic() + _PARTS_S
    while not _take_parts(client, coming, sys.maxsize):
        if time.monotonic() > end:
            raise LostError
        time.sleep(_PARTS_POLL_S)
    _refuse_repeated(coming.there, _REPEATED * coming.n_bytes + _ALIKE)
    return _put_together(client, coming), context


def push_reply(client: RuntimeHttpClient, reply: Message, context: Context) -> None:
    """Give a SuperNode the reply, and end the task."""
    push_message(client, reply, context)
    push_task_output(client, context, SubStatus.COMPLETED, "")


def ask(client: httpx.Client, path: str) -> httpx.Response:
    """Send one of `REQUESTS` as a stranger would, without a key or a token."""
    content = REQUESTS[path].SerializeToString()
    return client.post(path, content=content, headers=_CONTENT_TYPE)


def is_flowers_error(body: str) -> bool:
    """Whether a refusal was written by Flower itself, and not by what stands in front of it."""
    return FlowerError.from_json(body) is not None


def _version() -> Any:
    return RuntimeVersionHttpInterceptor(component_name="clues")
