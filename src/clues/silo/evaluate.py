"""What a silo can say about its own selection, exactly. Leaves it only where it agreed to share."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clues.errors import DataError
from clues.evaluation.compare import Alone, select_alone
from clues.evaluation.compare import figures as compared_figures
from clues.evaluation.detection import detection, ranking, read_labels
from clues.rundir import hash_of
from clues.scoring.parts import (
    BEFORE,
    OUTSIDE_BLOCKS,
    Compared,
    InRunLoss,
    block_label,
    checkpoint_losses,
    terms,
)
from clues.scoring.table import ScoreTable
from clues.selection.units import INFLUENCE as PART
from clues.selection.units import part_of
from clues.silo.overrides import in_force
from clues.silo.select import in_units
from clues.silo.workspace import Workspace
from clues.wall.diagnostics import INFLUENCE, OTHER, SELECTION

BANDS = (0.1, 0.25, 0.5, 0.75, 0.9)
MIN_BANDED = 20  # of fewer rows a tenth is one row, or none


def diagnostics(space: Workspace, kinds: Sequence[str]) -> dict[str, Any]:
    """Exact counts, where most scores lie, and detection figures where there are labels.

    Labels are free text: those that `kinds` does not list are counted as `other`.
    """
    threshold = space.threshold()
    table, kept = space.scores(), set(space.kept())
    units = next(u for g, u in threshold.units.items() if g in space.groups())
    figures: dict[str, Any] = {
        # Of the file, as hello tells it: rows without a score are rows.
        "rows": space.rows().n_rows,
        "kept": len(kept),
        "threshold": None
        if threshold.value is None
        else threshold.value * units.spread + units.location,
    }
    if len(table.row) >= MIN_BANDED:
        figures["score_bands"] = _bands(in_units(space, table, threshold))
    rulings = in_force(space, space.recipe().hash)
    by_hand = [rulings[id_].keep for id_ in table.id if id_ in rulings]
    if by_hand:
        figures["by_hand"] = {"kept": sum(by_hand), "dropped": len(by_hand) - sum(by_hand)}
    labels = read_labels(space.rows(), space.settings.labels)
    if labels is None:
        return figures
    scored = [_named(labels[row], kinds) for row in table.row]
    figures["clean"] = sum(label is None for label in scored)
    figures |= detection(scored, np.array([row in kept for row in table.row]))
    by_set = [v for name, v in table.raw.items() if part_of(name) == PART]
    influence = np.sum(by_set, axis=0) if space.recipe().score.method == "influence" else None
    methods: dict[str, Any] = {
        SELECTION: in_units(space, table, threshold),
        **({INFLUENCE: influence} if influence is not None else {}),
        "perplexity": -table.parts[BEFORE],
        "perplexity, trained": -np.mean(_losses(table), axis=0),
        "length": table.n_response_tokens.astype(float),
    }
    for block in _blocks(table):
        share = [v for term, v in terms(table.parts).items() if term.block == block]
        methods[f"{INFLUENCE}, {block_label(block)}"] = np.sum(share, axis=0)
    if table.cut is not None:
        # Some rows have no influence, and no loss after the training: no ranking by it.
        methods = {name: s for name, s in methods.items() if np.isfinite(s).all()}
    figures["detection"] = {name: ranking(scored, s) for name, s in methods.items()}
    for name in space.compared_anchors():
        figures["detection"][name] = compared_figures(_alone(space, name, table), scored)
    figures["auc"] = figures["detection"][SELECTION]["auc"]
    for kind in sorted({x for x in scored if x}):
        mask = np.array([x == kind for x in scored])
        dropped = np.array([row not in kept for row in table.row])
        figures.setdefault("dropped_by_kind", {})[kind] = float(dropped[mask].mean())
    return figures


def oracle_token(space: Workspace) -> str:
    """Changes with the labels, and so with the rows of arm oracle; empty where there are none."""
    labels = read_labels(space.rows(), space.settings.labels)
    return "" if labels is None else space.token(f"labels {hash_of(labels)}")


def compared_rows(space: Workspace, name: str) -> set[int]:
    """Rows that a score beside the deciding one would keep, under its own anchors.

    Raises:
        DataError: the silo does not share diagnostics, the score was not computed, or the rule
            finds no threshold for it.
    """
    where = f"silo {space.name}: arm {name[:40]!r}"
    if name not in space.compared_anchors():
        raise DataError(f"{where}: there is no such arm, nor such a score beside the deciding one.")
    if not space.settings.share_diagnostics:
        raise DataError(f"{where} tells how many rows another score keeps; set share_diagnostics.")
    table = space.scores()
    kept = _alone(space, name, table).kept
    if kept is None:
        raise DataError(f"{where}: the rule finds no threshold for this score.")
    return set(table.row[kept].tolist())


def _bands(scores: np.ndarray) -> list[list[float]]:
    """Scores under which some shares of the rows lie; rounded, so that none is a row's own."""
    found = np.quantile(scores[np.isfinite(scores)], BANDS)
    return [[share, round(float(score), 1)] for share, score in zip(BANDS, found, strict=True)]


def _alone(space: Workspace, name: str, table: ScoreTable) -> Alone:
    anchors = {group: np.array(values) for group, values in space.compared_anchors()[name].items()}
    scores = table.parts[Compared(name)]
    return select_alone(name, scores, table.fold, anchors, recipe=space.recipe())


def _losses(table: ScoreTable) -> list[np.ndarray]:
    """Losses at the checkpoints, or as training saw them where it scored in the run."""
    return checkpoint_losses(table.parts) or [table.parts[InRunLoss()]]


def _blocks(table: ScoreTable) -> list[int]:
    """Blocks whose share of the score was kept, in the model's order; what lies outside is last."""
    blocks = {term.block for term in terms(table.parts) if term.block is not None}
    return sorted(blocks, key=lambda block: (block == OUTSIDE_BLOCKS, block))


def _named(label: str | None, kinds: Sequence[str]) -> str | None:
    """The name under which a row's label may leave; None for a clean row."""
    return label if label is None or label in kinds else OTHER
