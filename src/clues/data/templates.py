"""Chat templates, rendered by a process that can be ended: `sandbox` says why."""

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from clues.errors import ConfigError, DataError, TurnsError

PROGRAM = Path(__file__).with_name("sandbox.py")
BASE = "transformers.tokenization_utils_base"
# Of the process's own time, for one row; and of anybody's, for a process that cannot even run.
CPU_S, PATIENCE_S = 5.0, 120.0
MAX_BYTES = 2**27
MAX_TEMPLATE = 2**18
# The error that a template raises itself; any other is a fault of the template.
REFUSED = "TemplateError"


class Rendered(NamedTuple):
    """A conversation as text.

    Attributes:
        text: all of it.
        marked: from where to where the template itself says that the assistant speaks
            (`{% generation %}`); empty where it does not say.
    """

    text: str
    marked: tuple[tuple[int, int], ...] = ()


def template_of(tokenizer: Any) -> str | None:
    """A tokenizer's chat template; None where it has none.

    Raises:
        ConfigError: there are several and none is the usual one, or it is no text, or too long.
    """
    found = getattr(tokenizer, "chat_template", None)
    if not found:
        return None
    if isinstance(found, Mapping):
        found = found.get("default")
    if not isinstance(found, str):
        raise ConfigError(
            "this model's chat template is no text, or there are several and none is called "
            "default. Set recipe.tokens.template to alpaca."
        )
    if len(found) > MAX_TEMPLATE:
        raise ConfigError(
            f"this model's chat template has {len(found)} characters, and {MAX_TEMPLATE} are the "
            "most. Set recipe.tokens.template to alpaca."
        )
    return found


class ChatTemplate:
    """A tokenizer's chat template, with its special tokens.

    The text is what the tokenizer's own `apply_chat_template` gives. A tokenizer with code of its
    own for this, which its owner has allowed, is asked itself.
    """

    def __init__(self, tokenizer: Any, *, day: str = "2025-01-01") -> None:
        """Start nothing yet.

        Args:
            tokenizer: whose template it is.
            day: that a template is told where it asks for today's date, as year-month-day.
        """
        self.template = template_of(tokenizer)
        self._day = day
        self._tokenizer, self._lock = tokenizer, threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def writes_date(self) -> bool:
        """Whether the template asks for today's date."""
        return "strftime_now" in (self.template or "")

    def render(
        self, turns: Sequence[Mapping[str, Any]], *, header: bool, tools: Sequence[Any] = ()
    ) -> Rendered:
        """The text of a conversation.

        Args:
            turns: role and content of each, and what else the template reads of it.
            header: whether what stands in front of an answer comes last.
            tools: definitions of what the assistant may call.

        Raises:
            TurnsError: the template refuses the order or the roles of these turns.
            DataError: the template is damaged, or takes too much.
        """
        if not turns:
            raise TurnsError("there is no turn before the first response.")
        if not _is_plain(self._tokenizer):
            return Rendered(self._own(turns, header=header, tools=tools))
        values = {
            "messages": [dict(turn) for turn in turns],
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": header,
            **self._tokenizer.special_tokens_map,
        }
        with self._lock:
            if self._process is None:
                self._process = self._start()
                self._ask(self._process, {"template": self.template})
            return self._ask(self._process, values)

    def _own(
        self, turns: Sequence[Mapping[str, Any]], *, header: bool, tools: Sequence[Any]
    ) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                list(turns),
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=header,
            )
        # Its words may be a row's.
        except jinja2.TemplateError as error:
            raise _refusal(type(error).__name__, "") from None
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise _refusal(type(error).__name__, "") from None

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: the folder of the program holds modules that must not be taken for others.
        process = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM), str(CPU_S), self._day],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        weakref.finalize(self, _end, process)
        return process

    def _ask(self, process: subprocess.Popen[bytes], values: Mapping[str, Any]) -> Rendered:
        reply = _exchange(process, json.dumps(values).encode() + b"\n")
        if reply is None:
            _end(process)
            self._process = None
            raise DataError(
                f"this model's chat template takes over {CPU_S:g} seconds or too much memory for one row. "
                "Set recipe.tokens.template to alpaca, or repair the template."
            )
        if isinstance(text := reply.get("text"), str):
            return Rendered(text, tuple((a, b) for a, b in reply.get("spans", ())))
        if "template" in values:
            _end(process)
            self._process = None
        raise _refusal(str(reply.get("error"))[:40], str(reply.get("said") or "")[:200])


def _refusal(kind: str, said: str) -> DataError:
    """What to tell of an error of the template: its kind, and words that are no row's."""
    words = f"({kind}{': ' if said else ''}{said})"
    if kind == REFUSED:
        return TurnsError(
            f"this model's chat template refuses these turns {words}. Set recipe.tokens.odd_turns "
            "to fold or drop, or recipe.tokens.template to alpaca."
        )
    return DataError(
        f"this model's chat template cannot be used here {words}. Set recipe.tokens.template to "
        "alpaca, or repair the template."
    )


def _is_plain(tokenizer: Any) -> bool:
    """Whether a tokenizer renders as transformers does, and not by code of its own."""
    names = ("apply_chat_template", "get_chat_template")
    homes = {
        next(c for c in type(tokenizer).__mro__ if name in c.__dict__).__module__ for name in names
    }
    return homes == {BASE}


def _exchange(process: subprocess.Popen[bytes], line: bytes) -> dict[str, Any] | None:
    """One line in, one line out; None where the process ends, or is silent for too long."""
    assert process.stdin is not None
    assert process.stdout is not None
    deadline, received = time.monotonic() + PATIENCE_S, bytearray()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(line)
        process.stdin.flush()
    while not received.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(process.stdout.fileno(), 2**20) if ready else b""
        received += part
        if not part or len(received) > MAX_BYTES:
            return None
    content = json.loads(received)
    return content if isinstance(content, dict) else None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
