"""One record type: a row of the user's file, parsed, with an id made from its content."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: one of `ROLES`.
        content: what is said; of an assistant's turn that calls tools it may be empty.
        thought: what an assistant thinks before it speaks.
        calls: the tools that an assistant calls, as JSON: a list of objects with `name`,
            `arguments` and, where the row has one, `id`.
        name: of the tool whose result this is.
        call_id: of the call whose result this is.
        trained: whether an assistant's turn is trained; rows can say that it is not.
    """

    role: str
    content: str = field(repr=False)
    thought: str = field(default="", repr=False)
    calls: str = field(default="", repr=False)
    name: str = field(default="", repr=False)
    call_id: str = field(default="", repr=False)
    trained: bool = True

    @property
    def said(self) -> str:
        """The content with the thought in front of it, as most models write it."""
        if not self.thought:
            return self.content
        return f"<think>\n{self.thought}\n</think>\n\n{self.content}"

    @property
    def shown(self) -> str:
        """All of it as text, for a person to read."""
        return "\n".join(part for part in (self.said, self.calls) if part)


@dataclass(frozen=True, slots=True)
class Sample:
    """A row, parsed. Its text never shows in `repr`.

    Attributes:
        row: zero-based position in the user's file.
        messages: turns in order; the last one is the assistant's.
        choices: the answers to choose from, empty where the row is not multiple choice.
        answer: index of the right choice; None where there are no choices.
        tools: what the assistant may call, as JSON; empty where the row names none.
        rejected: of a preference pair, the conversation with the other answer.
        unwanted: whether the row says that its answer is one not to give.
    """

    row: int
    messages: tuple[Message, ...] = field(repr=False)
    choices: tuple[str, ...] = field(default=(), repr=False)
    answer: int | None = field(default=None, repr=False)
    tools: str = field(default="", repr=False)
    rejected: tuple[Message, ...] = field(default=(), repr=False)
    unwanted: bool = False

    @property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of all that is read and trained; equal row, equal id.

        What a row does not have does not count. Nor does the other answer of a pair.
        """
        digest = hashlib.sha256()
        for message in self.messages:
            _add(digest, (message.role, message.content))
            trained = "" if message.trained else "not trained"
            more = (message.thought, message.calls, message.name, message.call_id, trained)
            if any(more):
                _add(digest, ("more", *more))
        if self.tools or self.unwanted:
            _add(digest, ("row", self.tools, "unwanted" if self.unwanted else ""))
        return digest.hexdigest()[:16]

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Every turn before the last answer."""
        return self.messages[:-1]

    @property
    def response(self) -> str:
        """The last answer."""
        return self.messages[-1].content

    def is_trained(self, *, last: bool) -> bool:
        """Whether any turn is to be trained.

        Args:
            last: whether the last answer is the only one that can be.
        """
        # Nobody has asked for an answer that begins the conversation.
        turns = self.messages[-1:] if last else self.messages[1:] or self.messages
        return any(turn.role == "assistant" and turn.trained for turn in turns)


def _add(digest: "hashlib._Hash", parts: Iterable[str]) -> None:
    for part in parts:
        encoded = part.encode()
        # The length keeps "ab" + "c" apart from "a" + "bc".
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
