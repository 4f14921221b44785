"""A hash-chained record of every message: who, what kind, how many bytes, which hash."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from clues.atomic import append_line, cannot_write
from clues.errors import LedgerError, UsageError
from clues.printable import is_printable

START = "0" * 64
LOST = "lost"
_DISTRUST = "Do not trust this ledger; compare a copy that is whole with the other side's."


@dataclass(frozen=True)
class Entry:
    """One message.

    Attributes:
        n: position in the ledger, from zero.
        time: UTC, ISO 8601.
        silo: the silo it came from or went to.
        direction: `out` leaves the silo, `in` enters it; `lost`: no answer came to the coordinator,
            so that the silo may have seen it and answered, or not.
        kind: message kind.
        n_bytes: length of the message.
        sha256: of the message.
        previous: chain value of the entry before.
        chain: SHA-256 over all fields above.
    """

    n: int
    time: str
    silo: str
    direction: str
    kind: str
    n_bytes: int
    sha256: str
    previous: str
    chain: str

    def expected_chain(self) -> str:
        """Return the chain value that the other fields imply."""
        content = {k: v for k, v in asdict(self).items() if k != "chain"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Ledger:
    """Appends to one file; every entry is on disk before the message goes.

    One process at a time writes to a ledger, and so to the run around it: another is refused until
    the first has ended. The system frees the lock of a process that was killed.
    """

    def __init__(self, path: Path) -> None:
        """Continue the file if there is one.

        Raises:
            UsageError: another process is writing to it.
            LedgerError: the file's chain is broken.
            DataError: the folder cannot be written.
        """
        self.path = path
        self._lock = _lock(path)
        if path.exists():
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if whole != data:
                # A killed run can leave half a line: that message was never sent.
                path.write_bytes(whole)
        entries = verify(path) if path.exists() else []
        self.n_entries = len(entries)
        self.last = entries[-1].chain if entries else START

    def record(self, silo: str, direction: str, kind: str, message: bytes) -> Entry:
        """Append one entry and force it to the disk."""
        digest = hashlib.sha256(message).hexdigest()
        return self._append(silo, direction, kind, len(message), digest)

    def note_lost(self, asked: Entry) -> Entry:
        """Append that a request found no answer; its bytes need not be there any more."""
        return self._append(asked.silo, LOST, asked.kind, asked.n_bytes, asked.sha256)

    def _append(self, silo: str, direction: str, kind: str, n_bytes: int, digest: str) -> Entry:
        content: dict[str, Any] = {
            "n": self.n_entries,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "silo": silo,
            "direction": direction,
            "kind": kind,
            "n_bytes": n_bytes,
            "sha256": digest,
            "previous": self.last,
        }
        entry = Entry(**content, chain="")
        entry = Entry(**content, chain=entry.expected_chain())
        append_line(self.path, json.dumps(asdict(entry), sort_keys=True))
        self.n_entries, self.last = self.n_entries + 1, entry.chain
        return entry


def _lock(path: Path) -> FileLock:
    """Take the right to append, held as long as the lock is referred to."""
    # In one process a run may be opened twice, so all its ledgers of a path share one lock.
    lock = FileLock(f"{path.resolve()}.lock", timeout=0, is_singleton=True, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"{path.parent}: another process runs here. Wait until it has ended, or name another "
            "folder."
        ) from None
    except OSError as error:
        raise cannot_write(path, error) from None
    return lock


def verify(path: Path) -> list[Entry]:
    """Read a ledger and check its chain.

    Raises:
        LedgerError: it is missing or unreadable, or an entry was changed, dropped or moved.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise LedgerError(
            f"{path}: no ledger can be read here ({error.strerror}). Name the folder of a run, or "
            "a ledger.jsonl."
        ) from None
    except UnicodeDecodeError:
        raise LedgerError(f"{path}: not a ledger but other bytes. {_DISTRUST}") from None
    entries: list[Entry] = []
    previous = START
    for number, line in enumerate(lines):
        try:
            entry = _entry(json.loads(line))
        # RecursionError: brackets nested thousands deep.
        except (ValueError, TypeError, RecursionError):
            raise LedgerError(
                f"{path} line {number + 1}: not a ledger entry; the line was changed or is damaged. "
                f"{_DISTRUST}"
            ) from None
        whole = entry.n == number and entry.previous == previous
        if not whole or entry.chain != entry.expected_chain():
            raise LedgerError(
                f"{path} line {number + 1}: the chain breaks here: an entry was changed, dropped "
                f"or moved. {_DISTRUST}"
            )
        previous = entry.chain
        entries.append(entry)
    return entries


