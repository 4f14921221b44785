"""The CLUES score by finite difference: two forward passes, no autograd.

Works wherever a loss can be computed to float32's seven digits, also on engines that serve two
adapters. Not in half precision and not with experts: there a loss moves in steps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from clues.data.tokens import EncodedRow
from clues.errors import ConfigError, NumericsError
from clues.model.adapters import AdapterState, LoraModel
from clues.model.devices import wide
from clues.model.fitness import HALF_TYPES
from clues.scoring.influence import RowScores
from clues.scoring.perplexity import mean_losses


def difference_scores(
    model: LoraModel,
    rows: Sequence[EncodedRow],
    *,
    adapter: AdapterState,
    directions: Sequence[AdapterState],
    token_budget: int | None = None,
    on_rows: Callable[[int], None] | None = None,
    skip_nonfinite: bool = False,
) -> RowScores:
    """Inner product of every row's gradient with every direction, from losses alone.

    products[n, k] = (loss_n(theta + e v_k) - loss_n(theta - e v_k)) / 2e

    e |v_k| = cbrt(machine epsilon) |theta|, which balances the two errors: the cut-off of order
    e^2 and the rounding of the losses of order 1 / e. In float32 scores agree with the side branch
    to about three digits.

    Args:
        model: its adapter is set to `adapter` in the end.
        rows: rows to score.
        adapter: theta, the checkpoint's weights.
        directions: v, by weight name; absent weights do not move.
        token_budget: padded tokens per batch to begin with; by the device if None.
        on_rows: called with the number of rows finished.
        skip_nonfinite: return NaN instead of raising.

    Raises:
        ConfigError: the base model is in half precision or has experts.
        NumericsError: a direction is zero, or a loss is not finite.

    Source: forward-difference influence, as in Pruthi et al. 2020, arXiv 2002.08484, section 4.
    """
    check_difference(model)
    how: Any = {"token_budget": token_budget, "skip_nonfinite": skip_nonfinite}
    losses = mean_losses(model, rows, adapter=adapter, **how)
    products = np.zeros((len(rows), len(directions)))
    for k, direction in enumerate(directions):
        length = _norm(direction)
        if length == 0:
            raise NumericsError(f"direction {k + 1} is zero: the validation gradient vanished.")
        precision = torch.finfo(next(iter(adapter.values())).dtype).eps
        step = precision ** (1 / 3) * _norm({n: adapter[n] for n in direction}) / length
        ends = [
            mean_losses(
                model,
                rows,
                adapter={
                    name: value + sign * step * direction[name] if name in direction else value
                    for name, value in adapter.items()
                },
                **how,
            )
            for sign in (1.0, -1.0)
        ]
        products[:, k] = (ends[0] - ends[1]) / (2 * step)
    model.set_state(adapter)
    if on_rows:
        on_rows(len(rows))
    return RowScores(products, losses)


def check_difference(model: LoraModel) -> None:
    """Refuse finite differences where a loss is too coarse for them.

    Raises:
        ConfigError: a base in half precision, or one that sends tokens to experts.
    """
    base: Any = model.peft.get_base_model()
    half = {p.dtype for p in base.parameters() if p.is_floating_point()} & set(HALF_TYPES)
    quantized = getattr(base, "hf_quantizer", None) is not None
    if half or quantized:
        raise ConfigError(
            "recipe.score.way: finite_difference needs a base model in float32: rounding in half "
            "precision is larger than the difference of two losses. Set recipe.score.way: auto, or "
            "recipe.model.dtype: float32."
        )
    counts = base.config.get_text_config().to_dict()
    if any("experts" in key and isinstance(n, int) and n > 1 for key, n in counts.items()):
        raise ConfigError(
            "recipe.score.way: finite_difference does not go with a mixture of experts: its loss "
            "jumps where a token goes to another expert. Set recipe.score.way: auto."
        )


def _norm(state: AdapterState) -> float:
    return float(np.sqrt(sum(float(wide(t).square().sum()) for t in state.values())))
