"""Score rows in memory: the run of one silo in a private folder that is gone afterwards.

No step is made here. `clues init` writes the configuration, a run trains, scores and selects, and
what it leaves is read back.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from clues.api.found import WITH_QUANTILE, Evidence, Floats, Found
from clues.api.manners import bars, left_as_found
from clues.api.rows import Given, callers_words
from clues.api.single import configure, take_all, take_rejected
from clues.config import Recipe, ThresholdSettings, derived_seed
from clues.config import validate as validated
from clues.data.untrained import markable
from clues.errors import DataError, UsageError
from clues.model.borrowed import BorrowedModel
from clues.pipeline import Run, open_run, run_until
from clues.prepare.scaffold import ONE_DOMAIN, check_name
from clues.progress import Progress
from clues.scoring.table import ScoreTable
from clues.scoring.turns import turns_in_units
from clues.selection.decisions import EARLY, Apart, Decision
from clues.selection.decisions import select as decide
from clues.selection.threshold import Threshold, fit_threshold
from clues.selection.turns import Turns, positions
from clues.silo.select import set_aside


def score(
    rows: Any,
    *,
    validation: Any = None,
    anchors: Any = None,
    checked: Any = None,
    rejected: Any = None,
    model: Any = None,
    recipe: Recipe | Mapping[str, Any] | None = None,
    seed: int | None = None,
    domain: str = ONE_DOMAIN,
    name: str = "rows",
    schema: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    findings: str | Mapping[str, str] = "set_aside",
    skip_nonfinite: bool = False,
    compute: str | Mapping[str, Any] | None = None,
    progress: bool | Progress = True,
) -> Found:
    """Score rows against a few that are known to be good, and decide which to keep.

    The same as `clues init` and `clues run` with one silo, to the last digit.

    Args:
        rows: to clean: a list of dicts, a `datasets.Dataset`, a pandas DataFrame, or a path. Any
            schema that `clues.read_rows` knows.
        validation: good rows of the same subject, whose mean gradient says what helps; likewise.
        anchors: other good rows, whose scores give the threshold; 60 or more are better than 5.
        checked: instead of both: good rows that are dealt at random into the two.
        rejected: rows as they must not be, ten or more; likeness to them counts against a row.
        model: `built-in`, a folder, a hub name, or `(model, tokenizer)` as loaded, with or without
            adapters of PEFT. A loaded model counts as it stands, and is left as it is. None is the
            recipe's own, or `built-in`.
        recipe: settings that differ from what `clues init` writes, such as
            `{"score": {"form": "adam"}}`; or a whole `Recipe`, whose public rows do not count.
        seed: of everything random; None is the recipe's.
        domain: the subject, as a run names it. It is part of the recipe.
        name: of the silo in that run. It seeds the order in which rows are trained on.
        schema: which columns of `rows` hold prompt and answer, where several schemas fit.
        columns: names of those columns by what they hold, such as `{"prompt": "question"}`.
        findings: what happens to a row for what a reader sees in its text (a refusal, HTML, a repeated
            row, ...): `set_aside`, `flag` or `off`, or one of these by kind, as in a silo's file.
        skip_nonfinite: drop rows whose score is NaN or infinite, instead of stopping.
        compute: where to score: `local`, `ray`, or `{"engine": "ray", "address": ...}` as in a
            silo's file. A model that is loaded already stays in this process.
        progress: bars on the error stream; False for none, or an object of your own.

    Returns:
        Scores, threshold and a decision for every row. A threshold that keeps every row or none
        gives a warning.

    Raises:
        UsageError: an argument is of a type that cannot be used.
        DataError: public rows or model cannot be used, or half of the rows; they are named by position.
            Of fewer, the decision says why.
        ConfigError: a setting is not known or out of range.
    """
    borrowed = BorrowedModel(*model) if _is_pair(model) else None
    if not (model is None or isinstance(model, str | Path) or borrowed):
        raise UsageError(
            f"model: type {type(model).__name__}. Give (model, tokenizer), a name or a folder."
        )
    if borrowed and compute not in (None, "local"):
        raise UsageError(
            "compute: a model that is loaded already stays in this process. Give its folder or its "
            "hub name as model, or leave compute out."
        )
    check_name(name, what="a silo")
    check_name(domain, what="a domain")
    with TemporaryDirectory(prefix="clues-") as made:
        folder = Path(made).resolve()
        with callers_words(folder, silo=name, domain=domain), left_as_found():
            public = {"validation": validation, "anchors": anchors, "checked": checked}
            how = {"schema": schema, "columns": columns}
            given, answers = take_all(rows, public, folder, name=name, domain=domain, **how)
            bad = take_rejected(rejected, folder)
            model = borrowed or model
            config = configure(
                answers,
                model=model,
                recipe=recipe,
                seed=seed,
                rejected=bad,
                compute=compute,
                findings=findings,
                **how,
            )
            run = open_run(
                config,
                folder / "run",
                progress=bars(progress),
                allow_degenerate=True,
                skip_nonfinite=skip_nonfinite,
                cache=borrowed,
            )
            _check_tokenizer(run)
            selected = run_until(run, "select").selected
            assert selected is not None
            found = _read(run, selected.threshold, given)
    return _warned(found)


def select(
    found: Found,
    *,
    threshold: float | Threshold | None = None,
    quantile: float | None = None,
    ratio: float | None = None,
) -> Found:
    """What another threshold would keep. Nothing is trained or scored again.

    Args:
        found: what `score` returned.
        threshold: this number, in the units of `found.scores`; or the threshold of another call
            under the same recipe.
        quantile: the recipe's rule with this share of the clean rows that may go; its own cut, also
            where the recipe's aim was `model`.
        ratio: the best rows, this share of them.

    Returns:
        The same rows with other decisions. Under `quantile` and `ratio` the scores are in the units
        of the new threshold; their order is the same.

    Raises:
        UsageError: none or several of the three, or the recipe's rule has no quantile.
        RecipeMismatchError: a threshold of another recipe.

    With `score.cascade` a threshold can be raised and not lowered: rows below it have no gradients.
    """
    if sum(value is not None for value in (threshold, quantile, ratio)) != 1:
        raise UsageError("give one of threshold, quantile and ratio.")
    recipe, rule = found.recipe, found.recipe.threshold
    table = found.evidence.table
    new = threshold
    if threshold is not None and not isinstance(threshold, Threshold):
        if not isinstance(threshold, Real) or not math.isfinite(threshold):
            raise UsageError("threshold: give a finite number, or the threshold of another call.")
        new = replace(found.threshold, value=float(threshold), ratio=None, interval=None)
    if not isinstance(new, Threshold):
        if quantile is not None and rule.rule not in WITH_QUANTILE:
            raise UsageError(
                f"rule {rule.rule} has no quantile. Give threshold or ratio, or score with a rule "
                f"of {', '.join(WITH_QUANTILE)}."
            )
        # The copies that aim model looks at are not at hand here.
        other = {"quantile": quantile} if ratio is None else {"rule": "ratio", "ratio": ratio}
        changes = {"aim": "keep", **other}
        settings = validated(ThresholdSettings, {**rule.model_dump(), **changes}, where="threshold")
        recipe = recipe.model_copy(update={"threshold": settings})
        new = fit_threshold(
            found.evidence.anchors,
            {group: units.weights for group, units in found.threshold.units.items()},
            settings,
            recipe_hash=recipe.hash,
            seed=derived_seed(recipe.seed, "bootstrap"),
        )
    _refuse_lower(table, new, found.threshold)
    table = table.whole
    selection = decide(
        list(zip(table.row.tolist(), table.id, strict=True)),
        table.in_units(new, found.evidence.groups, where="rows"),
        new,
        recipe_hash=recipe.hash,
        dropped={d.row: Apart(d.id, d.why, d.reason) for d in found.decisions if d.score is None},
        where="rows",
        allow_degenerate=True,
        aside=found.evidence.aside,
        turns=_turns(found, recipe.threshold),
    )
    changed = {"scores": _scores(selection.decisions), "decisions": selection.decisions}
    return _warned(replace(found, threshold=new, recipe=recipe, page=None, **changed))


def _refuse_lower(table: ScoreTable, new: Threshold, old: Threshold) -> None:
    """With a cascade, rows below the old threshold may have no score to compare with a new one."""
    if table.cut is None or not table.is_early.any():
        return
    if new.units != old.units or new.value is None or new.value < table.cut:
        raise UsageError(
            f"{table.is_early.sum()} rows were below the threshold {table.cut:.4g} without gradients "
            "(score.cascade), and nobody knows what they score. Give a threshold that is not lower, or "
            "score without cascade."
        )


def _turns(found: Found, settings: ThresholdSettings) -> Turns | None:
    """Scores of turns as they compare with a threshold of these settings."""
    evidence = found.evidence
    if evidence.turns is None:
        return None
    weights = next(iter(found.threshold.units.values())).weights
    groups = evidence.groups
    scores = turns_in_units(evidence.turns, evidence.turn_anchors, weights, settings, groups)
    marks = (
        markable(found.given.rows, positions(scores))
        if settings.low_turn == "mask"
        else frozenset[int]()
    )
    return Turns(scores, settings.low_turn, marks)


def _is_pair(model: Any) -> bool:
    return isinstance(model, tuple | list) and len(model) == 2


def _check_tokenizer(run: Run) -> None:
    """Without an end token a model is never taught to stop, and no score says whether it should.

    Raises:
        DataError: the tokenizer has none.
    """
    if run.coordinator.desk.encoder.tokenizer.eos_token_id is None:
        raise DataError("model: its tokenizer has no end token. Set tokenizer.eos_token.")


def _read(run: Run, threshold: Threshold, given: Given) -> Found:
    """What a run of one silo left, before its folder goes."""
    (silo,) = run.silos.values()
    decisions = silo.select(threshold).decisions
    space, turns = silo.space, None
    by_turn: dict[str, dict[str, Floats]] = {}
    if run.config.recipe.score.turns:
        turns, by_turn = space.turn_table(), _arrays(space.turn_anchors())
    groups, anchors = tuple(space.groups()), _arrays(space.anchor_scores())
    return Found(
        scores=_scores(decisions),
        threshold=threshold,
        decisions=decisions,
        recipe=run.config.recipe,
        given=given,
        evidence=Evidence(space.scores(), groups, anchors, turns, by_turn, set_aside(space)),
        page=(silo.private / "report.html").read_text(encoding="utf-8"),
    )


def _arrays(stored: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, Floats]]:
    return {g: {k: np.array(v) for k, v in sets.items()} for g, sets in stored.items()}


def _scores(decisions: Sequence[Decision]) -> Floats:
    return np.array([np.nan if d.score is None else d.score for d in decisions])


def _warned(found: Found) -> Found:
    # Rows without a score, and those that are set aside for their text, say nothing about the threshold.
    judged = [
        d
        for d in found.decisions
        if d.row not in found.evidence.aside and (d.score is not None or d.why == EARLY)
    ]
    n_kept, n_rows = len(found.positions), len(judged)
    if n_kept in (0, n_rows) and not any(d.untrained for d in found.decisions):
        what = "every row" if n_kept else "no row"
        warnings.warn(
            f"the threshold keeps {what} of {n_rows} that it decides about. Are the anchors of the "
            "rows' own subject?",
            stacklevel=3,
        )
    return found
