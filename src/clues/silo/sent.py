"""What a score request brings: the joint trajectory, its directions, the anchors' other scores."""

from collections.abc import Mapping, Sequence

from clues.errors import DataError
from clues.model.adapters import AdapterState, Checkpoint, check_state
from clues.scoring.compared import AnchorScores
from clues.silo.workspace import Workspace
from clues.wall.messages import ScoreRequest


def sent_scores(request: ScoreRequest) -> AnchorScores:
    """Take the anchors' scores beside the deciding one out of their message."""
    return AnchorScores(request.compared_forms, request.compared_baselines)


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
        DataError: another number of checkpoints, or a direction is missing, odd or of other shapes.
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
