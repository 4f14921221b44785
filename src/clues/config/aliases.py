"""Names that PEFT, transformers and other trainers use for our settings, and what they set that we do not."""

from collections.abc import Mapping
from typing import Any

LORA = {"r": "rank", "lora_r": "rank", "lora_rank": "rank", "lora_alpha": "alpha"}
LORA |= {"lora_dropout": "dropout", "lora_target": "target_modules"}
LORA |= {"lora_target_modules": "target_modules"}
MODEL = {"model_name_or_path": "name", "base_model": "name", "torch_dtype": "dtype"}
TOKENS = {"max_seq_length": "max_length", "cutoff_len": "max_length", "sequence_len": "max_length"}
TRAIN = {"num_train_epochs": "epochs", "num_epochs": "epochs", "max_steps": "steps"}
TRAIN |= {"per_device_train_batch_size": "batch_size", "lr": "learning_rate"}
TRAIN |= {"warmup_ratio": "warmup"}
# What asks for a base model in few bits, by the form that it asks for.
PACKED = {"load_in_4bit": "nf4", "load_in_8bit": "int8"}
# What is false or null asks for nothing, and is taken.
ABSENT = {
    "quantization_config": "set quantization: nf4 or int8; what else it may hold is fixed here",
    "gradient_checkpointing": "it changes no score, so no recipe has it; set "
    "compute.gradient_checkpointing, of the run or of a silo",
    "gradient_accumulation_steps": "batch_size is the rows of an optimiser step, and they go through "
    "the model in parts that fit; leave it out",
    "report_to": "it changes no score, so no recipe has it; set compute.report_to, of the run or of a "
    "silo",
    "use_dora": "DoRA is not supported: adapters are plain LoRA",
    "use_rslora": "rank-stabilised LoRA is not supported; set alpha to alpha * sqrt(rank) for the same",
    "bias": "biases are not trained",
    "modules_to_save": "nothing but the adapters is trained",
}
_NOTHING = (None, False, "none", [], {})


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Settings under our names; those of another shape are left for the settings to refuse.

    Raises:
        ValueError: a setting stands there under two names, or asks for what there is not.
    """
    if not isinstance(value, dict):
        return value
    found: dict[Any, Any] = {}
    for key, setting in value.items():
        if key in ABSENT and key not in found:
            if setting in _NOTHING:
                continue
            raise ValueError(f"{key}: {ABSENT[key]}")
        own = names.get(key, key)
        if own in found or (own != key and own in value):
            raise ValueError(f"{own} stands there twice, once as {key}; leave one")
        found[own] = setting
    return found


def with_quantization(value: Any) -> Any:
    """Settings of a model in which `load_in_4bit` and `load_in_8bit` are `quantization`.

    Raises:
        ValueError: both are asked for, or one beside another quantization.
    """
    if not isinstance(value, dict):
        return value
    asked = {PACKED[key] for key in PACKED if value.get(key) not in _NOTHING}
    left = {key: setting for key, setting in value.items() if key not in PACKED}
    odd = [key for key in PACKED if key in value and not isinstance(value[key], bool | None)]
    if odd:
        raise ValueError(f"{odd[0]}: true or false is needed")
    if not asked:
        return left
    if len(asked) > 1 or left.get("quantization", *asked) not in asked:
        raise ValueError("quantization stands there twice; leave one of its names")
    return {**left, "quantization": asked.pop()}
