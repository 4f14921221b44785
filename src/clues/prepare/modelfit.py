"""What a first configuration says about the model at hand: its layers, and how long its rows are."""

from dataclasses import replace
from typing import Any

from clues.config import BUILT_IN, ModelSettings, context_of
from clues.errors import CluesError
from clues.model.base import empty_base
from clues.model.layers import suggested
from clues.model.place import Opening, model_folder
from clues.prepare.scaffold import Answers


def fitted(answers: Answers, base: Any = None) -> Answers:
    """Answers with settings that go with their model.

    A model that cannot be opened leaves them as they are: a check says what is wrong with it.

    Args:
        answers: of whom a model is named.
        base: the model itself, where it is loaded.
    """
    if base is None and answers.model == BUILT_IN:
        return answers
    if base is None:
        try:
            base = shape_of(answers.model)
        except CluesError:
            return answers
    targets, most = suggested(base), context_of(base.config) or answers.max_length
    return replace(
        answers,
        targets=targets if isinstance(targets, str) else tuple(targets),
        max_length=min(answers.max_length, most),
    )


def shape_of(name: str) -> Any:
    """A base model with no numbers in it, for its layers.

    Raises:
        DataError: it cannot be found, or is no causal model.
    """
    settings = ModelSettings(name=name)
    folder = model_folder(settings)
    with Opening(settings.name, "model"):
        return empty_base(folder, settings)
