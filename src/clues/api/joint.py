"""A whole run, and several adapters into one, for Python callers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clues.api.manners import bars, left_as_found
from clues.config import CombineSettings, RunConfig, load_config, validate
from clues.errors import DataError, UsageError
from clues.model.adapters import AdapterState, write_adapter
from clues.model.merging import Merged
from clues.model.merging import merge as merge_states
from clues.pipeline import open_run, run_until
from clues.progress import Progress
from clues.reading import is_plain_number, parse_json, status
from clues.results.run import Results

ONCE = ("average", "task_arithmetic", "ties", "dare")
# Under these a state of A and B alone does not say what the adapter does.
_NOT_PLAIN = ("rank_pattern", "alpha_pattern", "modules_to_save", "use_dora", "use_rslora")


def run(
    config: str | Path | RunConfig,
    *,
    folder: str | Path | None = None,
    until: str = "report",
    allow_degenerate: bool = False,
    skip_nonfinite: bool = False,
    progress: bool | Progress = True,
) -> Results | None:
    """Run a configuration, as `clues run` does; what is finished there is not done again.

    Args:
        config: a YAML file, or what `clues.load_config` returned.
        folder: of the run; None is `runs/NAME`.
        until: the last stage to run: hello, duplicates, train, score, threshold, select, fit, measure, report.
        allow_degenerate: accept a selection that keeps nothing or everything.
        skip_nonfinite: drop rows whose score is NaN or infinite, instead of stopping.
        progress: bars on the error stream; False for none, or an object of your own.

    Returns:
        What `results.json` holds, as attributes; None where `until` stops before the report.

    Raises:
        CluesError: a stage cannot be finished; those before it stay finished.
    """
    settings = config if isinstance(config, RunConfig) else load_config(config)
    with left_as_found():
        opened = open_run(
            settings,
            Path(folder) if folder is not None else Path("runs") / settings.name,
            progress=bars(progress),
            allow_degenerate=allow_degenerate,
            skip_nonfinite=skip_nonfinite,
        )
        return run_until(opened, until).results


def merge(
    adapters: Sequence[str | Path | Mapping[str, Tensor]],
    *,
    method: str = "average",
    weights: Sequence[float] | None = None,
    density: float = 0.2,
    scale: float = 1.0,
    seed: int = 42,
    folder: str | Path | None = None,
) -> Merged:
    """Merge LoRA adapters of one base model into one.

    Args:
        adapters: folders as PEFT writes them, or states from saved name to tensor.
        method: `average` and `task_arithmetic` are exact and add the ranks up; `ties` and `dare`
            keep the updates' largest or random entries.
        weights: one an adapter, such as its number of rows; None for equal ones.
        density: share of an update's entries that `ties` and `dare` keep.
        scale: factor of the merged update (`task_arithmetic`, `ties`, `dare`).
        seed: of `dare`.
        folder: where to write the joint adapter, which PEFT opens; needs a folder among `adapters`.

    Returns:
        The joint state as `adapter`, and the share of the update that was lost as `energy_lost`.

    Raises:
        UsageError: another method, or a folder to write and none to read a configuration from.
        DataError: an adapter cannot be read, is no plain LoRA, or does not fit the others.
    """
    if method not in ONCE:
        raise UsageError(
            f"method {str(method)[:30]!r} is none of {', '.join(ONCE)}. fedavg and adaptive need a "
            "run: clues.run."
        )
    settings = validate(
        CombineSettings, {"method": method, "density": density, "scale": scale}, where="merge"
    )
    read = [_read(entry, n) for n, entry in enumerate(adapters)]
    configs = [config for _, config in read if config]
    scalings = sorted({config["lora_alpha"] / config["r"] for config in configs})
    if len(scalings) > 1:
        raise DataError(
            f"the adapters have different alpha / rank: {', '.join(f'{s:g}' for s in scalings)}. "
            "Train them with one."
        )
    if folder is not None and not configs:
        raise UsageError(
            "to write a folder, give one of the adapters as a folder: it has the rest."
        )
    states = [state for state, _ in read]
    merged = merge_states(states, weights or [1.0] * len(states), settings, seed=seed)
    if folder is not None:
        write_adapter(Path(folder), merged.adapter, configs[0], scaling=scalings[0])
    return merged


def _read(entry: Any, number: int) -> tuple[AdapterState, dict[str, Any]]:
    """An adapter's state, and its configuration where it comes from a folder."""
    if isinstance(entry, Mapping):
        state, config, where = dict(entry), {}, f"adapters[{number}]"
    elif isinstance(entry, str | Path):
        where = str(entry)
        state, config = _read_folder(Path(entry))
    else:
        raise UsageError(
            f"adapters[{number}]: type {type(entry).__name__}. Give a folder, or a dict of tensors."
        )
    shape = [config.get("lora_alpha"), config.get("r")]
    if config and not all(is_plain_number(n, low=1e-9, high=1e9) for n in shape):
        raise DataError(f"{where}: adapter_config.json has no plain numbers lora_alpha and r.")
    odd = [key for key in _NOT_PLAIN if config.get(key)]
    odd += [name for name in state if not name.endswith((".lora_A.weight", ".lora_B.weight"))][:1]
    if odd or not state:
        raise DataError(f"{where}: not an adapter of plain LoRA ({odd[0] if odd else 'empty'}).")
    if problem := _unpaired(state):
        raise DataError(f"{where}: not an adapter of plain LoRA ({problem}).")
    return state, config


def _unpaired(state: Mapping[str, Tensor]) -> str:
    """What is wrong with the factors of an adapter; empty where every A has its B of one rank."""
    ranks: set[int] = set()
    for module in sorted({name.rsplit(".lora_", 1)[0] for name in state}):
        a, b = (state.get(f"{module}.lora_{factor}.weight") for factor in "AB")
        if a is None or b is None:
            return f"{module} has one factor of two"
        if not (a.is_floating_point() and b.is_floating_point()):
            return f"{module}: a factor is not of floating point"
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or not a.numel() * b.numel():
            return f"{module}: factors of shapes {tuple(a.shape)} and {tuple(b.shape)}"
        ranks.add(a.shape[0])
    return "layers of several ranks" if len(ranks) > 1 else ""


def _read_folder(folder: Path) -> tuple[AdapterState, dict[str, Any]]:
    try:
        status(folder)
        state = load_file(folder / "adapter_model.safetensors")
        config = parse_json((folder / "adapter_config.json").read_bytes())
        problem = "" if isinstance(config, dict) else "a configuration that is no object"
    except (OSError, ValueError, SafetensorError) as error:
        state, config, problem = {}, {}, type(error).__name__
    if problem:
        raise DataError(
            f"{folder}: no adapter can be read there ({problem}). It needs adapter_config.json and "
            "adapter_model.safetensors, as PEFT writes them."
        )
    return state, config
