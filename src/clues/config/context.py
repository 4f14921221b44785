"""How many tokens a base model reads at once, as its configuration says."""

from collections.abc import Mapping
from typing import Any

# Names under which configurations keep it; transformers maps some of them to the first.
NAMES = (
    *("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length"),
    *("n_ctx", "seq_len"),
)
# Where a model counts without end (Mamba, ALiBi) configurations have none of them, or a number that
# means it.
ENDLESS = 10_000_000


def context_of(config: Any) -> int | None:
    """The number of a configuration, loaded or as `config.json` has it; None where there is none.

    A model of several parts (text and pictures) keeps it with the part that reads text. Rotary
    positions that are stretched count as stretched.
    """
    for part in (config, _of(config, "text_config"), _of(config, "llm_config")):
        for name in NAMES if part is not None else ():
            value = _of(part, name)
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value < ENDLESS:
                return max(value, _stretched(part, value))
    return None


def _stretched(part: Any, n: int) -> int:
    rope = _of(part, "rope_parameters") or _of(part, "rope_scaling")
    if not isinstance(rope, Mapping):
        return n
    # Models with several kinds of layers have one entry for each.
    kinds = [r for r in rope.values() if isinstance(r, Mapping)] or [rope]
    reach = [n]
    for kind in kinds:
        factor = kind.get("factor")
        if not isinstance(factor, int | float) or kind.get("rope_type") in (None, "default"):
            continue
        if not factor > 0:  # NaN too
            continue
        original = kind.get("original_max_position_embeddings")
        # Without the number before it was stretched, the number is that.
        stretched = factor * (original if isinstance(original, int) and original else n)
        reach.append(int(min(stretched, ENDLESS)))
    return max(reach)


def _of(part: Any, name: str) -> Any:
    return part.get(name) if isinstance(part, dict) else getattr(part, name, None)
