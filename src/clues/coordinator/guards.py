"""What a silo's reply must satisfy before anything is made of it.

`messages.from_bytes` has already refused what is no message, has another field or dtype than a
message may have, or is not finite. These guards know what was asked. Each raises an error that
names the silo and shows nothing of its rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import numpy as np
from torch import Tensor, equal

from clues import __version__
from clues.config import ThresholdSettings
from clues.errors import DataError, NumericsError
from clues.model.adapters import check_state
from clues.printable import quoted
from clues.selection.units import anchor_units
from clues.wall.diagnostics import BESIDE, BLOCK, OTHER, SCORES, read_diagnostics
from clues.wall.messages import (
    EvaluateReply,
    FitReply,
    HelloReply,
    ScoreReply,
    SelectReply,
    Tensors,
    TrainReply,
    round_count,
)

# The Trainer cuts every gradient to this length, so no mean of them is longer.
CLIPPED = 1.0
# Differential privacy adds noise to gradients: per weight about (noise multiplier * clip) / rows of
# a batch, and so sqrt(weights) times that in length. A multiplier of 20 leaves nothing to learn.
NOISIEST = 20.0
# How many times farther than their median a silo's anchor scores may reach. Honest silos of the demo
# differ by less than 3 with every score; what lies between is for the median over silos.
FARTHEST = 1000.0
# Of any weight: an adapter's are below 10, and products of two of these are far from float32's end.
LARGEST_WEIGHT = 1e6


def longest_gradient(n_weights: int, batch_size: int) -> float:
    """How long the means of an honest silo can be, with the most noise for differential privacy."""
    return CLIPPED + NOISIEST * math.sqrt(n_weights) / batch_size


def check_hello(name: str, reply: HelloReply, *, domains: Sequence[str], max_rows: int) -> None:
    """A silo is who it is, of a known domain, with a believable number of rows."""
    if reply.silo != name:
        raise DataError(f"silo {name}: it answers as {quoted(reply.silo)}.")
    if reply.version != __version__:
        raise DataError(
            f"silo {name}: it runs clues {quoted(reply.version, 20)}, and here is {__version__}. Install "
            "the same version on both sides."
        )
    if reply.domain not in domains:
        raise DataError(f"silo {name}: domain {quoted(reply.domain)} has no public set.")
    if not 0 <= reply.n_rows <= max_rows:
        raise DataError(
            f"silo {name}: it says that it has {reply.n_rows} rows; between 0 and "
            f"federation.max_rows ({max_rows}) are accepted."
        )


def check_train(
    name: str,
    reply: TrainReply,
    *,
    sent: Tensors,
    n_rows: int,
    peak: float,
    ffa: bool,
    means: tuple[bool, bool] = (True, True),
    longest: float = math.inf,
) -> None:
    """A round's adapter, its weight, its learning rate and its optimiser state.

    Args:
        name: of the silo.
        reply: what it sent.
        sent: the adapter that it began from.
        n_rows: that it announced.
        peak: the recipe's learning rate.
        ffa: whether only the factors B train.
        means: whether the recipe's scores need the mean of the gradients, and of their squares.
        longest: length that the means may have.
    """
    check_adapter(name, reply.adapter, sent=sent, ffa=ffa)
    _check_weight(name, reply.weight, n_rows=n_rows)
    # The rate weighs the checkpoint in every row's score.
    if not 0 <= reply.learning_rate <= peak * (1 + 1e-9):
        raise DataError(f"silo {name}: learning rate {reply.learning_rate:g} exceeds {peak:g}.")
    trained = {n: t for n, t in sent.items() if not ffa or ".lora_B." in n}
    for moment, wanted in zip((reply.first_moment, reply.second_moment), means, strict=True):
        fits = set(moment) == (set(trained) if wanted else set())
        if not fits or any(
            t.shape != sent[n].shape or t.dtype != sent[n].dtype for n, t in moment.items()
        ):
            raise DataError(f"silo {name}: its optimiser state does not fit its adapter.")
    if any(bool((t < 0).any()) for t in reply.second_moment.values()):
        raise DataError(f"silo {name}: its optimiser state does not fit its adapter.")
    for length in mean_lengths(reply):
        if length > longest:
            raise DataError(
                f"silo {name}: its optimiser state has length {length:.3g}; training cuts gradients "
                f"to {CLIPPED:g}, and with the most noise they come to {longest:.3g}."
            )


def mean_lengths(reply: TrainReply) -> tuple[float, float]:
    """Length of the mean gradient, and the root of the mean squared length; 0 without a mean.

    |m| and sqrt(sum v), of Adam's corrected running means m and v over all weights: both are
    lengths of gradients, whatever the scale of the loss.
    """
    first = sum(float(t.double().square().sum()) for t in reply.first_moment.values())
    second = sum(float(t.double().sum()) for t in reply.second_moment.values())
    return math.sqrt(first), math.sqrt(second)


def capped(rows: Sequence[int], max_share: float) -> list[float]:
    """How many rows each silo counts for: as it says, unless its share would exceed `max_share`.

    Every count above a limit c becomes c, with c = max_share * (sum of all that is left). Nobody can
    check what a silo says of its rows. Of two silos both are believed.

    Args:
        rows: that silos say they have.
        max_share: of one silo; below 1 / silos all are equal.
    """
    n = len(rows)
    if n < 3 or max(rows) <= max_share * sum(rows):
        return list(rows)
    falling = sorted(rows, reverse=True)
    for m in range(1, n):
        if max_share * m < 1:
            limit = max_share * sum(falling[m:]) / (1 - max_share * m)
            if limit >= falling[m]:
                return [min(count, limit) for count in rows]
    return [1.0] * n


def shortened(lengths: Sequence[float]) -> list[float]:
    """By what to multiply each silo's mean, so that none has more say than an honest one can have.

    Without noise no mean is longer than `CLIPPED`, and all factors are 1. With differential privacy
    the noise makes means longer: then none counts with more than the lower median of the lengths.
    """
    limit = max(CLIPPED, median_low(lengths))
    return [limit / n if n > limit * (1 + 1e-6) else 1.0 for n in lengths]


def check_fit(name: str, reply: FitReply, *, sent: Tensors, n_rows: int, ffa: bool) -> None:
    """A round's adapter with its weight; weight zero with no adapter where no row is kept."""
    if reply.weight == 0 and not reply.adapter:
        return
    check_adapter(name, reply.adapter, sent=sent, ffa=ffa)
    _check_weight(name, reply.weight, n_rows=n_rows)


