"""Base weights from a folder, with a look at the configuration before a model is built from it.

A configuration of a kilobyte can ask for a million layers or a terabyte of weights. So what it asks
for is counted first, on a device that holds no numbers, and compared with what the folder has.
"""

import logging
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from clues.config import BUILT_IN, ModelSettings
from clues.errors import ConfigError, DataError
from clues.extras import require
from clues.model.fitness import check_config
from clues.model.place import first_line, read_object, stored_shapes

# Room for weights that are made at the start, such as tables of positions.
SLACK = 2**24
# Packed weights: at most so many numbers in one that is stored.
PACKED = 16
MAX_BUFFERS = 2**31


# With output_loading_info it returns a pair, which its types do not say.
_WithReport: Any = AutoModelForCausalLM


def load_base(folder: Path, settings: ModelSettings) -> Any:
    """Load a causal model's weights; every one of them has to come from the folder.

    Raises:
        DataError: configuration and weights do not fit together, or the weights are packed already
            and are to be packed again.
        ConfigError: the model or this machine does not have the attention that is asked for.
        ExtraError: they are to be packed, and the library is missing.
    """
    if settings.quantization:
        require("bitsandbytes", what=f"recipe.model.quantization: {settings.quantization}")
    config = _checked_config(folder, settings)
    base, found = _loaded(folder, config, settings)
    missing, odd = sorted(found["missing_keys"]), sorted(map(str, found["mismatched_keys"]))
    if missing or odd:
        # They would be random numbers, and every score with them.
        raise DataError(
            f"{folder}: {len(missing) + len(odd)} weights that config.json asks for are not in the "
            f"folder in that shape, for example {(missing + odd)[0][:120]}. Fetch the model again."
        )
    # A path of a cache tells nobody which model it was; what is not on a hub opens by its path.
    if settings.name not in (BUILT_IN, str(folder)):
        base.config._name_or_path = base.name_or_path = settings.name
    return base


def _loaded(folder: Path, config: Any, settings: ModelSettings) -> tuple[Any, dict[str, Any]]:
    problem = None
    try:
        return _WithReport.from_pretrained(
            str(folder),
            config=config,
            dtype=getattr(torch, settings.dtype),
            trust_remote_code=settings.trust_remote_code,
            local_files_only=True,
            use_safetensors=True,
            weights_only=True,
            output_loading_info=True,
            **_attention(settings),
            **_packing(settings),
        )
    except (ImportError, ValueError, RuntimeError) as error:
        method = getattr(config, "quantization_config", None)
        if method is None:
            raise
        problem = first_line(error)
    kind = method.get("quant_method", "") if isinstance(method, Mapping) else method.quant_method
    raise DataError(
        f"{folder}: its weights are quantised ({kind}), and cannot be read here: {problem} Install "
        "what is missing, or take the model's weights before they were quantised."
    )


def keep_packing(base: Any) -> None:
    """Have 4-bit weights stay in the form they were packed in.

    On CPUs with AVX-512 for bfloat16, bitsandbytes would turn them, at the first pass without
    gradients, into a form that multiplies in bfloat16 and passes no gradient on: scores would depend
    on the machine, and those that need the way back would lose what lies beyond a layer.

    Raises:
        DataError: it has happened already.
    """
    for module in base.modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        module.support_avx512bf16_for_cpu = False
        if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise DataError(
                f"{type(base).__name__}: bitsandbytes has turned its 4-bit weights into a form for "
                "answers alone, which it does when such a model answers on this CPU. Load the model "
                "anew, and score before you ask it anything."
            )


def _attention(settings: ModelSettings) -> dict[str, Any]:
    """How attention is computed; nothing where transformers is to choose."""
    wanted = settings.attn_implementation
    return {"attn_implementation": wanted} if wanted else {}


