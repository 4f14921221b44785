"""Whether a silo still knows what it has answered, by the ledger beside it.

Without the count of what was asked, or with an older copy of it, a coordinator could ask again. The
ledger is another file, written at other moments; a copy of both together is found by comparing it
with the coordinator's.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from clues.errors import DataError
from clues.silo.questions import FILE, PUT_BACK, Record, read_count
from clues.wall.ledger import Entry
from clues.wall.messages import REQUESTS, HelloRequest

COUNTED = REQUESTS.keys() - {HelloRequest.kind}


def check_remembered(private: Path, entries: Sequence[Entry]) -> None:
    """See that the count knows every answer that a silo's ledger knows, hello's aside.

    Args:
        private: the silo's private folder.
        entries: of the silo's own ledger.

    Raises:
        DataError: the count is missing or lacks an answer.
    """
    answered = {
        asked.sha256
        for asked, reply in pairwise(entries)
        if asked.kind in COUNTED
        and (asked.direction, reply.direction) == ("in", "out")
        and reply.kind == f"{asked.kind}-reply"
    }
    path = private / FILE
    record = read_count(path) if answered and path.exists() else Record()
    recipes = [under for recipes in record.rows.values() for under in recipes.values()]
    known = {key for under in recipes for entry in under.asked for key in entry.requests}
    if lacking := len(answered - known):
        what = "older than the ledger beside it" if path.exists() else "missing"
        raise DataError(
            f"{path}: {what}: {lacking} requests were answered that it does not count. {PUT_BACK}"
        )
