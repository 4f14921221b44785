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
from clues.model.adapters import Checkpoint, LoraModel
from clues.model.loss import make_batch
from clues.scoring.batches import each_batch, token_budget_of
from clues.scoring.datainf import datainf_direction
from clues.scoring.direction import mean_gradient
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
        memory: mean losses that one baseline has computed and another asks for again.
    """

    model: LoraModel
    checkpoint: Checkpoint
    rows: Sequence[EncodedRow]
    validation: Mapping[str, Sequence[EncodedRow]]
    weights: Mapping[str, float]
    names: Sequence[str]
    seed: int
    memory: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict, repr=False, compare=False
    )


def base_perplexity(scene: Scene) -> Scorer:
    """Score[n] = minus the mean response loss under the base model, before any training.

    The usual perplexity filter: it needs no training, and no silo but its own.
    """
    return lambda rows: -losses_before(scene.model, rows)


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
    total = sum(scene.weights.values())
    mean = {name: torch.zeros_like(adapter[name]) for name in scene.names}
    for part, weight in scene.weights.items():
        rows = scene.validation[part]
        gradient, _ = mean_gradient(scene.model, rows, adapter, weights=scene.names)
        for name, tensor in gradient.items():
            mean[name] += weight / total * tensor
    direction = datainf_direction(scene.model, scene.rows, adapter=adapter, gradient=mean)

    def score(rows: Sequence[EncodedRow]) -> np.ndarray:
        found = influence_scores(scene.model, rows, adapter=adapter, directions=[direction])
        return found.products[:, 0]

    return score


def embedding(scene: Scene) -> Scorer:
    """Cosine of a row's embedding and the mean validation embedding.

    An embedding is the mean last hidden state of the base model over all tokens of a row.
    """
    centre = np.zeros(1)
    for part, weight in scene.weights.items():
        found = _embeddings(scene.model, scene.validation[part])
        centre = centre + weight * _unit(found).mean(axis=0)

    def score(rows: Sequence[EncodedRow]) -> np.ndarray:
        return _unit(_embeddings(scene.model, rows)) @ _unit(centre[None])[0]

    return score


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
        given = mean_losses(scene.model, rows, adapter=adapter)
        helps = alignments(scene.model, rows, given, adapter=adapter)
        scene.memory[key] = given, given + helps
    return scene.memory[key]


@torch.no_grad()
def _embeddings(model: LoraModel, rows: Sequence[EncodedRow]) -> np.ndarray:
    model.set_state(model.initial)
    found: dict[int, np.ndarray] = {}

    def compute(batch: list[int]) -> None:
        tensors = make_batch([rows[i] for i in batch], device=model.device)
        states_NTE = model.peft(
            input_ids=tensors.ids_NT,
            attention_mask=tensors.attention_NT,
            use_cache=False,
            output_hidden_states=True,
        ).hidden_states[-1]
        there = tensors.attention_NT.to(states_NTE)[:, :, None]
        mean_NE = (states_NTE * there).sum(dim=1) / there.sum(dim=1)
        found.update(zip(batch, mean_NE.double().cpu().numpy(), strict=True))

    with model.evaluating():
        each_batch(rows, compute, token_budget=2 * token_budget_of(model.device))
    return np.stack([found[i] for i in range(len(rows))])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
