"""The joint adapter and its card on a model hub: only when a person asks, and private unless they say otherwise."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from clues.atomic import read_bytes
from clues.errors import DataError, NetworkError, UsageError
from clues.model.place import first_line, read_object
from clues.rundir import RunDir

# What the hub's client raises where nobody answers: of httpx, whose name differs between its versions.
CLIENT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]

# Nothing else in the folder is for others.
FILES = {
    "README.md": "the card: names of silos, rounded counts, figures",
    "adapter_config.json": "shape of the adapter, and its base model by name",
    "adapter_model.safetensors": "the weights, in which text of the rows may be hidden",
}
BASE = "base_model_name_or_path"


@dataclass(frozen=True)
class Parcel:
    """What would be uploaded.

    Attributes:
        repo: name on the hub.
        content: bytes of every file, by its name there.
        base_model: as the adapter names it.
        license: as the card says.
    """

    repo: str
    content: dict[str, bytes]
    base_model: str
    license: str


def parcel(run: Path, repo: str) -> Parcel:
    """Put together what is for others; nobody is asked anything.

    Raises:
        UsageError: the hub takes no such name.
        DataError: there is no finished joint adapter.
    """
    _check_name(repo)
    folder = RunDir(run).coordinator / "adapter"
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder}: no {missing[0]}. Give the folder of a run that has finished (clues run), such "
            "as runs/demo."
        )
    content = {name: read_bytes(folder / name) for name in FILES}
    config = read_object(folder / "adapter_config.json")
    name = str(config.get(BASE) or "")
    if Path(name).is_absolute() or name.startswith("."):
        # A path of this machine opens nothing elsewhere, and tells how it is set up.
        name = Path(name).name
        content["adapter_config.json"] = json.dumps({**config, BASE: name}, indent=2).encode()
    front = _front(content["README.md"].decode())
    return Parcel(repo, content, name, str(front.get("license", "unknown")))


def push(found: Parcel, *, public: bool, api: HfApi | None = None) -> str:
    """Upload, as one commit; where it is then.

    Args:
        found: from `parcel`.
        public: whether everybody may read it.
        api: of the hub, with the token that is set up on this machine.

    Raises:
        UsageError: the name belongs to a repository that everybody can read, and this was not asked for.
        NetworkError: the hub cannot be reached or refuses.
    """
    api = api or HfApi(library_name="clues")
    try:
        api.create_repo(found.repo, repo_type="model", private=not public, exist_ok=True)
        private = api.repo_info(found.repo, repo_type="model").private
        if not private and not public:
            raise UsageError(
                f"{found.repo}: everybody can read this repository. Name another one, or add --public."
            )
        operations = [CommitOperationAdd(name, data) for name, data in found.content.items()]
        made: Any = api.create_commit(
            found.repo,
            operations,
            commit_message="Joint adapter and its card",
            repo_type="model",
        )
    except HfHubHTTPError as error:
        raise NetworkError(
            f"{found.repo}: the hub does not take it ({first_line(error)}). Log in with a token that "
            "may write there (hf auth login), and call the same again."
        ) from error
    except (CLIENT_ERROR, OSError) as error:
        raise NetworkError(
            f"{found.repo}: the hub does not answer ({first_line(error)}). Look at the network, and "
            "call the same again."
        ) from error
    return str(made.commit_url)


def _check_name(repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"--repo {repo}: {first_line(error)}") from None
    if repo.count("/") != 1:
        raise UsageError(f"--repo {repo}: name the owner, too, as in owner/{repo}.")


def _front(card: str) -> dict[str, Any]:
    """What stands between the two lines of dashes at the top of a card."""
    found = yaml.safe_load(card.split("---\n", 2)[1]) if card.startswith("---\n") else {}
    return found if isinstance(found, dict) else {}
