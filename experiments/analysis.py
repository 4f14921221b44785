"""Figures of one finished run beyond its results: by rule, by length, by checkpoint, by anchors.

Reads the private score tables, which the experimenter owns all of, and labels. Aggregates only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from clues.config import ThresholdSettings, derived_seed
from clues.coordinator.outcomes import Outcome, Scored
from clues.errors import DataError, NumericsError
from clues.evaluation.compare import select_alone
from clues.evaluation.detection import detection, ranking, read_labels
from clues.pipeline import Run
from clues.scoring.parts import Compared, terms
from clues.scoring.table import ScoreTable
from clues.selection.rules import mixture_cut
from clues.selection.threshold import Threshold, fit_threshold
from clues.selection.units import INFLUENCE, part_of
from clues.silo.select import in_units

RULES: dict[str, dict[str, Any]] = {
    "anchor_tolerance": {},
    "anchor_quantile": {},
    "anchor_mean": {},
    "ratio": {"ratio": 0.5},
    # The 5 % quantile of a standard normal distribution: what the anchors' units suggest.
    "preset": {"preset": -1.645},
    "mixture": {},
}
ANCHOR_RULES = ("anchor_tolerance", "anchor_quantile", "anchor_mean")
ANCHOR_COUNTS = (5, 10, 30, 100)
N_DRAWS = 20
# Scores that pretend to know what is good; the others are controls.
CONTROLS = ("random", "length", "embedding")
Anchors = Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Finished:
    """A run that has a threshold.

    Attributes:
        run: its two sides.
        scored: the anchors' scores.
        threshold: the one for all silos.
    """

    run: Run
    scored: Scored
    threshold: Threshold

    @classmethod
    def of(cls, run: Run, outcome: Outcome) -> "Finished":
        """From what `run_until` returned."""
        assert outcome.scored is not None
        assert outcome.threshold is not None
        return cls(run, outcome.scored, outcome.threshold)


@dataclass(frozen=True)
class SiloView:
    """One silo's scores with the labels of its scored rows."""

    name: str
    space: Any
    table: ScoreTable
    labels: list[str | None]


def analyse(run: Finished) -> dict[str, Any]:
    """Everything below, for one run that has selected; nothing where no silo has labels."""
    views = silo_views(run)
    if not views:
        return {}
    anchors = _anchors(run)
    return {
        "rules": {rule: by_rule(run, views, anchors, rule) for rule in RULES},
        "anchors": by_anchor_count(run, views, anchors),
        "length": by_length(run, views),
        "checkpoints": by_checkpoint(views),
        "hard": hard_rows(run, views),
    }


def silo_views(run: Finished) -> list[SiloView]:
    """Scores and labels of every silo that has both."""
    views: list[SiloView] = []
    for name, silo in run.run.silos.items():
        labels = read_labels(silo.space.rows(), silo.settings.labels)
        if labels is not None:
            table = silo.space.scores()
            views.append(SiloView(name, silo.space, table, [labels[r] for r in table.row]))
    return views


def threshold_of(
    run: Finished, anchors: Anchors, views: Sequence[SiloView], rule: str
) -> Threshold:
    """The threshold that another rule gives for the same scores.

    Raises:
        DataError, NumericsError: as `fit_threshold`.
    """
    recipe = run.run.config.recipe
    # Rules are compared by their own cuts.
    own = {"bootstrap": 1, "rule": rule, "aim": "keep"}
    content = recipe.threshold.model_dump() | own | RULES[rule]
    settings = ThresholdSettings.model_validate(content)
    weights = _group_weights(run)
    proposals: dict[str, float] = {}
    if rule == "mixture":
        # Units first: a silo proposes its cut in units of the anchors.
        units = threshold_of(run, anchors, views, "anchor_quantile")
        for view in views:
            scores = in_units(view.space, view.table, units)
            cut = mixture_cut(scores, seed=derived_seed(recipe.seed, "mixture", view.name))
            proposals |= {view.name: cut} if cut is not None else {}
    return fit_threshold(
        anchors,
        weights,
        settings,
        recipe_hash=recipe.hash,
        seed=recipe.seed,
        proposals=proposals,
    )


