"""A model that the caller has loaded: scored as it stands, and left exactly as it is.

Adapters are attached to a second tree of modules that lies on the same weights. So nothing of the
caller's has to be put back: not after an error, and not after Ctrl-C.
"""

import copy
import hashlib
from typing import Any

import torch
from peft import PeftMixedModel, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from clues.config import ModelSettings, Recipe
from clues.data.tokens import RowEncoder
from clues.errors import DataError, UsageError
from clues.model.adapters import LoraModel
from clues.model.cache import ModelCache, encoder_for

DTYPES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float64: "float64",
}


class BorrowedModel(ModelCache):
    """Hands out the caller's model, whatever name a recipe gives it."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Look at both; nothing is copied or attached yet.

        Raises:
            UsageError: not a causal language model, or not a tokenizer.
            DataError: adapters that are no layers, or weights on several devices.
        """
        super().__init__()
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise UsageError(
                f"model: the tokenizer is of type {type(tokenizer).__name__}. Give (model, tokenizer), with what "
                "AutoTokenizer.from_pretrained returns."
            )
        self.tokenizer, self.model = tokenizer, _inner(model)
        devices = sorted({str(p.device) for p in self.model.parameters()})
        if len(devices) != 1 or devices[0] == "meta":
            raise DataError(
                f"model: its weights lie on {', '.join(devices) or 'no device'}. Load it on one "
                "device."
            )
        if devices[0].startswith("cuda:") and devices[0] != "cuda:0":
            raise DataError(
                f"model: it lies on {devices[0]}, and trainings run on cuda:0. Load it there, or "
                "set CUDA_VISIBLE_DEVICES to that card."
            )
        self.device = devices[0]

    @property
    def dtype(self) -> str:
        """Of most weights, as a recipe names it.

        Raises:
            DataError: none that a recipe knows.
        """
        if self.model.dtype not in DTYPES:
            raise DataError(
                f"model: its weights are {self.model.dtype}; known are {', '.join(DTYPES.values())}."
            )
        return DTYPES[self.model.dtype]

    @property
    def name(self) -> str:
        """What reports call it."""
        known = str(getattr(self.model.config, "_name_or_path", "") or type(self.model).__name__)
        return f"{known.rstrip('/').split('/')[-1]} (as loaded)"

    def identify(self, model: ModelSettings) -> dict[str, str]:
        """Both sides have the same object; there are no files to compare."""
        return {"as-loaded": hashlib.sha256(self.name.encode()).hexdigest()}

    def fetched(self, model: ModelSettings) -> dict[str, str]:
        """Nothing has to be fetched."""
        return self.identify(model)

    def load(self, recipe: Recipe, *, device: str = "auto") -> tuple[LoraModel, RowEncoder]:
        """Return the caller's weights, where they lie, with a new adapter of the recipe's shape.

        Raises:
            UsageError: the recipe asks for another attention than the model was loaded with.
        """
        wanted = recipe.model.attn_implementation
        if wanted not in (None, found := getattr(self.model.config, "_attn_implementation", None)):
            raise UsageError(
                f"recipe.model.attn_implementation: {wanted}, and the model was loaded with {found}. "
                f"Load it with attn_implementation={wanted!r}, or leave the setting out."
            )
        key = f"{recipe.lora!r}{recipe.tokens!r}{recipe.seed}"
        if key not in self._loaded:
            base = shared_copy(self.model)
            model = LoraModel(base, recipe.lora, seed=recipe.seed, device=self.device)
            self._loaded[key] = (model, encoder_for(model, self.tokenizer, recipe.tokens))
        return self._loaded[key]


def shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """New modules on the same weights, in evaluation mode, with nothing that trains.

    Layers that carry the caller's adapters become closed boxes: they compute what they computed,
    and PEFT sees a plain linear layer.

    Raises:
        DataError: a weight of a special kind trains, or something in the model cannot be copied.
    """
    memo: dict[int, Any] = {id(p): _alias(name, p) for name, p in model.named_parameters()}
    problem = ""
    try:
        twin = copy.deepcopy(model, memo)
    except (TypeError, RuntimeError) as error:
        twin, problem = model, type(error).__name__
    if problem:
        raise DataError(
            f"model: something beside its weights cannot be copied ({problem}), such as a hook "
            "with an open file. Remove it, or save the model and give its folder."
        )
    # What a wrapper left behind; with it PEFT would think that the adapter to come is a second one.
    for left in ("peft_config", "_hf_peft_config_loaded"):
        twin.__dict__.pop(left, None)
    twin.eval()
    adapted = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    names = [name for name, module in twin.named_modules() if isinstance(module, adapted)]
    for name in names:
        if any(name.startswith(f"{other}.") for other in names):
            continue  # a part of a box
        parent, _, child = name.rpartition(".")
        setattr(twin.get_submodule(parent), child, _boxed(twin.get_submodule(name)))
    return twin


def _alias(name: str, weight: nn.Parameter) -> nn.Parameter:
    """Another parameter on the same storage: freezing it freezes nothing of the caller's."""
    if type(weight) is nn.Parameter:
        return nn.Parameter(weight.detach(), requires_grad=False)
    if weight.requires_grad:
        raise DataError(
            f"model: {name} is of type {type(weight).__name__} and trains. Freeze it (requires_grad_"
            "(False)), or save the model and give its folder."
        )
    return weight  # quantised weights hold more than numbers


class _BoxedLinear(nn.Linear):
    """A linear layer with adapters of the caller's, seen from outside as one plain layer."""

    def __init__(self, inside: nn.Module, base: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight = base.weight
        self.register_parameter("bias", base.bias)
        # In a tuple it is no submodule: PEFT would switch the caller's adapters off.
        self.inside = (inside,)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.inside[0](input)


class _Boxed(nn.Module):
    """Any other layer with adapters of the caller's."""

    def __init__(self, inside: nn.Module, base: nn.Module) -> None:
        super().__init__()
        if isinstance(getattr(base, "weight", None), nn.Parameter):
            self.weight = base.weight
        self.inside = (inside,)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inside[0](*args, **kwargs)


def _boxed(layer: Any) -> nn.Module:
    tuner = isinstance(layer, BaseTunerLayer)
    base = layer.get_base_layer() if tuner else layer.original_module
    return _BoxedLinear(layer, base) if isinstance(base, nn.Linear) else _Boxed(layer, base)


def _inner(model: Any) -> PreTrainedModel:
    """The model of transformers inside PEFT's wrapper, where there is one.

    Raises:
        UsageError: it is no causal language model.
        DataError: prompt tuning and its kin are in no layer, so the model cannot be taken alone.
    """
    if isinstance(model, PeftModel | PeftMixedModel):
        configs = getattr(model, "peft_config", {}).values()
        if any(config.is_prompt_learning for config in configs):
            raise DataError(
                "model: it has an adapter that is a learned prompt, which scores cannot see. Give "
                "the model without it."
            )
        model = model.get_base_model()
    writes = isinstance(model, PreTrainedModel) and model.can_generate()
    if not writes or getattr(model.config, "is_encoder_decoder", False):
        raise UsageError(
            f"model: {type(model).__name__} is not a causal language model of transformers. Load it with "
            "AutoModelForCausalLM.from_pretrained, and give it before torch.compile or any wrapper "
            "but PEFT's."
        )
    return model
