"""In-run scores for anybody's Trainer: a callback scores a row at the step that trains on it.

A callback is never shown a batch, so hooks on the model are. They know a row by its tokens:
whatever shuffles, batches and pads, a sequence that is no row of the training data is refused.
The side branches hang in the step's own passes. With N rows in a batch they give

    alpha.grad[n] = weight * (response tokens of n) * < gradient of n's mean loss, direction >

where `weight` is the factor of one token's loss in the loss that trains: one over the tokens of
the batch, or of all batches whose gradients are added up. It is read from the backward pass.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from clues.data.tokens import EncodedRow, as_encoded
from clues.errors import ConfigError, DataError, NumericsError
from clues.model.adapters import AdapterState, Checkpoint, LoraModel
from clues.model.devices import wide
from clues.model.loss import IGNORED
from clues.model.recording import running_mean
from clues.scoring.direction import LinearForm
from clues.scoring.influence import side_branches
from clues.scoring.rounds import make_reference

ROUNDING = 1e-2  # of what is checked in training: bfloat16 has two to three digits
REFUSED = ("fp16", "torch_compile", "deepspeed", "fsdp", "packing", "padding_free")
OWN_LOSS = (
    "in-run scores need plain LoRA on linear layers and the model's own mean loss of response "
    "tokens: no DoRA, no label smoothing, no preferences, one forward pass a batch."
)


@dataclass
class _Batch:
    """A batch from its forward pass to the end of its backward pass."""

    alpha_NK: Tensor
    rows: list[list[int]]
    targets_NT: Tensor
    weights: list[Tensor] = field(default_factory=list)
    products: list[float] = field(default_factory=list)


class InRunScorer(TrainerCallback):
    """Scores the training rows of a Trainer; the training stays as it is, bit by bit.

    scores()[i] = mean over visits of < g_i, direction > / < v, direction >

    g_i is the gradient of row i's mean response-token loss by the LoRA weights before the step, v
    the mean gradient of the validation rows at the last refresh. 1 means: as good as validation
    data. Below zero, a step on the row raises the validation loss.
    """

    def __init__(
        self,
        validation: Sequence[EncodedRow | Mapping[str, Any]],
        *,
        refresh: int = 50,
        form: LinearForm = "adam",
    ) -> None:
        """Choose what rows are measured against.

        Args:
            validation: encoded rows, or rows with `input_ids` and `labels` (-100: no loss).
            refresh: optimiser steps after which the direction is made anew.
            form: see `validation_direction`; the first direction is `sgd`, the optimiser being new.

        Raises:
            ConfigError: `refresh` is below 1.
            DataError: no validation row, or one without a token that carries loss.
        """
        if refresh < 1:
            raise ConfigError(f"refresh is {refresh} optimiser steps. Give 1 or more.")
        self.validation = [as_encoded(row, n) for n, row in enumerate(validation)]
        if not self.validation:
            raise DataError("validation: no rows. Scores need some to measure against.")
        self.refresh = refresh
        self.form: LinearForm = form
        self._rows: dict[bytes, list[int]] = {}
        self._visits: list[tuple[int, float]] = []
        self._hooks, self._branches = ExitStack(), ExitStack()
        self._batch: _Batch | None = None

    def scores(self) -> np.ndarray:
        """One number per row of the Trainer's `train_dataset`; NaN for rows never trained on.

        Raises:
            NumericsError: a score is not finite.
        """
        n_rows = sum(map(len, self._rows.values()))
        index = np.array([i for i, _ in self._visits], dtype=np.int64)
        counts = np.bincount(index, minlength=n_rows)
        sums = np.bincount(index, weights=[s for _, s in self._visits], minlength=n_rows)
        if not np.isfinite(sums).all():
            raise NumericsError("an in-run score is not finite. Lower the learning rate.")
        return sums / np.where(counts == 0, np.nan, counts)

    def close(self) -> None:
        """Take everything off the model; only a training that ended with an error needs it."""
        self._branches.close()
        self._hooks.close()
        self._batch = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look up the rows and hang the hooks."""
        self.close()
        found = [name for name in REFUSED if getattr(args, name, None)]
        found += ["several devices"] * (max(args.world_size, args.n_gpu) > 1)
        if found:
            raise ConfigError(f"in-run scores do not go with {found[0]}. Train without.")
        self._lora, self._direction = LoraModel.around(kwargs["model"]), AdapterState()
        self._trains = {n: p for n, p in self._lora.parameters().items() if p.requires_grad}
        self._rows, self._visits = _positions(kwargs["train_dataloader"].dataset), []
        hooks = [p.register_hook(partial(self._add, n)) for n, p in self._trains.items()]
        hooks.append(kwargs["model"].register_forward_pre_hook(self._before, with_kwargs=True))
        hooks.append(kwargs["model"].register_forward_hook(self._after, with_kwargs=True))
        for hook in hooks:
            self._hooks.callback(hook.remove)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the direction anew where it is due."""
        if self._direction and state.global_step % self.refresh:
            return
        # A new optimiser has no running means yet.
        known = self._trains if self._direction and self.form != "sgd" else {}
        second = running_mean(kwargs["optimizer"], known, "exp_avg_sq", beta=1)
        before = Checkpoint(state.global_step, 0.0, self._lora.state(), second)
        rows, names = {"": self.validation}, list(self._trains)
        made = make_reference(self._lora, rows, before, form=self.form, weights=names)
        self._direction, self._unit = dict(made.directions[""]), made.products[""]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the scores of a batch after its backward pass."""
        batch, self._batch = self._batch, None
        self._branches.close()
        if batch is None or not batch.targets_NT.any():
            return
        alpha_NK = batch.alpha_NK.grad
        if alpha_NK is None or not batch.weights:
            raise ConfigError(OWN_LOSS)
        weights_S, products = batch.weights[0], batch.products
        uneven = weights_S.max() - weights_S.min() > ROUNDING * weights_S[0].abs()
        # The rows' products add up to the batch's, unless a layer works otherwise than we think.
        gap = abs(float(wide(alpha_NK).sum()) - sum(products))
        if uneven or (products and gap > ROUNDING * sum(map(abs, products))):
            raise ConfigError(OWN_LOSS)
        n_tokens_N = batch.targets_NT.sum(dim=1)
        scores_N = (
            wide(alpha_NK[:, 0]).cpu() / n_tokens_N.cpu() / (float(weights_S[0]) * self._unit)
        )
        for rows, score, n in zip(batch.rows, scores_N.tolist(), n_tokens_N.tolist(), strict=True):
            self._visits += [(i, score) for i in rows if n]

    on_substep_end = on_pre_optimizer_step

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the model as it was found."""
        self.close()

    def _before(self, model: Any, args: Any, inputs: Mapping[str, Any]) -> None:
        if not (model.training and torch.is_grad_enabled()):
            return
        if inputs.get("input_ids") is None or inputs.get("labels") is None or self._batch:
            raise ConfigError(OWN_LOSS)
        ids_NT, targets_NT = inputs["input_ids"], inputs["labels"][:, 1:] != IGNORED
        masks_NT = inputs.get("attention_mask", torch.ones_like(ids_NT)).bool()
        keys = [_key(ids[mask].tolist()) for ids, mask in zip(ids_NT, masks_NT, strict=True)]
        if not self._rows.keys() >= set(keys):
            raise DataError("a sequence is no row of train_dataset. Do not pack or cut rows.")
        branches = side_branches(self._lora, [self._direction], n_rows=len(keys))
        alpha_NK = self._branches.enter_context(branches)
        self._batch = _Batch(alpha_NK, [self._rows[key] for key in keys], targets_NT)

    def _after(self, model: Any, args: Any, inputs: Mapping[str, Any], output: Any) -> None:
        if (batch := self._batch) is None or not model.training:
            return
        # TRL takes its loss from these and leaves the model's own aside.
        log_probs_NT = getattr(output, "log_probs", None)
        if log_probs_NT is not None:
            log_probs_NT.register_hook(lambda g: batch.weights.append(-g[batch.targets_NT]))
            return
        loss, n_tokens = output["loss"], inputs.get("num_items_in_batch", batch.targets_NT.sum())
        loss.register_hook(lambda g: batch.weights.append(g.reshape(1) / n_tokens))
        if not self._visits:
            targets_S = inputs["labels"][:, 1:][batch.targets_NT]
            logits_SV = output["logits"].detach()[:, :-1][batch.targets_NT].float()
            plain = cross_entropy(logits_SV, targets_S, reduction="sum") / n_tokens
            if not torch.isclose(plain, loss.detach().float(), rtol=ROUNDING):
                raise ConfigError(OWN_LOSS)

    def _add(self, name: str, gradient: Tensor) -> None:
        if self._batch and not self._visits:
            product = wide(gradient) * wide(self._direction[name].to(gradient))
            self._batch.products.append(float(product.sum()))


def _positions(dataset: Any) -> dict[bytes, list[int]]:
    """Rows by their tokens; equal rows share a score."""
    found: dict[bytes, list[int]] = {}
    try:
        for i in range(len(dataset)):
            found.setdefault(_key(dataset[i]["input_ids"]), []).append(i)
    except (TypeError, KeyError):
        raise DataError("train_dataset needs a length, and rows with input_ids.") from None
    return found


def _key(ids: Any) -> bytes:
    return blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=16).digest()
