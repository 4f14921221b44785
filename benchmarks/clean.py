"""What `clues clean` does with a file as a bank has it: python -m benchmarks.clean FILE --model M --out DIR.

FILE holds good rows in alpaca form, such as those of `experiments`. 120 of them are checked rows; the others
get damage of eleven kinds and become one JSON list. The command runs on it as a person would run it, and goes
on where it stopped. Only counts are printed and written.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.dirt import KINDS, Row, dirty
from benchmarks.findings import N_CHECKED, SAME, SEED, good_rows, write_between
from clues.collect import machine

BEGIN, END = "<!-- measured with a model: begin -->", "<!-- measured with a model: end -->"


def main() -> None:
    """Make the file, run the command, compare what came out with what was done to each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--each", type=int, default=75, help="damaged rows per kind")
    parser.add_argument("--language", help="of the rows, where the file says it")
    parser.add_argument("--most", type=int, default=100_000, help="characters of a row")
    parser.add_argument("--least", type=int, default=1, help="characters of an answer")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--write", action="store_true", help="put the table on the page")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)

    def suits(row: Mapping[str, Any]) -> bool:
        texts = [str(row.get(key) or "") for key in ("instruction", "input", "output")]
        fits = sum(map(len, texts)) <= asked.most and len(texts[2]) >= asked.least
        return fits and bool(texts[1]) and asked.language in (None, row.get("language"))

    good = good_rows(asked.file, seed=asked.seed, suits=suits)
    if len(good) < N_CHECKED + asked.rows - asked.each:
        raise SystemExit(f"{asked.file}: {len(good):,} rows suit, too few for {asked.rows:,}.")
    rows, labels = _write_files(good, asked)
    clock = asked.out / "seconds"
    spent = float(clock.read_text()) if clock.exists() else 0.0
    started = time.perf_counter()
    try:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "clues", "clean", str(asked.out / "rows.json")),
                *("--checked", str(asked.out / "checked.json"), "--model", asked.model),
                *("--out", str(asked.out / "cleaned"), "--json"),
            ],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    finally:
        # An interrupted walk goes on, and its time counts.
        spent += time.perf_counter() - started
        clock.write_text(str(spent))
    outcome = json.loads(done.stdout)
    out = [
        *table(asked.out / "cleaned", rows, labels),
        "",
        f'The command ended with: "{outcome["sentence"].replace(str(asked.out / "cleaned"), "cleaned")}"',
        "",
        _provenance(asked, spent),
    ]
    print("\n".join(out))
    if asked.write:
        write_between(BEGIN, END, out)


def _write_files(good: list[Row], asked: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Write rows.json and checked.json; the rows, and what was done to each."""
    originals = good[N_CHECKED : N_CHECKED + asked.rows - asked.each]
    rows, labels = dirty(originals, each=asked.each, seed=asked.seed)
    for name, content in (("rows", rows), ("checked", good[:N_CHECKED])):
        (asked.out / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False, indent=1))
    return rows, labels


def table(cleaned: Path, rows: list[Row], labels: list[str]) -> list[str]:
    """Per kind of damage, what became of its rows, as lines of Markdown.

    Raises:
        ValueError: a row of the file is in none of the files that came out.
    """
    came = Counter(
        json.dumps(row, sort_keys=True)
        for name in ("kept", "set_aside", "unscored")
        for row in _rows_of(cleaned, name)
    )
    lost = Counter(json.dumps(row, sort_keys=True) for row in rows) - came
    if lost:
        raise ValueError(f"{lost.total()} rows of the file are in no file that came out")
    with (cleaned / "decisions.csv").open(newline="") as file:
        decided = {int(line["number"]): line for line in csv.DictReader(file)}
    n_rows: Counter[str] = Counter(labels)
    by_name: Counter[str] = Counter()
    by_score: Counter[str] = Counter()
    other: Counter[str] = Counter()
    for number, label in enumerate(labels, start=1):
        line = decided[number]
        if line["kept"] == "1":
            continue
        why = line["why"]
        if why in SAME.get(label, (label,)):
            by_name[label] += 1
        elif why == "score":
            by_score[label] += 1
        else:
            other[label] += 1
    out = [
        "| damage | rows | set aside | under its own name | by the score | under another name |",
        "| :--- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind in (*KINDS, "duplicate", ""):
        n = n_rows[kind]
        if not n:
            continue
        found = (by_name[kind], by_score[kind], other[kind])
        cells = " | ".join(f"{share / n:.1%}" for share in (sum(found), *found))
        out.append(f"| {kind.replace('_', ' ') or 'none: clean rows'} | {n:,} | {cells} |")
    return out


def _rows_of(cleaned: Path, name: str) -> list[Row]:
    found = cleaned / f"{name}.json"
    return json.loads(found.read_text()) if found.exists() else []


def _provenance(asked: argparse.Namespace, seconds: float) -> str:
    size = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    day, where = datetime.now(UTC).date(), machine(torch.device("cpu"))
    source = asked.file.name.split(".")[0]
    return (
        f"{day}, seed {asked.seed}; {source}, rows of at most {asked.most:,} characters with answers of at "
        f"least {asked.least}; base model {Path(asked.model).name}; {seconds / 60:.0f} minutes, "
        f"{size:,.0f} MB, {where}."
    )


if __name__ == "__main__":
    main()
