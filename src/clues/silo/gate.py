"""The way in and out of a silo on a machine of its own: recorded, and silent about its errors."""

import contextlib
import logging
import secrets
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from clues.atomic import open_private
from clues.errors import CluesError, DataError
from clues.printable import lines
from clues.silo.remembered import check_remembered
from clues.wall.ledger import Ledger, verify
from clues.wall.messages import (
    Failure,
    HelloRequest,
    WhoReply,
    WhoRequest,
    from_bytes,
    kind_of,
)

log = logging.getLogger("clues")
Answer = Callable[[bytes], bytes]
ASKED_TO_STOP = (KeyboardInterrupt, SystemExit, GeneratorExit)
LONGEST = 20_000  # characters of one entry in a silo's log; a traceback has some thousand


class KeptInside:
    """Keeps any error inside, writes it to a private file, and gives a random reference instead.

    Not an `except`: the rule against catching everything has this one exception, because here
    everything that escapes would cross the wall.
    """

    def __init__(self, file: Path) -> None:
        """Write to this file, which never leaves the silo."""
        self.file = file
        self.reference = ""

    def __enter__(self) -> "KeptInside":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Let nobody but the silo see the error; a request to stop the program passes."""
        # A panic in a library's Rust is no Exception, and its text may hold a row.
        if error is None or isinstance(error, ASKED_TO_STOP):
            return False
        self.reference = secrets.token_hex(4)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        # Users can act on our own messages; everything else needs the place where it happened.
        ours = isinstance(error, CluesError)
        text = str(error) if ours else "".join(traceback.format_exception(error))
        # A full disk must not undo what this is for.
        with contextlib.suppress(OSError, DataError), open_private(self.file) as file:
            # It may repeat what the coordinator has sent, and a person will print it.
            file.write(f"--- {now} reference {self.reference}\n{lines(text, LONGEST)}\n")
        log.error("Reference %s: the reason is in %s", self.reference, self.file)
        return True


class Gate:
    """One silo behind its ledger."""

    def __init__(self, name: str, folder: Path, open_silo: Callable[[], Answer]) -> None:
        """Continue the silo's ledger.

        Args:
            name: of the silo.
            folder: the silo's own; the ledger and `private/errors.log` lie in it.
            open_silo: makes the silo anew; called for every hello, so that rows that have changed
                are read again.

        Raises:
            LedgerError: the ledger there is broken.
            DataError: the silo has forgotten what it has answered.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.open_silo = name, open_silo
        self.ledger = Ledger(folder / "ledger.jsonl")
        if self.ledger.n_entries:
            check_remembered(folder / "private", verify(self.ledger.path))
        self.errors = folder / "private" / "errors.log"
        self._answer: Answer | None = None

    def answer(self, data: bytes) -> bytes:
        """Answer a request, or say that it failed; both are in the ledger before they go."""
        self.ledger.record(self.name, "in", kind_of(data), data)
        reply = b""
        with KeptInside(self.errors) as kept:
            reply = self._reply(data)
        if kept.reference:
            reply = Failure(recipe_hash="", reference=kept.reference).to_bytes()
        self.ledger.record(self.name, "out", kind_of(reply), reply)
        return reply

    def _reply(self, data: bytes) -> bytes:
        kind = kind_of(data)
        if kind == WhoRequest.kind:
            from_bytes(data, allowed={kind: WhoRequest}, sender="coordinator")
            return WhoReply(recipe_hash="", silo=self.name).to_bytes()
        if self._answer is None or kind == HelloRequest.kind:
            self._answer = self.open_silo()
        return self._answer(data)
