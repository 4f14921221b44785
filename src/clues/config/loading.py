"""From YAML files to settings with absolute paths and hashes."""

import hashlib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from clues.config.base import BUILT_IN
from clues.config.changes import apply_change
from clues.config.evaluate import LmEvalSettings
from clues.config.hashes import built_in_folder
from clues.config.modelfiles import differing, model_files
from clues.config.parsing import read_plain_yaml
from clues.config.recipe import (
    MAX_PUBLIC_BYTES,
    MAX_PUBLIC_TOTAL,
    ModelSettings,
    PublicFile,
    PublicSet,
)
from clues.config.rowsfile import RowsFile
from clues.config.run import RunConfig, SharedConfig, SiloModel, SiloSettings
from clues.config.strict import validate
from clues.errors import ConfigError
from clues.reading import folder_and_split, is_folder, megabytes, read_bytes, shown, status

Shared = TypeVar("Shared", bound=SharedConfig)
Rows = TypeVar("Rows", bound=RowsFile)


def load_config(path: str | Path, *, changes: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML and its silo files, and fill in the hashes of the public files.

    Paths are relative to the file that names them.

    Args:
        path: of the YAML.
        changes: settings in place of the file's, as `recipe.seed=1`; values are YAML.

    Raises:
        ConfigError: unreadable YAML, an unknown key (with a suggestion), a value out of range,
            a missing file, or a public file whose bytes do not match its `sha256`.
    """
    path = Path(path)
    content = read_yaml(path)
    silos = content.get("silos")
    if isinstance(silos, list):
        content["silos"] = [_silo_content(entry, path) for entry in silos]
    for change in changes:
        apply_change(content, change)
    config = _resolved(validate(RunConfig, content, where=path.name), path)
    # Both sides are one person's here, so one place serves both.
    model = config.recipe.model
    shared = SiloModel(**{key: getattr(model, key) for key in SiloModel.model_fields})
    silos = [s if s.model else s.model_copy(update={"model": shared}) for s in config.silos]
    where = {"compute": config.compute}
    silos = [s if s.compute else s.model_copy(update=where) for s in silos]
    return config.model_copy(update={"silos": tuple(silos)})


def load_shared(path: Path) -> SharedConfig:
    """Read a run's YAML for a coordinator whose silos are on other machines.

    Raises:
        ConfigError: as `load_config`; or it lists silos, whose settings are not the coordinator's.
    """
    content = read_yaml(path)
    if "silos" in content:
        raise ConfigError(
            f"{path.name}: on separate machines each silo keeps its own settings. Remove `silos` "
            "here, and name silos and their public keys in the coordinator's file."
        )
    return _resolved(validate(SharedConfig, content, where=path.name), path)


def load_silo(path: Path) -> SiloSettings:
    """Read one silo's own file.

    Raises:
        ConfigError: unreadable, an unknown key, or a value out of range.
    """
    return validate(SiloSettings, _silo_content(path.name, path), where=path.name)


def _resolved(config: Shared, path: Path) -> Shared:
    """Fill in absolute paths and the hashes of public files."""
    base = path.parent
    public = {
        domain: PublicSet(
            validation={n: _hashed(f, base, path) for n, f in entry.validation.items()},
            anchor=_hashed(entry.anchor, base, path),
            reject=_hashed(entry.reject, base, path) if entry.reject else None,
        )
        for domain, entry in config.recipe.public.items()
    }
    sizes = {f.path: f.path.stat().st_size for entry in public.values() for f in entry.files}
    if sum(sizes.values()) > MAX_PUBLIC_TOTAL:
        raise ConfigError(
            f"{path.name}: the public files have {megabytes(sum(sizes.values()))} together, and at "
            f"most {megabytes(MAX_PUBLIC_TOTAL)} travel to the silos. Name fewer rows."
        )
    model = config.recipe.model
    model = model.model_copy(update={"name": _place(model.name, base)})
    if (folder := local_folder(model.name)) is not None:
        model = with_files(model, model_files(folder, code=model.trust_remote_code))
    heldout, judge = config.evaluate.heldout, config.evaluate.judge
    if judge and judge.prompts:
        judge = judge.model_copy(update={"prompts": _existing(judge.prompts, base, path)})
    evaluate = config.evaluate.model_copy(
        update={
            "heldout": heldout and _at(heldout, base, path),
            "tasks": tuple(_at(task, base, path) for task in config.evaluate.tasks),
            "lm_eval": tuple(_with_files(e, base, path) for e in config.evaluate.lm_eval),
            "judge": judge,
        }
    )
    recipe = config.recipe.model_copy(update={"public": public, "model": model})
    return config.model_copy(update={"recipe": recipe, "evaluate": evaluate})


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of keys and values.

    Raises:
        ConfigError: missing, no UTF-8, no YAML, or no keys at its top.
    """
    there = status(path, error=ConfigError)
    if there is None:
        raise ConfigError(f"{shown(path)}: there is no such file.{_yaml_beside(path)}")
    if is_folder(path):
        raise ConfigError(f"{path}: this is a folder, not a file.{_yaml_beside(path)}")
    named = path.suffix in (".yaml", ".yml")
    try:
        content = read_plain_yaml(path, where=path.name)
    except ConfigError as error:
        if named or "not valid YAML" not in str(error):
            raise
        content = error
    if isinstance(content, ConfigError):
        raise ConfigError(
            f"{path}: not valid YAML. Is this a data file? clues init --help says how to name "
            "it in a configuration."
        )
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name}: expected keys and values at the top, such as name: ... .")
    return content


