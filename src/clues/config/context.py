"""How many tokens a base model reads at once, as its configuration says."""

from pathlib import Path
from typing import Any

from clues.config.loading import local_folder
from clues.errors import DataError
from clues.reading import read_json

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

    A model of several parts (text and pictures) keeps it with the part that reads text.
    """
    for part in (config, _of(config, "text_config"), _of(config, "llm_config")):
        for name in NAMES if part is not None else ():
            value = _of(part, name)
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value < ENDLESS:
                return value
    return None


def context_in(name: str) -> int | None:
    """As `context_of`, of a model that lies in a folder, without loading it; None of one on a hub.

    Raises:
        DataError: its config.json cannot be read.
    """
    folder = local_folder(name)
    if folder is None:
        return None
    content = read_json(Path(folder) / "config.json", advice="Fetch the model again.")
    if not isinstance(content, dict):
        raise DataError(f"{folder}/config.json: keys and values are expected at its top.")
    return context_of(content)


def _of(part: Any, name: str) -> Any:
    return part.get(name) if isinstance(part, dict) else getattr(part, name, None)
