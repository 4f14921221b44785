"""Rows of an experiment: read from the sources, dealt to silos and public sets, damaged.

Everything depends on the seed and on the files alone. Private, validation, anchor and held-out
rows of a source never share a row, nor anything else that `split_by` keeps together.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from clues.atomic import atomic_write_bytes
from clues.config import derived_seed
from clues.data.damage import DAMAGE_KINDS, damage_rows
from clues.data.formats import RowFile, read_rows
from clues.errors import DataError
from experiments.reserved import is_reserved
from experiments.spec import Questions, Scale, Source, merged

LABELS = "damage"
N_WRONG = 3  # wrong choices beside the right one
Row = dict[str, Any]


@dataclass(frozen=True)
class Dealt:
    """Rows of one source, by set; `silo` rows are in the order in which silos take them."""

    silo: list[Row]
    validation: list[Row]
    anchor: list[Row]
    heldout: list[Row]


def write_inputs(
    scale: Scale, folder: Path, *, data: Path, seed: int, damage: float | None = None
) -> dict[str, Any]:
    """Write one seed's silos and public sets, and return the settings of its runs.

    Args:
        scale: sources, silos and sizes.
        folder: where the files go.
        data: folder of the sources.
        seed: of splits, damage and runs.
        damage: share of every silo's rows, instead of the groups' own.

    Raises:
        DataError: a file is missing (with what to fetch), or has too few rows.
    """
    dealt = {
        name: _deal(name, source, scale, data=data, seed=seed)
        for name, source in scale.sources.items()
    }
    public = {}
    heldout: list[Row] = []
    for name, rows in dealt.items():
        for part in ("validation", "anchor"):
            write_jsonl(folder / f"{name}.{part}.jsonl", getattr(rows, part))
        public[name] = {"validation": f"{name}.validation.jsonl", "anchor": f"{name}.anchor.jsonl"}
        heldout += with_choices(rows.heldout, seed=derived_seed(seed, "choices", name))
    write_jsonl(folder / "heldout.jsonl", heldout)
    silos = []
    taken = dict.fromkeys(dealt, 0)
    for group, settings in scale.silos.items():
        own = dealt[settings.source].silo
        foreign = [
            row["output"]
            for name, rows in dealt.items()
            for row in (rows.validation if name != settings.source or len(dealt) == 1 else [])
        ]
        for number in range(settings.n):
            name = group if settings.n == 1 else f"{group}-{number + 1:02d}"
            start = taken[settings.source]
            taken[settings.source] = stop = start + settings.rows
            damaged, labels = damage_rows(
                own[start:stop],
                share=settings.damage if damage is None else damage,
                kinds=scale.damage,
                seed=derived_seed(seed, "damage", name),
                foreign=foreign,
            )
            rows = [{**r, LABELS: x or ""} for r, x in zip(damaged, labels, strict=True)]
            write_jsonl(folder / f"{name}.jsonl", rows)
            silo = labelled_silo(name, domain=settings.source)
            # A stored data set is nobody's secret: it is asked often, and strict rules keep few.
            silos.append({**silo, "max_selections": 1000, "min_kept": 1})
    tasks = [
        {**questions.ask, "path": str(_local_file("questions", questions, data).resolve())}
        for questions in scale.questions
    ]
    asked = {"tasks": tasks} if tasks else {}
    # Other kinds are named in the results only where they are listed.
    kinds = {} if scale.damage == DAMAGE_KINDS else {"kinds": list(scale.damage)}
    ours = {
        "recipe": {"seed": seed, "public": public},
        "evaluate": {"heldout": "heldout.jsonl", **asked, **kinds},
        "silos": silos,
    }
    return merged(scale.config, ours)


def labelled_silo(name: str, *, domain: str) -> dict[str, Any]:
    """A silo whose rows say what was done to them, and that shares how well it was found."""
    return {
        "name": name,
        "data": f"{name}.jsonl",
        "domain": domain,
        "labels": LABELS,
        "share_diagnostics": True,
    }


def write_config(config: dict[str, Any], path: Path) -> Path:
    """Write a run's settings where its paths are relative to."""
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    atomic_write_bytes(path, text.encode())
    return path


def find_source(file: str, data: Path) -> Path | str:
    """A file under the data folder, or a hub name as it is."""
    local = data / file
    if local.exists():
        return local
    return file if "/" in file and not Path(file).suffix else local


