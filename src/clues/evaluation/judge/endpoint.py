"""An OpenAI-compatible endpoint: bounded, repeated where it fails, and never asked twice."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from clues.atomic import atomic_write_bytes, make_folder
from clues.config import JudgeSettings
from clues.errors import ConfigError, DataError
from clues.evaluation.judge.prompts import Messages, schema
from clues.extras import require
from clues.rundir import hash_of

_LONGEST_WAIT_S = 60.0
_REFUSED = (400, 413, 422)
_WRONG = {
    401: "it does not accept the key",
    403: "it does not accept the key",
    404: "it knows no such model or address",
}


class EndpointError(DataError):
    """The endpoint gives no answer; what it has answered is stored."""


class RefusedError(Exception):
    """The endpoint refuses one request, whatever its format."""


def check_endpoint(settings: JudgeSettings) -> None:
    """Refuse before anything heavy what would fail after it.

    Raises:
        ExtraError: the client is not installed.
        ConfigError: the key is not in the environment.
    """
    require("openai", what="evaluate.judge")
    if settings.api_key_env and not os.environ.get(settings.api_key_env):
        raise ConfigError(
            f"evaluate.judge.api_key_env: there is no {settings.api_key_env} in the environment. "
            "Set it, or leave api_key_env out if the endpoint needs no key."
        )


class Endpoint:
    """Asks, and keeps every answer on disk by the hash of its request."""

    def __init__(self, settings: JudgeSettings, folder: Path) -> None:
        """Open the cache.

        Raises:
            ExtraError, ConfigError: as `check_endpoint`.
        """
        check_endpoint(settings)
        make_folder(folder)
        self.settings, self.folder = settings, folder
        self.n_calls = self.n_tokens = 0
        self.plain = False
        self._client: Any = None

    async def __aenter__(self) -> "Endpoint":
        import openai  # an extra, and slow to import

        key = os.environ[self.settings.api_key_env] if self.settings.api_key_env else "none"
        # A redirect could lead rows and key elsewhere; a proxy has no place on loopback.
        http = openai.DefaultAsyncHttpxClient(
            follow_redirects=False, trust_env=not self.settings.loopback
        )
        self._client = openai.AsyncOpenAI(
            base_url=self.settings.base_url,
            api_key=key,
            max_retries=0,
            timeout=self.settings.timeout_s,
            http_client=http,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    def stored(self, messages: Messages) -> str | None:
        """The answer to a request that was asked before.

        Raises:
            DataError: the file is not readable.
        """
        path = self._path(messages)
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))["content"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}: not readable. Remove it to ask again.") from None

    async def reply(self, messages: Messages, mode: str) -> str:
        """The judge's words, from the disk if they were paid for before.

        Raises:
            EndpointError: no answer after all retries, or `max_calls` is reached.
            RefusedError: this request is refused.
        """
        known = self.stored(messages)
        if known is not None:
            return known
        problem = ""
        for attempt in range(self.settings.retries + 1):
            status, found, wait_s = await self._attempt(messages, mode)
            if isinstance(found, dict):
                return self._keep(messages, found)
            problem = found
            if status in _REFUSED:
                raise RefusedError(problem)
            if status in _WRONG:
                raise EndpointError(f"evaluate.judge: {problem}: {_WRONG[status]}.")
            if attempt < self.settings.retries:
                usual = self.settings.retry_wait_s * 2**attempt
                await asyncio.sleep(min(max(usual, wait_s), _LONGEST_WAIT_S))
        raise EndpointError(
            f"evaluate.judge: the endpoint gives no answer ({problem}, "
            f"{self.settings.retries + 1} times)."
        )

    async def _attempt(
        self, messages: Messages, mode: str
    ) -> tuple[int, dict[str, Any] | str, float]:
        """Status, reply or problem, and how long the endpoint asks to wait."""
        with_schema = not self.plain
        sent = await self._send(messages, schema(mode) if with_schema else None)
        # Some endpoints know no JSON schema; the rubric asks for the same in words.
        if with_schema and sent[0] in _REFUSED:
            again = await self._send(messages, None)
            if isinstance(again[1], dict):
                self.plain = True
            return again
        return sent

    async def _send(
        self, messages: Messages, response_format: dict[str, Any] | None
    ) -> tuple[int, dict[str, Any] | str, float]:
        import openai

        if self.n_calls >= self.settings.max_calls:
            raise EndpointError(
                f"evaluate.judge.max_calls: {self.n_calls} requests are made, repairs and retries "
                "included. Raise it."
            )
        self.n_calls += 1
        extra = {"response_format": response_format} if response_format else {}
        create = self._client.chat.completions.with_raw_response.create
        request = create(**self._request(messages), **extra)
        try:
            # The client's own limit holds between two bytes; a trickle would never end.
            raw = await asyncio.wait_for(request, self.settings.timeout_s)
        except (TimeoutError, openai.APITimeoutError):
            return 0, f"no reply within {self.settings.timeout_s:g} s", 0.0
        except openai.APIStatusError as error:
            # The body may repeat rows or the key, so the number must do.
            wait_s = _seconds(error.response.headers.get("retry-after"))
            return error.status_code, f"HTTP {error.status_code}", wait_s
        except openai.APIConnectionError:
            return 0, "no connection, or a broken one", 0.0
        return 200, _completion(raw.content), 0.0

    def _keep(self, messages: Messages, found: dict[str, Any]) -> str:
        self.n_tokens += found["tokens"]
        text = json.dumps(found, ensure_ascii=False)
        atomic_write_bytes(self._path(messages), text.encode("utf-8", "replace"))
        return found["content"]

    def _request(self, messages: Messages) -> dict[str, Any]:
        return {
            "model": self.settings.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": self.settings.max_reply_tokens,
        }

    def _path(self, messages: Messages) -> Path:
        key = {"base_url": self.settings.base_url, **self._request(messages)}
        return self.folder / f"{hash_of(key)}.json"


def _completion(body: bytes) -> dict[str, Any] | str:
    """What is kept of a chat completion, or a problem."""
    try:
        content = json.loads(body)
        words = content["choices"][0]["message"]["content"]
        usage = content.get("usage") or {}
        tokens = usage.get("total_tokens", 0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return "a reply that is no chat completion"
    if words is not None and not isinstance(words, str):
        return "a reply that is no chat completion"
    # No words, as after a refusal, are an answer too, and an invalid one.
    return {"content": words or "", "tokens": tokens if isinstance(tokens, int) else 0}


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, min(float(text or 0), _LONGEST_WAIT_S))
    except ValueError:
        return 0.0
