"""What a selection computes: how often it looks at which tokens.

A pass with gradients costs about two forward passes: weights of the base model have no gradient, so the
way back makes those of the activations alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clues.config import ALIGNMENT, FORMS, LINEAR_FORMS, LOSS, Recipe
from clues.data.damage import N_COPIES
from clues.data.tokens import EncodedRow
from clues.scoring.compared import parts_as_baselines
from clues.scoring.installed import is_baseline, needs_rows
from clues.scoring.trajectory import N_FOLDS, N_PROBES, anchors_at_coordinator, n_train_steps

GRADIENT = 2.0  # forward passes that a pass with gradients costs
# Forms that need every row's gradient, beside a side branch (docs/benchmarks.md).
FORMED = 1.15
# Of an answer's length, what damaged copies of it have left: cut ones a tenth, thinned ones a half.
COPY_LENGTH = 0.65


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


@dataclass(frozen=True)
class SiloRows:
    """A silo's rows, and the domain whose public rows they are compared with."""

    domain: str
    rows: Size


@dataclass(frozen=True)
class PublicRows:
    """The public rows of a domain."""

    validation: Size = Size()
    anchors: Size = Size()
    rejected: Size = Size()


def warm_up_work(recipe: Recipe, silos: Sequence[SiloRows]) -> Work:
    """Tokens of the training along which rows are scored."""
    folds = N_FOLDS if recipe.score.trajectory == "crossfit" and recipe.train.steps else 1
    return Work(
        gradient=sum(
            tokens_of_steps(
                silo.rows,
                n_train_steps(recipe.train, silo.rows.rows) * folds,
                recipe.train.batch_size,
            )
            for silo in silos
        )
    )


def score_work(recipe: Recipe, silos: Sequence[SiloRows], public: Mapping[str, PublicRows]) -> Work:
    """Tokens of all scores, of private rows and public ones, in the silos and at the coordinator.

    Args:
        recipe: settings.
        silos: every silo that takes part.
        public: by domain.
    """
    at_coordinator = anchors_at_coordinator(recipe)
    total = Work()
    for silo in silos:
        own = public.get(silo.domain, PublicRows())
        # A silo looks at the loss before the training whether it counts or not.
        total += _passes(recipe, silo.rows, looks_before=True)
        total += _compared(recipe, own, silo.rows, anchors=at_coordinator)
        if at_coordinator:
            total += _probes(recipe, own)
        else:
            folds = N_FOLDS if recipe.score.trajectory == "crossfit" else 1
            total += _judges(recipe, own).times(folds)
    for domain in sorted({silo.domain for silo in silos}) if at_coordinator else ():
        own = public.get(domain, PublicRows())
        total += _judges(recipe, own) + _probes(recipe, own)
    return total


def tokens_of_steps(size: Size, n_steps: int, batch_size: int) -> float:
    """Tokens of so many steps; a step takes as many rows as there are, at most."""
    return n_steps * min(batch_size, size.rows) * size.tokens / max(1, size.rows)


def _judges(recipe: Recipe, public: PublicRows) -> Work:
    """Directions, and the scores of anchors, their copies and rejected rows."""
    settings = recipe.score
    copies = recipe.needs_copies and anchors_at_coordinator(recipe)
    tested = 0.5 if recipe.weighs and copies else 0.0
    rejected = public.rejected if settings.reject_weight != 0 else Size()
    toward = public.validation.tokens + rejected.tokens * (1.0 - tested)
    directions = settings.method == "influence" and settings.trajectory != "inrun"
    found = Work(gradient=toward * recipe.train.checkpoints * directions)
    before = LOSS in settings.weighed and settings.loss_under == "base"
    found += _passes(recipe, public.anchors, looks_before=before)
    if anchors_at_coordinator(recipe):
        found += _compared(recipe, public, public.anchors, anchors=False)
    if copies:
        found += _passes(recipe, _copies(public.anchors), looks_before=before)
        found += _passes(recipe, rejected.times(tested), looks_before=before)
    return found


def _probes(recipe: Recipe, public: PublicRows) -> Work:
    """A few public rows at every checkpoint: equal on both sides if the models are."""
    rows = min(N_PROBES, public.validation.rows)
    mean = public.validation.tokens / max(1, public.validation.rows)
    return Work(forward=rows * mean * recipe.train.checkpoints)


def _copies(anchors: Size) -> Size:
    left = anchors.answers * COPY_LENGTH
    return Size(anchors.tokens - anchors.answers + left, left, anchors.rows).times(N_COPIES)


def _passes(recipe: Recipe, size: Size, *, looks_before: bool) -> Work:
    """What the deciding score costs."""
    settings, n = recipe.score, recipe.train.checkpoints
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


def _compared(recipe: Recipe, public: PublicRows, size: Size, *, anchors: bool) -> Work:
    """What scores beside the deciding one cost.

    Args:
        recipe: settings.
        public: rows that give directions, and are looked at once more.
        size: of the rows to score.
        anchors: whether some scores of anchors depend on these rows, and are made with them.
    """
    settings, n = recipe.score, recipe.train.checkpoints
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
