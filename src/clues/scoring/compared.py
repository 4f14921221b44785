"""Other scores beside the one that decides; they decide nothing."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from clues.config import ALIGNMENT, FORMS, LINEAR_FORMS, LOSS, Recipe, ScoreSettings
from clues.data.tokens import EncodedRow
from clues.errors import DataError
from clues.model.adapters import AdapterState, Checkpoint, LoraModel
from clues.scoring.baselines import Scene
from clues.scoring.batches import refuse_nonfinite
from clues.scoring.direction import LinearForm, precondition
from clues.scoring.forms import explicit_scores, form_directions, linear_scores
from clues.scoring.installed import is_baseline, needs_rows, scorer
from clues.selection.units import combine

Rows = Sequence[EncodedRow]
# Opens a bar over so many rows; what it yields takes the rows finished.
Task = Callable[[int], AbstractContextManager[Callable[[int], None]]]


def no_bar(total: int) -> AbstractContextManager[Callable[[int], None]]:
    """A bar that nobody sees."""
    return nullcontext(lambda n: None)


@dataclass(frozen=True)
class AnchorScores:
    """Scores of a domain's anchors beside the deciding one, made once where all silos score alike.

    Without what a silo has anyway (the form that decides), and without what depends on its rows
    (in-run scores, DataInf).

    Attributes:
        forms: by influence form and validation set, one score per anchor.
        baselines: by baseline, one score per anchor.
    """

    forms: Mapping[str, Mapping[str, Sequence[float]]]
    baselines: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Compared:
    """One score of a group's rows and of its anchors."""

    rows: np.ndarray
    anchors: np.ndarray


@dataclass(frozen=True)
class Standpoint:
    """What a group of rows is scored from.

    Attributes:
        model: is left with the adapter of the last score.
        validation: public validation rows by set.
        checkpoints: the group's trajectory.
        recipe: settings.
        domain: of the group.
        names: LoRA weights whose gradients count.
    """

    model: LoraModel
    validation: Mapping[str, Rows]
    checkpoints: Sequence[Checkpoint]
    recipe: Recipe
    domain: str
    names: Sequence[str]

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every validation set."""
        sets = self.recipe.public[self.domain].validation
        return {name: file.weight for name, file in sets.items()}

    @property
    def deciding_form(self) -> set[str]:
        """The form whose scores are there anyway."""
        return {self.recipe.score.form} if self.recipe.score.method == "influence" else set()

    def forms(self, *, known: Collection[str]) -> list[str]:
        """Forms to compare, without those that are known."""
        return [n for n in self.recipe.score.compare if n in FORMS and n not in known]

    def baselines(self, *, known: Collection[str]) -> list[str]:
        """Baselines to compare, without those that are known."""
        return [n for n in self.recipe.score.compare if is_baseline(n) and n not in known]

    @property
    def public_baselines(self) -> list[str]:
        """Baselines to compare under which an anchor scores the same in every silo."""
        return [n for n in self.baselines(known=self.deciding_baselines) if not needs_rows(n)]

    @property
    def deciding_baselines(self) -> set[str]:
        """Baselines that are parts of the score that decides, and so are there anyway."""
        return set(parts_as_baselines(self.recipe.score))


def parts_as_baselines(settings: ScoreSettings) -> dict[str, str]:
    """By baseline, the part of the deciding score that has the same numbers."""
    if settings.method != "influence" or settings.trajectory == "inrun":
        return {}
    same = {"base_perplexity": LOSS} if settings.loss_under == "base" else {}
    return {
        n: part for n, part in {**same, "alignment": ALIGNMENT}.items() if part in settings.weighed
    }


def compare(
    place: Standpoint,
    rows: Rows,
    anchors: Rows,
    *,
    known: Mapping[str, Compared],
    sent: AnchorScores | None = None,
    task: Task = no_bar,
    skip_nonfinite: bool = False,
) -> dict[str, Compared]:
    """Every score that `recipe.score.compare` lists, for one group of rows.

    Args:
        place: what they are scored from.
        rows: the group's rows.
        anchors: public anchors of the silo's domain.
        known: scores among them that are there already.
        sent: what `compare_anchors` returned at the coordinator; None where the anchors' scores
            depend on the silo.
        task: opens a bar.
        skip_nonfinite: give rows NaN instead of raising; anchors are public.

    Raises:
        NumericsError: an anchor's score is not finite.
        DataError: what was sent does not fit the recipe or the anchors.
    """
    if sent is not None:
        _check_sent(place, sent, n_anchors=len(anchors))
    forms, names = place.forms(known=known), place.baselines(known=known)
    n_rows = len(rows) + (len(anchors) if sent is None else 0)
    with task(n_rows * _n_passes(place, forms, names)) as advance:
        how = {"sent": sent, "on_rows": advance, "skip_nonfinite": skip_nonfinite}
        found = score_by_forms(place, forms, rows, anchors, **how)
        # In-run scores are made while training.
        found |= score_by_baselines(place, names, rows, anchors, **how)
    for name, scored in found.items():
        refuse_nonfinite(anchors, scored.anchors, what=f"{name} score")
    return {n: {**found, **known}[n] for n in place.recipe.score.compare if n != "inrun"}


def _n_passes(place: Standpoint, forms: Sequence[str], baselines: Sequence[str]) -> int:
    """How often every row is looked at: forms share a pass per checkpoint."""
    return len(place.checkpoints) * bool(forms) + len(baselines)


def compare_anchors(place: Standpoint, anchors: Rows, *, task: Task = no_bar) -> AnchorScores:
    """The anchors' scores beside the deciding one, at the coordinator; `task` opens a bar."""
    forms = place.forms(known=place.deciding_form)
    names = place.public_baselines
    scene, scored = _scene(place, rows=()), dict[str, np.ndarray]()
    with task(len(anchors) * _n_passes(place, forms, names)) as advance:
        found = form_parts(place, forms, anchors, on_rows=advance)
        for name in names:
            scored[name] = scorer(name)(scene)(anchors)
            advance(len(anchors))
    return AnchorScores(
        {f: {s: [float(x) for x in v] for s, v in sets.items()} for f, sets in found.items()},
        {name: [float(x) for x in values] for name, values in scored.items()},
    )


