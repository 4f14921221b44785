"""Messages over Flower: a ClientApp around a silo's answers, a transport on Flower's grid.

Flower carries bytes and nothing else: what they mean is in `messages`, and the text of an error
never goes with them.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clues.config import FederationSettings
from clues.errors import DataError
from clues.extras import needs
from clues.silo.gate import KeptInside
from clues.wall.ledger import LOST, Ledger, verify
from clues.wall.messages import REQUESTS, WhoReply, WhoRequest, from_bytes, kind_of
from clues.wall.transport import Missing

with needs("flwr", "google.protobuf", what="Flower's transport"):
    from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid
    from google.protobuf.message import DecodeError

log = logging.getLogger("clues")
POLL_S = 0.5
MAX_TRIES = 5
FAILED = 2
# Error codes of Flower after which asking again may help: the silo was killed, not refusing.
PASSING = {
    3: "the message was lost on the way",
    4: "the answer was lost on the way",
    5: "its machine went out of reach",
    8: "its process died",
}
LASTING = {
    1: "the program there could not be loaded",
    FAILED: "could not answer; its own log has the reason",
    6: "the program there refused the message",
    7: "the program there was refused",
}
Pull = Callable[[str, int], Iterable[Message]]
# What Flower raises for content that is not what it says.
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, IndexError, DecodeError)


class TooLargeError(ValueError):
    """A message is larger than one that is expected can be."""


class LostError(Exception):
    """Parts of a message are gone; asking again may help."""


def to_content(data: bytes) -> RecordDict:
    """Pack a message for Flower.

    As one array of bytes, which Flower cuts into pieces of 5 MB: 100 MB take 0.4 s to pack. In a
    ConfigRecord the same take 18 s and travel as one piece.
    """
    whole = Array(dtype="uint8", shape=(len(data),), stype="bytes", data=data)
    return RecordDict({"message": ArrayRecord({"bytes": whole})})


def from_content(content: RecordDict) -> bytes:
    """Unpack a message; anything else than one is empty bytes, which nobody takes for a message."""
    try:
        return bytes(content["message"]["bytes"].data)  # pyright: ignore
    except UNREADABLE:
        return b""


def make_client_app(answer: Callable[[bytes, Context], bytes], errors: Callable[[Context], Path]):
    """Make the ClientApp of a silo.

    Args:
        answer: a request's bytes to a reply's.
        errors: the private file for what must not get out.
    """
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        reply = b""
        with KeptInside(errors(context)) as kept:
            reply = answer(from_content(message.content), context)
        if kept.reference:
            return Message(Error(FAILED, f"reference {kept.reference}"), reply_to=message)
        return Message(to_content(reply), reply_to=message)

    for kind in (*REQUESTS, WhoRequest.kind):
        app.query(kind)(handle)
    return app


@dataclass
class _Asked:
    """One silo that owes an answer."""

    name: str
    node: int
    data: bytes
    kind: str
    most: int
    sent_at: float = 0.0
    message_id: str = ""
    activated: str = ""
    absent_since: float | None = None
    n_tries: int = 0
    trouble: str = ""


class GridTransport:
    """Reaches silos through Flower's grid. Implements `Transport`.

    A message that got lost because a machine or a process died is sent again: a silo answers from
    its disk what it has answered before. A silo that says no is not asked again.
    """

    def __init__(
        self,
        grid: Grid,
        nodes: Mapping[str, int],
        ledger: Ledger,
        *,
        settings: FederationSettings,
        pull: Pull | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        """Close what an earlier process of the run has asked and got no answer to.

        Args:
            grid: of the run.
            nodes: the expected silos and their node ids; nobody else is asked.
            ledger: the coordinator's.
            settings: how long to wait.
            pull: gives the answer to the message with an id, if it is there, and refuses one with
                more bytes than it is told; None is the grid's own way, which waits and refuses
                nothing.
            poll_s: seconds between two looks for answers.
        """
        self.pull: Pull = pull or (lambda message_id, _: grid.pull_messages([message_id]))
        self.grid, self.nodes, self.ledger = grid, dict(nodes), ledger
        self.settings, self.poll_s = settings, poll_s
        close_unanswered(ledger)

    @property
    def silos(self) -> tuple[str, ...]:
        """Names of the expected silos, in order."""
        return tuple(sorted(self.nodes))

    def exchange(
        self, requests: Mapping[str, bytes], *, most: Mapping[str, int]
    ) -> Iterator[tuple[str, bytes | Missing]]:
        """Send every request when its silo is in reach, and yield answers as they come."""
        waiting = {
            name: _Asked(name, self.nodes[name], data, kind_of(data), most[name])
            for name, data in requests.items()
        }
        while waiting:
            online = {n.node_id: n.last_activated_at for n in self.grid.get_nodes()}
            for name in sorted(waiting):
                answer = self._look_after(waiting[name], online)
                if answer is not None:
                    del waiting[name]
                    yield name, answer
            if waiting:
                time.sleep(self.poll_s)

    def _look_after(self, asked: _Asked, online: Mapping[int, str]) -> bytes | Missing | None:
        """Take one silo's next step: send, send again, take the answer, or give up."""
        now = time.monotonic()
        if asked.message_id:
            reply = self._pull(asked)
            if isinstance(reply, bytes | Missing):
                return reply
            if asked.message_id and online.get(asked.node, asked.activated) != asked.activated:
                self._lost(asked, "its machine was started again")
        if not asked.message_id:
            if asked.n_tries >= MAX_TRIES:
                return Missing(f"asked {MAX_TRIES} times, and {asked.trouble}.")
            if asked.node in online:
                self._send(asked, online[asked.node])
            else:
                asked.absent_since = asked.absent_since or now
                if now - asked.absent_since > self.settings.wait_s:
                    return Missing(f"not connected for {self.settings.wait_s:.0f} seconds.")
        limit = self.settings.timeout_s(asked.kind)
        if asked.message_id and now - asked.sent_at > limit:
            self._lost(asked, "no answer came")
            return Missing(f"no answer to {asked.kind} within {limit:.0f} seconds.")
        return None

    def _send(self, asked: _Asked, activated: str) -> None:
        self.ledger.record(asked.name, "in", asked.kind, asked.data)
        message = Message(
            to_content(asked.data),
            dst_node_id=asked.node,
            message_type=f"query.{asked.kind}",
            ttl=self.settings.timeout_s(asked.kind),
        )
        [asked.message_id] = self.grid.push_messages([message])
        asked.activated, asked.absent_since, asked.sent_at = activated, None, time.monotonic()
        asked.n_tries += 1
        if not asked.message_id:
            self._lost(asked, "the message could not be sent")

    def _pull(self, asked: _Asked) -> bytes | Missing | None:
        """One answer at a time, so that memory does not grow with the silos."""
        try:
            replies = list(self.pull(asked.message_id, asked.most))
        except LostError:
            self._lost(asked, "parts of its answer were lost on the way")
            return None
        except TooLargeError:
            self._lost(asked, "its answer is too large")
            return Missing(
                f"its answer to {asked.kind} has more than {asked.most / 1e6:.1f} MB, and was not "
                "fetched. federation.max_message_mb sets another limit."
            )
        except UNREADABLE:
            self._lost(asked, "its answer could not be read")
            return Missing("what arrived is not a message of this program.")
        # Errors come from the SuperLink as node 1, so the request says whose they are.
        own = [r for r in replies if r.metadata.reply_to_message_id == asked.message_id]
        if not own:
            return None
        if own[0].has_error():
            code = own[0].error.code
            self._lost(asked, PASSING.get(code, LASTING.get(code, "Flower reported an error")))
            return None if code in PASSING else Missing(f"{asked.trouble}.")
        data = from_content(own[0].content)
        self.ledger.record(asked.name, "out", kind_of(data), data)
        return data

    def _lost(self, asked: _Asked, trouble: str) -> None:
        self.ledger.record(asked.name, LOST, asked.kind, asked.data)
        log.warning("%s: %s (%s)", asked.name, trouble, asked.kind)
        asked.message_id, asked.trouble = "", trouble


