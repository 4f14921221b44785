"""Where a base model lies on this machine, and what its folder may hold before anything opens it.

A hub name becomes a folder first: `fetch` is the only place that may ask a hub. Whatever is loaded
afterwards is a folder whose files have been looked at, and nothing is asked for on the way.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open

from clues.config import ModelSettings, model_files
from clues.config.loading import local_folder
from clues.config.modelfiles import WITHOUT_EFFECT
from clues.errors import CluesError, DataError

ADVICE = (
    "recipe.model.name and a silo's model may be a folder, relative to the file that names it, or "
    "a hub name whose files can be fetched."
)
INDEX = "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", INDEX)
# An index of a large model has 15 MB; a configuration and a template never come near.
MAX_JSON, MAX_TEMPLATE = 32 * 2**20, 2**18
# JSON that is read as keys and values; and large files in which nothing is named to be opened.
CONFIGS = ("config", "tokenizer_config", "generation_config", "special_tokens_map", "added_tokens")
TABLES = (INDEX, "tokenizer.json", "vocab.json")
MAX_DEPTH = 50
# Settings that say how many parts are built one after the other.
COUNTED = {
    "layers": re.compile(r"^(n|num|total)_.*(layers?|blocks?)$|^n_?layers?$|^depths?$|layers$"),
    "experts": re.compile(r"experts|^(n|num)_.*heads?$"),
    "labels": re.compile(r"^(num|n)_(labels|codebooks|classes)$"),
}


class Opening:
    """Turns whatever a library says about a model's files into one message.

    Not an `except`: what libraries raise for a damaged file is any kind of error (`tokenizers`
    raises plain `Exception`, and ends with a panic that is not even that).
    """

    def __init__(self, name: str, what: str, *, done: str = "loaded", advice: str = ADVICE) -> None:
        """Name the model, what is opened of it, and what helps."""
        self.name, self.what, self.done, self.advice = name, what, done, advice

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let our own errors and a request to stop the program pass."""
        if kind is None or error is None or isinstance(error, CluesError):
            return
        if isinstance(error, Exception) or kind.__module__ == "pyo3_runtime":
            reason = first_line(error)
            raise DataError(
                f"{self.name}: no {self.what} can be {self.done} ({reason}) {self.advice}"
            ) from error


def fetch(settings: ModelSettings) -> None:
    """Bring a hub model's files into this machine's cache; a folder needs nothing.

    Raises:
        DataError: they cannot be fetched.
    """
    if local_folder(settings.name) is None:
        _snapshot(settings, local_only=False)


def place_of(settings: ModelSettings) -> Path:
    """The folder of a base model; of a hub name, what is in this machine's cache.

    Raises:
        DataError: it is not there.
    """
    folder = local_folder(settings.name)
    if folder is not None:
        return folder
    if Path(settings.name).is_absolute() or settings.name.startswith("."):
        raise DataError(f"{settings.name}: there is no such model folder.")
    return _snapshot(settings, local_only=True)


def identify(settings: ModelSettings) -> dict[str, str]:
    """Hash of every file of a base model that can change an answer, by name.

    Raises:
        DataError: it is not on this machine, or its folder holds what it must not.
    """
    folder = place_of(settings)
    return model_files(folder, code=settings.trust_remote_code)


