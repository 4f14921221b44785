"""Answers over Flower that come in drops, or are larger than they may be: nobody else is held up."""

import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("flwr", reason="Flower is not installed: clues[flower]")

from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)

from clues.carriers.flower import GridTransport, LostError, TooLargeError, from_content, to_content
from clues.config import FederationSettings
from clues.network import flower_inside
from clues.wall.ledger import Ledger
from clues.wall.messages import SelectRequest
from clues.wall.transport import Missing

ANSWER = bytes(range(256)) * 50_000  # 12.8 MB: three pieces, all different


class Post:
    """A SuperLink's side of one answer: its tree, and the parts that have come."""

    def __init__(
        self, data: bytes, *, change: Callable[[bytes], bytes] = lambda part: part
    ) -> None:
        flower_inside.identify(task_id=1, run_id=1, node_id=1)
        message = Message(to_content(data), dst_node_id=1, message_type="query.select")
        message.metadata.__dict__["_message_id"] = message.object_id
        with no_object_id_recompute():
            self.tree = get_object_tree(message)
            nested = get_all_nested_objects(message)
        self.id = message.metadata.message_id
        self.parts = {name: change(found.deflate()) for name, found in nested.items()}
        self.n_here, self.n_pulled, self.confirmed = len(self.parts), 0, False

    def PullMessages(self, request):
        metadata = SimpleNamespace(message_id=self.id)
        content = SimpleNamespace(metadata=metadata)
        return SimpleNamespace(messages_list=[content], message_object_trees=[self.tree])

    def PullObject(self, request):
        self.n_pulled += 1
        here = list(self.parts)[: self.n_here]
        if request.object_id not in self.parts:
            return SimpleNamespace(object_found=False)
        there = request.object_id in here
        content = self.parts[request.object_id] if there else b""
        return SimpleNamespace(object_found=True, object_available=there, object_content=content)

    def ConfirmMessageReceived(self, request):
        self.confirmed = True


def grid_of(post: Post) -> flower_inside.PatientGrid:
    grid = flower_inside.PatientGrid("127.0.0.1:1", insecure=True, token="t")
    grid._client = cast(Any, post)
    grid._run = cast(Any, SimpleNamespace(run_id=1))
    return grid


@pytest.fixture(autouse=True)
def own_run(monkeypatch):
    run = property(lambda self: SimpleNamespace(run_id=1))
    monkeypatch.setattr(flower_inside.PatientGrid, "run", run)


def test_an_answer_is_taken_when_its_last_part_is_there_and_no_call_waits():
    post = Post(ANSWER)
    grid, n_parts = grid_of(post), len(post.parts)
    began = time.monotonic()
    for n_here in range(n_parts):
        post.n_here = n_here
        assert grid.pull_bounded("asked", 20_000_000) == []
    assert time.monotonic() - began < 5, "it waited for parts that had not come"
    post.n_here = n_parts
    [message] = grid.pull_bounded("asked", 20_000_000)
    assert from_content(message.content) == ANSWER
    assert post.confirmed
    # What was there was not fetched again.
    assert post.n_pulled <= 2 * n_parts + 1
    assert not grid._coming


def test_an_answer_that_grows_too_large_is_left_where_it_is():
    post = Post(ANSWER)
    with pytest.raises(TooLargeError):
        grid_of(post).pull_bounded("asked", 3_000_000)
    assert post.n_pulled < len(post.parts), "all of it was fetched to find that it is too large"
    assert not post.confirmed


def named_often(part: bytes) -> bytes:
    """The array's part with its first piece named 200,000 times: 1 TB out of 5 MB."""
    head, divider, body = part.partition(b"\0")
    if not head.startswith(b"Array "):
        return part
    content = json.loads(body)
    content["arraychunk_ids"] = [0] * 200_000
    text = json.dumps(content, separators=(",", ":")).encode()
    kind, children, _ = head.split(b" ")
    return b" ".join([kind, children, str(len(text)).encode()]) + divider + text


def test_a_piece_that_is_named_without_end_is_refused_before_it_is_put_together():
    with pytest.raises(TooLargeError):
        grid_of(Post(ANSWER, change=named_often)).pull_bounded("asked", 20_000_000)


def test_pieces_that_are_alike_are_no_fault():
    zeros = bytes(16_000_000)
    post = Post(zeros)
    [message] = grid_of(post).pull_bounded("asked", 16_000_000)
    assert from_content(message.content) == zeros
    assert sum(map(len, post.parts.values())) < 8_000_000


def test_parts_without_end_are_refused_before_the_first_is_fetched():
    post = Post(b"x")
    leaf = post.tree
    for n in range(200):
        leaf.children.add(object_id=f"{n:064x}")
    with pytest.raises(TooLargeError):
        grid_of(post).pull_bounded("asked", 1000)
    assert post.n_pulled == 0


def test_parts_that_are_gone_are_asked_for_again_and_a_silo_that_floods_is_named(tmp_path):
    def lose(message_id: str, most: int):
        raise LostError

    def flood(message_id: str, most: int):
        raise TooLargeError

    request = SelectRequest(recipe_hash="x", threshold={}).to_bytes()
    for pull, why in ((lose, "asked 5 times, and parts of its answer"), (flood, "not fetched")):
        grid = SimpleNamespace(
            get_nodes=lambda: [SimpleNamespace(node_id=10, last_activated_at="once")],
            push_messages=lambda messages: ["id"],
        )
        transport = GridTransport(
            cast(Any, grid),
            {"north": 10},
            Ledger(tmp_path / f"{pull.__name__}.jsonl"),
            settings=FederationSettings(),
            pull=pull,
            poll_s=0.0,
        )
        [(name, missing)] = transport.exchange({"north": request}, most={"north": 1000})
        assert name == "north"
        assert isinstance(missing, Missing)
        assert why in missing.why


def test_a_request_that_names_a_piece_without_end_stays_outside(monkeypatch):
    """The same from a coordinator: five times what it has sent is the most that memory takes."""
    monkeypatch.setattr(flower_inside, "context_from_proto", lambda _: SimpleNamespace(
        node_id=1, run_id=1
    ))  # fmt: skip
    for change, fine in ((lambda part: part, True), (named_often, False)):
        post = Post(ANSWER, change=change)
        task = SimpleNamespace(context=None, task_id=1, run=SimpleNamespace(run_id=1))
        post.PullTaskInput = lambda _, task=task: task  # pyright: ignore[reportAttributeAccessIssue]
        if fine:
            message, _ = flower_inside.pull_message(cast(Any, post))
            assert from_content(message.content) == ANSWER
            continue
        with pytest.raises(TooLargeError):
            flower_inside.pull_message(cast(Any, post))