def _packing(settings: ModelSettings) -> dict[str, Any]:
    """How the weights are packed while they are loaded; nothing where they stay whole."""
    if settings.quantization is None:
        return {}
    if settings.quantization == "nf4":
        # As QLoRA: the scales of the blocks are packed, too.
        how = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, settings.dtype),
        )
    else:
        # Without a threshold: columns that stand out would be chosen over all rows of a batch, and
        # a row's loss would depend on the others.
        how = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
        # One line per product says that inputs are rounded, which is what int8 is.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return {"quantization_config": how}


def _checked_config(folder: Path, settings: ModelSettings) -> Any:
    """The configuration, once it asks for no more than the folder has.

    Raises:
        DataError: it asks for more.
    """
    stored = stored_shapes(folder)
    n_stored = sum(math.prod(shape) for shape in stored.values())
    content = read_object(folder / "config.json")
    quantized, method = "quantization_config" in content, content.get("quantization_config")
    if quantized and settings.quantization:
        raise DataError(
            f"{folder}: its weights are packed already. Leave recipe.model.quantization out, or take "
            "the model's weights before they were quantised."
        )
    config = _read_config(folder, settings)
    empty = _empty(config, settings)
    wanted = sum(p.numel() for p in empty.parameters())
    made = sum(b.numel() for b in empty.buffers())
    if wanted > (PACKED if quantized else 1) * n_stored + SLACK or made > MAX_BUFFERS:
        raise DataError(
            f"{folder}: config.json asks for {wanted:,} weights, and the folder has {n_stored:,}. "
            "Fetch the model again."
        )
    if isinstance(method, Mapping) and method.get("load_in_4bit") and n_stored >= wanted:
        raise DataError(
            f"{folder}: its weights are quantised ({method.get('quant_method')}), and cannot be read "
            "here: config.json says that two numbers lie in one, and the files hold them whole. Take "
            "quantization_config out of config.json, and set recipe.model.quantization."
        )
    if not quantized:
        _check_shapes(empty, stored, folder)
    if settings.attn_implementation:
        _check_attention(empty, settings.attn_implementation)
    return config


def _check_attention(empty: Any, wanted: str) -> None:
    """Refuse an attention that the model or this machine does not have.

    Raises:
        ConfigError: it does not; transformers would take another one, or fetch it from a hub.
    """
    setting = f"recipe.model.attn_implementation: {wanted}"
    name, flash = type(empty).__name__, wanted == "flash_attention_2"
    others = getattr(empty, "_compatible_flash_implementations", None)
    known = {
        "eager": True,
        "sdpa": getattr(empty, "_supports_sdpa", False),
        "flash_attention_2": getattr(empty, "_supports_flash_attn", False)
        and (others is None or wanted in others),
    }
    if not known[wanted]:
        has = [kind for kind, there in known.items() if there]
        raise ConfigError(
            f"{setting}: {name} has only {', '.join(has)}. Take one, or leave it out."
        )
    if flash and not torch.cuda.is_available():
        raise ConfigError(f"{setting}: it needs an NVIDIA GPU, and torch finds none. Take sdpa.")
    if flash and find_spec("flash_attn") is None:
        raise ConfigError(
            f"{setting}: the library flash_attn is not installed. Build it as its own documentation "
            "says, or take sdpa."
        )


def empty_base(folder: Path, settings: ModelSettings) -> Any:
    """The model that a folder's configuration describes, on a device that holds no numbers.

    Raises:
        DataError: it is no causal model.
    """
    return _empty(_read_config(folder, settings), settings)


def _read_config(folder: Path, settings: ModelSettings) -> Any:
    config = AutoConfig.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=settings.trust_remote_code
    )
    check_config(config, str(folder))
    return config


def _empty(config: Any, settings: ModelSettings) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, trust_remote_code=settings.trust_remote_code
        )


def _check_shapes(empty: Any, stored: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    for name, weight in empty.named_parameters():
        if stored.get(name, tuple(weight.shape)) != tuple(weight.shape):
            raise DataError(
                f"{folder}: config.json asks for {name} of shape {tuple(weight.shape)}, and the "
                f"folder has {stored[name]}. Fetch the model again."
            )