def score_by_baselines(
    place: Standpoint,
    baselines: Sequence[str],
    rows: Rows,
    anchors: Rows,
    *,
    sent: AnchorScores | None = None,
    on_rows: Callable[[int], None] | None = None,
    skip_nonfinite: bool = False,
) -> dict[str, Compared]:
    """Score rows and anchors by baselines at the last checkpoint."""
    scene = _scene(place, rows=rows, skip_nonfinite=skip_nonfinite)
    brought = sent.baselines if sent else {}
    found: dict[str, Compared] = {}
    for name in baselines:
        score = scorer(name)(scene)
        theirs = np.array(brought[name]) if name in brought else score(anchors)
        found[name] = Compared(score(rows), theirs)
        if on_rows:
            on_rows(len(rows) + (0 if name in brought else len(anchors)))
    return found


def score_by_forms(
    place: Standpoint,
    forms: Sequence[str],
    rows: Rows,
    anchors: Rows,
    *,
    sent: AnchorScores | None = None,
    on_rows: Callable[[int], None] | None = None,
    skip_nonfinite: bool = False,
) -> dict[str, Compared]:
    """Score rows and anchors by influence forms along a trajectory, without the loss."""
    everyone = [*rows, *anchors] if sent is None else rows
    n, weights = len(rows), place.weights
    found: dict[str, Compared] = {}
    how = {"on_rows": on_rows, "skip_nonfinite": skip_nonfinite}
    for form, parts in form_parts(place, forms, everyone, **how).items():
        ours = {name: parts[name][:n] for name in weights}
        theirs = {
            name: parts[name][n:] if sent is None else np.array(sent.forms[form][name])
            for name in weights
        }
        found[form] = one_number(ours, theirs, weights)
    return found


def form_parts(
    place: Standpoint,
    forms: Sequence[str],
    rows: Rows,
    *,
    on_rows: Callable[[int], None] | None = None,
    skip_nonfinite: bool = False,
) -> dict[str, dict[str, np.ndarray]]:
    """Influence of every row by form and validation set along a trajectory, without the loss."""
    raw: dict[str, dict[str, np.ndarray]] = {form: {} for form in forms}
    model, validation = place.model, place.validation
    linear: list[LinearForm] = [cast(LinearForm, f) for f in forms if f in LINEAR_FORMS]
    explicit = [form for form in forms if form not in LINEAR_FORMS]
    for checkpoint in place.checkpoints if forms else ():
        # All directions come from the plain validation gradients, all scores from one pass.
        plain = form_directions(model, validation, checkpoint, form="sgd", weights=place.names)
        directions = list(plain.values())
        own: dict[str, list[AdapterState]] = {
            form: [precondition(v, checkpoint, form=form) for v in directions] for form in linear
        }
        how: dict[str, Any] = {"on_rows": on_rows, "skip_nonfinite": skip_nonfinite}
        if explicit:
            found = explicit_scores(
                model, rows, checkpoint, directions, forms=explicit, linear=own, **how
            )
        else:
            found = linear_scores(model, rows, checkpoint, own, **how)
        for form, scores in found.items():
            for k, part in enumerate(validation):
                term = checkpoint.learning_rate * scores.products[:, k]
                raw[form][part] = raw[form].get(part, np.zeros(len(rows))) + term
    return raw


def one_number(
    rows: Mapping[str, np.ndarray], anchors: Mapping[str, np.ndarray], weights: Mapping[str, float]
) -> Compared:
    """One number per row: sets are made comparable by the spread of their anchor scores."""
    scales = {name: float(np.std(anchors[name])) or 1.0 for name in weights}
    return Compared(combine(rows, weights, scales), combine(anchors, weights, scales))


def _scene(place: Standpoint, *, rows: Rows, skip_nonfinite: bool = False) -> Scene:
    """What baselines look at; `rows` are a silo's own, for those of `NEEDS_ROWS`."""
    return Scene(
        model=place.model,
        checkpoint=place.checkpoints[-1],
        rows=rows,
        validation=place.validation,
        weights=place.weights,
        names=place.names,
        seed=place.recipe.seed,
        skip_nonfinite=skip_nonfinite,
    )


def _check_sent(place: Standpoint, sent: AnchorScores, *, n_anchors: int) -> None:
    lists = [*sent.baselines.values(), *(v for sets in sent.forms.values() for v in sets.values())]
    fits = (
        set(sent.forms) == set(place.forms(known=place.deciding_form))
        and all(set(sets) == set(place.validation) for sets in sent.forms.values())
        and set(sent.baselines) == set(place.public_baselines)
        and all(len(values) == n_anchors for values in lists)
    )
    if not fits or not np.isfinite([x for values in lists for x in values]).all():
        raise DataError("the anchors' compared scores that came do not fit the recipe.")
