"""What a silo's reply must satisfy before anything is made of it.

`messages.from_bytes` has already refused what is no message, has another field or dtype than a
message may have, or is not finite. These guards know what was asked. Each raises an error that
names the silo and shows nothing of its rows.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median_low
from typing import Any

from torch import Tensor, equal

from clues import __version__
from clues.coordinator.bounds import CLIPPED, mean_lengths
from clues.errors import DataError, NumericsError
from clues.model.adapters import check_state
from clues.printable import quoted
from clues.wall.diagnostics import BESIDE, BLOCK, OTHER, SCORES, read_diagnostics
from clues.wall.messages import (
    ROUNDED_OFF,
    EvaluateReply,
    FitReply,
    HelloReply,
    ScoreReply,
    SelectReply,
    Tensors,
    TrainReply,
    told_as,
)

# Of any weight: an adapter's are below 10, and products of two of these are far from float32's end.
LARGEST_WEIGHT = 1e6


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


def check_apart(name: str, reply: TrainReply) -> None:
    """Nothing of a trajectory that stays inside the silo."""
    if reply.adapter or reply.first_moment or reply.second_moment or reply.weight:
        raise DataError(f"silo {name}: it sends of a warm-up that stays inside the silos.")


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
        rows > n_rows + ROUNDED_OFF or not told_as(kept, n_kept) or max(kept, *counts) > rows
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
