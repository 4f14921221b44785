"""A run so small that its tests can afford many of them: a random Llama and facts as rows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from clues.config import Recipe, load_config
from clues.data.damage import DAMAGE_KINDS, damage_rows
from clues.pipeline import Run, open_run, run_until
from clues.prepare.facts import make_questions
from clues.progress import Silent
from clues.results.run import Results
from clues.rundir import write_record
from clues.silo.questions import FILE, Record
from clues.silo.silo import Silo
from clues.wall.messages import REQUESTS, from_bytes

DOMAINS = {
    "north": "geography",
    "south": "medicine",
    "west": "geography",
    "east": "medicine",
}
VOLATILE = ("seconds", "date")
N_ROWS = 24


def tiny_model(folder: Path) -> Path:
    """Write a Llama of a few thousand random weights whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as jsonl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` laid over it, key by key."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value  # pyright: ignore[reportArgumentType]
    return result


def micro_content(model: Path, silos: Sequence[str] = ("north", "south")) -> dict[str, Any]:
    """Return the settings of a run that takes seconds."""
    domains = sorted({DOMAINS[name] for name in silos})
    return {
        "name": "micro",
        "recipe": {
            "seed": 3,
            "model": {"name": str(model)},
            "lora": {"rank": 2, "alpha": 4, "dropout": 0.0},
            "tokens": {"max_length": 384},
            "train": {
                "steps": 4,
                "rounds": 2,
                "checkpoints": 2,
                "learning_rate": 0.01,
                "batch_size": 4,
            },
            "public": {
                domain: {
                    "validation": f"public/{domain}.validation.jsonl",
                    "anchor": f"public/{domain}.anchor.jsonl",
                }
                for domain in domains
            },
            "threshold": {"rule": "anchor_mean", "bootstrap": 20},
        },
        "combine": {"rounds": 2, "local_steps": 1},
        "evaluate": {"heldout": "public/heldout.jsonl"},
        "silos": [
            {
                "name": name,
                "data": f"silos/{name}.jsonl",
                "domain": DOMAINS[name],
                "labels": "damage",
                "share_diagnostics": True,
                "min_kept": 1,
                # As in one process, so that both can be compared.
                "order_seed": 3,
            }
            for name in silos
        ],
    }


def write_micro(
    folder: Path,
    model: Path,
    *,
    silos: Sequence[str] = ("north", "south"),
    changes: Mapping[str, Any] | None = None,
    silo_changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write data and configuration of a micro run; returns the configuration's path."""
    questions = {d: make_questions(d, language="en", seed=5) for d in set(DOMAINS.values())}
    heldout: list[dict[str, Any]] = []
    for domain, rows in questions.items():
        keys = ("instruction", "output")
        plain = [{key: row[key] for key in keys} for row in rows]
        write_rows(folder / f"public/{domain}.validation.jsonl", plain[:8])
        write_rows(folder / f"public/{domain}.anchor.jsonl", plain[8:20])
        heldout += [{k: row[k] for k in (*keys, "choices", "answer")} for row in rows[20:25]]
    write_rows(folder / "public/heldout.jsonl", heldout)
    for number, name in enumerate(silos):
        rows = questions[DOMAINS[name]][30 + 40 * number :][:N_ROWS]
        foreign = [r["output"] for d, q in questions.items() if d != DOMAINS[name] for r in q[:20]]
        damaged, labels = damage_rows(
            rows, share=0.5, kinds=DAMAGE_KINDS, seed=number, foreign=foreign
        )
        write_rows(
            folder / f"silos/{name}.jsonl",
            [
                {
                    "instruction": row["instruction"],
                    "output": row["output"],
                    "key": f"{name}-{n}",
                    "damage": label or "",
                }
                for n, (row, label) in enumerate(zip(damaged, labels, strict=True))
            ],
        )
    content = merged(micro_content(model, silos), changes or {})
    content["silos"] = [{**silo, **(silo_changes or {})} for silo in content["silos"]]
    path = folder / "clues.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def edit_config(path: Path, changes: Mapping[str, Any]) -> Path:
    """Lay changes over a written configuration."""
    content = merged(yaml.safe_load(path.read_text()), changes)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def open_micro(config: Path, root: Path, *, allow_degenerate: bool = True, **how: Any) -> Run:
    """Open a run that tolerates a threshold that keeps everything: random scores may do that."""
    settings = load_config(config)
    return open_run(settings, root, progress=Silent(), allow_degenerate=allow_degenerate, **how)


def run_micro(config: Path, root: Path, **how: Any) -> dict[str, Any]:
    """Run to the end; return what results.json holds."""
    return plain(run_until(open_micro(config, root, **how)).results)


def plain(results: Results | None) -> dict[str, Any]:
    """Results as results.json holds them."""
    assert results is not None
    return json.loads(json.dumps(results.to_json()))


def without_volatile(value: Any) -> Any:
    """Results without what may differ between two equal runs."""
    if isinstance(value, dict):
        return {k: without_volatile(v) for k, v in value.items() if k not in VOLATILE}
    if isinstance(value, list):
        return [without_volatile(item) for item in value]
    return value


def forget_questions(silo: Silo) -> None:
    """As if nothing had been asked about the rows; a count that is missing would be refused."""
    write_record(silo.private / FILE, Record().model_dump(mode="json"))


def files_of(folder: Path) -> list[Path]:
    """Every file below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


class LastAsked:
    """A run's last requests to silo north, for tests that ask it once more."""

    recorder: "Recorder"

    def request(self, kind: str) -> Any:
        """The last request of a kind."""
        data, _ = self.recorder.last("north", kind)
        return from_bytes(data, allowed=REQUESTS, sender="coordinator")

    def hello(self, **recipe: Any) -> Any:
        """A hello with another recipe that has the hash it claims."""
        hello = self.request("hello")
        content = merged(hello.recipe, recipe)
        return replace(hello, recipe=content, recipe_hash=Recipe.model_validate(content).hash)


class Recorder:
    """Keeps what crosses the wall of a run: (silo, request, reply), in order."""

    def __init__(self, run: Run) -> None:
        self.crossed: list[tuple[str, bytes, bytes]] = []
        self.answers = dict(run.coordinator.exchange.transport.answers)  # pyright: ignore
        run.coordinator.exchange.transport.answers = {
            n: partial(self._answer, n) for n in self.answers
        }  # pyright: ignore

    def _answer(self, name: str, request: bytes) -> bytes:
        reply = self.answers[name](request)
        self.crossed.append((name, request, reply))
        return reply

    def last(self, silo: str, kind: str) -> tuple[bytes, bytes]:
        """Return the last request of a kind that a silo got, and its reply."""
        found = [
            (request, reply)
            for name, request, reply in self.crossed
            if name == silo
            and from_bytes(request, allowed=REQUESTS, sender="coordinator").kind == kind
        ]
        return found[-1]