def check_adapter(name: str, adapter: Tensors, *, sent: Tensors, ffa: bool) -> None:
    """Names, shapes, dtypes and finiteness as in what was sent; under ffa the very same A."""
    try:
        check_state(adapter, like=sent)
    except (DataError, NumericsError) as error:
        raise type(error)(f"silo {name}: {error}") from None
    for weight, tensor in adapter.items():
        if tensor.dtype != sent[weight].dtype:
            raise DataError(
                f"silo {name}: adapter: {weight} is {tensor.dtype}, expected {sent[weight].dtype}."
            )
        if tensor.abs().max() > LARGEST_WEIGHT:
            raise DataError(
                f"silo {name}: adapter: {weight} holds a number above {LARGEST_WEIGHT:.0e}."
            )
        if ffa and ".lora_A." in weight and not equal(tensor, sent[weight]):
            raise DataError(f"silo {name}: adapter: {weight} has changed, under ffa it must not.")


def check_anchor_scores(
    name: str, reply: ScoreReply, *, groups: set[str], parts: Sequence[str], n_anchors: int
) -> None:
    """Anchor scores of the silo's own groups, one a public anchor, and no others."""
    fits = set(reply.anchor_scores) == groups and all(
        set(sets) == set(parts) and all(len(v) == n_anchors for v in sets.values())
        for sets in reply.anchor_scores.values()
    )
    if not fits:
        raise DataError(
            f"silo {name}: its anchor scores do not fit the recipe ({n_anchors} anchors, "
            f"parts {', '.join(parts)})."
        )


@dataclass(frozen=True)
class Reach:
    """How far a silo's numbers for the threshold reach.

    Attributes:
        raw: largest absolute raw score of an anchor.
        units: the same in units of the silo's own anchors.
        proposal: absolute value of the cut that it proposes.
    """

    raw: float = 0.0
    units: float = 0.0
    proposal: float = 0.0


def reach_of(
    name: str, reply: ScoreReply, weights: Mapping[str, float], settings: ThresholdSettings
) -> Reach:
    """How far a silo's anchor scores and its proposal reach.

    Raises:
        DataError: its anchor scores give no unit, such as scores that are all the same; or it
            proposes a cut that the rule does not ask for.
    """
    if reply.proposal is not None and settings.rule != "mixture":
        raise DataError(
            f"silo {name}: it proposes a threshold, and rule {settings.rule} asks none."
        )
    raw, in_units = 0.0, 0.0
    for sets in reply.anchor_scores.values():
        values = {part: np.array(scores) for part, scores in sets.items()}
        try:
            # Of numbers near float64's end even the spread overflows.
            with np.errstate(all="ignore"):
                units = anchor_units(values, weights, kind=settings.units, combine=settings.combine)
                scores = units.apply(values)
        except NumericsError as error:
            raise DataError(f"silo {name}: its anchor scores give no unit: {error}") from None
        if not np.isfinite([*scores, *units.numbers]).all():
            raise DataError(f"silo {name}: its anchor scores are too large to compute with.")
        raw = max(raw, *(float(np.abs(v).max()) for v in values.values()))
        in_units = max(in_units, float(np.abs(scores).max()))
    return Reach(raw, in_units, abs(reply.proposal or 0.0))


