"""What a run computes: how often it looks at which tokens, by stage.

A pass with gradients costs about two forward passes: weights of the base model have no gradient, so the
way back makes those of the activations alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from clues.config import ALIGNMENT, FORMS, LINEAR_FORMS, LOSS, RunConfig
from clues.data.damage import N_COPIES
from clues.data.tokens import EncodedRow
from clues.prepare.checklist import Role, Source
from clues.scoring.compared import parts_as_baselines
from clues.scoring.installed import is_baseline, needs_rows
from clues.scoring.trajectory import (
    N_FOLDS,
    N_PROBES,
    anchors_at_coordinator,
    n_train_steps,
)

GRADIENT = 2.0  # forward passes that a pass with gradients costs
# Forms that need every row's gradient, beside a side branch (docs/benchmarks.md).
FORMED = 1.15
# Of an answer's length, what damaged copies of it have left: cut ones a tenth, thinned ones a half.
COPY_LENGTH = 0.65


class Stage(StrEnum):
    """What the time goes to."""

    TRAIN = "warm-up"
    SCORE = "scores"
    FIT = "arms"
    MEASURE = "measuring"


@dataclass(frozen=True)
class Size:
    """How much there is of a set of rows.

    Attributes:
        tokens: of all rows.
        answers: of their responses, with one token before each.
        rows: how many.
    """

    tokens: float = 0.0
    answers: float = 0.0
    rows: int = 0

    @classmethod
    def of(cls, rows: Sequence[EncodedRow]) -> "Size":
        """Of encoded rows."""
        return cls(
            float(sum(len(row.ids) for row in rows)),
            float(sum(row.n_response_tokens + 1 for row in rows)),
            len(rows),
        )

    def __add__(self, other: "Size") -> "Size":
        return Size(
            self.tokens + other.tokens, self.answers + other.answers, self.rows + other.rows
        )

    def times(self, factor: float) -> "Size":
        """So many times as much."""
        return Size(self.tokens * factor, self.answers * factor, round(self.rows * factor))


@dataclass(frozen=True)
class Work:
    """Tokens that are looked at: in forward passes, and in passes with gradients."""

    forward: float = 0.0
    gradient: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.forward + other.forward, self.gradient + other.gradient)

    def times(self, factor: float) -> "Work":
        """So many times as much."""
        return Work(self.forward * factor, self.gradient * factor)

    @property
    def equivalents(self) -> float:
        """Tokens of forward passes that cost as much."""
        return self.forward + GRADIENT * self.gradient


@dataclass(frozen=True)
class Cost:
    """What a baseline costs: passes over rows and over validation rows.

    Attributes:
        forward: forward passes over all tokens.
        gradient: passes with gradients.
        answers: forward passes over answers alone.
        public_forward: forward passes over validation rows.
        public_gradient: passes with gradients over validation rows.
    """

    forward: float = 0
    gradient: float = 0
    answers: float = 0
    public_forward: float = 0
    public_gradient: float = 0

    def of(self, size: Size) -> Work:
        """For rows to score."""
        return Work(
            self.forward * size.tokens + self.answers * size.answers, self.gradient * size.tokens
        )

    def of_public(self, size: Size) -> Work:
        """For validation rows."""
        return Work(self.public_forward * size.tokens, self.public_gradient * size.tokens)


BASELINES = {
    "base_perplexity": Cost(forward=1),
    "ifd": Cost(forward=1, answers=1),
    "alignment": Cost(forward=1, answers=1),
    "datainf": Cost(gradient=2, public_gradient=1),
    "embedding": Cost(forward=1, public_forward=1),
    "repsim": Cost(forward=1, public_forward=1),
    "rds": Cost(forward=1, public_forward=1),
    "length": Cost(),
    "random": Cost(),
}
# Nobody knows what a scorer of another package does; one pass is taken.
UNKNOWN = Cost(forward=1)


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
    silos = {s.name: sizes.get(Source(Role.SILO, s.name), Size()) for s in config.silos}
    steps = {name: n_train_steps(recipe.train, size.rows) for name, size in silos.items()}
    trainings = N_FOLDS if recipe.score.trajectory == "crossfit" and recipe.train.steps else 1
    trained = sum(
        _of_steps(silos[name], n * trainings, recipe.train.batch_size) for name, n in steps.items()
    )
    n_fit = combine.rounds * combine.local_steps
    fitted = sum(_of_steps(size, n_fit, recipe.train.batch_size) for size in silos.values())
    heldout = sizes.get(Source(Role.HELD_OUT), Size())
    arms = len([arm for arm in config.evaluate.arms if arm != "oracle" or config.labelled])
    return {
        Stage.TRAIN: Work(gradient=trained),
        Stage.SCORE: _scores(config, sizes, silos),
        Stage.FIT: Work(gradient=arms * fitted),
        Stage.MEASURE: Work(forward=arms * (heldout.tokens + asked)),
    }


def per_private_token(work: Mapping[Stage, Work], sizes: Mapping[Source, Size]) -> float:
    """Forward passes that a selection costs per private token, public rows included."""
    private = sum(size.tokens for source, size in sizes.items() if source.role is Role.SILO)
    selection = work[Stage.TRAIN] + work[Stage.SCORE]
    return selection.equivalents / private if private else 0.0


def _scores(config: RunConfig, sizes: Mapping[Source, Size], silos: Mapping[str, Size]) -> Work:
    recipe = config.recipe
    domains = {silo.name: silo.domain for silo in config.silos}
    at_coordinator = anchors_at_coordinator(recipe)
    total = Work()
    for name, size in silos.items():
        public = _Public.of(sizes, domains[name])
        # A silo looks at the loss before the training whether it counts or not.
        total += _passes(config, size, looks_before=True)
        total += _compared(config, public, size, anchors=at_coordinator)
        if at_coordinator:
            total += _probes(config, public)
        else:
            folds = N_FOLDS if recipe.score.trajectory == "crossfit" else 1
            total += _judges(config, public).times(folds)
    for domain in sorted(set(domains.values())) if at_coordinator else ():
        public = _Public.of(sizes, domain)
        total += _judges(config, public) + _probes(config, public)
    return total


@dataclass(frozen=True)
class _Public:
    """The public rows of a domain."""

    validation: Size
    anchors: Size
    rejected: Size

    @classmethod
    def of(cls, sizes: Mapping[Source, Size], domain: str) -> "_Public":
        sets = [
            size
            for source, size in sizes.items()
            if source.role is Role.VALIDATION and source.name == domain
        ]
        return cls(
            sum(sets, Size()),
            sizes.get(Source(Role.ANCHORS, domain), Size()),
            sizes.get(Source(Role.REJECTED, domain), Size()),
        )


def _judges(config: RunConfig, public: _Public) -> Work:
    """Directions, and the scores of anchors, their copies and rejected rows."""
    recipe, settings = config.recipe, config.recipe.score
    copies = recipe.needs_copies and anchors_at_coordinator(recipe)
    tested = 0.5 if recipe.weighs and copies else 0.0
    rejected = public.rejected if settings.reject_weight != 0 else Size()
    toward = public.validation.tokens + rejected.tokens * (1.0 - tested)
    directions = settings.method == "influence" and settings.trajectory != "inrun"
    found = Work(gradient=toward * recipe.train.checkpoints * directions)
    before = LOSS in settings.weighed and settings.loss_under == "base"
    found += _passes(config, public.anchors, looks_before=before)
    if anchors_at_coordinator(recipe):
        found += _compared(config, public, public.anchors, anchors=False)
    if copies:
        found += _passes(config, _copies(public.anchors), looks_before=before)
        found += _passes(config, rejected.times(tested), looks_before=before)
    return found


def _probes(config: RunConfig, public: _Public) -> Work:
    """A few public rows at every checkpoint: equal on both sides if the models are."""
    rows = min(N_PROBES, public.validation.rows)
    mean = public.validation.tokens / max(1, public.validation.rows)
    return Work(forward=rows * mean * config.recipe.train.checkpoints)


def _copies(anchors: Size) -> Size:
    left = anchors.answers * COPY_LENGTH
    return Size(anchors.tokens - anchors.answers + left, left, anchors.rows).times(N_COPIES)


def _passes(config: RunConfig, size: Size, *, looks_before: bool) -> Work:
    """What the deciding score costs."""
    settings, n = config.recipe.score, config.recipe.train.checkpoints
    turns = 2.0 if settings.turns else 1.0
    forward = size.tokens if looks_before else 0.0
    if settings.method == "perplexity":
        return Work(forward=(forward + n * size.tokens) * turns)
    if is_baseline(settings.method):
        return Work(forward) + BASELINES.get(settings.method, UNKNOWN).of(size)
    if ALIGNMENT in settings.weighed:
        forward += size.answers
    if settings.trajectory == "inrun":
        return Work(forward=forward)
    formed = 1.0 if settings.form in LINEAR_FORMS else FORMED
    return Work(forward * turns, n * size.tokens * formed * turns)


def _compared(config: RunConfig, public: _Public, size: Size, *, anchors: bool) -> Work:
    """What scores beside the deciding one cost.

    Args:
        config: the run.
        public: rows that give directions, and are looked at once more.
        size: of the rows to score.
        anchors: whether some scores of anchors depend on these rows, and are made with them.
    """
    settings, n = config.recipe.score, config.recipe.train.checkpoints
    known = {settings.form} if settings.method == "influence" else set[str]()
    known |= set(parts_as_baselines(settings))
    names = [name for name in settings.compare if name not in known]
    total = Work()
    if forms := [name for name in names if name in FORMS]:
        formed = 1.0 if all(name in LINEAR_FORMS for name in forms) else FORMED
        total += Work(gradient=n * (size.tokens * formed + public.validation.tokens))
    for name in names:
        if not is_baseline(name) or (needs_rows(name) and not anchors):
            continue
        cost = BASELINES.get(name, UNKNOWN)
        total += cost.of(size) + cost.of_public(public.validation)
        if needs_rows(name):
            total += Work(gradient=public.anchors.tokens)
    return total


def _of_steps(size: Size, n_steps: int, batch_size: int) -> float:
    """Tokens of so many steps; a step takes as many rows as there are, at most."""
    return n_steps * min(batch_size, size.rows) * size.tokens / max(1, size.rows)
