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
from clues.errors import DataError, NumericsError
from clues.model.adapters import check_state
from clues.wall.messages import (
    FitReply,
    HelloReply,
    ScoreReply,
    SelectReply,
    Tensors,
    TrainReply,
)


def check_hello(name: str, reply: HelloReply, *, domains: Sequence[str], max_rows: int) -> None:
    """A silo is who it is, of a known domain, with a believable number of rows."""
    if reply.silo != name:
        raise DataError(f"silo {name}: it answers as {reply.silo[:40]!r}.")
    if reply.version != __version__:
        raise DataError(
            f"silo {name}: it runs clues {reply.version[:20]!r}, and here is {__version__}. Install "
            "the same version on both sides."
        )
    if reply.domain not in domains:
        raise DataError(f"silo {name}: domain {reply.domain[:40]!r} has no public set.")
    if not 0 <= reply.n_rows <= max_rows:
        raise DataError(
            f"silo {name}: it says that it has {reply.n_rows} rows; between 0 and "
            f"federation.max_rows ({max_rows}) are accepted."
        )


def check_train(
    name: str, reply: TrainReply, *, sent: Tensors, n_rows: int, peak: float, ffa: bool
) -> None:
    """A round's adapter, its weight, its learning rate and its optimiser state."""
    check_adapter(name, reply.adapter, sent=sent, ffa=ffa)
    _check_weight(name, reply.weight, n_rows=n_rows)
    # The rate weighs the checkpoint in every row's score.
    if not 0 <= reply.learning_rate <= peak * (1 + 1e-9):
        raise DataError(f"silo {name}: learning rate {reply.learning_rate:g} exceeds {peak:g}.")
    trained = {n for n in reply.adapter if ".lora_B." in n}
    for moments in (reply.second_moment, reply.first_moment):
        fits = not moments or trained <= set(moments) <= set(reply.adapter)
        if not fits or any(t.shape != reply.adapter[n].shape for n, t in moments.items()):
            raise DataError(f"silo {name}: its optimiser state does not fit its adapter.")
    if any(bool((t < 0).any()) for t in reply.second_moment.values()):
        raise DataError(f"silo {name}: its optimiser state does not fit its adapter.")


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
        if ffa and ".lora_A." in weight and not equal(tensor, sent[weight]):
            raise DataError(f"silo {name}: adapter: {weight} has changed, under ffa it must not.")


def check_anchor_scores(
    name: str, reply: ScoreReply, *, groups: set[str], parts: Sequence[str], n_anchors: int
) -> None:
    """Anchor scores of the silo's own groups, one a public anchor."""
    fits = set(reply.anchor_scores) == groups and all(
        set(sets) >= set(parts) and all(len(v) == n_anchors for v in sets.values())
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


def update_norm(adapter: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> float:
    """Euclidean length of what a silo changed, over all weights."""
    square = sum(float((t.double() - sent[n].double()).square().sum()) for n, t in adapter.items())
    return math.sqrt(square)


def too_long(norms: Mapping[str, float], *, bound: float) -> dict[str, str]:
    """Silos whose update is more than `bound` times the median of all, with the reason.

    The lower median: more than half of the silos must lie to move it. Of two silos nobody can
    say which one is wrong, so the bound needs three.
    """
    # float64 holds the square of any float32 weight; only more than 1e70 of them overflow.
    middle = median_low(norms.values()) if len(norms) >= 3 else 0.0
    if middle == 0:
        return {}
    return {
        name: f"silo {name}: its update has norm {norm:.3g}, the silos' median is {middle:.3g}; "
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
