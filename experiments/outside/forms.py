"""Scores of training rows for every query from gradients that are kept, and how good they are.

The forms are those of `clues.scoring`, which keeps no gradient and has one direction for all rows;
here every query is a direction of its own. Q queries, N training rows, P weights of a LoRA matrix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clues.config import ALIGNMENT, LOSS
from clues.model.adapters import Checkpoint
from clues.scoring.direction import ADAM_EPS
from clues.scoring.gradients import adam_update
from clues.selection.units import anchor_units
from clues.selection.weighing import Controls, auc, replaced, weigh_parts
from experiments.outside.masks import Gradients

DAMPING = 0.1
QUERY = "query"
Scores = dict[str, np.ndarray]  # by form, scores_QN


def influences(
    rows: Gradients, queries: Gradients, checkpoint: Checkpoint, *, silo: Gradients
) -> Scores:
    """Influence of rows on every query, by form.

    Args:
        rows: to score.
        queries: a gradient is a direction.
        checkpoint: whose optimiser means `adam` and `less` take.
        silo: the rows that make DataInf's Hessian.
    """
    n_rows, n_queries = (len(next(iter(g.values()))) for g in (rows, queries))
    dot, adam, less, hessian = (np.zeros((n_queries, n_rows)) for _ in range(4))
    squares, moved = np.zeros(n_rows), np.zeros(n_rows)
    lengths = np.zeros(n_queries)
    update = adam_update(checkpoint)
    for name, g_NP in rows.items():
        v_QP, shape = queries[name], checkpoint.adapter[name].shape
        u_NP = update(name, g_NP.view(-1, *shape)).flatten(1)
        spread_P = checkpoint.second_moment[name].flatten().sqrt() + ADAM_EPS
        dot += _products(v_QP, g_NP)
        adam += _products(v_QP / spread_P, g_NP)
        less += _products(v_QP, u_NP)
        hessian += _by_hessian(v_QP, g_NP, silo[name])
        squares += g_NP.double().square().sum(dim=1).numpy()
        moved += u_NP.double().square().sum(dim=1).numpy()
        lengths += v_QP.double().square().sum(dim=1).numpy()
    own, theirs = np.sqrt(squares)[None], np.sqrt(lengths)[:, None]
    return {
        "sgd": dot,
        "cosine": dot / np.maximum(own * theirs, 1e-30),
        "adam": adam,
        "less": less / np.maximum(np.sqrt(moved)[None] * theirs, 1e-30),
        "datainf": hessian,
    }


def _products(a_QP: Tensor, b_NP: Tensor) -> np.ndarray:
    return (a_QP.double() @ b_NP.double().T).numpy()


def _by_hessian(v_QP: Tensor, g_NP: Tensor, silo_MP: Tensor) -> np.ndarray:
    """< g_n, direction of q > as `clues.scoring.datainf` has it, for every query at once."""
    v, g, silo = v_QP.double(), g_NP.double(), silo_MP.double()
    squares_M = silo.square().sum(dim=1)
    ridge = DAMPING * float(squares_M.mean()) / v.shape[1]
    if ridge == 0:
        return np.zeros((len(v), len(g)))
    shares_QM = (v @ silo.T) / (ridge + squares_M)
    return ((v @ g.T - shares_QM @ (silo @ g.T) / len(silo)) / ridge).numpy()


@dataclass(frozen=True)
class Parts:
    """Raw parts of the selection score for rows of one kind: influence by query, and two more."""

    influence_QN: np.ndarray
    loss_N: np.ndarray
    alignment_N: np.ndarray

    def raw(self, query: int, places: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """By name, as a run has them, of some rows or all."""
        chosen = slice(None) if places is None else places
        return {
            QUERY: self.influence_QN[query][chosen],
            LOSS: self.loss_N[chosen],
            ALIGNMENT: self.alignment_N[chosen],
        }


@dataclass(frozen=True)
class Public:
    """Anchors and their damaged copies, by class."""

    anchors: Parts
    copies: Parts
    labels: np.ndarray
    kinds: np.ndarray


def selection_scores(
    rows: Parts, public: Public, labels_Q: Sequence[str]
) -> tuple[np.ndarray, dict[str, float]]:
    """The score that selects, with every query as a validation set of one row; and its weights.

    Anchors of a query are other test rows of its class. The weights of the parts are those that tell
    anchors from their damaged copies best, as in a run; one set for all queries.
    """
    anchors, controls = {}, {}
    for q, label in enumerate(labels_Q):
        places = np.flatnonzero(public.labels == label)
        anchors[str(q)] = public.anchors.raw(q, places)
        controls[str(q)] = Controls(public.copies.raw(q, places), public.kinds[places].tolist())
    every = {QUERY: 1.0, LOSS: 1.0, ALIGNMENT: 1.0}
    found = weigh_parts(
        anchors, controls, dict.fromkeys(anchors, every), (LOSS, ALIGNMENT), combine="shortfall"
    )
    weights = replaced(every, found.weights)
    scores = [
        anchor_units(anchors[str(q)], weights, kind="anchor", combine="shortfall").apply(
            rows.raw(q)
        )
        for q in range(len(labels_Q))
    ]
    return np.stack(scores), found.weights


def judged(
    scores_QN: np.ndarray, labels_Q: Sequence[str], labels_N: Sequence[str]
) -> dict[str, float]:
    """Acc, Cover and AUC, mean over queries.

    Acc: the highest row is of the query's class. Cover: the share of that class among the highest
    (rows / classes). AUC: how often a row of the class is above another one.

    Source: Acc and Cover as in arXiv 2409.19998; DataInf calls Cover recall.
    """
    queries, rows = np.array(labels_Q), np.array(labels_N)
    n_top = len(rows) // len(set(labels_N))
    first, cover, ranked = [], [], []
    for scores_N, label in zip(scores_QN, queries, strict=True):
        own = rows == label
        best = np.argsort(-scores_N, kind="stable")
        first.append(own[best[0]])
        cover.append(own[best[:n_top]].mean())
        ranked.append(auc(scores_N[own], scores_N[~own]))
    values = {"acc": first, "cover": cover, "auc": ranked}
    return {name: round(float(np.mean(found)), 4) for name, found in values.items()}


def by_class(values_QN: np.ndarray, labels_Q: Sequence[str], *, best: bool = False) -> np.ndarray:
    """Mean over the queries of every class, or the largest of them; classes in order of name."""
    labels = np.array(labels_Q)
    join = np.max if best else np.mean
    return np.stack([join(values_QN[labels == c], axis=0) for c in sorted(set(labels_Q))])


def class_gradients(queries: Gradients, labels_Q: Sequence[str]) -> Gradients:
    """The mean gradient of every class's queries."""
    return {n: torch.from_numpy(by_class(g.numpy(), labels_Q)) for n, g in queries.items()}


def taken(gradients: Mapping[str, Tensor], start: int, n: int) -> Gradients:
    """Gradients of `n` rows from one on."""
    return {name: g[start : start + n] for name, g in gradients.items()}
