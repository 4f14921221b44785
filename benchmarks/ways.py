"""Other ways to what the side branch computes, and the limit that no exact way can beat.

N rows in a batch, P LoRA parameters flattened, S positions that carry loss, V vocabulary.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.scene import Scene
from clues.data.batching import token_budget_of
from clues.data.tokens import EncodedRow
from clues.model.adapters import AdapterState, LoraModel
from clues.model.loss import IGNORED, make_batch, row_losses
from clues.scoring.batches import each_batch
from clues.scoring.direction import BLOCK, trainable


def activation_pass(scene: Scene, rows: Sequence[EncodedRow]) -> np.ndarray:
    """Forward and backward through activations alone: the limit of every exact score.

    The root of the graph hangs on the LoRA layers of the first block, where the side branch's
    backward pass ends as well. No gradient of a weight is made.

    Returns:
        losses_N, so that nothing of it can be left out.
    """
    model = scene.model
    model.set_state(scene.checkpoint.adapter)
    losses = np.zeros(len(rows))
    first = first_layers(model)

    def compute(batch: list[int]) -> None:
        root = torch.zeros((), device=model.device, requires_grad=True)
        hooks = [
            layer.register_forward_hook(lambda _, __, output: _Root.apply(output, root))
            for layer in first
        ]
        try:
            tensors = make_batch([rows[i] for i in batch], device=model.device)
            losses_N = row_losses(model.peft, tensors, head=model.head)
            torch.autograd.grad(losses_N.sum(), root)
        finally:
            for hook in hooks:
                hook.remove()
        losses[batch] = losses_N.detach().double().cpu().numpy()

    with model.evaluating(), trainable(model.parameters().values(), only=()):
        each_batch(rows, compute, token_budget=token_budget_of(model.device))
    return losses


def first_layers(model: LoraModel) -> list[torch.nn.Module]:
    """LoRA layers of the block with the lowest number."""
    names = {name.rsplit(".lora_", 1)[0] for name in model.parameters()}
    blocks = {name: int(found[1]) if (found := BLOCK.search(name)) else 0 for name in names}
    modules = dict(model.peft.named_modules())
    return [modules[name] for name in sorted(names) if blocks[name] == min(blocks.values())]


class _Root(torch.autograd.Function):
    """The identity, with a leaf beside it that asks for the backward pass to come this far."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, root: Tensor) -> Tensor:
        ctx.save_for_backward(root)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor]:
        (root,) = ctx.saved_tensors
        return None, torch.zeros_like(root)


@dataclass(frozen=True)
class Published:
    """Scores from gradients that lay on the disk, and the bytes they took there a row."""

    products: np.ndarray
    bytes_per_row: float


def published_scores(
    scene: Scene,
    rows: Sequence[EncodedRow],
    direction: AdapterState,
    *,
    folder: Path,
    dtype: torch.dtype = torch.float32,
) -> Published:
    """One row at a time: backward, flatten, to the host, to a file, back, inner product.

    Args:
        scene: model and checkpoint.
        rows: rows to score.
        direction: validation gradient; saved first, as the published code does.
        folder: where the files go; they are left there.
        dtype: of the saved gradients.

    Source: the published code of CLUES, arXiv 2507.03004.
    """
    model = scene.model
    model.set_state(scene.checkpoint.adapter)
    parameters = list(model.parameters().values())
    torch.save(_flat([direction[name] for name in model.parameters()], dtype), folder / "val.pt")
    with model.evaluating() as peft, trainable(parameters, only=parameters):
        for n, row in enumerate(rows):
            peft.zero_grad(set_to_none=True)
            row_losses(peft, make_batch([row], device=model.device))[0].backward()
            gradients = [p.grad for p in parameters if p.grad is not None]
            torch.save(_flat(gradients, dtype), folder / f"row-{n}.pt")
        peft.zero_grad(set_to_none=True)
    direction_P = torch.load(folder / "val.pt", weights_only=True)
    paths = [folder / f"row-{n}.pt" for n in range(len(rows))]
    products = [float(torch.load(p, weights_only=True) @ direction_P) for p in paths]
    return Published(np.array(products), sum(p.stat().st_size for p in paths) / len(paths))


def _flat(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([t.flatten() for t in tensors]).to("cpu", dtype)


def vmap_scores(scene: Scene, rows: Sequence[EncodedRow], direction: AdapterState) -> np.ndarray:
    """Inner products from torch.func's per-sample gradients, in our batches."""
    model = scene.model
    model.set_state(scene.checkpoint.adapter)
    products = np.zeros(len(rows))
    names = {id(p): name for name, p in model.parameters().items()}
    everything = dict(model.peft.named_parameters())
    weights = {n: p.detach() for n, p in everything.items() if id(p) in names}
    fixed = {n: p.detach() for n, p in everything.items() if id(p) not in names}
    wanted = {n: direction[names[id(everything[n])]].to(model.device) for n in weights}

    def compute(batch: list[int]) -> None:
        tensors = make_batch([rows[i] for i in batch], device=model.device)
        positions_S = (tensors.targets_NT != IGNORED).any(dim=0).nonzero().squeeze(1)

        def loss(weights: dict[str, Tensor], ids_T: Tensor, targets_T: Tensor) -> Tensor:
            # Padding is on the right: a causal model needs no mask to ignore it.
            kwargs = {"input_ids": ids_T[None], "use_cache": False, "logits_to_keep": positions_S}
            output = torch.func.functional_call(model.peft, {**fixed, **weights}, kwargs=kwargs)
            logits_SV, targets_S = output.logits[0], targets_T[positions_S]
            if logits_SV.dtype != torch.float64:
                logits_SV = logits_SV.float()
            losses_S = F.cross_entropy(logits_SV, targets_S.clamp(min=0), reduction="none")
            counts_S = (targets_S != IGNORED).to(losses_S)
            return (losses_S * counts_S).sum() / counts_S.sum()

        per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
        gradients = per_sample(weights, tensors.ids_NT, tensors.targets_NT)
        found = sum(g.flatten(1) @ wanted[n].flatten().to(g) for n, g in gradients.items())
        assert isinstance(found, Tensor)
        products[batch] = found.double().cpu().numpy()

    with model.evaluating(), warnings.catch_warnings():
        # Attention has no batching rule of its own; that is part of what vmap costs.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        each_batch(rows, compute, token_budget=token_budget_of(model.device))
    return products


def gradient_step(scene: Scene, rows: Sequence[EncodedRow]) -> None:
    """A training step on one batch without its optimiser: forward, and backward into LoRA."""
    model = scene.model
    parameters = list(model.parameters().values())
    # Without dropout, as scoring: its masks would be one more thing to hold.
    with model.evaluating() as peft, trainable(parameters, only=parameters):
        row_losses(peft, make_batch(rows, device=model.device)).mean().backward()
        peft.zero_grad(set_to_none=True)


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Length of the difference by the length of what was expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
