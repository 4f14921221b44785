"""Verbs that look at a run, and the one that lets a silo select."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clues import __version__
from clues.cli.calm import calm_libraries
from clues.cli.options import Json, out
from clues.config import short
from clues.errors import LedgerError, UsageError
from clues.reading import is_folder
from clues.underway import read_status, run_in
from clues.wall.ledger import Entry, compare, summary, verify

if TYPE_CHECKING:
    from clues.silo.approval import Approved


def status(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="The run's folder, or a silo's own folder.")
    ],
    as_json: Json = False,
) -> None:
    """Say how far a run is: finished stages, shards done and open, workers, the last error.

    It reads the folder and disturbs nobody; the run may be under way, stopped or finished.

    clues status runs/demo
    """
    found = read_status(folder)
    if as_json:
        out.print_json(json.dumps(found.to_json()))
        return
    done = ", ".join(f"{name} ({seconds:.0f} s)" for name, seconds in found.stages.items())
    out.print(f"finished stages: {done or 'none yet'}", highlight=False, soft_wrap=True)
    for name, silo in found.silos.items():
        plural = "" if silo.parts == 1 else "s"
        line = f"{name}: {silo.what}, {silo.state}: {silo.parts_done} of {silo.parts} "
        line += f"{silo.part}{plural}, {silo.rows_done:,} of {silo.rows:,} rows"
        if silo.rows_per_s is not None:
            line += f", {silo.rows_per_s:,.0f} rows/s"
        if silo.seconds_left is not None:
            line += f", about {_span(silo.seconds_left)} left"
        workers = f"{silo.workers} worker{'' if silo.workers == 1 else 's'}"
        line += f"; {workers}, last heard {silo.silent_s:.0f} s ago"
        out.print(line, highlight=False, soft_wrap=True)
        if silo.last_error:
            out.print(f"  last error: {silo.last_error}", highlight=False, soft_wrap=True)
        if silo.state == "stopped":
            out.print("  its process is gone; the same command goes on", highlight=False)


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def ledger(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN_FOLDER", help="The run's folder, or a ledger.")
    ],
    other: Annotated[
        Path | None,
        typer.Argument(metavar="OTHER_SIDE", help="With --verify: the other side's, to compare."),
    ] = None,
    check_chain: Annotated[
        bool, typer.Option("--verify", help="Only say whether the chain holds and both agree.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--messages", help="List every message with its time and SHA-256.")
    ] = False,
    number: Annotated[
        int | None,
        typer.Option(
            "--show", metavar="N", min=0, help="Message N in words; --messages lists the numbers."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what crossed the wall: by silo, direction and kind.

    RUN_FOLDER is a run's folder, such as runs/demo, or a ledger.jsonl. OTHER_SIDE is the same of
    the other side, which --verify compares with the first.
    """
    if other and not check_chain:
        raise UsageError("a second ledger is for --verify, which compares the two.")
    entries = verify(_ledger_file(folder))
    if number is not None:
        _show(folder, entries, number, as_json=as_json)
        return
    agreed = compare(entries, verify(_ledger_file(other))) if other else {}
    if as_json:
        found = {"messages": len(entries), "chain_holds": True}
        found |= {"both_sides": agreed} if other else {}
        listed = [asdict(entry) for entry in entries] if every else summary(entries)
        out.print_json(json.dumps(found if check_chain else listed))
        return
    for name, n in agreed.items():
        text = f"{name}: both sides have the same {n} messages."
        out.print(text, highlight=False)
    if check_chain:
        out.print(f"{len(entries)} messages, the chain holds.", highlight=False)
        return
    _print_ledger(entries, every=every)


