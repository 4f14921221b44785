"""Cards: what an adapter or a file of kept rows is made of, for whoever finds it later.

No row is shown. The adapter's card may be passed on: counts are rounded to tens, keep rates are what these leave open.
The card of kept rows lies beside them and goes where they go, so it counts them as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from clues.report.arms import arms_table
from clues.report.cells import clean, percent
from clues.report.pairs import repeat_pairs, threshold_pairs
from clues.report.shared import LIMITS
from clues.report.silos import silos_table
from clues.report.table import Table, escape, markdown_table
from clues.results.run import Results

UNKNOWN = "unknown"
FOR_READERS = ("silo", "domain", "rows", "kept", "band")
ADAPTER_LIMITS = (
    "An adapter can hold text of the rows that it was trained on, and a determined reader can get some "
    "of it out. Whether it may be passed on is for the owners of the rows to say.",
    "The licence of the base model holds for what is built on it.",
)
DATA_LIMITS = (
    "Kept means: not below the threshold. It does not mean true, safe or polite.",
    "The score depends on the base model, the public rows and the recipe named here.",
    "Columns and text of the kept rows are as they came in; nothing is made anonymous.",
)


@dataclass(frozen=True)
class DataFacts:
    """What the card of a silo's kept rows says.

    Attributes:
        silo: name.
        domain: of the public rows that it is compared with.
        license: of the rows, as the silo's file says.
        file: name of the file with the kept rows.
        n_rows: in the silo's file.
        n_kept: of them.
        others: how many rows are not kept, by why.
        n_by_hand: rulings of a person in force.
        base_model: that scored the rows.
        score: method and form, in words.
        threshold: name and text.
        recipe_hash: of all settings that can change a score.
    """

    silo: str
    domain: str
    license: str
    file: str
    n_rows: int = field(repr=False)
    n_kept: int = field(repr=False)
    others: Mapping[str, int] = field(repr=False)
    n_by_hand: int = field(repr=False)
    base_model: str
    score: str
    threshold: Sequence[tuple[str, str]]
    recipe_hash: str


def adapter_card(results: Results, *, license: str = UNKNOWN) -> str:
    """The card beside the joint adapter, as Markdown that model hubs read.

    Args:
        results: what `results.json` holds.
        license: of the adapter, as the configuration says.
    """
    base, name = clean(results.base_model), clean(results.name)
    head = {
        "base_model": base,
        "library_name": "peft",
        "license": license,
        "tags": ["lora", "clues"],
    }
    silos = silos_table(results)
    n_silos = len(silos.rows)
    lines = [
        *_front(head),
        f"# {escape(name)}: joint adapter",
        "",
        f"A LoRA adapter for {escape(base)}, trained together by {n_silos} owner{'s' * (n_silos != 1)} of "
        "private rows on the rows that one threshold kept. Open it with PEFT.",
        *_section("Rows", [*markdown_table(_only(silos, FOR_READERS)), "", escape(silos.note)]),
    ]
    if "clues" in results.arms:
        table = arms_table(results)
        lines += _section("Measured", [*markdown_table(table), "", escape(table.note)])
    threshold = threshold_pairs(results.threshold)
    licences = [
        ("This adapter", license),
        ("Base model", "as its own card says"),
        ("Rows", "each owner's own; not known here"),
    ]
    lines += _section("Threshold", _pairs(threshold))
    lines += _section("Licences", _pairs(licences))
    lines += _section("How to repeat it", _pairs(repeat_pairs(results)))
    lines += _section("Limits", [f"- {limit}" for limit in (*ADAPTER_LIMITS, *LIMITS)])
    return "\n".join(lines) + "\n"


def data_card(facts: DataFacts) -> str:
    """The card beside a silo's kept rows, as Markdown."""
    made = [
        ("Silo", facts.silo),
        ("Domain", facts.domain),
        ("Rows", f"{facts.n_rows:,}"),
        ("Kept", f"{facts.n_kept:,}"),
        ("Keep rate", percent(facts.n_kept / facts.n_rows)),
        *((f"Not kept: {why}", f"{n:,}") for why, n in facts.others.items()),
        ("Decided by hand", f"{facts.n_by_hand:,}" if facts.n_by_hand else "none"),
        ("Base model that scored", facts.base_model),
        ("Score", facts.score),
        ("Recipe hash", facts.recipe_hash[:12]),
    ]
    lines = [
        *_front({"license": facts.license, "tags": ["clues"]}),
        f"# {escape(clean(facts.file))} of {escape(clean(facts.silo))}",
        "",
        "Instruction rows whose score is not below the threshold, in the format that they came in.",
        *_section("Made of", _pairs(made)),
        *_section("Threshold", _pairs(facts.threshold)),
        *_section("Licence", _pairs([("Rows", facts.license)])),
        *_section("Limits", [f"- {limit}" for limit in DATA_LIMITS]),
    ]
    return "\n".join(lines) + "\n"


def _front(head: Mapping[str, Any]) -> list[str]:
    text = yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True)
    return ["---", *text.splitlines(), "---", ""]


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", *lines]


def _pairs(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [f"- {name}: {escape(clean(text))}" for name, text in pairs]


def _only(table: Table, keys: Sequence[str]) -> Table:
    """The table with these columns alone."""
    places = [n for n, column in enumerate(table.columns) if column.key in keys]
    rows = tuple(tuple(row[n] for n in places) for row in table.rows)
    return Table(table.note, tuple(table.columns[n] for n in places), rows)
