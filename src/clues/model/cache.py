"""Base models in memory, for whoever in this process works under a recipe."""

from typing import Any

from clues.config import ModelSettings, Recipe, TokenSettings, context_of
from clues.data.tokens import RowEncoder
from clues.model.adapters import LoraModel, load_tokenizer
from clues.model.fitness import check_tokens, n_embeddings
from clues.model.place import fetch, identify


def encoder_for(model: LoraModel, tokenizer: Any, tokens: TokenSettings) -> RowEncoder:
    """Text to tokens for a model.

    Raises:
        DataError: the tokenizer is not the model's.
    """
    base = model.peft.get_base_model()
    check_tokens(base, tokenizer)
    known, context = n_embeddings(base), context_of(base.config)
    return RowEncoder(tokenizer, tokens, n_known=known, context=context)


class ModelCache:
    """One base model in memory for all silos of this process.

    A silo sets its own adapter before every use, so that sharing changes no number.
    """

    def __init__(self) -> None:
        """Load nothing yet."""
        self._loaded: dict[str, tuple[LoraModel, RowEncoder]] = {}

    def identify(self, model: ModelSettings) -> dict[str, str]:
        """Hash of every file of a base model that can change an answer, by name."""
        return identify(model)

    def fetched(self, model: ModelSettings) -> dict[str, str]:
        """As `identify`, after fetching a hub model's files: for the person whose run it is."""
        fetch(model)
        return self.identify(model)

    def load(self, recipe: Recipe, *, device: str = "auto") -> tuple[LoraModel, RowEncoder]:
        """Return the model of a recipe, loading it at first use.

        Raises:
            ConfigError: this machine has no such device, or the settings do not fit the model.
            DataError: the model cannot be loaded.
        """
        key = f"{recipe.model!r}{recipe.lora!r}{recipe.tokens!r}{recipe.seed}{device}"
        if key not in self._loaded:
            model = LoraModel.load(recipe.model, recipe.lora, seed=recipe.seed, device=device)
            encoder = encoder_for(model, load_tokenizer(recipe.model), recipe.tokens)
            self._loaded[key] = (model, encoder)
        return self._loaded[key]
