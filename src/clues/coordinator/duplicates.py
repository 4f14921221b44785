"""The coordinator's duplicates stage: finds questions that several silos have; one keeps each.

It sees sketches, numbers them as they came, and knows no question. Two rows of different silos
match where enough bands of their sketches are equal. A row is left out only if one that matches it
is kept: three rows of which the first is like the second and the second like the third do not make
the first like the third.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clues.config import DuplicatesSettings
from clues.coordinator.desk import Desk
from clues.data.sketches import N_BANDS, SKETCH_BYTES, Bands, fewest_equal, padded
from clues.errors import DataError
from clues.rundir import hash_of
from clues.wall.messages import ROUNDED_OFF, LeaveReply, LeaveRequest, SketchReply, SketchRequest

# Pairs of sketches that share a band; honest files of a hundred thousand rows have a few million.
MAX_PAIRS = 50_000_000
_CHUNK = 100_000
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Sketched:
    """What a silo sent: its token of the shared key, and its sketches."""

    key_token: str
    bands: Bands


def leave_duplicates_out(desk: Desk) -> dict[str, Any]:
    """Ask for sketches, find what several silos have, and tell each what to leave out.

    Returns:
        A token that changes with what is left out, and how many rows that is by silo, rounded.

    Raises:
        DataError: too large a share of a silo's rows would go for those of one other silo.
    """
    settings, hash_ = desk.recipe.duplicates, desk.recipe.hash
    assert settings is not None

    def take(name: str, reply: SketchReply) -> Sketched:
        return check_sketches(name, reply, n_rows=desk.silos[name]["n_rows"])

    asked = dict.fromkeys(desk.silos, SketchRequest(recipe_hash=hash_))
    found = desk.exchange.ask("duplicates", asked, take, judge=other_keys)
    handles = find_duplicates(
        {name: sketched.bands for name, sketched in found.items()},
        settings,
        n_rows={name: desk.silos[name]["n_rows"] for name in found},
        salt=hash_,
    )
    requests = {n: LeaveRequest(recipe_hash=hash_, handles=h) for n, h in handles.items()}

    def count(name: str, reply: LeaveReply) -> int:
        if not 0 <= reply.n_left_out <= desk.silos[name]["n_rows"]:
            raise DataError(f"silo {name}: it leaves out {reply.n_left_out} rows, which it lacks.")
        return reply.n_left_out

    n_rows = desk.exchange.ask("duplicates", requests, count)
    return {"token": hash_of(handles)[:16], "n_rows": n_rows}


def check_sketches(name: str, reply: SketchReply, *, n_rows: int) -> Sketched:
    """As many sketches as the announced rows and their padding allow, and none twice.

    Raises:
        DataError: something else came.
    """
    content = reply.sketches.get("sketches")
    most = padded(n_rows + ROUNDED_OFF)
    if (
        content is None
        or len(reply.sketches) > 1
        or content.dim() != 2
        or content.shape[1] * content.element_size() != SKETCH_BYTES
        or "uint8" not in str(content.dtype)
        or len(content) > most
        or len(content) != padded(len(content))
    ):
        raise DataError(
            f"silo {name}: its sketches do not fit the {n_rows} rows that it has announced."
        )
    bands = np.ascontiguousarray(content.numpy()).view("<u4").astype(np.uint32)
    if len(np.unique(bands, axis=0)) < len(bands):
        raise DataError(f"silo {name}: it sends a sketch twice, and each question counts once.")
    return Sketched(reply.key_token, bands)


def other_keys(found: Mapping[str, Sketched]) -> dict[str, str]:
    """Silos whose key is not that of most others; under another key no question is found equal."""
    counts = Counter(sketched.key_token for sketched in found.values())
    token, n = counts.most_common(1)[0] if counts else ("", 0)
    agreed = token if 2 * n > len(found) else None
    return {
        name: f"silo {name}: its duplicates_key is not that of the other silos. Give all the same."
        for name, sketched in found.items()
        if sketched.key_token != agreed
    }


def find_duplicates(
    sketches: Mapping[str, Bands],
    settings: DuplicatesSettings,
    *,
    n_rows: Mapping[str, int],
    salt: str,
) -> dict[str, list[int]]:
    """By silo, the handles of the rows to leave out; every silo stands there.

    Args:
        sketches: by silo.
        settings: when two questions are one, and how many may go.
        n_rows: that each silo has announced.
        salt: of the recipe; with the sketches it decides between silos that have lost as much.

    Raises:
        DataError: more than `max_share` of a silo's rows would go for those of one other silo.
    """
    names = sorted(sketches)
    bands = np.concatenate([sketches[name] for name in names])
    sizes = [len(sketches[name]) for name in names]
    owner = np.repeat(np.arange(len(names)), sizes)
    pairs = matching_pairs(bands, owner, fewest=fewest_equal(settings.similarity))
    lost = _decide(bands, owner, pairs, [max(1, n_rows[name]) for name in names], salt=salt)
    _check_shares(lost, owner, names, n_rows, max_share=settings.max_share)
    starts = np.cumsum([0, *sizes])
    return {
        name: sorted(int(i - starts[k]) for i in lost if owner[i] == k)
        for k, name in enumerate(names)
    }


def matching_pairs(bands: Bands, owner: Indices, *, fewest: int) -> Indices:
    """Pairs of rows of different owners with at least this many equal bands, as two columns.

    Raises:
        DataError: too many rows share a band with others.
    """
    total, codes = len(bands), np.zeros(0, np.int64)
    for band in range(N_BANDS):
        order = np.argsort(bands[:, band], kind="stable")
        values = bands[order, band]
        groups = np.split(order, np.flatnonzero(values[1:] != values[:-1]) + 1)
        found = [_across(group, owner, total) for group in groups if len(group) > 1]
        codes = np.unique(np.concatenate([codes, *found]))
        if len(codes) > MAX_PAIRS:
            raise _too_alike()
    left, right = codes // total, codes % total
    enough = np.zeros(len(codes), bool)
    for start in range(0, len(codes), _CHUNK):
        part = slice(start, start + _CHUNK)
        enough[part] = (bands[left[part]] == bands[right[part]]).sum(axis=1) >= fewest
    return np.stack([left[enough], right[enough]], axis=1)


def _across(group: Indices, owner: Indices, total: int) -> Indices:
    """Pairs in a group whose owners differ, each as one number."""
    if len(group) ** 2 > 2 * MAX_PAIRS:
        raise _too_alike()
    group = np.sort(group)
    one, other = np.triu_indices(len(group), 1)
    differ = owner[group[one]] != owner[group[other]]
    return group[one[differ]] * total + group[other[differ]]


def _too_alike() -> DataError:
    return DataError(
        "duplicates: too many rows resemble each other for all pairs to be compared. Do all "
        "questions begin with one long text? Leave recipe.duplicates out, or shorten that text."
    )


def _decide(
    bands: Bands, owner: Indices, pairs: Indices, n_rows: list[int], *, salt: str
) -> dict[int, int]:
    """Rows to leave out, each with the row that is kept in its place.

    In each group of rows that matches connect, the silo that has lost the largest share of its
    rows so far keeps its own; where silos have lost as much, a hash of the sketches decides.
    """
    beside: dict[int, list[int]] = defaultdict(list)
    for one, other in pairs.tolist():
        beside[one].append(other)
        beside[other].append(one)
    lost: dict[int, int] = {}
    n_lost = Counter[int]()
    for digest, members in sorted(_groups(bands, beside, salt)):
        silos = sorted(
            {int(owner[i]) for i in members},
            key=lambda k: (
                -n_lost[k] / n_rows[k],
                hashlib.sha256(digest + bytes(str(k), "ascii")).digest(),
            ),
        )
        kept: set[int] = set()
        for silo in silos:
            for row in (i for i in members if owner[i] == silo):
                keeper = min((i for i in beside[row] if i in kept), default=None)
                if keeper is None:
                    kept.add(row)
                else:
                    lost[row] = keeper
                    n_lost[silo] += 1
    return lost


def _groups(
    bands: Bands, beside: Mapping[int, list[int]], salt: str
) -> list[tuple[bytes, list[int]]]:
    """Rows that matches connect, with a digest of their sketches."""
    seen: set[int] = set()
    found: list[tuple[bytes, list[int]]] = []
    for start in beside:
        if start in seen:
            continue
        seen.add(start)
        members, left = [start], [start]
        while left:
            new = [i for i in beside[left.pop()] if i not in seen]
            seen.update(new)
            members += new
            left += new
        text = b"".join(sorted(bands[i].tobytes() for i in members))
        found.append((hashlib.sha256(salt.encode() + text).digest(), sorted(members)))
    return found


def _check_shares(
    lost: Mapping[int, int],
    owner: Indices,
    names: list[str],
    n_rows: Mapping[str, int],
    *,
    max_share: float,
) -> None:
    """Refuse that a silo loses more than a share of its rows for those of one other silo."""
    between = Counter((int(owner[row]), int(owner[keeper])) for row, keeper in lost.items())
    for (silo, keeper), n in sorted(between.items()):
        name, other = names[silo], names[keeper]
        if n > max_share * n_rows[name]:
            raise DataError(
                f"duplicates: {n / max(1, n_rows[name]):.0%} of the rows of silo {name} would be "
                f"left out for those of silo {other}, and recipe.duplicates.max_share is "
                f"{max_share:g}. Do the two hold the same data, or does one claim what it has not? "
                "Ask them; raise max_share if it is right."
            )
