"""How a library behaves in a program that is not its own."""

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from rich.console import Console
from transformers.utils import logging as hf_logging

from clues.progress import Progress, Silent, Terminal


def bars(wanted: bool | Progress) -> Progress:
    """Where progress goes: to the error stream, nowhere, or to an object of the caller's."""
    if isinstance(wanted, bool):
        return Terminal(Console(stderr=True)) if wanted else Silent()
    return wanted


@contextmanager
def left_as_found() -> Iterator[None]:
    """Training seeds the generators of the process, and libraries talk over our bars.

    Inside they may; after, generators, warnings and bars are what they were before.
    """
    ours, numpys = random.getstate(), np.random.get_state()
    had_bars = hf_logging.is_progress_bar_enabled()
    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        warnings.catch_warnings(),
    ):
        # PEFT asks transformers for a name that transformers has renamed; no user can act on that.
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        hf_logging.disable_progress_bar()
        try:
            yield
        finally:
            if had_bars:
                hf_logging.enable_progress_bar()
            random.setstate(ours)
            np.random.set_state(numpys)
