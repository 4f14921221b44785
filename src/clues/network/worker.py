"""A silo's worker: takes the SuperNode's messages and gives them to the one program installed here.

Flower would unpack and run the app that the coordinator sent. Nothing that came over the network is
run here: the message's bytes go to the silo's gate. The model stays in memory between messages.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clues.carriers.flower import FAILED
from clues.extras import needs
from clues.network import flower_inside
from clues.printable import printable
from clues.silo.gate import KeptInside

with needs("flwr", what=flower_inside.WHAT):
    from flwr.app import Error, Message
    from flwr.clientapp import ClientApp

POLL_S = 0.2


@dataclass
class Worker:
    """Answers a SuperNode's messages, one after the other.

    Attributes:
        app: what answers.
        address: of the SuperNode's Runtime API, on loopback.
        secret: that only we and the SuperNode know.
        errors: private file for what goes wrong outside the silo's own gate, such as a message that
            cannot be read; the next one is taken all the same.
        told: is called with the kind of each message and the seconds that its answer took.
    """

    app: ClientApp
    address: str
    secret: bytes
    errors: Path
    told: Callable[[str, float], None]

    def run(self, while_true: Callable[[], bool]) -> None:
        """Work as long as this is true; it is asked between messages.

        Raises:
            CallError: the SuperNode does not answer.
        """
        client = flower_inside.task_client(self.address, None, secret=self.secret)
        try:
            while while_true():
                token, _run_id = flower_inside.take_task(client, flower_inside.CLIENT_TASK)
                if token:
                    with KeptInside(self.errors):
                        self._answer(token)
                else:
                    time.sleep(POLL_S)
        finally:
            client.close()

    def _answer(self, token: str) -> None:
        client = flower_inside.token_client(self.address, token)
        started = time.monotonic()
        try:
            with flower_inside.beating(client):
                message, context = flower_inside.pull_message(client)
                reply: Message | None = None
                # A kind of message that the app has no answer to is an error of Flower's. Without a
                # reply the coordinator would wait, and the SuperNode, too.
                with KeptInside(self.errors) as kept:
                    reply = self.app(message, context)
                if reply is None:
                    why = Error(FAILED, f"reference {kept.reference}")
                    reply = Message(why, reply_to=message)
                flower_inside.push_reply(client, reply, context)
        finally:
            client.close()
        kind = printable(message.metadata.message_type.removeprefix("query."), 20)
        self.told(kind, time.monotonic() - started)
