"""Which layers of a base model get an adapter: linear ones that take part in reading a text.

Every model has names of its own, and PEFT adapts more kinds of layers than can be scored row by
row. So each name is looked up before anything is attached, and a short text shows what is used.
"""

import copy
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from clues.errors import ConfigError
from clues.model.place import first_line

LINEAR = (nn.Linear, Conv1D)
ALL = "all-linear"
WHERE = "recipe.lora.target_modules"
# A text of so many tokens, and how many of them differ between its two versions.
N_TEXT, N_DIFFERENT = 6, 2
TOGETHER = "the weights of its experts lie in one tensor, which cannot be scored row by row"


@dataclass(frozen=True)
class Reading:
    """What a base model did with two short texts that differ at their end.

    Attributes:
        used: names of the layers that took part.
        looks_ahead: how far the end of a text moved what the model said before it, as a share.
    """

    used: frozenset[str]
    looks_ahead: float


@torch.no_grad()
def read_short_text(base: Any) -> Reading:
    """Show a base model two short texts, one batch, and see what it uses."""
    width = base.get_input_embeddings().weight.shape[0]
    ids_NT = torch.arange(N_TEXT).repeat(2, 1) % width
    ids_NT[1, -N_DIFFERENT:] = (ids_NT[1, -N_DIFFERENT:] + N_TEXT) % width
    used: set[str] = set()

    def note(name: str, _: Any, inputs: Any, output: Any) -> None:
        # Some routers call themselves linear layers, and give several tensors.
        if isinstance(output, Tensor):
            used.add(name)

    hooks = [
        module.register_forward_hook(partial(note, name))
        for name, module in base.named_modules()
        if isinstance(module, LINEAR)
    ]
    was_training = base.training
    base.eval()
    try:
        ids_NT = ids_NT.to(base.get_input_embeddings().weight.device)
        attention_NT = torch.ones_like(ids_NT)
        logits = base(input_ids=ids_NT, attention_mask=attention_NT, use_cache=False).logits
    finally:
        base.train(was_training)
        for hook in hooks:
            hook.remove()
    same = logits[:, :-N_DIFFERENT].float()
    return Reading(frozenset(used), float((same[0] - same[1]).norm() / same[0].norm()))


def linear_layers(base: Any) -> dict[str, nn.Module]:
    """The linear layers of a base model by name, without the one that gives the words."""
    head = base.get_output_embeddings()
    return {
        name: module
        for name, module in base.named_modules()
        if isinstance(module, LINEAR) and module is not head
    }


def short_names(names: Collection[str]) -> list[str]:
    """The last parts of layers' names, each once."""
    return list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))


def resolve(base: Any, targets: Sequence[str] | str, used: Collection[str]) -> list[str] | str:
    """What PEFT is asked for, so that it adapts linear layers that are used, and nothing else.

    Args:
        base: without an adapter.
        targets: names of layers as PEFT takes them (the last parts of their names), or
            `all-linear`: without experts and without layers that PEFT refuses.
        used: names of the layers that take part in reading a text.

    Returns:
        `targets` where that is what they mean; else the layers by name.

    Raises:
        ConfigError: a name is of no layer, or of one that cannot be scored row by row.
    """
    idle = _idle(base, used)
    if isinstance(targets, str):
        wanted = _adaptable(base, idle)
        if not wanted:
            raise ConfigError(f"{WHERE}: this model has no linear layer that can be adapted.")
        plain = len(wanted) == len(linear_layers(base)) and not _may_refuse(base)
        return targets if plain else _shortest(base, wanted)
    modules = dict(base.named_modules())
    wanted = []
    for target in targets:
        found = {n: m for n, m in modules.items() if _names(target, n)}
        problem = _kind_problem(base, target, found)
        at_work = [name for name in found if name not in idle]
        if not problem and not at_work:
            problem = (
                f"{target} takes no part as a linear layer when this model reads a text, so an "
                "adapter on it would do nothing"
            )
        if problem:
            raise ConfigError(f"{WHERE}: {problem}. {_instead(_adaptable(base, idle))}")
        wanted += [name for name in at_work if name not in wanted]
    for name, reason in _refused(base, wanted).items():
        raise ConfigError(f"{WHERE}: {name} {reason}. {_instead(_adaptable(base, idle))}")
    named = [n for n in modules if any(_names(target, n) for target in targets)]
    return list(targets) if len(named) == len(wanted) else _shortest(base, wanted)


def check_plain(peft: Any) -> None:
    """Refuse adapters that are not two factors beside a linear layer.

    Raises:
        ConfigError: scores would take a weight for another, or not see one.
    """
    for name, layer in peft.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if not _is_plain(layer) or any(layer.use_dora.values()):
            raise ConfigError(
                f"the adapter has more than A and B of linear layers: {name} adapts "
                f"{type(layer.get_base_layer()).__name__}. {_instead(())}"
            )
    known = tuple(f".lora_{ab}.default.weight" for ab in "AB")
    odd = [n for n, _ in peft.named_parameters() if ".lora_" in n and not n.endswith(known)]
    if odd:
        raise ConfigError(f"the adapter has more than A and B of linear layers: {odd[0]}.")


