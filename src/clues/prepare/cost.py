"""What a run computes, by stage: the selection, the arms that train on it, and their measuring."""

from collections.abc import Mapping
from enum import StrEnum

from clues.config import RunConfig
from clues.prepare.checklist import Role, Source
from clues.scoring.cost import (
    PublicRows,
    SiloRows,
    Size,
    Work,
    score_work,
    tokens_of_steps,
    warm_up_work,
)


class Stage(StrEnum):
    """What the time goes to."""

    TRAIN = "warm-up"
    SCORE = "scores"
    FIT = "arms"
    MEASURE = "measuring"


def work_of(
    config: RunConfig, sizes: Mapping[Source, Size], *, asked: float = 0.0
) -> dict[Stage, Work]:
    """Tokens by stage, of all silos and the coordinator together.

    Args:
        config: the run.
        sizes: of every file of rows.
        asked: tokens of all choices of held-out rows and tasks.
    """
    recipe, combine = config.recipe, config.combine
    silos = [SiloRows(s.domain, sizes.get(Source(Role.SILO, s.name), Size())) for s in config.silos]
    public = {silo.domain: _public(sizes, silo.domain) for silo in silos}
    n_fit = combine.rounds * combine.local_steps
    fitted = sum(tokens_of_steps(s.rows, n_fit, recipe.train.batch_size) for s in silos)
    heldout = sizes.get(Source(Role.HELD_OUT), Size())
    arms = len([arm for arm in config.evaluate.arms if arm != "oracle" or config.labelled])
    return {
        Stage.TRAIN: warm_up_work(recipe, silos),
        Stage.SCORE: score_work(recipe, silos, public),
        Stage.FIT: Work(gradient=arms * fitted),
        Stage.MEASURE: Work(forward=arms * (heldout.tokens + asked)),
    }


def per_private_token(work: Mapping[Stage, Work], sizes: Mapping[Source, Size]) -> float:
    """Forward passes that a selection costs per private token, public rows included."""
    private = sum(size.tokens for source, size in sizes.items() if source.role is Role.SILO)
    selection = work[Stage.TRAIN] + work[Stage.SCORE]
    return selection.equivalents / private if private else 0.0


def _public(sizes: Mapping[Source, Size], domain: str) -> PublicRows:
    sets = [
        size
        for source, size in sizes.items()
        if source.role is Role.VALIDATION and source.name == domain
    ]
    return PublicRows(
        sum(sets, Size()),
        sizes.get(Source(Role.ANCHORS, domain), Size()),
        sizes.get(Source(Role.REJECTED, domain), Size()),
    )