def by_rule(
    run: Finished, views: Sequence[SiloView], anchors: Anchors, rule: str
) -> dict[str, Any] | None:
    """Clean recall, precision, share kept and share of each damage kind dropped; means over silos.

    None where the rule finds no threshold.
    """
    try:
        threshold = threshold_of(run, anchors, views, rule)
    except (DataError, NumericsError):
        return None
    found = []
    for view in views:
        scores = in_units(view.space, view.table, threshold)
        cut = threshold.value
        if threshold.ratio is not None:
            cut = float(np.quantile(scores, 1 - threshold.ratio))
        assert cut is not None
        kept = scores >= cut
        figures: dict[str, Any] = {**detection(view.labels, kept), "share": float(kept.mean())}
        for kind in sorted({x for x in view.labels if x}):
            of_kind = np.array([x == kind for x in view.labels])
            figures[f"dropped {kind}"] = float((~kept[of_kind]).mean())
        found.append(figures)
    recalls = [f["recall"] for f in found if f["recall"] is not None]
    return {**_means(found), "lowest recall": min(recalls, default=None)}


def by_anchor_count(run: Finished, views: Sequence[SiloView], anchors: Anchors) -> dict[str, Any]:
    """How kept share and clean recall move when other anchors, or fewer, set the threshold."""
    rng = np.random.default_rng(derived_seed(run.run.config.recipe.seed, "anchor draws"))
    found: dict[str, Any] = {}
    for n in ANCHOR_COUNTS:
        sizes = {g: len(next(iter(sets.values()))) for g, sets in anchors.items()}
        if n > min(sizes.values()):
            continue
        draws: dict[str, list[dict[str, Any]]] = {rule: [] for rule in ANCHOR_RULES}
        for _ in range(N_DRAWS):
            chosen = {g: rng.choice(size, n, replace=False) for g, size in sizes.items()}
            some = {g: {k: v[chosen[g]] for k, v in sets.items()} for g, sets in anchors.items()}
            for rule in ANCHOR_RULES:
                figures = by_rule(run, views, some, rule)
                if figures:
                    draws[rule].append(figures)
        found[str(n)] = {
            rule: {
                key: _spread([f[key] for f in figures])
                for key in ("recall", "lowest recall", "precision", "share")
            }
            for rule, figures in draws.items()
            if figures
        }
    return found


def by_length(run: Finished, views: Sequence[SiloView]) -> dict[str, Any]:
    """How much of each score is length: rank correlation over clean rows, AUC at equal length."""
    found: dict[str, list[dict[str, Any]]] = {}
    for view in views:
        lengths = view.table.n_response_tokens
        clean = np.array([x is None for x in view.labels])
        for name, scores in score_columns(run, view).items():
            rho = _spearman(scores[clean], lengths[clean])
            within = _auc_within(view.labels, scores, lengths)
            found.setdefault(name, []).append({"spearman": rho, "auc at equal length": within})
    return {name: _means(figures) for name, figures in found.items()}


def by_checkpoint(views: Sequence[SiloView]) -> dict[str, Any]:
    """AUC of each checkpoint's term alone, and how far the checkpoints rank rows alike."""
    aucs: dict[int, list[float]] = {}
    agreements: list[float] = []
    for view in views:
        sums: dict[int, np.ndarray] = {}
        for term, values in terms(view.table.parts).items():
            if term.block is None and part_of(term.set) == INFLUENCE:
                sums[term.checkpoint] = sums.get(term.checkpoint, np.zeros(len(values))) + values
        for number, values in sums.items():
            auc = ranking(view.labels, values)["auc"]
            if auc is not None:
                aucs.setdefault(number, []).append(auc)
        pairs = [_spearman(sums[a], sums[b]) for a, b in combinations(sorted(sums), 2)]
        agreements += [rho for rho in pairs if rho is not None]
    return {
        "auc": {str(number): float(np.mean(aucs[number])) for number in sorted(aucs)},
        "agreement": float(np.mean(agreements)) if agreements else None,
    }


