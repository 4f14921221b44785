"""What a score request brings: the joint trajectory, its directions, the anchors' other scores."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from torch import Tensor

from clues.errors import DataError
from clues.model.adapters import AdapterState, Checkpoint, check_state
from clues.scoring.compared import AnchorScores
from clues.scoring.trajectory import moments_at_rows
from clues.silo.workspace import Workspace
from clues.wall.messages import Envelope, FitRequest, ScoreRequest, TrainRequest

# Honest factors are below 10 and their product below 1.
LARGEST_PRODUCT = 1e6


def sent_scores(request: ScoreRequest) -> AnchorScores:
    """Take the anchors' scores beside the deciding one out of their message."""
    return AnchorScores(request.compared_forms, request.compared_baselines)


def sent_anchors(
    space: Workspace, request: ScoreRequest, *, names: Collection[str]
) -> dict[str, np.ndarray]:
    """Take the anchors' deciding scores out of their message.

    Raises:
        DataError: they are not one number per anchor, under every name of the recipe.
    """
    sent, n_anchors = request.anchor_scores, len(space.anchors())
    if not set(names) <= set(sent) or any(len(values) != n_anchors for values in sent.values()):
        raise DataError(
            f"silo {space.name}: the anchors' scores that came are not one per anchor and name."
        )
    return {name: np.array(values, float) for name, values in sent.items()}


def sent_trajectory(
    request: ScoreRequest, *, where: str
) -> tuple[list[Checkpoint], list[dict[str, AdapterState]]]:
    """Take the checkpoints and directions of the joint trajectory out of their message.

    Raises:
        DataError: the parts of the checkpoints are not equally many.
    """
    columns = (
        request.learning_rates,
        request.checkpoints,
        request.second_moments,
        request.first_moments,
        request.optimizer_steps,
    )
    lengths = {len(column) for column in (*columns, request.probe_losses, request.directions)}
    if len(lengths) > 1:
        raise DataError(f"{where}: the score request's checkpoints do not fit together.")
    checkpoints = [
        Checkpoint(index, *parts) for index, parts in enumerate(zip(*columns, strict=True))
    ]
    return checkpoints, request.directions


def check_sent(
    space: Workspace,
    checkpoints: Sequence[Checkpoint],
    directions: Sequence[Mapping[str, AdapterState]],
    *,
    wanted: set[str],
    weights: list[str],
) -> None:
    """Compare what was sent with what the recipe says.

    Raises:
        DataError: another number of checkpoints, or a direction or a running mean is missing, odd
            or of other shapes.
    """
    n, initial = space.recipe().train.checkpoints, space.model().initial
    if len(checkpoints) != n:
        raise DataError(
            f"silo {space.name}: {len(checkpoints)} checkpoints came, the recipe has {n}."
        )
    for checkpoint, sets in zip(checkpoints, directions, strict=True):
        check_state(checkpoint.adapter, like=initial)
        if set(sets) != wanted:
            raise DataError(
                f"silo {space.name}: the directions are not those of the recipe's sets."
            )
        for direction in sets.values():
            check_state(direction, like={name: initial[name] for name in weights})
    needs_first, needs_second = moments_at_rows(space.recipe())
    for needed, moments in (
        (needs_first, [c.first_moment for c in checkpoints]),
        (needs_second, [c.second_moment for c in checkpoints]),
    ):
        for moment in moments:
            _check_moment(space, moment, weights=weights if needed else ())
    if any(bool((t < 0).any()) for c in checkpoints for t in c.second_moment.values()):
        raise DataError(f"silo {space.name}: a mean of squares that came has negative numbers.")


def _check_moment(
    space: Workspace, moment: Mapping[str, Tensor], *, weights: Sequence[str]
) -> None:
    """Refuse a running mean that is not of the adapter's weights, or lacks one that is scored."""
    initial = space.model().initial
    if set(moment) <= set(initial) and set(weights) <= set(moment):
        return check_state(moment, like={name: initial[name] for name in moment})
    raise DataError(
        f"silo {space.name}: a running mean came that is not one of the adapter's weights."
    )


def check_adapters(space: Workspace, request: Envelope) -> None:
    """Refuse adapters so large that a row's loss would overflow.

    Whether it does can depend on one token of the row. A training that fails for it tells of rows
    without sending an update.

    Raises:
        DataError: numbers of the two factors multiply to too much.
    """
    if isinstance(request, TrainRequest | FitRequest):
        adapters: Sequence[AdapterState] = [request.adapter]
    elif isinstance(request, ScoreRequest):
        adapters = request.checkpoints
    else:
        return
    lora = space.recipe().lora
    for adapter in adapters:
        # An absent factor counts as 1: names and shapes are compared later.
        largest = {
            factor: max((_size(t) for name, t in adapter.items() if factor in name), default=1.0)
            for factor in (".lora_A.", ".lora_B.")
        }
        a, b = largest.values()
        if max(a, b, a * b * lora.alpha / lora.rank) > LARGEST_PRODUCT:
            raise DataError(
                f"silo {space.name}: the adapter of the {request.kind} request has numbers that "
                f"multiply to more than {LARGEST_PRODUCT:.0e}. No training of ours makes such."
            )


def _size(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
