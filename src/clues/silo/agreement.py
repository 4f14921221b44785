"""Several people's decisions about the rows of one silo: how far they agree, and what all of them say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from sklearn.metrics import cohen_kappa_score

from clues.config import short
from clues.errors import DataError, RecipeMismatchError
from clues.silo.overrides import Override, Overrides, Wish

MAX_REASON = 1000  # characters of an override


@dataclass(frozen=True)
class Agreement:
    """How two readers agree about the rows that both have read.

    Attributes:
        readers: their names.
        n_read: rows that both have read.
        n_same: of these, rows that both keep or both set aside.
        kappa: Cohen's kappa of kept and set aside: agreement beyond chance, from -1 to 1. None
            where no row was read by both, or both left all of them on one side: then chance alone
            would agree as well.
    """

    readers: tuple[str, str]
    n_read: int
    n_same: int
    kappa: float | None


@dataclass(frozen=True)
class Merged:
    """What several files say together.

    Attributes:
        overrides: decisions that nobody contradicts. It holds no wish.
        contrary: ids that one reader keeps and another sets aside; they are not in `overrides`.
        agreements: of every two readers.
        wishes: for another threshold, by reader.
    """

    overrides: Overrides
    contrary: tuple[str, ...]
    agreements: tuple[Agreement, ...]
    wishes: Mapping[str, Wish] = field(default_factory=dict)


def merge(files: Mapping[str, Overrides]) -> Merged:
    """Put the decisions of several readers together.

    A row counts as read where it was opened or decided about. A row that a reader leaves as it is
    counts as this reader's agreement with the score. So kappa measures what a selection would be
    after each of them, and not two judgements made from nothing.

    Args:
        files: what each reader has exported, by name; at least two.

    Raises:
        DataError: fewer than two, or of different silos.
        RecipeMismatchError: made under different recipes.
    """
    if len(files) < 2:
        raise DataError("one file alone agrees with itself. Name the files of two readers or more.")
    first = next(iter(files.values()))
    for name, one in files.items():
        if one.silo != first.silo:
            raise DataError(
                f"{name}: of silo {one.silo[:63]!r}, and the first file is of {first.silo[:63]!r}. "
                "Merge the files of one silo at a time."
            )
        if one.recipe_hash != first.recipe_hash:
            raise RecipeMismatchError(
                f"{name}: made under recipe {short(one.recipe_hash)}, and the first file under "
                f"{short(first.recipe_hash)}: their readers have seen other scores. Let both read "
                "the same report."
            )
    ways: dict[str, dict[bool, list[str]]] = {}
    for one in files.values():
        for override in one.overrides:
            ways.setdefault(override.id, {}).setdefault(override.keep, []).append(override.reason)
    contrary = tuple(id_ for id_, found in ways.items() if len(found) == 2)
    agreed = [
        Override(id=id_, keep=keep, reason="; ".join(dict.fromkeys(reasons))[:MAX_REASON])
        for id_, found in ways.items()
        for keep, reasons in found.items()
        if len(found) == 1
    ]
    read = {reading.id: reading for one in files.values() for reading in one.read}
    overrides = Overrides(
        silo=first.silo,
        recipe_hash=first.recipe_hash,
        reviewer=", ".join(files)[:100],
        overrides=tuple(agreed),
        read=tuple(r for id_, r in read.items() if id_ not in contrary),
    )
    return Merged(
        overrides,
        contrary,
        tuple(agreement(*pair) for pair in combinations(files.items(), 2)),
        {name: one.wish for name, one in files.items() if one.wish},
    )


def agreement(one: tuple[str, Overrides], other: tuple[str, Overrides]) -> Agreement:
    """How two readers agree; each is a name and what was exported."""
    fates = [_fates(overrides) for _, overrides in (one, other)]
    both = sorted(fates[0].keys() & fates[1].keys())
    sides = [[fate[id_] for id_ in both] for fate in fates]
    n_same = sum(a == b for a, b in zip(*sides, strict=True))
    return Agreement((one[0], other[0]), len(both), n_same, _kappa(sides))


def _fates(overrides: Overrides) -> dict[str, bool]:
    """By id, whether a row that was read is kept as its reader leaves it."""
    read = {reading.id: reading.kept for reading in overrides.read}
    return read | {override.id: override.keep for override in overrides.overrides}


def _kappa(sides: Sequence[Sequence[bool]]) -> float | None:
    if not sides[0] or len({*sides[0], *sides[1]}) < 2:
        return None
    return float(cohen_kappa_score(*sides, labels=[False, True]))
