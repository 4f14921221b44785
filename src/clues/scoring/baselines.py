"""Scores to compare with: what others use, and what no selection should lose to.

Each is a function that looks at the scene once and returns a function from rows to scores; the
anchors go through the same function as the silo's rows. Higher is better, always.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from clues.data.tokens import EncodedRow
from clues.model.adapters import AdapterState, Checkpoint, LoraModel
from clues.scoring.datainf import datainf_direction
from clues.scoring.direction import mean_gradient
from clues.scoring.hidden import (
    Weigh,
    every_token,
    later_tokens,
    refuse_without_response,
    response_tokens,
    score_vectors,
    unit_vectors,
)
from clues.scoring.influence import influence_scores
from clues.scoring.perplexity import alignments, losses_before, mean_losses

Scorer = Callable[[Sequence[EncodedRow]], np.ndarray]


@dataclass(frozen=True)
class Scene:
    """What a baseline may look at; never a label.

    Attributes:
        model: base model with an adapter.
        checkpoint: the last one of the trajectory.
        rows: the silo's rows, for scores that compare a row with the others.
        validation: public rows by set.
        weights: weight of each validation set.
        names: LoRA weights whose gradients count.
        seed: of the recipe.
        skip_nonfinite: whether a row that has no finite score gets NaN, and stops nobody.
        memory: mean losses that one baseline has computed and another asks for again.
    """

    model: LoraModel
    checkpoint: Checkpoint
    rows: Sequence[EncodedRow]
    validation: Mapping[str, Sequence[EncodedRow]]
    weights: Mapping[str, float]
    names: Sequence[str]
    seed: int
    skip_nonfinite: bool = False
    memory: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict, repr=False, compare=False
    )


def base_perplexity(scene: Scene) -> Scorer:
    """Score[n] = minus the mean response loss under the base model, before any training.

    The usual perplexity filter: it needs no training, and no silo but its own.
    """
    skip = scene.skip_nonfinite
    return lambda rows: -losses_before(scene.model, rows, skip_nonfinite=skip)


def ifd(scene: Scene) -> Scorer:
    """Instruction-following difficulty: loss(answer | question) / loss(answer).

    Near or above 1 the question does not help. Published as a score of which rows teach most, so
    it stands here with its own sign although damage raises it.

    Source: Li et al. 2024, arXiv 2308.12032.
    """

    def score(rows: Sequence[EncodedRow]) -> np.ndarray:
        given, alone = _losses_with_and_without_question(scene, rows)
        return given / np.maximum(alone, 1e-9)

    return score


def alignment(scene: Scene) -> Scorer:
    """Score[n] = loss(answer) - loss(answer | question), in nats a token.

    Source: FedDQC, Du et al. 2024, arXiv 2410.11540.
    """

    def score(rows: Sequence[EncodedRow]) -> np.ndarray:
        given, alone = _losses_with_and_without_question(scene, rows)
        return alone - given

    return score


def datainf(scene: Scene) -> Scorer:
    """Inner product with the validation gradient, times an inverse Hessian of the silo's rows.

    Source: Kwon et al. 2024, arXiv 2310.00902.
    """
    adapter = scene.checkpoint.adapter
    mean = {name: torch.zeros_like(adapter[name]) for name in scene.names}
    for part, share in _shares(scene).items():
        rows = scene.validation[part]
        gradient, _ = mean_gradient(scene.model, rows, adapter, weights=scene.names)
        for name, tensor in gradient.items():
            mean[name] += share * tensor
    direction = datainf_direction(scene.model, scene.rows, adapter=adapter, gradient=mean)

    def score(rows: Sequence[EncodedRow]) -> np.ndarray:
        how = {"directions": [direction], "skip_nonfinite": scene.skip_nonfinite}
        found = influence_scores(scene.model, rows, adapter=adapter, **how)
        return found.products[:, 0]

    return score


def embedding(scene: Scene) -> Scorer:
    """Cosine of a row's embedding and the mean validation embedding.

    An embedding is the mean last hidden state of the base model over all tokens of a row.
    """
    return _by_centre(scene, adapter=scene.model.initial, weigh=every_token)


def repsim(scene: Scene) -> Scorer:
    """Similarity of representations: how a row's response looks to the tuned model.

    score[n] = cos(r[n], c)
    c = sum_s weight[s] * mean over the rows v of validation set s of r[v] / |r[v]|

    r is the mean last hidden state over the response tokens, under the last checkpoint. Rows
    rank as by their mean cosine with the validation rows.

    Raises:
        DataError: a row, or a validation row, has no response.

    Source: Hanawa et al. 2021, arXiv 2006.04528, who compare similarities of hidden states with
    influences. The mean over the response is ours: they take one state of a classifier.
    """
    _refuse_public_without_response(scene)
    score = _by_centre(scene, adapter=scene.checkpoint.adapter, weigh=response_tokens)
    return _for_rows_with_response(score)


def rds(scene: Scene) -> Scorer:
    """RDS+: how near a row's text comes to the nearest validation row, for the base model.

    score[n] = sum_s weight[s] * max over the rows v of validation set s of cos(e[n], e[v])

    e is the mean last hidden state over all T tokens of the text, of which token t weighs
    t / (1 + 2 + ... + T). The weights of the sets add up to 1.

    Raises:
        DataError: a row, or a validation row, has no response.

    Source: Ivison et al. 2025, arXiv 2503.01807, with the weights of Muennighoff 2022, arXiv
    2202.08904. There the validation rows take turns to choose their best row until enough are
    chosen; a score for a threshold has no turns.
    """
    _refuse_public_without_response(scene)
    how = {"adapter": scene.model.initial, "weigh": later_tokens}
    shares = _shares(scene)
    sets = {name: unit_vectors(scene.model, scene.validation[name], **how) for name in shares}

    def best(units_NE: np.ndarray) -> np.ndarray:
        found = [share * (units_NE @ sets[n].T).max(axis=1) for n, share in shares.items()]
        return np.sum(found, axis=0)

    skip = scene.skip_nonfinite
    return _for_rows_with_response(
        lambda rows: score_vectors(scene.model, rows, best, skip_nonfinite=skip, **how)
    )


def length(scene: Scene) -> Scorer:
    """Score[n] = number of response tokens. What a score must beat to be worth its cost."""
    return lambda rows: np.array([float(row.n_response_tokens) for row in rows])


def random(scene: Scene) -> Scorer:
    """Score[n] uniform in 0 to 1, fixed by the seed and the row's content."""

    def draw(row: EncodedRow) -> float:
        digest = hashlib.sha256(f"{scene.seed}/{row.id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    return lambda rows: np.array([draw(row) for row in rows])


BASELINES: dict[str, Callable[[Scene], Scorer]] = {
    "base_perplexity": base_perplexity,
    "ifd": ifd,
    "alignment": alignment,
    "datainf": datainf,
    "embedding": embedding,
    "repsim": repsim,
    "rds": rds,
    "length": length,
    "random": random,
}
NEEDS_ROWS = frozenset({"datainf"})  # an anchor's score depends on the silo's rows too


def _losses_with_and_without_question(
    scene: Scene, rows: Sequence[EncodedRow]
) -> tuple[np.ndarray, np.ndarray]:
    key = tuple(row.id for row in rows)
    if key not in scene.memory:
        adapter = scene.checkpoint.adapter
        how = {"adapter": adapter, "skip_nonfinite": scene.skip_nonfinite}
        given = mean_losses(scene.model, rows, **how)
        helps = alignments(scene.model, rows, given, **how)
        scene.memory[key] = given, given + helps
    return scene.memory[key]


def _by_centre(scene: Scene, *, adapter: AdapterState, weigh: Weigh) -> Scorer:
    """Cosine of a row's vector and the mean unit vector of the validation rows."""
    centre_E = sum(
        share
        * unit_vectors(scene.model, scene.validation[name], adapter=adapter, weigh=weigh).mean(0)
        for name, share in _shares(scene).items()
    )
    centre_E = centre_E / max(float(np.linalg.norm(centre_E)), 1e-12)
    how = {"adapter": adapter, "weigh": weigh, "skip_nonfinite": scene.skip_nonfinite}
    return lambda rows: score_vectors(
        scene.model, rows, lambda units_NE: units_NE @ centre_E, **how
    )


def _shares(scene: Scene) -> dict[str, float]:
    """Weight of every validation set; together they are 1."""
    total = sum(scene.weights.values())
    return {name: weight / total for name, weight in scene.weights.items()}


def _refuse_public_without_response(scene: Scene) -> None:
    for name in scene.weights:
        refuse_without_response(scene.validation[name])


def _for_rows_with_response(score: Scorer) -> Scorer:
    def checked(rows: Sequence[EncodedRow]) -> np.ndarray:
        refuse_without_response(rows)
        return score(rows)

    return checked
