"""One record type: a row of the user's file, parsed, with an id made from its content."""

import hashlib
from dataclasses import dataclass, field

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str = field(repr=False)


@dataclass(frozen=True)
class Sample:
    """A row, parsed. Its text never shows in `repr`.

    Attributes:
        row: zero-based position in the user's file.
        messages: turns in order; the last one is the assistant's.
        choices: the answers to choose from, empty where the row is not multiple choice.
        answer: index of the right choice; None where there are no choices.
    """

    row: int
    messages: tuple[Message, ...] = field(repr=False)
    choices: tuple[str, ...] = field(default=(), repr=False)
    answer: int | None = field(default=None, repr=False)

    @property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of roles and contents; equal text, equal id."""
        digest = hashlib.sha256()
        for message in self.messages:
            for part in (message.role, message.content):
                encoded = part.encode()
                # The length keeps "ab" + "c" apart from "a" + "bc".
                digest.update(len(encoded).to_bytes(8, "big") + encoded)
        return digest.hexdigest()[:16]

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Every turn before the last answer."""
        return self.messages[:-1]

    @property
    def response(self) -> str:
        """The last answer."""
        return self.messages[-1].content
