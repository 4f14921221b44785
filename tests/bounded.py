"""Calls in a forked child whose memory and time are limited, so that a bomb is a failed test."""

import os
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path


class Overdue(BaseException):
    """A call took longer than it may."""


def within(call: Callable[[], str], *, seconds: float = 10.0, megabytes: int = 1_000) -> str:
    """What a call returns, or how it failed; it may take so much more memory than there is.

    The limit is on addresses, as the system counts them, and holds for every library.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        with os.fdopen(write, "w", encoding="utf-8", errors="backslashreplace") as pipe:
            pipe.write(_limited(call, seconds, megabytes))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return said or f"the process died ({status})"


def _limited(call: Callable[[], str], seconds: float, megabytes: int) -> str:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = size + megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.signal(signal.SIGALRM, _overdue)
    # Time on the processor: the machine may be busy with others.
    signal.signal(signal.SIGPROF, _overdue)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 20 * seconds)
    try:
        return call()
    except MemoryError:
        return f"more than {megabytes} MB of memory"
    except Overdue:
        return f"longer than {seconds} s"
    except BaseException:  # noqa: BLE001 - whatever a child does, it is the parent that fails
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _overdue(*_: object) -> None:
    raise Overdue
