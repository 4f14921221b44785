"""Base model and LoRA: load, name, save, and checkpoints with their optimiser state by name.

An adapter's state is a dictionary from PEFT's saved name, such as
`base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`, to a float32 tensor.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from clues.atomic import atomic_write_bytes, make_folder, read_bytes, write_atomically
from clues.config import LoraSettings, ModelSettings
from clues.errors import ConfigError, DataError, NumericsError
from clues.model.base import keep_packing, load_base
from clues.model.devices import device_of
from clues.model.fitness import check_base
from clues.model.head import find_head
from clues.model.layers import check_plain, check_training, read_short_text, resolve
from clues.model.place import Opening, first_line, model_folder
from clues.model.tensorfile import is_sealed, sealed_parts
from clues.rundir import file_hash, read_record, write_record

AdapterState = dict[str, Tensor]
UNREADABLE = "Take another base model, or one that reads token ids alone."
CHECKPOINT_FILES = ("adapter", "second_moment", "first_moment")


@dataclass(frozen=True)
class Checkpoint:
    """An adapter saved in training.

    Attributes:
        step: optimiser steps taken so far.
        learning_rate: the rate of the last of these steps, not the peak.
        adapter: trained and frozen LoRA weights.
        second_moment: bias-corrected running mean of the squared gradient, by the same names;
            only for weights that train. Empty where no optimiser ran.
        first_moment: bias-corrected running mean of the gradient, likewise.
        optimizer_steps: steps that the running means have seen, for undoing their correction.
    """

    step: int
    learning_rate: float
    adapter: AdapterState
    second_moment: AdapterState
    first_moment: AdapterState = field(default_factory=dict)
    optimizer_steps: int = 0


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """Load the base model's tokenizer.

    Raises:
        DataError: it cannot be found.
    """
    folder = model_folder(settings)
    with Opening(settings.name, "tokenizer"):
        return AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=settings.trust_remote_code
        )


class LoraModel:
    """A frozen base model with one LoRA adapter whose weights can be exchanged."""

    def __init__(
        self, base: Any, settings: LoraSettings, *, seed: int, device: str | None = None
    ) -> None:
        """Attach a new adapter; the seed is set before it exists.

        Raises:
            ConfigError: a target module is not in the model, or cannot be scored row by row; or this
                machine has no such device.
            DataError: with this base model every number would be wrong.
        """
        self.settings, self.tried = settings, False
        self.beneath: AdapterState | None = None  # an adapter that is part of the base for now
        self.device = device_of(device)
        # Quantised weights lie where they were loaded.
        if getattr(base, "hf_quantizer", None) is None:
            base.to(self.device)
        keep_packing(base)
        with Opening(type(base).__name__, "short text", done="read", advice=UNREADABLE):
            reading = read_short_text(base)
        check_base(base, reading)
        targets = resolve(base, settings.target_modules, reading.used)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]
            lora_dropout=settings.dropout,
            target_modules=targets,
            # GPT-2 keeps its matrices transposed.
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
            task_type=TaskType.CAUSAL_LM,
        )
        with torch.random.fork_rng(), warnings.catch_warnings():
            # Of layers of either kind beside each other, and of a head that is the embeddings, whose
            # adapter stays beside the weights here.
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
            torch.manual_seed(seed)
            try:
                self.peft: PeftModel = get_peft_model(base, config)  # pyright: ignore[reportAttributeAccessIssue]
            except ValueError as error:
                raise ConfigError(
                    f"recipe.lora.target_modules: PEFT refuses {settings.target_modules} for this "
                    f"model: {first_line(error)}"
                ) from None
        check_plain(self.peft)
        check_training(self.peft, {id(p) for p in self.parameters().values()})
        for parameter in self.parameters().values():
            # fp16 and bf16 adapters flush small gradients to zero.
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
        # Without dropout but where it trains; the Trainer switches it on.
        self.peft.to(self.device).eval()
        self.head = find_head(self.peft)
        self.initial = self.state()

    @classmethod
    def load(
        cls, model: ModelSettings, lora: LoraSettings, *, seed: int, device: str | None = None
    ) -> "LoraModel":
        """Load a base model and attach a new adapter.

        Raises:
            DataError: the base model cannot be found or has no weights.
        """
        folder = model_folder(model)
        with Opening(model.name, "model"):
            return cls(load_base(folder, model), lora, seed=seed, device=device)

    @classmethod
    def around(cls, peft: Any) -> "LoraModel":
        """Take a model that got its adapter elsewhere, and is trained elsewhere.

        How it was set up stays with it: `save`, `on_top_of` and `scaling` are not for it.

        Raises:
            ConfigError: it is no PEFT model, or its adapter has another name or is no plain LoRA.
        """
        if not isinstance(peft, PeftModel) or list(peft.peft_config) != ["default"]:
            raise ConfigError("a PEFT model with one adapter, named default, is needed.")
        check_plain(peft)
        model = cls.__new__(cls)
        model.peft, model.device, model.head = peft, peft.device, find_head(peft)
        model.initial = model.state()
        return model

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Adapter weights by their saved names, in the model's order."""
        return dict(self._parameters)

    @cached_property
    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        # Looked for once: a model has thousands of modules, and this is asked in every batch.
        return {
            name.replace(".default", ""): parameter
            for name, parameter in self.peft.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        }

    def state(self) -> AdapterState:
        """A copy of the adapter's weights, on the CPU."""
        return {
            name: p.detach().to("cpu", copy=True).contiguous()
            for name, p in self.parameters().items()
        }

    @torch.no_grad()
    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Exchange the adapter's weights.

        Raises:
            DataError: a name or a shape differs.
            NumericsError: a weight is not finite.
        """
        parameters = self.parameters()
        check_state(state, like=self.initial)
        for name, parameter in parameters.items():
            parameter.copy_(state[name])

    def freeze_a(self, *, frozen: bool) -> None:
        """Train B alone (FFA-LoRA), so that averaging B averages the models exactly."""
        for name, parameter in self.parameters().items():
            parameter.requires_grad_(not (frozen and ".lora_A." in name))

    @property
    def scaling(self) -> float:
        """Factor in front of B A, as PEFT applies it."""
        return self.settings.alpha / self.settings.rank

    @contextmanager
    def evaluating(self) -> Iterator[Any]:
        """No dropout inside; the former mode comes back after."""
        was_training = self.peft.training
        # A walk through all modules, which only a model in training needs.
        if was_training:
            self.peft.eval()
        try:
            yield self.peft
        finally:
            if was_training:
                self.peft.train()

    @contextmanager
    def on_top_of(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, an adapter of any rank is part of the base model; after, it is as before.

        Beside the layers, not in their weights: these may be shared between layers, transposed, or
        too coarse for a small update.
        """
        hooks = []
        self.beneath = dict(state)
        try:
            for name, a_RI in state.items():
                if ".lora_A." not in name:
                    continue
                layer = self.peft.get_submodule(name.split(".lora_A.")[0])
                b_OR = state[name.replace(".lora_A.", ".lora_B.")]
                added = partial(
                    _add_update, self.scaling, a_RI.to(self.device), b_OR.to(self.device)
                )
                hooks.append(layer.register_forward_hook(added))
            yield
        finally:
            self.beneath = None
            for hook in hooks:
                hook.remove()

    def save(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """Write an adapter folder that plain PEFT opens, whatever the rank of `state`."""
        config = self.peft.peft_config["default"].to_dict()
        write_adapter(folder, state, config, scaling=self.scaling)


def _add_update(
    scaling: float, a_RI: Tensor, b_OR: Tensor, _: Any, inputs: tuple[Tensor, ...], y: Tensor
) -> Tensor:
    """W x + s B A x, in the precision of A and B."""
    update = F.linear(F.linear(inputs[0].to(a_RI.dtype), a_RI), b_OR)
    return (y.to(a_RI.dtype) + scaling * update).to(y.dtype)


def write_adapter(
    folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any], *, scaling: float
) -> None:
    """Write an adapter folder that plain PEFT opens.

    Args:
        folder: is made where it is not there.
        state: of any rank, the same in every module.
        config: of an adapter of the same model.
        scaling: factor in front of B A that the state was made for; alpha keeps it at this rank.
    """
    make_folder(folder)
    ranks = {t.shape[0] for name, t in state.items() if ".lora_A." in name}
    assert len(ranks) == 1, "one rank for every module"
    rank = ranks.pop()
    content = {**config, "r": rank, "lora_alpha": scaling * rank, "inference_mode": True}
    text = json.dumps(content, indent=2, default=_as_list, sort_keys=True)
    atomic_write_bytes(folder / "adapter_config.json", text.encode())
    write_tensors(folder / "adapter_model.safetensors", state)