def hard_rows(run: Finished, views: Sequence[SiloView]) -> dict[str, Any]:
    """Rows that every selector gets wrong, by kind: clean and dropped, or damaged and kept."""
    wrong: dict[str, int] = {}
    total: dict[str, int] = {}
    names: set[str] = set()
    for view in views:
        threshold = run.threshold
        decided = in_units(view.space, view.table, threshold)
        cut = threshold.value
        kept = {} if cut is None else {"selection score": decided >= cut}
        for name, alone in _alone(run, view).items():
            if name not in CONTROLS and alone.kept is not None:
                kept[name] = alone.kept
        if not kept:
            continue
        names |= set(kept)
        everyone, nobody = np.all(list(kept.values()), 0), ~np.any(list(kept.values()), 0)
        for label, all_keep, none_keeps in zip(view.labels, everyone, nobody, strict=True):
            kind = label or "clean"
            total[kind] = total.get(kind, 0) + 1
            wrong[kind] = wrong.get(kind, 0) + int(all_keep if label else none_keeps)
    shares = {kind: wrong[kind] / n for kind, n in sorted(total.items())}
    return {"selectors": sorted(names), "share wrong for all": shares, "rows": total}


def score_columns(run: Finished, view: SiloView) -> dict[str, np.ndarray]:
    """Every score of a silo's rows by name; higher is better."""
    table = view.table
    columns = {"selection score": in_units(view.space, table, run.threshold)}
    if run.run.config.recipe.score.method == "influence":
        columns["influence"] = np.sum(
            [v for n, v in table.raw.items() if part_of(n) == INFLUENCE], axis=0
        )
    return columns | {p.method: v for p, v in table.parts.items() if isinstance(p, Compared)}


def agreement(first: Finished, second: Finished) -> float | None:
    """Rank correlation of two runs' selection scores on the same rows, mean over silos."""
    found: list[float] = []
    theirs = {view.name: view for view in silo_views(second)}
    for ours in silo_views(first):
        other = theirs[ours.name]
        a = dict(zip(ours.table.row, score_columns(first, ours)["selection score"], strict=True))
        b = dict(zip(other.table.row, score_columns(second, other)["selection score"], strict=True))
        rows = sorted(set(a) & set(b))
        rho = _spearman(np.array([a[r] for r in rows]), np.array([b[r] for r in rows]))
        found += [rho] if rho is not None else []
    return float(np.mean(found)) if found else None


def _alone(run: Finished, view: SiloView) -> dict[str, Any]:
    compared = view.space.compared_anchors()
    return {
        name: select_alone(
            name,
            view.table.parts[Compared(name)],
            view.table.fold,
            {g: np.array(v) for g, v in anchors.items()},
            recipe=run.run.config.recipe,
        )
        for name, anchors in compared.items()
    }


def _anchors(run: Finished) -> dict[str, dict[str, np.ndarray]]:
    return run.scored.raw


def _group_weights(run: Finished) -> dict[str, dict[str, float]]:
    """Weights as the threshold has them: parts may have been weighed."""
    units = run.threshold.units
    return {group: dict(of_group.weights) for group, of_group in units.items()}


def _auc_within(
    labels: Sequence[str | None], scores: np.ndarray, lengths: np.ndarray
) -> float | None:
    """AUC over pairs of a clean and a damaged row of one length quarter; weighted by pairs."""
    bins = np.searchsorted(np.quantile(lengths, [0.25, 0.5, 0.75]), lengths)
    total, weight = 0.0, 0
    for b in np.unique(bins):
        inside = np.flatnonzero(bins == b)
        own = [labels[int(i)] for i in inside]
        auc, n_clean = ranking(own, scores[inside])["auc"], sum(x is None for x in own)
        if auc is not None:
            pairs = n_clean * (len(own) - n_clean)
            total, weight = total + auc * pairs, weight + pairs
    return total / weight if weight else None


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    found: Any = spearmanr(a, b)
    return float(found.statistic)


def _means(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for f in figures for name in f)
    return {name: _mean([f[name] for f in figures if f.get(name) is not None]) for name in names}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [v for v in values if v is not None]
    if not known:
        return None
    of: dict[str, Callable[..., Any]] = {"mean": np.mean, "sd": np.std, "min": min, "max": max}
    return {name: float(f(known)) for name, f in of.items()}