def check_training(peft: Any, known: Collection[int]) -> None:
    """Refuse weights that would train and that the adapter does not have.

    Args:
        peft: with an adapter.
        known: ids of the adapter's weights.

    Raises:
        ConfigError: nothing that scores, sends or saves would know of such a weight.
    """
    odd = [n for n, p in peft.named_parameters() if p.requires_grad and id(p) not in known]
    if odd:
        raise ConfigError(f"{odd[0]} would train, and is no part of the adapter. {_instead(())}")


def suggested(base: Any) -> list[str] | str:
    """Layers of a model to write into a first configuration: what reads queries and values."""
    names = list(linear_layers(base))
    short = short_names(names)
    if {"q_proj", "v_proj"} <= set(short):
        return ["q_proj", "v_proj"]
    joint = [n for n in short if re.search(r"qkv|query_key_value|c_attn", n.lower())]
    parts = [n for n in short if re.fullmatch(r"(q|v|query|value)(_lin|_proj|_attn)?", n.lower())]
    return joint or parts or ALL


def _names(target: str, name: str) -> bool:
    """Whether PEFT takes a target for the layer of this name."""
    return name == target or name.endswith(f".{target}")


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _shortest(base: Any, names: Sequence[str]) -> list[str]:
    """Last parts of names where they mean no other layer, else the whole names."""
    short = short_names(names)
    meant = [n for n, _ in base.named_modules() if any(_names(s, n) for s in short)]
    return short if len(meant) == len(names) else list(names)


def _idle(base: Any, used: Collection[str]) -> set[str]:
    """Layers of which neither they nor their like in another block or expert are used."""
    kinds = {_kind(name) for name in used}
    linear = [name for name, module in base.named_modules() if isinstance(module, LINEAR)]
    return {name for name in linear if _kind(name) not in kinds}


def _kind(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".#", name)


def _adaptable(base: Any, idle: Collection[str]) -> list[str]:
    """Names of the linear layers that `all-linear` means."""
    layers = [name for name in linear_layers(base) if name not in idle]
    refused = _refused(base, layers)
    return [name for name in layers if _last(name) not in refused]


def _kind_problem(base: Any, target: str, found: Mapping[str, nn.Module]) -> str:
    """Why a name is of no linear layer; empty where it is."""
    experts = [n for n, p in base.named_parameters() if p.dim() == 3 and ".experts." in n]
    if not found and experts:
        return f"{target} is no layer of this model, and {TOGETHER} ({experts[0]})"
    if not found:
        return f"{target} is no layer of this model"
    for name, module in found.items():
        if isinstance(module, nn.Embedding):
            # Its gradient is zero but for the tokens that stand in the rows: it lists them.
            return (
                f"{target} has a layer of embeddings ({name}), whose gradient lists the words of "
                "the rows"
            )
        if any(parameter.startswith(f"{name}.") for parameter in experts):
            return f"{target} is no linear layer: {TOGETHER} ({name})"
        if not isinstance(module, LINEAR):
            return f"{target} is no linear layer ({name} is {type(module).__name__})"
    return ""


def _instead(names: Collection[str]) -> str:
    listed = f": {', '.join(short_names(names))}" if names else ""
    return f"Name linear layers alone{listed}."


def _may_refuse(base: Any) -> bool:
    """Whether PEFT may take a linear layer for something else, or not at all.

    Known of mixtures of experts and of Mamba; both have weights with three dimensions.
    """
    return any(p.dim() == 3 for p in base.parameters())


def _refused(base: Any, names: Sequence[str]) -> dict[str, str]:
    """Last parts of layers' names that PEFT does not take as plain linear layers, and why."""
    if not _may_refuse(base) or not _reason(base, names):
        return {}
    parts = {s: [n for n in names if _last(n) == s] for s in short_names(names)}
    reasons = {short: _reason(base, part) for short, part in parts.items()}
    return {short: reason for short, reason in reasons.items() if reason}


def _is_plain(layer: Any) -> bool:
    """Whether an adapter stands beside a linear layer, and not in front of one weight of it."""
    return isinstance(layer.get_base_layer(), LINEAR) and not isinstance(layer, ParamWrapper)


def _reason(base: Any, names: Sequence[str]) -> str:
    """Why PEFT does not adapt these as linear layers; empty where it does.

    PEFT works on other modules around the same weights, with adapters that hold no numbers.
    """
    twin = copy.deepcopy(base, {id(p): p for p in (*base.parameters(), *base.buffers())})
    config = LoraConfig(r=1, target_modules=list(names), task_type=TaskType.CAUSAL_LM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # this adapter is only looked at
            peft = get_peft_model(twin, config, low_cpu_mem_usage=True)
    except ValueError as error:
        return f"is refused by PEFT: {first_line(error).split('. ')[0]}"
    layers = {n: m for n, m in peft.named_modules() if isinstance(m, LoraLayer)}
    if all(map(_is_plain, layers.values())) and len(layers) == len(names):
        return ""
    return f"means more than linear layers to PEFT, and {TOGETHER}"