def check_state(state: Mapping[str, Tensor], *, like: Mapping[str, Tensor]) -> None:
    """Compare an adapter with the one expected.

    Raises:
        DataError: a name or a shape differs.
        NumericsError: a weight is not finite.
    """
    if set(state) != set(like):
        odd = sorted(set(state) ^ set(like))
        raise DataError(f"adapter: {len(odd)} weights differ by name, for example {odd[0]}.")
    for name, tensor in state.items():
        if tensor.shape != like[name].shape:
            raise DataError(
                f"adapter: {name} has shape {tuple(tensor.shape)}, "
                f"expected {tuple(like[name].shape)}."
            )
        if not torch.isfinite(tensor).all():
            raise NumericsError(
                f"adapter: {name} is not finite. Lower the learning rate and train again."
            )


def write_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Write safetensors, with their checksum in the metadata, beside and rename."""
    parts = sealed_parts(tensors, metadata)

    def write(part: Path) -> None:
        with part.open("wb") as file:
            file.writelines(parts)

    write_atomically(path, write)


def read_tensors(path: Path) -> AdapterState:
    """Read what `write_tensors` wrote.

    Raises:
        DataError: it is missing, may not be read, or is not what was written.
    """
    data = read_bytes(path)
    if not is_sealed(data):
        raise DataError(f"{path}: damaged (not what was written). Remove it and run again.")
    return load(data)


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write adapter, optimiser state and step; the step file comes last."""
    make_folder(folder)
    write_tensors(folder / "adapter.safetensors", checkpoint.adapter)
    write_tensors(folder / "second_moment.safetensors", checkpoint.second_moment)
    write_tensors(folder / "first_moment.safetensors", checkpoint.first_moment)
    state = {
        "step": checkpoint.step,
        "learning_rate": checkpoint.learning_rate,
        "optimizer_steps": checkpoint.optimizer_steps,
        "files": {name: file_hash(folder / f"{name}.safetensors") for name in CHECKPOINT_FILES},
    }
    write_record(folder / "state.json", state)


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of a checkpoint."""
    return [folder / "state.json", *(folder / f"{name}.safetensors" for name in CHECKPOINT_FILES)]


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint that `save_checkpoint` wrote.

    Raises:
        DataError: a part is missing, unreadable, or not what was written.
    """
    state = read_record(folder / "state.json", advice="Remove its folder and train again.")
    try:
        for name in CHECKPOINT_FILES:
            if file_hash(folder / f"{name}.safetensors") != state["files"][name]:
                raise DataError(
                    f"{folder}: {name}.safetensors is not the file that training wrote. Remove "
                    "the folder and train again."
                )
        return Checkpoint(
            step=int(state["step"]),
            learning_rate=float(state["learning_rate"]),
            adapter=load_file(folder / "adapter.safetensors"),
            second_moment=load_file(folder / "second_moment.safetensors"),
            first_moment=load_file(folder / "first_moment.safetensors"),
            optimizer_steps=int(state["optimizer_steps"]),
        )
    except (OSError, ValueError, TypeError, OverflowError, KeyError, SafetensorError) as error:
        raise DataError(
            f"{folder}: unreadable checkpoint ({first_line(error)}). Train again."
        ) from None


def _as_list(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
