"""Which part of what a layer is given belongs to which row of a batch.

Most layers are given (rows, tokens, features). Some models put all tokens of a batch in one line
before a layer, and the rows have to be found again; where tokens are picked, they cannot be.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clues.errors import DataError


@dataclass
class Layout:
    """The batch that passes through a model.

    Attributes:
        n_rows: its rows.
        n_tokens: its padded width, once the model has been called.
    """

    n_rows: int
    n_tokens: int = 0

    def by_row(self, x: Tensor) -> Tensor:
        """(rows, positions, features) of what a layer is given or gives.

        Raises:
            DataError: it does not show which row a position is of.
        """
        if x.dim() == 3 and x.shape[0] == self.n_rows:
            return x
        if x.dim() > 3 and x.shape[0] == self.n_rows:
            return x.flatten(1, -2)
        if self.n_rows == 1:
            return x.reshape(1, -1, x.shape[-1])
        if x.dim() == 2 and x.shape[0] == self.n_rows * self.n_tokens:
            return x.unflatten(0, (self.n_rows, self.n_tokens))
        raise DataError(
            f"an adapted layer of this model is given {tuple(x.shape)} for {self.n_rows} rows of "
            f"{self.n_tokens} tokens, which does not show what belongs to which row. Name other "
            "layers in recipe.lora.target_modules, such as those of the attention."
        )


@contextmanager
def watched(base: Any, layout: Layout) -> Iterator[None]:
    """Inside, a layout learns the width of every batch from the layer that takes token ids."""

    def learn(_: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        if inputs and inputs[0].dim() == 2 and inputs[0].shape[0] == layout.n_rows:
            layout.n_tokens = inputs[0].shape[1]

    hook = base.get_input_embeddings().register_forward_hook(learn)
    try:
        yield
    finally:
        hook.remove()
