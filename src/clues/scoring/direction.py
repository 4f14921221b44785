"""The direction: validation gradient at a checkpoint, plain or preconditioned.

P LoRA parameters that train; a direction is kept as a dictionary by weight name.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch

from clues.config import ScoreSettings
from clues.data.batching import token_budget_of
from clues.data.tokens import EncodedRow
from clues.errors import ConfigError, DataError, NumericsError
from clues.model.adapters import AdapterState, Checkpoint, LoraModel
from clues.model.loss import make_batch, row_losses
from clues.scoring.batches import each_batch

LinearForm = Literal["sgd", "adam", "adam_two_sided"]
ADAM_EPS = 1e-8
BLOCK = re.compile(r"\.(?:layers|h|blocks|block|layer)\.(\d+)\.")


def validation_direction(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    checkpoint: Checkpoint,
    *,
    form: LinearForm,
    weights: Sequence[str],
    on_rows: Callable[[int], None] | None = None,
) -> AdapterState:
    """Direction that a row's gradient is multiplied with at one checkpoint.

    g = mean over rows of the gradient of the row's mean response-token loss
    sgd:  direction = g
    adam: direction = g / (sqrt(v_hat) + 1e-8), v_hat the bias-corrected second moment
    adam_two_sided: direction = g / (sqrt(v_hat) + 1e-8)^2, as if both gradients were divided

    Args:
        model: its adapter is set to the checkpoint's.
        rows: validation rows.
        checkpoint: adapter and, for adam, optimiser state matched by name.
        form: see above.
        weights: names of the LoRA weights that count.
        on_rows: called with the number of rows finished.

    Raises:
        DataError: form adam and the checkpoint has no second moment for a weight.
        NumericsError: the gradient is NaN or infinite.

    Source: Pruthi et al. 2020, arXiv 2002.08484; the preconditioner as in arXiv 2402.04333,
    but on the direction alone, so that a score stays linear in the row's gradient.
    """
    gradient, _ = mean_gradient(model, rows, checkpoint.adapter, weights=weights, on_rows=on_rows)
    return precondition(gradient, checkpoint, form=form)


def precondition(
    gradient: AdapterState,
    checkpoint: Checkpoint,
    *,
    form: LinearForm,
) -> AdapterState:
    """Direction of a form from the mean validation gradient.

    Raises:
        DataError: form adam and the checkpoint has no second moment for a weight.
    """
    if form == "sgd":
        return gradient
    missing = [name for name in gradient if name not in checkpoint.second_moment]
    if missing:
        raise DataError(
            f"checkpoint at step {checkpoint.step}: no optimiser state for {missing[0]} and "
            f"{len(missing) - 1} more. Train again, or set recipe.score.form: sgd."
        )
    power = 2 if form == "adam_two_sided" else 1
    return {
        name: g / (checkpoint.second_moment[name].to(g).sqrt() + ADAM_EPS) ** power
        for name, g in gradient.items()
    }


def mean_gradient(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    adapter: AdapterState,
    *,
    weights: Sequence[str],
    on_rows: Callable[[int], None] | None = None,
) -> tuple[AdapterState, float]:
    """Mean over rows of the gradient of each row's mean response-token loss, and of that loss."""
    model.set_state(adapter)
    mean_loss = 0.0
    parameters = model.parameters()
    wanted = [parameters[name] for name in weights]
    total = [torch.zeros_like(p) for p in wanted]

    def compute(batch: list[int]) -> None:
        nonlocal mean_loss
        tensors = make_batch([rows[i] for i in batch], device=model.device)
        losses_N = row_losses(model.peft, tensors, head=model.head)
        # An expert that no token of the batch went to has no gradient.
        gradients = torch.autograd.grad(losses_N.sum() / len(rows), wanted, allow_unused=True)
        mean_loss += float(losses_N.detach().sum()) / len(rows)
        for sum_, gradient in zip(total, gradients, strict=True):
            if gradient is not None:
                sum_ += gradient

    with model.evaluating(), trainable(parameters.values(), only=wanted):
        each_batch(rows, compute, token_budget=token_budget_of(model.device), on_rows=on_rows)
    if not all(torch.isfinite(t).all() for t in total):
        raise NumericsError(
            "the validation gradient is not finite. Lower recipe.train.learning_rate, or use "
            "recipe.model.dtype: float32."
        )
    return {name: t.detach().cpu() for name, t in zip(weights, total, strict=True)}, mean_loss


def scored_weights(model: LoraModel, settings: ScoreSettings, *, frozen_a: bool) -> list[str]:
    """Names of the LoRA weights whose gradients count.

    Args:
        model: its parameters are listed, not read.
        settings: which blocks, projections and factors.
        frozen_a: whether training leaves every A as it is; then only B counts.

    Raises:
        ConfigError: a block or a projection that the model does not have, or nothing is left.
    """
    names = [n for n in model.parameters() if not (frozen_a and ".lora_A." in n)]
    if settings.factors != "both":
        names = [n for n in names if f".lora_{settings.factors}." in n]
    if not names:
        raise ConfigError(
            "recipe.score.factors: A, but recipe.train.aggregation ffa never trains A. Score B, "
            "or use aggregation svd."
        )
    if settings.projections != "all":
        there = {n.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for n in names}
        missing = sorted(set(settings.projections) - there)
        if missing:
            raise ConfigError(
                f"recipe.score.projections: {missing[0]!r} has no LoRA; there is LoRA on "
                f"{', '.join(sorted(there))}."
            )
        ends = tuple(f".{projection}.lora_" for projection in settings.projections)
        names = [n for n in names if any(end in n for end in ends)]
    blocks = {n: int(found[1]) for n in names if (found := BLOCK.search(n))}
    known = sorted(set(blocks.values()))
    if settings.layers == "all":
        return names
    if not known:
        raise ConfigError("recipe.score.layers: this model has no numbered blocks; use all.")
    if settings.layers == "first":
        wanted = {known[0]}
    elif settings.layers == "last":
        wanted = {known[-1]}
    else:
        wanted = set(settings.layers)
    if not wanted <= set(known):
        raise ConfigError(
            f"recipe.score.layers: block {min(wanted - set(known))} does not exist; LoRA is on "
            f"blocks {known[0]} to {known[-1]}."
        )
    return [n for n in names if blocks.get(n) in wanted]


@contextmanager
def trainable(
    parameters: Iterable[torch.nn.Parameter], *, only: Sequence[torch.nn.Parameter]
) -> Iterator[None]:
    """Inside, gradients flow into `only`; after, every flag is as before."""
    before = [(p, p.requires_grad) for p in parameters]
    chosen = {id(p) for p in only}
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)