def _yaml_beside(path: Path) -> str:
    """Say which configurations lie in the folder that was meant, or how to get one."""
    folder = path if path.is_dir() else path.parent
    found = sorted(p.name for p in folder.glob("*.y*ml")) if folder.is_dir() else []
    if found:
        return f" In {folder} there is: {', '.join(found[:5])}."
    return " clues init writes one from your files."


def _silo_content(entry: Any, config_path: Path) -> Any:
    """Return a silo's settings with its data path made independent of the working folder."""
    if isinstance(entry, str):
        source = config_path.parent / entry
        content: Any = read_yaml(source)
        validate(SiloSettings, content, where=source.name)
    else:
        source, content = config_path, entry
    if isinstance(content, dict) and isinstance(content.get("data"), str):
        local = source.parent / content["data"]
        named = folder_and_split(content["data"], source.parent, error=ConfigError)
        # A name that is no file may still be a data set on a hub; reading it decides.
        if status(local, error=ConfigError) or local.suffix:
            content = {**content, "data": str(local.resolve())}
        elif named:
            content = {**content, "data": f"{named[0].resolve()}:{named[1]}"}
    return with_place(content, source.parent)


def with_place(content: Any, base: Path) -> Any:
    """A silo's settings with the places of its base model and key made absolute."""
    if not isinstance(content, dict):
        return content
    if isinstance(key := content.get("duplicates_key"), str):
        content = {**content, "duplicates_key": str((base / key).resolve())}
    if not content.get("model"):
        return content
    model = content["model"]
    if isinstance(model, str):
        return {**content, "model": _place(model, base)}
    if isinstance(model, dict) and isinstance(model.get("name"), str):
        return {**content, "model": {**model, "name": _place(model["name"], base)}}
    return content


def local_folder(name: str) -> Path | None:
    """The folder that a base model's name means on this machine; None for a hub name."""
    if name == BUILT_IN:
        return built_in_folder()
    return Path(name) if is_folder(Path(name), error=ConfigError) else None


def with_files(model: ModelSettings, found: dict[str, str]) -> ModelSettings:
    """The model's settings with the hashes of its files.

    Raises:
        ConfigError: others stand there already.
    """
    if model.files and (what := differing(found, model.files)):
        raise ConfigError(
            f"{Path(model.name).name}: the base model has changed since this configuration was "
            f"written ({what}). Restore it, or remove recipe.model.files."
        )
    return model.model_copy(update={"files": found})


def _place(name: str, base: Path) -> str:
    if name != BUILT_IN and is_folder(base / name, error=ConfigError):
        return str((base / name).resolve())
    return name


def _at(file: Rows, base: Path, config_path: Path) -> Rows:
    return file.model_copy(update={"path": _existing(file.path, base, config_path)})


def _existing(file: Path, base: Path, config_path: Path) -> Path:
    there = status(base / file, error=ConfigError)
    resolved = (base / file).resolve()
    if there is None:
        near = [p.name for p in resolved.parent.glob("*")] if resolved.parent.is_dir() else []
        close = get_close_matches(resolved.name, near, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{config_path.name}: {shown(file)}: there is no such file.{hint}")
    return resolved


def _with_files(entry: LmEvalSettings, base: Path, config_path: Path) -> LmEvalSettings:
    update: dict[str, Any] = {}
    if entry.task.endswith((".yaml", ".yml")):
        update["task"] = str(_existing(Path(entry.task), base, config_path))
    if entry.data is not None:
        update["data"] = _existing(entry.data, base, config_path)
    return entry.model_copy(update=update)


def _hashed(file: PublicFile, base: Path, config_path: Path) -> PublicFile:
    resolved = _existing(file.path, base, config_path)
    if is_folder(resolved):
        raise ConfigError(f"{config_path.name}: {file.path}: a public set must be one file.")
    advice = "It travels to every silo: name fewer or shorter rows."
    content = read_bytes(resolved, limit=MAX_PUBLIC_BYTES, advice=advice, error=ConfigError)
    found = hashlib.sha256(content).hexdigest()
    if file.sha256 not in (None, found):
        raise ConfigError(
            f"{config_path.name}: {file.path} has changed: its sha256 starts with {found[:12]}, "
            f"the config says {str(file.sha256)[:12]}. Restore the file or remove the hash."
        )
    return file.model_copy(update={"path": resolved, "sha256": found})