def close_unanswered(ledger: Ledger) -> None:
    """Note as lost what was asked by a coordinator that is gone."""
    last = {entry.silo: entry for entry in verify(ledger.path)} if ledger.path.exists() else {}
    for entry in last.values():
        if entry.direction == "in":
            ledger.note_lost(entry)


def find_silos(
    grid: Grid,
    expected: list[str],
    *,
    settings: FederationSettings,
    ledger: Ledger | None = None,
    poll_s: float = POLL_S,
) -> dict[str, int]:
    """Ask machines without registered keys which silo they are; for loopback and simulation.

    Args:
        grid: of the run.
        expected: names of the silos that are looked for.
        settings: how long to wait.
        ledger: gets question and answer of each that is found; before, nobody knows whose they are.
        poll_s: seconds between two looks for answers.

    Returns:
        Node ids of the expected silos; of one that does not come within `wait_s`, zero.

    Raises:
        DataError: two machines say that they are the same silo.
    """
    found: dict[str, int] = {}
    asked: dict[str, int] = {}
    request = WhoRequest(recipe_hash="").to_bytes()
    end = time.monotonic() + settings.wait_s
    while set(expected) - set(found) and time.monotonic() < end:
        for node in set(grid.get_node_ids()) - set(asked.values()):
            message = Message(to_content(request), node, f"query.{WhoRequest.kind}")
            [sent] = grid.push_messages([message])
            asked[sent] = node
        for reply in list(grid.pull_messages(list(asked))):
            node = asked[reply.metadata.reply_to_message_id]
            name = _name_in(reply)
            if name in found:
                raise DataError(f"two machines say that they are silo {name}. Stop one of them.")
            if name in expected:
                found[name] = node
                if ledger is not None:
                    data = from_content(reply.content)
                    ledger.record(name, "in", WhoRequest.kind, request)
                    ledger.record(name, "out", kind_of(data), data)
        time.sleep(poll_s)
    return {name: found.get(name, 0) for name in expected}


def _name_in(reply: Message) -> str:
    if reply.has_error():
        return ""
    allowed: dict[str, Any] = {WhoReply.kind: WhoReply}
    return from_bytes(from_content(reply.content), allowed=allowed, sender="a silo").silo
