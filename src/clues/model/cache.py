"""Base models in memory, for whoever in this process works under a recipe."""

from clues.config import Recipe
from clues.data.tokens import RowEncoder
from clues.model.adapters import LoraModel, load_tokenizer


class ModelCache:
    """One base model in memory for all silos of this process.

    A silo sets its own adapter before every use, so that sharing changes no number.
    """

    def __init__(self) -> None:
        """Load nothing yet."""
        self._loaded: dict[str, tuple[LoraModel, RowEncoder]] = {}

    def load(self, recipe: Recipe) -> tuple[LoraModel, RowEncoder]:
        """Return the model of a recipe, loading it at first use."""
        key = f"{recipe.model!r}{recipe.lora!r}{recipe.tokens!r}{recipe.seed}"
        if key not in self._loaded:
            model = LoraModel.load(recipe.model, recipe.lora, seed=recipe.seed)
            encoder = RowEncoder(load_tokenizer(recipe.model), recipe.tokens)
            self._loaded[key] = (model, encoder)
        return self._loaded[key]
