"""The silos of a run: what each keeps, rounded, what left it, and who was missing when."""

from collections.abc import Mapping, Sequence
from typing import Any

from clues.report.arms import RATES, rate_columns
from clues.report.cells import (
    DASH,
    FEW,
    FEW_ROWS,
    band,
    clean,
    count,
    need,
    number,
    percent,
    size,
)
from clues.report.table import Column, Table
from clues.results.run import Results

# In the order of the protocol; others follow by name.
KINDS = ("hello", "sketch", "leave", "train", "score", "select", "fit", "evaluate")


def silos_table(results: Results, *, cuts: bool = True) -> Table:
    """One line per silo: rounded counts, the range of the keep rate, detection where labels exist.

    Args:
        results: of a run.
        cuts: whether there is room for the threshold in every silo's own numbers.
    """
    silos = results.silos
    shown = [k for k in RATES if any(getattr(silo, k) is not None for silo in silos.values())]
    looked = any(silo.left_out is not None for silo in silos.values())
    columns = (
        Column("silo", "Silo", "silo", numeric=False),
        Column("domain", "Domain", "domain", numeric=False),
        Column("rows", "Rows", "rows"),
        Column("kept", "Kept", "kept"),
        *([Column("left", "In another silo", "elsewhere")] if looked else []),
        Column("band", "Keep rate", "rate"),
        *rate_columns(shown),
        *([Column("threshold", "Cut, unscaled", "cut")] if cuts else []),
    )
    rows: list[tuple[str, ...]] = []
    for name, silo in silos.items():
        few = FEW in (count(silo.rows), count(silo.kept))
        rows.append(
            (
                clean(name),
                clean(silo.domain or DASH),
                count(silo.rows),
                count(silo.kept),
                *([DASH if silo.left_out is None else count(silo.left_out)] if looked else []),
                band(silo.rows, silo.kept),
                *(FEW_ROWS if few else number(getattr(silo, key)) for key in shown),
                *([number(silo.threshold)] if cuts else []),
            )
        )
    note = "Counts are rounded to tens, up or down by as many as nine rows; the keep rate is what they leave open."
    own = (silo.threshold not in (None, results.threshold.value) for silo in silos.values())
    if cuts and any(own):
        note += (
            " Cut, unscaled: the one threshold in the numbers of each silo's own scores, before they "
            "are put into units of its domain's anchors."
        )
    if looked:
        note += " In another silo: rows left out because another silo keeps the same question."
    if any(FEW in row for row in rows):
        note += f" {FEW} and {FEW_ROWS}: fewer than ten rows, not shown."
    return Table(note, columns, tuple(rows))


def detection_table(results: Results) -> Table | None:
    """AUC of every score by silo and kind of damage; None where no labels were known."""
    found = [
        (name, silo, method, detection)
        for name, silo in results.silos.items()
        for method, detection in silo.detection.items()
    ]
    if not found:
        return None
    kinds = sorted({kind for *_, detection in found for kind in detection.auc_by_kind})
    columns = (
        Column("silo", "Silo", "silo", numeric=False),
        Column("score", "Score", "score", numeric=False),
        Column("auc", "AUC", "AUC"),
        *(Column("kind", clean(kind), clean(kind)) for kind in kinds),
    )
    rows: list[tuple[str, ...]] = []
    for name, silo, method, detection in found:
        values = (detection.auc, *(detection.auc_by_kind.get(kind) for kind in kinds))
        few = FEW in (count(silo.rows), count(silo.kept))
        cells = (FEW_ROWS if few else number(value) for value in values)
        rows.append((clean(name), clean(method), *cells))
    note = (
        "AUC: how often a clean row scores above a damaged one; 0.500 is chance. "
        "The columns after it take one kind of damage each."
    )
    return Table(note, columns, tuple(rows))


