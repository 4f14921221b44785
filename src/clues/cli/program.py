"""How a program begins and ends: one message and an exit code, whatever happens and whenever."""

import signal
import sys
from collections.abc import Callable
from importlib import import_module
from threading import current_thread, main_thread
from types import FrameType, TracebackType
from typing import Any

from clues.errors import CluesError
from clues.reading import shown, visible

INTERRUPTED = "Interrupted. The same command goes on where it stopped."
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Ending:
    """Stands around a program from before its first import to its end.

    Not an `except`: what a signal breaks off can come out as any exception, for the import of a
    library that is written in C makes another one of it.
    """

    def __init__(self, name: str, *, final: bool = False) -> None:
        """Take the name for messages; `final`: nothing runs after it in this process."""
        self.name, self.final = name, final
        self.number = 0
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Ending":
        """From here on Ctrl-C, and a request to end, unwind what is under way."""
        # Python lets nobody but the main thread take a signal.
        if current_thread() is main_thread():
            self.before = {s: signal.signal(s, self._stop) for s in SIGNALS}
        return self

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.number = number
        raise KeyboardInterrupt

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Say why it ends, in one message, and end with the code that belongs to it."""
        # The work is done or given up: a second signal would only spoil the last words.
        for number in self.before:
            signal.signal(number, signal.SIG_IGN)
        try:
            if error is not None and self.number:
                sys.stderr.write(f"{INTERRUPTED}\n")
                sys.exit(128 + self.number)
            said, code = _message(error)
            if said:
                # Not before it is needed: it takes longer than an interrupted start.
                err = import_module("clues.cli.options").err
                text = visible(f"{self.name}: {said}", keep="\n")
                err.print(text, markup=False, highlight=False, style="red", soft_wrap=True)
                sys.exit(code)
        finally:
            if not self.final:
                for number, handler in self.before.items():
                    signal.signal(number, handler)


def _message(error: BaseException | None) -> tuple[str, int]:
    """What to say about an error that a user can mend, and the exit code; else nothing."""
    if isinstance(error, CluesError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError):
        return "there is not enough memory. Close other programs, or use fewer or shorter rows.", 1
    if isinstance(error, BrokenPipeError):
        return "", 0
    if isinstance(error, OSError) and error.filename is not None:
        advice = "Look at the file and its folder"
        if isinstance(error, PermissionError):
            advice = "Give yourself the right to use it (chmod, chown), or name another place"
        return f"{shown(str(error.filename))}: {error.strerror or 'cannot be used'}. {advice}.", 3
    return "", 0


def run_to_exit(program: Callable[..., object], *, name: str, final: bool = False) -> None:
    """Run a program; a user's error or a signal becomes one message and an exit code.

    Args:
        program: takes its name for usage messages as `prog_name`.
        name: of the program.
        final: whether nothing runs after it in this process.
    """
    with Ending(name, final=final):
        program(prog_name=name)


def main(*, final: bool = False) -> None:
    """Run a verb of `clues`; `final` as in `run_to_exit`."""
    run_to_exit(_all_verbs, name="clues", final=final)


def process() -> None:
    """Run a verb of `clues` as all that this process does."""
    main(final=True)


def _all_verbs(*, prog_name: str) -> None:
    # Here, where Ctrl-C is already ours, and not on top: the imports take a second.
    import_module("clues.cli.calm").calm_imports()
    import_module("clues.cli.verbs").app(prog_name=prog_name)


def __getattr__(name: str) -> Any:
    """The program itself, imported when it is first asked for."""
    if name == "app":
        return import_module("clues.cli.verbs").app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
