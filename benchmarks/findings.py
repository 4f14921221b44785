"""Precision and recall of the findings by kind: python -m benchmarks.findings ROWS [ROWS ...] [--write].

ROWS are files of good rows in alpaca form, such as those of `experiments`; nothing of them is written but
counts. 120 rows of each file are taken as checked ones; the others get damage of eleven kinds.
"""

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.dirt import KINDS, Row, dirty
from clues.collect import machine
from clues.data.formats import read_rows
from clues.data.samples import Message, Sample
from clues.findings.look import Findings, look

N_CHECKED, N_ROWS, EACH, SEED = 120, 1500, 40, 7
PAGE = Path("docs/findings.md")
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
SAME = {
    "duplicate": ("duplicate", "near_duplicate"),
    "html": ("html",),
    "boilerplate": ("boilerplate",),
}


def main() -> None:
    """Measure, print the table, and write it into the page where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    hits: Counter[str] = Counter()
    named: Counter[str] = Counter()
    flagged: Counter[str] = Counter()
    given: Counter[str] = Counter()
    right: Counter[str] = Counter()
    n_damaged: Counter[str] = Counter()
    lines, seconds, n_all = [], 0.0, 0
    for file in asked.files:
        rows = good_rows(file, seed=asked.seed)
        checked, clean = rows[:N_CHECKED], rows[N_CHECKED : N_CHECKED + N_ROWS]
        alarms = _aside(look(_samples(clean), _samples(checked)))
        damaged, labels = dirty(clean, each=EACH, seed=asked.seed)
        started = time.perf_counter()
        found = look(_samples(damaged), _samples(checked))
        seconds, n_all = seconds + time.perf_counter() - started, n_all + len(damaged)
        aside = _aside(found)
        wrong = [r for r in aside if not labels[r] and not _twin(r, found, labels)]
        for row in sorted(aside):
            called = _name(found.of(row)[0].kind)
            given[called] += 1
            right[called] += row not in wrong
        for row, label in enumerate(labels):
            n_damaged[label] += 1
            hits[label] += row in aside
            kinds = SAME.get(label, (label,))
            flagged[label] += row not in aside and any(f.kind in kinds for f in found.of(row))
            named[label] += any(f.sure and f.kind in kinds for f in found.of(row))
        clean_rows = sum(not label for label in labels)
        lines.append(
            f"| {file.name.split('.')[0]} | {len(clean):,} | {len(alarms)} | {len(alarms) / len(clean):.1%} | "
            f"{len(wrong)} of {clean_rows:,} |"
        )
    out = [
        "| damage | rows | set aside | under its own name | flagged alone | of rows under this name, damaged |",
        "| :--- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind in (*KINDS, "duplicate"):
        n = n_damaged[kind]
        precise = f"{right[kind] / given[kind]:.0%}" if given[kind] else "none"
        shares = (hits[kind] / n, named[kind] / n, flagged[kind] / n)
        cells = " | ".join(f"{share:.0%}" for share in shares)
        out.append(f"| {kind.replace('_', ' ')} | {n} | {cells} | {precise} |")
    out += [
        "",
        "| clean rows of | rows | set aside | share | clean rows set aside beside damaged ones |",
        "| :--- | ---: | ---: | ---: | ---: |",
        *lines,
    ]
    day, where = datetime.now(UTC).date(), machine(torch.device("cpu"))
    out += [
        "",
        f"{day}, seed {asked.seed}, no base model; {n_all:,} rows in {seconds:.0f} s, {where}.",
    ]
    print("\n".join(out))
    if asked.write:
        write_between(BEGIN, END, out)


def write_between(begin: str, end: str, lines: list[str]) -> None:
    """Put lines between two marks of the page on findings."""
    before, mark, rest = PAGE.read_text().partition(begin)
    if not mark:
        raise ValueError(f"{PAGE} has no line {begin}")
    PAGE.write_text(before + "\n".join((begin, "", *lines, "", end)) + rest.partition(end)[2])


def _name(kind: str) -> str:
    return "duplicate" if kind == "near_duplicate" else kind


def good_rows(
    file: Path, *, seed: int, suits: Callable[[Mapping[str, Any]], bool] | None = None
) -> list[Row]:
    """Usable rows of a file in alpaca form, shuffled.

    Args:
        file: of rows.
        seed: of the order.
        suits: whether a row is to be taken, by all its columns; None takes all.
    """
    found = read_rows(file, schema="alpaca", lenient=True)
    records = found.table.read(found.table.columns if suits else ["instruction", "input", "output"])
    rows = [
        {k: str(r.get(k) or "") for k in ("instruction", "input", "output")}
        for n, r in enumerate(records)
        if n not in found.unusable and (suits is None or suits(r))
    ]
    random.Random(seed).shuffle(rows)
    return rows


def _samples(rows: list[Row]) -> list[Sample]:
    return [
        Sample(
            n,
            (
                Message("user", "\n".join(filter(None, (r["instruction"], r["input"])))),
                Message("assistant", r["output"]),
            ),
        )
        for n, r in enumerate(rows)
    ]


def _aside(found: Findings) -> set[int]:
    return {row for row, seen in found.by_row.items() if any(f.sure for f in seen)}


def _twin(row: int, found: Findings, labels: list[str]) -> bool:
    """Of a row and its copy one has to go; which of the two is no error."""
    other = [f.detail.split()[-1] for f in found.of(row) if f.kind.endswith("duplicate")]
    return any(labels[int(number) - 1] == "duplicate" for number in other)


if __name__ == "__main__":
    main()
