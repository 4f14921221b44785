"""Flower without a network: a grid that calls ClientApps in this process, and can lose things."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from clues.carriers.flower import GridTransport, make_client_app
from clues.config import load_config, load_shared
from clues.model.cache import ModelCache
from clues.network import flower_inside
from clues.pipeline import Run, open_coordinator
from clues.progress import Silent
from clues.silo.gate import Gate
from clues.silo.silo import Silo
from clues.wall.ledger import Ledger
from clues.wall.messages import token_of

App = Callable[[Message, Context], Message]


class Node(NamedTuple):
    """What the transport reads of Flower's own record of a machine."""

    node_id: int
    last_activated_at: str


class LocalGrid(Grid):
    """Answers at once. `lose` may turn an answer into a Flower error: code by (node, kind)."""

    def __init__(self, apps: dict[int, App], *, lose=lambda node, kind: 0) -> None:
        # The engine sets these before an app makes a message.
        flower_inside.identify(task_id=1, run_id=1, node_id=1)
        self.apps, self.lose = apps, lose
        self.offline: set[int] = set()
        self.activated = dict.fromkeys(apps, "once")
        self.replies: dict[str, Message | None] = {}
        self.pushed: list[tuple[int, str]] = []
        self.contexts = {
            n: Context(run_id=1, node_id=n, node_config={}, state=RecordDict(), run_config={})
            for n in apps
        }

    run = property(lambda self: None)  # pyright: ignore

    def set_run(self, run) -> None: ...

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [n for n in self.apps if n not in self.offline]

    def get_nodes(self) -> Iterable[Node]:
        ids = self.get_node_ids()
        return [Node(node_id=n, last_activated_at=self.activated[n]) for n in ids]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        message.metadata.__dict__["_message_id"] = message.object_id
        node, kind = message.metadata.dst_node_id, message.metadata.message_type.split(".")[1]
        self.pushed.append((node, kind))
        code = self.lose(node, kind)
        if code == "nothing":
            self.replies[message.object_id] = None
        elif code:
            # As the SuperLink does it: the error comes from node 1.
            reply = Message(Error(code, "zqxsecret"), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = 1
            self.replies[message.object_id] = reply
        else:
            self.replies[message.object_id] = self.apps[node](message, self.contexts[node])
        return message.object_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ready = [i for i in message_ids if self.replies.get(i) is not None]
        return [reply for i in ready if (reply := self.replies.pop(i))]

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))


def silo_app(settings, folder: Path, *, change: Callable[[bytes, bytes], bytes] | None = None):
    """The real ClientApp of a silo, made anew for every message as Flower does it.

    `change` may turn (request, reply) into other bytes: a hostile silo.
    """

    def answer(data: bytes, context: Context) -> bytes:
        def open_silo():
            return Silo(
                settings,
                folder,
                load_model=ModelCache().load,
                progress=Silent(),
                allow_degenerate=True,
            ).answer

        reply = Gate(settings.name, folder, open_silo).answer(data)
        return change(data, reply) if change else reply

    return make_client_app(answer, lambda context: folder / "private" / "errors.log")


def write_shared(config: Path) -> Path:
    """The coordinator's half of a run's file."""
    import yaml

    content = yaml.safe_load(config.read_text())
    del content["silos"]
    path = config.with_name("shared.yaml")
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def open_grid_run(
    config: Path, root: Path, *, change: dict[str, Callable] | None = None, **how
) -> tuple[Run, LocalGrid]:
    """A run over the in-process grid; node ids are 10, 11, ... in order of the silos."""
    silos = load_config(config).silos
    apps: dict[int, App] = {}
    for number, settings in enumerate(silos, start=10):
        where = root / "silos" / settings.name
        apps[number] = silo_app(settings, where, change=(change or {}).get(settings.name))
    grid = LocalGrid(apps, **how)
    nodes = {s.name: n for n, s in zip(apps, silos, strict=True)}
    shared = load_shared(write_shared(config))
    coordinator = root / "coordinator-side"
    coordinator.mkdir(parents=True, exist_ok=True)
    transport = GridTransport(
        grid,
        nodes,
        Ledger(coordinator / "ledger.jsonl"),
        settings=shared.federation,
        poll_s=0.01,
    )
    run = open_coordinator(shared, coordinator, transport=transport, progress=Silent())
    return run, grid


def adapter_hash(folder: Path) -> str:
    """SHA-256 of the joint adapter's file."""
    return token_of((folder / "coordinator" / "adapter" / "adapter_model.safetensors").read_bytes())


def selection_of(folder: Path, name: str) -> list[int]:
    """Positions of the rows that a silo keeps, as its file has them."""
    return json.loads((folder / "silos" / name / "private" / "selection.json").read_text())["kept"]


def same_adapter(one: Path, two: Path) -> bool:
    """Whether two runs ended in the same bytes."""
    return adapter_hash(one) == adapter_hash(two)
