"""Less memory in training: a block keeps its input, and the rest is computed again on the way back.

Everybody else calls it gradient checkpointing; here a checkpoint is an adapter saved in training.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clues.errors import ConfigError


def check_recomputing(base: Any) -> None:
    """Refuse a base model that transformers cannot do it for.

    Raises:
        ConfigError: it is one.
    """
    if not getattr(base, "supports_gradient_checkpointing", False):
        raise ConfigError(
            f"compute.gradient_checkpointing: transformers has none for {type(base).__name__}. Leave "
            "it out; a smaller recipe.tokens.max_length takes less memory, too."
        )


@contextmanager
def recomputing(base: Any, *, on: bool) -> Iterator[None]:
    """Inside, in training mode, blocks compute again on the way back; dropout draws the same numbers.

    Raises:
        ConfigError: as `check_recomputing`.
    """
    if not on:
        yield
        return
    check_recomputing(base)
    later = hasattr(
        base, "activation_checkpointing_enable"
    )  # of transformers; the older name warns
    name = "activation_checkpointing" if later else "gradient_checkpointing"
    # The reentrant kind would need inputs that train, and forget the branches of in-run scores.
    getattr(base, f"{name}_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(base, f"{name}_disable")()