def _entry(content: Any) -> Entry:
    """An entry of a ledger that somebody else may have written.

    Raises:
        TypeError: a field is missing, new, or of another type.
        ValueError: text in it is long or cannot be printed.
    """
    entry = Entry(**content)
    for spec in fields(Entry):
        value = getattr(entry, spec.name)
        if type(value) is not spec.type:
            raise TypeError(spec.name)
        if isinstance(value, str) and not is_printable(value):
            raise ValueError(spec.name)
    return entry


def compare(ours: Iterable[Entry], theirs: Iterable[Entry]) -> dict[str, int]:
    """Compare what two sides say has crossed, silo by silo, in order.

    A chain shows that nobody touched one file afterwards; who writes the whole file anew passes
    it. The other side's record does not change with it. Times and positions are each side's own.

    Args:
        ours: entries of one side, for example the coordinator's, of many silos.
        theirs: entries of the other side; only silos that both name are compared.

    Returns:
        How many messages agree, by silo.

    Raises:
        LedgerError: a message is missing on one side, differs, or stands at another place; or no
            silo is in both.
    """
    sides = (_by_silo(ours), _by_silo(theirs))
    shared = sorted(sides[0].keys() & sides[1].keys())
    if not shared:
        raise LedgerError(
            "the two ledgers have no silo in common, so there is nothing to compare. Name the "
            "coordinator's and a silo's of the same run."
        )
    for silo in shared:
        one, two = sides[0][silo], sides[1][silo]
        if any(entry.direction == LOST for entry in two):
            one, two = two, one
        number = _first_difference(one, two)
        if number is None:
            continue
        pair = [side[number] if number < len(side) else None for side in (one, two)]
        found = " and ".join(
            f"{e.kind} ({e.n_bytes} bytes, {e.sha256[:12]})" if e else "nothing" for e in pair
        )
        raise LedgerError(
            f"silo {silo}, its message {number + 1}: one side has {found}. A message was changed, "
            "dropped or moved on the way or in one of the ledgers. Trust neither before both sides "
            "have verified their own (clues ledger --verify) and found out which."
        )
    return {silo: min(len(side[silo]) for side in sides) for silo in shared}


def _first_difference(one: list[Entry], two: list[Entry]) -> int | None:
    """Position of the first message that two sides do not agree on; None where they do.

    Args:
        one: the side that may say `lost`. A request that got lost may stand on the other side or
            not, with an answer or without.
        two: the other side.
    """
    # All positions of the other side at which it may stand after what was read of this side.
    places = {0}
    for number, entry in enumerate(one):
        if entry.direction == LOST:
            continue
        lost = number + 1 < len(one) and one[number + 1].direction == LOST
        after = set(places) if lost else set()
        for place in places:
            if place < len(two) and _message(two[place]) == _message(entry):
                after.add(place + 1)
                if lost and place + 1 < len(two) and two[place + 1].direction == "out":
                    after.add(place + 2)
        if not after:
            return number
        places = after
    return None if len(two) in places else max(places)


def _by_silo(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.silo, []).append(entry)
    return found


def _message(entry: Entry) -> tuple[str, str, int, str]:
    return (entry.direction, entry.kind, entry.n_bytes, entry.sha256)


def summary(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Messages and bytes by silo, direction and kind."""
    totals: dict[tuple[str, str, str], list[int]] = {}
    for entry in entries:
        total = totals.setdefault((entry.silo, entry.direction, entry.kind), [0, 0])
        total[0] += 1
        total[1] += entry.n_bytes
    return [
        {"silo": silo, "direction": direction, "kind": kind, "messages": n, "bytes": n_bytes}
        for (silo, direction, kind), (n, n_bytes) in sorted(totals.items())
    ]
