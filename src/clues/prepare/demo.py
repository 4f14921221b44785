"""Five silos from the built-in facts: the whole method with nothing but the package."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clues.atomic import atomic_write_bytes
from clues.config import derived_seed
from clues.data.damage import DAMAGE_KINDS, damage_rows
from clues.prepare.facts import make_questions

LABELS = "damage"
# A warm-up that trains on every row, which in-run scores need; the demo's own does not.
EVERY_ROW = {"steps": 40, "rounds": 8, "checkpoints": 4}


@dataclass(frozen=True)
class DemoSilo:
    """One invented owner of real questions."""

    name: str
    domain: str
    language: str
    damage_share: float

    @property
    def public(self) -> str:
        """Name of its public set."""
        return f"{self.domain}-{self.language}"


SILOS = (
    DemoSilo("north-clinic", "medicine", "en", 0.8),
    DemoSilo("clinica-sur", "medicine", "es", 0.5),
    DemoSilo("harbor-bank", "finance", "en", 0.4),
    DemoSilo("map-school", "geography", "en", 0.2),
    DemoSilo("escuela-mapa", "geography", "es", 0.1),
)


@dataclass(frozen=True)
class Sizes:
    """Rows of one silo's domain."""

    private: int = 200
    validation: int = 64
    anchor: int = 96
    heldout: int = 60


def write_demo(folder: Path, *, seed: int, sizes: Sizes | None = None) -> Path:
    """Write the demo's data and configuration, and return the configuration's path.

    Private, validation and anchor rows are drawn from the same questions; a fact asked about in
    the held-out set is in no validation or anchor set, though silos may know it: that is what
    they are asked to teach.
    """
    sizes = sizes or Sizes()
    (folder / "public").mkdir(parents=True, exist_ok=True)
    (folder / "silos").mkdir(exist_ok=True)
    questions = {
        (s.domain, s.language): make_questions(s.domain, language=s.language, seed=seed)
        for s in SILOS
    }
    heldout: list[dict[str, Any]] = []
    for silo in SILOS:
        own = questions[silo.domain, silo.language]
        parts = _split(own, sizes)
        heldout += parts["heldout"]
        foreign = [
            row["output"]
            for key, rows in questions.items()
            if key != (silo.domain, silo.language)
            for row in rows[:100]
        ]
        damaged, labels = damage_rows(
            parts["private"],
            share=silo.damage_share,
            kinds=DAMAGE_KINDS,
            seed=derived_seed(seed, "damage", silo.name),
            foreign=foreign,
        )
        keys = ("instruction", "output")
        private = [
            {**{k: row[k] for k in keys}, LABELS: label or ""}
            for row, label in zip(damaged, labels, strict=True)
        ]
        _write_rows(folder / "silos" / f"{silo.name}.jsonl", private)
        for name in ("validation", "anchor"):
            rows = [{k: row[k] for k in keys} for row in parts[name]]
            _write_rows(folder / "public" / f"{silo.public}.{name}.jsonl", rows)
    _write_rows(folder / "public" / "heldout.jsonl", heldout)
    path = folder / "clues.yaml"
    text = yaml.safe_dump(_config(seed), sort_keys=False, allow_unicode=True)
    atomic_write_bytes(path, text.encode())
    return path


def _split(rows: Sequence[dict[str, Any]], sizes: Sizes) -> dict[str, list[dict[str, Any]]]:
    """Split shuffled questions so that public sets and the held-out set share no fact."""
    heldout = list(rows[: sizes.heldout])
    tested = {row["fact"] for row in heldout}
    parts: dict[str, list[dict[str, Any]]] = {"validation": [], "anchor": [], "private": []}
    for row in rows[sizes.heldout :]:
        public = row["fact"] not in tested
        for name, size in (
            ("validation", sizes.validation),
            ("anchor", sizes.anchor),
            ("private", sizes.private),
        ):
            if len(parts[name]) < size and (public or name == "private"):
                parts[name].append(row)
                break
    return {**parts, "heldout": heldout}


def _config(seed: int) -> dict[str, Any]:
    return {
        "name": "demo",
        "recipe": {
            "seed": seed,
            "model": {"name": "built-in"},
            "lora": {"rank": 16, "alpha": 16, "dropout": 0.0, "target_modules": "all-linear"},
            "tokens": {"max_length": 256},
            "train": {
                "learning_rate": 0.002,
                "batch_size": 16,
            },
            "public": {
                silo.public: {
                    "validation": f"public/{silo.public}.validation.jsonl",
                    "anchor": f"public/{silo.public}.anchor.jsonl",
                }
                for silo in SILOS
            },
        },
        "combine": {"method": "fedavg", "rounds": 8, "local_steps": 10},
        "evaluate": {"heldout": "public/heldout.jsonl"},
        "silos": [
            {
                "name": silo.name,
                "data": f"silos/{silo.name}.jsonl",
                "domain": silo.public,
                "labels": LABELS,
                "share_diagnostics": True,
            }
            for silo in SILOS
        ],
    }


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    atomic_write_bytes(path, "".join(lines).encode())
