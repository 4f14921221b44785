"""A silo's worker: takes the SuperNode's messages and gives them to the one program installed here.

Flower would unpack and run the app that the coordinator sent. Nothing that came over the network is
run here: the message's bytes go to the silo's gate. The model stays in memory between messages.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import (
    pull_task_input,
    push_message,
    push_task_output,
)

from clues.silo.gate import KeptInside

POLL_S = 0.2
TASK_METHODS = frozenset({"/flwr.proto.Runtime/AcquireTask"})
# For a message that waits behind the one under way.
ACQUIRE = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])


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
            httpx.HTTPError: the SuperNode does not answer.
        """
        signer = SuperExecAuthHttpInterceptor(
            master_secret=self.secret, protected_methods=TASK_METHODS
        )
        client = self._client(signer)
        try:
            while while_true():
                token = client.AcquireTask(ACQUIRE).token
                if token:
                    with KeptInside(self.errors):
                        self._answer(token)
                else:
                    time.sleep(POLL_S)
        finally:
            client.close()

    def _answer(self, token: str) -> None:
        client = self._client(RuntimeTokenHttpInterceptor(token))
        heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
        started = time.monotonic()
        try:
            heartbeat.start()
            message, context, _run, _app_that_was_sent = pull_task_input(client)
            kind = message.metadata.message_type
            reply: Message = self.app(message, context)
            push_message(client, reply, context)
            push_task_output(client, context, SubStatus.COMPLETED, "")
        finally:
            if heartbeat.is_running:
                heartbeat.stop()
            client.close()
        self.told(kind.removeprefix("query."), time.monotonic() - started)

    def _client(self, interceptor: ProtobufClientInterceptor) -> RuntimeHttpClient:
        version = RuntimeVersionHttpInterceptor(component_name="clues")
        # Plain http: it is loopback, and the secret and the tokens say who is who.
        return RuntimeHttpClient.from_server_address(
            self.address, True, None, [version, interceptor]
        )