def _show(folder: Path, entries: Sequence[Entry], number: int, *, as_json: bool) -> None:
    """One message in words.

    Raises:
        UsageError: the ledger has no such message.
    """
    calm_libraries()
    from clues.wall.told import find_reply, told, what_is_told

    if number >= len(entries):
        raise UsageError(
            f"the ledger has messages 0 to {len(entries) - 1}, and no message {number}. "
            "--messages lists them."
        )
    entry = entries[number]
    place = run_in(folder) if is_folder(folder, error=LedgerError) else folder.parent
    data = find_reply(place, entry) if entry.direction == "out" else None
    found = told(data, sender=f"silo {entry.silo}") if data is not None else []
    if as_json:
        content = {name: {"value": value, "is": means} for name, value, means in found}
        tells = what_is_told(entry)
        out.print_json(json.dumps({**asdict(entry), "tells": tells, "fields": content}))
        return
    way = {"out": "left", "in": "came to"}.get(entry.direction, "got no answer from")
    lines = [
        f"Message {entry.n}, {entry.time}: a {entry.kind} {way} silo {entry.silo}, "
        f"{entry.n_bytes:,} bytes.",
        f"What a {entry.kind} tells: {what_is_told(entry)}.",
    ]
    width = max((len(name) for name, _, _ in found), default=0)
    lines += [f"  {name:<{width}}  {value}  ({means})" for name, value, means in found]
    if found:
        lines.append("These are all of its fields; the file has the very bytes that left.")
    elif entry.direction == "out":
        lines.append(
            "Its bytes are not in the silo's outbox. It was emptied, or lies on another machine, or "
            "this is a failure or who-reply: these hold a reference or a name, and are not stored."
        )
    else:
        lines.append("Requests are not stored: the ledger has their hashes.")
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_ledger(entries: Sequence[Entry], *, every: bool) -> None:
    if every:
        heads = f"{'n':>5} {'time (UTC)':<25} {'silo':<20} way {'kind':<15} {'bytes':>11} SHA-256"
        out.print(heads, style="bold", soft_wrap=True)
    for e in entries if every else ():
        line = f"{e.n:>5} {e.time} {e.silo:<20} {e.direction:<3} {e.kind:<15}"
        text = f"{line} {e.n_bytes:>11,} {e.sha256}"
        out.print(text, highlight=False, soft_wrap=True)
    rows = [] if every else summary(entries)
    if rows:
        out.print(
            f"{'silo':<20} {'way':<4} {'kind':<16} {'messages':>8} {'bytes':>13}", style="bold"
        )
    totals = [
        {
            "silo": "all silos",
            "direction": way,
            "kind": "",
            "messages": sum(row["messages"] for row in rows if row["direction"] == way),
            "bytes": sum(row["bytes"] for row in rows if row["direction"] == way),
        }
        for way in dict.fromkeys(row["direction"] for row in rows)
    ]
    for row in [*rows, *totals]:
        line = f"{row['silo']:<20} {row['direction']:<4} {row['kind']:<16}"
        text = f"{line} {row['messages']:>8,} {row['bytes']:>13,}"
        out.print(text, highlight=False)
    out.print(
        "out: left the silo. in: came to it. The messages that left lie in silos/SILO/outbox; --show N "
        "says in words what one of them holds.",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )


def _ledger_file(place: Path) -> Path:
    return run_in(place) / "ledger.jsonl" if is_folder(place, error=LedgerError) else place


def approve(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A silo's folder, or a run's for all in it."),
    ],
    as_json: Json = False,
) -> None:
    """Approve the selection that waits in a silo with `approval: true`, and say what it keeps.

    At a terminal it asks first, and approves what it has shown, whatever comes meanwhile. Another threshold, other scores or other overrides wait for another approval. FOLDER is a
    silo's folder, such as runs/demo/silos/harbor-bank, or a run's for all in it.
    """
    from clues.silo.approval import approve as approve_silos

    def agreed(waiting: "Sequence[Approved]") -> bool:
        for entry in waiting:
            _say(entry, "waits")
        return typer.confirm("Approve?")

    asks = not as_json and sys.stdin.isatty() and sys.stdout.isatty()
    approved = approve_silos(folder, **({"agreed": agreed} if asks else {}))
    if as_json:
        found = [{"silo": a.silo, **a.selection.model_dump(mode="json")} for a in approved]
        out.print_json(json.dumps({"approved": found}))
        return
    for entry in approved:
        _say(entry, "approved")


def _say(entry: "Approved", what: str) -> None:
    s = entry.selection
    number = f"{s.ratio:.0%} of the rows" if s.value is None else f"{s.value:.4g}"
    keeps = f"keeps {s.kept} of {s.rows} rows" if s.kept is not None else s.refused
    out.print(
        f"{entry.silo}: {what}. Threshold {number} (rule {s.rule}, recipe {short(s.recipe_hash)}) "
        f"on these scores: {keeps}.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def version() -> None:
    """Print the version."""
    out.print(__version__, highlight=False)
