"""The openai client of one endpoint. It repeats what fails; we count and bound every request."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from clues.config import JudgeSettings
from clues.extras import needs
from clues.reading import is_plain_number, parse_json

with needs("openai", "httpx2", what="evaluate.judge"):
    import httpx2
    import openai

MAX_BODY = 10_000_000  # of a reply; max_reply_tokens bounds an honest one to a few kB
_NO_COMPLETION = "a reply that is no chat completion"


class LimitError(openai.OpenAIError):
    """No further request may be made. The client passes its own kind of error on at once."""


class _NoCompletionError(httpx2.RemoteProtocolError):
    """To the client a broken connection, so that it asks again."""


class _Counted(openai.DefaultAsyncHttpxClient):
    """Sees every request that goes out, the client's retries included."""

    def __init__(self, settings: JudgeSettings, may_ask: Callable[[], bool]) -> None:
        # A redirect could lead rows and key elsewhere; a proxy has no place on loopback.
        super().__init__(follow_redirects=False, trust_env=not settings.loopback)
        self.limit_s, self.may_ask = settings.timeout_s, may_ask

    async def send(self, request: httpx2.Request, **how: Any) -> httpx2.Response:
        if not self.may_ask():
            raise LimitError
        try:
            # The client's own limit holds between two bytes; a trickle would never end.
            async with asyncio.timeout(self.limit_s):
                reply = await super().send(request, **how)
        except TimeoutError:
            raise httpx2.ReadTimeout("too slow", request=request) from None
        if reply.status_code == 200 and isinstance(_completion(reply.content), str):
            raise _NoCompletionError(_NO_COMPLETION, request=request)
        return reply


class Client:
    """Sends chat completions, and waits and asks again where that may help."""

    def __init__(self, settings: JudgeSettings, may_ask: Callable[[], bool]) -> None:
        """Connect to nobody yet.

        Args:
            settings: the endpoint, its key's variable, how long and how often to try.
            may_ask: is called before each request, retries included; False ends everything.
        """
        self._settings = settings
        self._client = openai.AsyncOpenAI(
            base_url=settings.base_url,
            api_key=os.environ[settings.api_key_env] if settings.api_key_env else "none",
            max_retries=settings.retries,
            timeout=settings.timeout_s,
            http_client=_Counted(settings, may_ask),
        )

    async def close(self) -> None:
        """End all connections."""
        await self._client.close()

    async def ask(self, request: dict[str, Any]) -> tuple[int, dict[str, Any] | str]:
        """Status, zero where there was none, with the reply or the problem.

        Raises:
            LimitError: `may_ask` says no.
        """
        create: Any = self._client.chat.completions.with_raw_response.create
        try:
            raw = await create(**request)
        except openai.APITimeoutError:
            return 0, f"no reply within {self._settings.timeout_s:g} s"
        except openai.APIStatusError as error:
            # The body may repeat rows or the key, so the number must do.
            return error.status_code, f"HTTP {error.status_code}"
        except openai.APIConnectionError as error:
            strange = isinstance(error.__cause__, _NoCompletionError)
            return 0, _NO_COMPLETION if strange else "no connection, or a broken one"
        return 200, _completion(raw.content)


def _completion(body: bytes) -> dict[str, Any] | str:
    """What is kept of a chat completion, or a problem."""
    try:
        if len(body) > MAX_BODY:
            return _NO_COMPLETION
        content = parse_json(body)
        words = content["choices"][0]["message"]["content"]
        usage = content.get("usage") or {}
        tokens = usage.get("total_tokens", 0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return _NO_COMPLETION
    if words is not None and not isinstance(words, str):
        return _NO_COMPLETION
    # No words, as after a refusal, are an answer too, and an invalid one.
    return {
        "content": words or "",
        "tokens": tokens if is_plain_number(tokens, low=0, high=2**53) else 0,
    }
