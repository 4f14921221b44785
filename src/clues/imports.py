"""Modules of ours whose imports bring in large libraries, without what these say about themselves."""

import logging
from importlib import import_module
from types import ModuleType

# Of a kernel that some CPUs would answer with; weights stay as they are packed here.
TALKATIVE = "bitsandbytes.backends.cpu.ops"


def import_quietly(name: str) -> ModuleType:
    """Import a module; afterwards every library may talk as before."""
    talkative = logging.getLogger(TALKATIVE)
    level = talkative.level
    talkative.setLevel(logging.ERROR)
    try:
        return import_module(name)
    finally:
        talkative.setLevel(level)
