"""Which device a model computes on, and what differs between devices."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from clues.errors import ConfigError


def device_of(wanted: str | None = None) -> torch.device:
    """The device of that name; with `auto` or None the first GPU of CUDA where there is one, else the CPU.

    Raises:
        ConfigError: this machine has none.
    """
    cuda = torch.cuda.is_available()
    if wanted in (None, "auto"):
        return torch.device("cuda" if cuda else "cpu")
    device = torch.device(wanted)
    there = {"cuda": cuda, "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, True):
        raise ConfigError(
            f"compute.device: {wanted}: torch finds no such device on this machine. Take auto or cpu, "
            "or install the build of torch that knows it."
        )
    return device


def fast_in_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 faster than in float32.

    A graphics card, or a processor with units for it (AVX-512 for bfloat16, AMX). Others are slower
    with half the bytes.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Older versions of torch do not say what a processor can.
    ask = getattr(torch.cpu, "get_capabilities", None)
    can = ask() if ask else {}
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def wide(x: Tensor) -> Tensor:
    """In float64; on the CPU where the device has no such numbers (Apple)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


@contextmanager
def random_forked(device: torch.device) -> Iterator[None]:
    """Inside, random numbers may be drawn on CPU and device; after, nobody sees that they were."""
    state = torch.mps.get_rng_state() if device.type == "mps" else None
    inner = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with inner:
        try:
            yield
        finally:
            if state is not None:
                torch.mps.set_rng_state(state)


def give_memory_back() -> None:
    """Let go of what torch keeps for later on a device, after it ran out of memory."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