def controls_table(
    found: Mapping[str, Mapping[str, float]], kept: Mapping[str, Mapping[str, float]]
) -> Table | None:
    """What the score sees on damaged copies of the public anchors; None where none were made.

    Args:
        found: by group and kind of damage, how often an anchor scores above a damaged copy.
        kept: by group and kind of damage, the share of the damaged copies above the threshold.
    """
    if not found:
        return None
    kinds = sorted({kind for by_kind in found.values() for kind in by_kind})
    columns = (
        Column("group", "Anchors of", "anchors", numeric=False),
        Column("what", "Figure", "figure", numeric=False),
        *(Column("kind", clean(kind), clean(kind)) for kind in kinds),
    )
    rows: list[tuple[str, ...]] = []
    for group, by_kind in found.items():
        name = clean(group.removeprefix("domain "))
        rows.append((name, "told apart", *(number(by_kind.get(kind)) for kind in kinds)))
        if shares := kept.get(group):
            cells = (percent(shares[kind]) if kind in shares else DASH for kind in kinds)
            rows.append((name, "kept", *cells))
    note = (
        "Told apart: how often a public anchor scores above a damaged copy of an anchor, by kind of "
        "damage; 0.500 is chance: what the score cannot see. Kept: share of the damaged copies above "
        "the threshold; where it is high, the threshold lets such damage pass. No private row takes "
        "part."
    )
    return Table(note, columns, tuple(rows))


def absences_table(results: Results) -> Table | None:
    """Who was missing, when, and what came of it; None where nobody was."""
    ended = ((results.absences, "left out"), (results.stops, "run stopped"))
    found = [(entry, how) for entries, how in ended for entry in entries]
    if not found:
        return None
    columns = (
        Column("time", "When (UTC)", "when", numeric=False),
        Column("silo", "Silo", "silo", numeric=False),
        Column("stage", "Stage", "stage", numeric=False),
        Column("ended", "Then", "then", numeric=False),
        Column("why", "Why", "why", numeric=False),
    )
    rows = [
        (
            clean(entry.time.replace("T", " ").removesuffix("+00:00")),
            clean(entry.silo),
            clean(entry.stage),
            how,
            clean(" ".join(entry.why.split())),
        )
        for entry, how in sorted(found, key=lambda pair: pair[0].time)
    ]
    note = (
        "Left out: to the end of the run. Run stopped: too few were there, and the silo was asked "
        "again when the run went on."
    )
    return Table(note, columns, tuple(rows))


def ledger_table(summary: Sequence[Mapping[str, Any]]) -> Table:
    """Bytes that left each silo, by kind of message, and what came to it."""
    keys = ("silo", "direction", "kind", "messages", "bytes")
    entries = [tuple(need(entry, key, "ledger summary") for key in keys) for entry in summary]
    kinds = sorted({kind for _, way, kind, _, _ in entries if way == "out"}, key=_in_protocol)
    lost = any(way == "lost" for _, way, *_ in entries)
    columns = (
        Column("silo", "Silo", "silo", numeric=False),
        *(Column(f"out {kind}", clean(kind), clean(kind)) for kind in kinds),
        Column("left", "Left in all", "left"),
        Column("messages", "Messages", "messages"),
        Column("came", "Came to it", "came"),
        *([Column("lost", "Unanswered", "unanswered")] if lost else []),
    )
    names = list(dict.fromkeys(silo for silo, *_ in entries))
    rows: list[tuple[str, ...]] = []
    for name, own in [(n, [e for e in entries if e[0] == n]) for n in names] + (
        [("all silos", entries)] if len(names) > 1 else []
    ):
        out = [e for e in own if e[1] == "out"]
        by_kind = [[n for _, _, k, _, n in out if k == kind] for kind in kinds]
        rows.append(
            (
                clean(name),
                *(size(sum(found)) if found else DASH for found in by_kind),
                size(sum(e[4] for e in out)),
                number(sum(e[3] for e in out), 0),
                size(sum(e[4] for e in own if e[1] == "in")),
                *([number(sum(e[3] for e in own if e[1] == "lost"), 0)] if lost else []),
            )
        )
    note = (
        "Bytes of all messages by kind; everything but the last columns left the silo. "
        "ledger.jsonl has every single message with its hash, and a silo's outbox has what left it, "
        "byte for byte."
    )
    return Table(note, columns, tuple(rows))


def _in_protocol(kind: str) -> tuple[int, str]:
    name = kind.removesuffix("-reply")
    return (KINDS.index(name) if name in KINDS else len(KINDS), kind)
