"""An OpenAI-compatible endpoint: bounded, repeated where it fails, and never asked twice."""

import json
import os
from pathlib import Path
from typing import Any

from clues.atomic import atomic_write_bytes, make_folder
from clues.config import JudgeSettings
from clues.errors import ConfigError, DataError
from clues.evaluation.judge.prompts import Messages, schema
from clues.extras import require
from clues.reading import read_json
from clues.rundir import hash_of

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
    require("openai", "httpx2", what="evaluate.judge")
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
        from clues.evaluation.judge.client import Client  # seconds to import, and an extra

        self._client = Client(self.settings, self._may_ask)
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
        stored = read_json(path, advice="Remove it to ask again.")
        content = stored.get("content") if isinstance(stored, dict) else None
        if not isinstance(content, str):
            raise DataError(f"{path}: not readable. Remove it to ask again.")
        return content

    async def reply(self, messages: Messages, mode: str) -> str:
        """The judge's words, from the disk if they were paid for before.

        Raises:
            EndpointError: no answer after all retries, or `max_calls` is reached.
            RefusedError: this request is refused.
        """
        known = self.stored(messages)
        if known is not None:
            return known
        plain = self.plain
        status, found = await self._ask(messages, None if plain else schema(mode))
        if status in _REFUSED and not plain:
            # Some endpoints know no JSON schema; the rubric asks for the same in words.
            status, found = await self._ask(messages, None)
            self.plain = self.plain or isinstance(found, dict)
        if isinstance(found, dict):
            return self._keep(messages, found)
        if status in _REFUSED:
            raise RefusedError(found)
        if status in _WRONG:
            raise EndpointError(f"evaluate.judge: {found}: {_WRONG[status]}.")
        raise EndpointError(
            f"evaluate.judge: the endpoint gives no answer ({found}; retries: "
            f"{self.settings.retries})."
        )

    async def _ask(
        self, messages: Messages, response_format: dict[str, Any] | None
    ) -> tuple[int, dict[str, Any] | str]:
        from clues.evaluation.judge.client import LimitError

        extra = {"response_format": response_format} if response_format else {}
        try:
            return await self._client.ask({**self._request(messages), **extra})
        except LimitError:
            raise EndpointError(
                f"evaluate.judge.max_calls: {self.n_calls} requests are made, repairs and retries "
                "included. Raise it."
            ) from None

    def _may_ask(self) -> bool:
        """Count one request more, unless there were as many as there may be."""
        free = self.n_calls < self.settings.max_calls
        self.n_calls += free
        return free

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