def model_folder(settings: ModelSettings) -> Path:
    """The folder of a base model, after a look at what it holds.

    Raises:
        DataError: no configuration or weights, or a file that leads elsewhere.
    """
    folder = place_of(settings)
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: no config.json, so this is not a model folder.")
    # Pickled weights could run code; safetensors cannot.
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise DataError(f"{folder}: no model.safetensors. Fetch the weights in that format.")
    # transformers would load the model that this file names, from wherever that is.
    if (folder / "adapter_config.json").exists():
        raise DataError(f"{folder}: adapter_config.json is of an adapter. Merge it into its model.")
    for path in sorted(folder.glob("*.json")):
        _check_json(path)
    for path in (*folder.glob("*.jinja"), *folder.glob("additional_chat_templates/*")):
        _check_size(path, MAX_TEMPLATE)
    _check_index(folder)
    _check_counts(read_object(folder / "config.json"), folder, n_stored=len(stored_shapes(folder)))
    return folder


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file of a model's folder.

    Raises:
        DataError: unreadable, too large, nested too deep, or no object.
    """
    content = _read(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: keys and values are expected at its top.")
    return content


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every weight in a model's folder, by name.

    Raises:
        DataError: a file of weights is none.
    """
    files = ["model.safetensors"]
    if not (folder / files[0]).is_file():
        files = sorted(set(read_object(folder / INDEX)["weight_map"].values()))
    found: dict[str, tuple[int, ...]] = {}
    for path in (folder / name for name in files):
        try:
            with safe_open(path, framework="pt") as file:  # pyright: ignore[reportPrivateImportUsage]
                found |= {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: no model can be loaded ({first_line(error)}).") from None
    return found


def first_line(error: BaseException) -> str:
    """What a library says, cut to a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    heading = bool(lines) and lines[0].endswith(":")
    return (" ".join(lines[: 1 + heading]) or type(error).__name__)[:200]


def _read(path: Path) -> Any:
    _check_size(path, MAX_JSON)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise DataError(f"{path}: not readable as JSON.") from None


def _snapshot(settings: ModelSettings, *, local_only: bool) -> Path:
    ignored = list(WITHOUT_EFFECT) + ([] if settings.trust_remote_code else ["*.py"])
    try:
        found = snapshot_download(
            settings.name,
            revision=settings.revision,
            ignore_patterns=ignored,
            local_files_only=local_only,
        )
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        reason = "it is not in this machine's cache" if local_only else first_line(error)
        revision = f" --revision {settings.revision}" if settings.revision else ""
        raise DataError(
            f"{settings.name}: no model can be loaded ({reason}) {ADVICE} To fetch it beforehand: "
            f"hf download {settings.name}{revision}"
        ) from error
    return Path(found)


def _check_size(path: Path, limit: int) -> None:
    if path.is_file() and path.stat().st_size > limit:
        raise DataError(f"{path}: over {limit // 1024} kB, which no such file of a model has.")


def _check_json(path: Path) -> None:
    """Refuse files that no library survives, and those that name code of another model."""
    if path.name in TABLES:
        return
    content = read_object(path) if path.stem in CONFIGS else _read(path)
    for key, value in _values(content, where=path):
        if "auto_map" in key and isinstance(value, str) and "--" in value:
            raise DataError(
                f"{path}: auto_map names code of another model ({value[:80]}). Copy the code into "
                "the folder, and name it without the part before --."
            )
        if key == ".transformers_weights":
            raise DataError(f"{path}: transformers_weights names other weights. Remove the key.")


def _values(content: Any, *, where: Path, key: str = "", depth: int = 0) -> Iterator[Any]:
    """Every single value with its dotted key."""
    if depth > MAX_DEPTH:
        raise DataError(f"{where}: nested deeper than {MAX_DEPTH} levels.")
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from _values(value, where=where, key=f"{key}.{name}", depth=depth + 1)
    elif isinstance(content, list):
        for value in content:
            yield from _values(value, where=where, key=key, depth=depth + 1)
    else:
        yield key, content


def _check_counts(content: Mapping[str, Any], folder: Path, *, n_stored: int) -> None:
    """Refuse numbers of parts that the stored weights cannot fill: building them takes for ever."""
    most = {"layers": max(n_stored, 256), "experts": 16 * max(n_stored, 64), "labels": 10**5}
    for key, value in content.items():
        if isinstance(value, Mapping):
            _check_counts(value, folder, n_stored=n_stored)
        kind = next((kind for kind, pattern in COUNTED.items() if pattern.search(key)), None)
        if isinstance(value, int | float) and kind and not 0 <= value <= most[kind]:
            raise DataError(
                f"{folder}: config.json sets {key} to a number outside 0 to {most[kind]}, which is "
                "what the stored weights can fill. Fetch the model again."
            )


def _check_index(folder: Path) -> None:
    """The parts of split weights lie beside their index, and are safetensors."""
    path = folder / INDEX
    if not path.is_file():
        return
    parts = read_object(path).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise DataError(f"{path}: weight_map must name the file of every weight.")
    for part in {str(part) for part in parts.values()}:
        plain = Path(part).name == part and part.endswith(".safetensors")
        if not plain or not (folder / part).is_file():
            raise DataError(
                f"{path}: names {part[:80]!r}. Weights may lie in .safetensors files of the same "
                "folder only, and each must be there."
            )