def too_far(reaches: Mapping[str, Reach]) -> dict[str, str]:
    """Silos whose numbers reach more than `FARTHEST` times as far as the silos' lower median.

    As `too_long`, it needs three silos of which more than half are honest.
    """
    found: dict[str, str] = {}
    # Without anchor scores from the silos a unit is an anchor's spread.
    least = {"raw": 0.0, "units": 0.0, "proposal": 1.0}
    for kind, what in (
        ("raw", "its anchors score up to"),
        ("units", "in units of its own anchors one of them scores"),
        ("proposal", "it proposes a threshold of size"),
    ):
        sizes = {name: getattr(reach, kind) for name, reach in reaches.items()}
        middle = max(median_low(sizes.values()), least[kind]) if len(sizes) >= 3 else 0.0
        found |= {
            name: f"silo {name}: {what} {size:.3g}, the silos' median is {middle:.3g}; at most "
            f"{FARTHEST:,.0f} times that is accepted."
            for name, size in sizes.items()
            if middle and size > FARTHEST * middle
        }
    return found


def check_select(name: str, reply: SelectReply, *, n_rows: int) -> None:
    """No more rows are kept than there are."""
    if not 0 <= reply.n_kept <= n_rows:
        raise DataError(f"silo {name}: it keeps {reply.n_kept} of {n_rows} rows.")


def check_evaluate(
    name: str,
    reply: EvaluateReply,
    *,
    n_rows: int,
    n_kept: int,
    kinds: Sequence[str],
    compared: Sequence[str],
) -> dict[str, Any]:
    """Diagnostics that fit what the silo has said before; exact counts only refine it.

    Args:
        name: of the silo.
        reply: what it sent.
        n_rows: that it announced.
        n_kept: that it said it keeps.
        kinds: labels that may be named.
        compared: scores beside the one that decides.

    Returns:
        The figures as they stand in results.json.
    """
    found = read_diagnostics(reply.diagnostics, where=f"silo {name}")
    rows, kept = found.rows or 0, found.kept or 0
    counts = [found.clean or 0, *(d.kept or 0 for d in found.detection.values())]
    if found.by_hand:
        counts.append(found.by_hand.kept + found.by_hand.dropped)
    if "rows" in found.model_fields_set and (
        round_count(rows) > n_rows or round_count(kept) != n_kept or max(kept, *counts) > rows
    ):
        raise DataError(f"silo {name}: its diagnostics do not fit the numbers of rows it has told.")
    # Figures of a score beside the deciding one; only the selection's own need not be compared.
    given = found.detection
    known = {s for s in given if s in SCORES or s in compared or BLOCK.fullmatch(s)}
    lacking = [s for s in compared if s not in given or not given[s].model_fields_set >= BESIDE]
    if given and (known != set(given) or lacking):
        raise DataError(f"silo {name}: its diagnostics are of other scores than the recipe's.")
    named = {kind for d in found.detection.values() for kind in d.auc_by_kind}
    if not named | set(found.dropped_by_kind) <= {*kinds, OTHER}:
        raise DataError(
            f"silo {name}: its diagnostics name kinds that evaluate.kinds does not list."
        )
    return found.content()


def update_norm(adapter: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> float:
    """Euclidean length of what a silo changed, over all weights."""
    square = sum(float((t.double() - sent[n].double()).square().sum()) for n, t in adapter.items())
    return math.sqrt(square)


def too_long(
    norms: Mapping[str, float], *, bound: float, what: str = "its update has norm"
) -> dict[str, str]:
    """Silos whose update is more than `bound` times the median of all, with the reason.

    The lower median: more than half of the silos must lie to move it. Of two silos nobody can
    say which one is wrong, so the bound needs three.
    """
    # float64 holds the square of any float32 weight; only more than 1e70 of them overflow.
    middle = median_low(norms.values()) if len(norms) >= 3 else 0.0
    if middle == 0:
        return {}
    return {
        name: f"silo {name}: {what} {norm:.3g}, the silos' median is {middle:.3g}; "
        f"at most federation.norm_bound ({bound:g}) times that is accepted."
        for name, norm in norms.items()
        if norm > bound * middle
    }


def _check_weight(name: str, weight: Any, *, n_rows: int) -> None:
    if not 0 < weight <= n_rows:
        raise DataError(
            f"silo {name}: it trained on {weight} rows; between 1 and the {n_rows} that it "
            "announced are accepted."
        )