def with_choices(rows: Sequence[Row], *, seed: int) -> list[Row]:
    """Give rows without choices three wrong ones: other answers among the same rows."""
    rng = np.random.default_rng(seed)
    answers = sorted({row["output"] for row in rows})
    found: list[Row] = []
    for row in rows:
        others = [a for a in answers if a != row["output"]]
        if "choices" in row or len(others) < N_WRONG:
            found.append(row)
            continue
        choices = [row["output"], *(others[i] for i in rng.choice(len(others), N_WRONG, False))]
        order = rng.permutation(len(choices)).tolist()
        shuffled = [choices[i] for i in order]
        found.append({**row, "choices": shuffled, "answer": order.index(0)})
    return found


def write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    """Write rows, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    atomic_write_bytes(path, "".join(lines).encode())


def _deal(name: str, source: Source, scale: Scale, *, data: Path, seed: int) -> Dealt:
    """Deal a source's rows to the four sets."""
    place = find_source(source.file, data)
    if isinstance(place, Path):
        place = _local_file(f"source {name}", source, data)
    n_silo = sum(g.n * g.rows for g in scale.silos.values() if g.source == name)
    sizes = {
        "heldout": scale.public.heldout,
        "validation": scale.public.validation,
        "anchor": scale.public.anchor,
        "silo": n_silo,
    }
    keyed = _eligible(name, source, read_rows(place, skip_bad=True))
    keys = sorted({key for key, _ in keyed})
    # The same file gives the same split whatever is taken from it: translations stay together.
    order = np.random.default_rng(derived_seed(seed, "split", source.file)).permutation(len(keys))
    ends = np.cumsum(list(sizes.values())) / sum(sizes.values()) * len(keys)
    owner = {
        keys[k]: list(sizes)[int(np.searchsorted(ends, place, side="right"))]
        for place, k in enumerate(order)
    }
    rng = np.random.default_rng(derived_seed(seed, "rows", name))
    parts: dict[str, list[Row]] = {}
    for part, size in sizes.items():
        rows = [row for key, row in keyed if owner[key] == part]
        if len(rows) < size:
            raise DataError(
                f"source {name}: {len(rows)} rows for the {part} set, {size} are wanted. Take "
                "fewer, or raise max_chars."
            )
        parts[part] = [rows[i] for i in rng.permutation(len(rows))[:size]]
    return Dealt(**parts)


def _local_file(what: str, source: Source | Questions, data: Path) -> Path:
    """A file under the data folder.

    Raises:
        DataError: it is missing; the message says what to fetch.
    """
    path = data / source.file
    if not path.exists():
        raise DataError(
            f"{what}: {path} is not there. Fetch {source.fetch} and put it there, or name "
            "the folder that holds it: --data FOLDER"
        )
    return path


def _eligible(name: str, source: Source, rows: RowFile) -> list[tuple[str, Row]]:
    """Rows that may be used, each question and each answer once, with the key they split by."""
    tests = [(c, v, False) for c, v in source.where.items()]
    tests += [(c, v, True) for c, v in source.starts.items()]
    columns = {c: rows.column(c) for c, _, _ in tests}
    by_column = source.split_by not in ("question", "position")
    splits = rows.column(source.split_by) if by_column else []
    questions: set[str] = set()
    pairs: set[tuple[str, str]] = set()
    found: list[tuple[str, Row]] = []
    position = -1
    for sample in rows.samples:
        values = [(str(columns[c][sample.row]), v, starts) for c, v, starts in tests]
        if not all(x.startswith(v) if starts else x == v for x, v, starts in values):
            continue
        position += 1
        question = "\n\n".join(message.content.strip() for message in sample.prompt)
        answer = sample.response.strip()
        too_long = source.max_chars and len(question) + len(answer) > source.max_chars
        repeated = question in questions or (answer, question[:40]) in pairs
        if too_long or repeated or not answer or (source.unread and not is_reserved(question)):
            continue
        questions.add(question)
        pairs.add((answer, question[:40]))
        key = question if source.split_by == "question" else str(position)
        if by_column:
            key = str(splits[sample.row])
        row: Row = {"instruction": question, "output": answer}
        if sample.choices:
            row |= {"choices": list(sample.choices), "answer": sample.answer}
        found.append((key, row))
    if not found:
        raise DataError(f"source {name}: no row of {rows.path} fits `where` and `max_chars`.")
    return found
