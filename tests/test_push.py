"""A joint adapter goes to a hub only when a person says so, and then as three files."""

import json
import sys
from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

import clues.coordinator.push as place
from clues.cli.program import main
from clues.coordinator.push import CLIENT_ERROR, FILES, parcel, push
from clues.errors import DataError, NetworkError, UsageError

CARD = "---\nbase_model: tiny\nlibrary_name: peft\nlicense: apache-2.0\n---\n\n# micro\n"
REPO = "our-lab/joint-adapter"


class Hub:
    """Stands in for `HfApi`: keeps what it is given."""

    def __init__(self, *, there: bool | None = None, refuses: Exception | None = None) -> None:
        self.private, self.refuses = there, refuses
        self.made: list[dict] = []
        self.commits: list[dict[str, bytes]] = []

    def create_repo(self, repo, *, repo_type, private, exist_ok):
        assert exist_ok
        assert repo_type == "model"
        if self.refuses:
            raise self.refuses
        self.made.append({"repo": repo, "private": private})
        self.private = private if self.private is None else self.private

    def repo_info(self, repo, *, repo_type):
        return SimpleNamespace(private=self.private)

    def create_commit(self, repo, operations, *, commit_message, repo_type):
        self.commits.append({o.path_in_repo: o.path_or_fileobj for o in operations})
        return SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1")


@pytest.fixture
def run(make_lora, tmp_path):
    """The folder of a finished run, with a joint adapter and things that are nobody else's business."""
    model, folder = make_lora(), tmp_path / "run" / "coordinator" / "adapter"
    model.peft.peft_config["default"].base_model_name_or_path = str(tmp_path / "models" / "tiny")
    model.save(model.state(), folder)
    (folder / "README.md").write_text(CARD)
    (folder / "notes.txt").write_text("not for others")
    return tmp_path / "run"


def call(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["clues", "push", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_fake_takes_what_the_hub_takes() -> None:
    """Else a test against it shows nothing."""
    import inspect

    for name in ("create_repo", "repo_info", "create_commit"):
        theirs = inspect.signature(getattr(HfApi, name)).parameters
        ours = inspect.signature(getattr(Hub, name)).parameters
        assert {n for n, p in ours.items() if p.kind == p.KEYWORD_ONLY} <= set(theirs), name


def test_without_a_yes_nobody_is_asked_anything(run, monkeypatch, capsys) -> None:
    monkeypatch.setattr(place, "HfApi", lambda **_: pytest.fail("the hub was asked"))
    assert call(monkeypatch, run, "--repo", REPO) == 0
    said = capsys.readouterr().out
    for name in FILES:
        assert name in said
    assert f"To {REPO} (private):" in said
    assert "Base model tiny, license apache-2.0." in said
    assert "Nothing was uploaded. To do it, add --yes." in said
    assert call(monkeypatch, run, "--repo", REPO, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["url"] is None
    assert set(found["files"]) == set(FILES)


def test_three_files_go_as_one_commit_into_a_private_repository(run, monkeypatch, capsys) -> None:
    hub = Hub()
    monkeypatch.setattr(place, "HfApi", lambda **_: hub)
    assert call(monkeypatch, run, "--repo", REPO, "--yes") == 0
    assert hub.made == [{"repo": REPO, "private": True}]
    (commit,) = hub.commits
    assert set(commit) == set(FILES)
    adapter = run / "coordinator" / "adapter"
    assert commit["README.md"] == CARD.encode()
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    assert commit["adapter_model.safetensors"] == weights
    assert "https://hub/our-lab/joint-adapter/commit/1" in capsys.readouterr().out


def test_no_path_of_this_machine_goes_along(run, tmp_path) -> None:
    found = parcel(run, REPO)
    assert found.base_model == "tiny"
    assert json.loads(found.content["adapter_config.json"])["base_model_name_or_path"] == "tiny"
    assert not [name for name, data in found.content.items() if str(tmp_path).encode() in data]
    kept = json.loads((run / "coordinator" / "adapter" / "adapter_config.json").read_text())
    assert kept["base_model_name_or_path"] == str(tmp_path / "models" / "tiny"), "the run changed"


def test_what_everybody_can_read_needs_a_word_more(run) -> None:
    hub = Hub(there=False)
    with pytest.raises(UsageError, match="everybody can read this repository"):
        push(parcel(run, REPO), public=False, api=hub)  # pyright: ignore[reportArgumentType]
    assert not hub.commits
    push(parcel(run, REPO), public=True, api=hub)  # pyright: ignore[reportArgumentType]
    assert len(hub.commits) == 1
    assert hub.made[-1]["private"] is False


@pytest.mark.parametrize("name", ["adapter", "our-lab/a--b", "our-lab/..", "a/b/c", "our lab/x"])
def test_a_name_that_the_hub_does_not_take_is_refused_at_once(run, name) -> None:
    with pytest.raises(UsageError, match="--repo "):
        parcel(run, name)


@pytest.mark.parametrize("name", FILES)
def test_a_run_that_has_not_finished_has_nothing_to_push(run, name) -> None:
    (run / "coordinator" / "adapter" / name).unlink()
    with pytest.raises(DataError, match=rf"no {name}\. Give the folder of a run that has finished"):
        parcel(run, REPO)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("no route\nat length"), r"hub does not answer \(no route.*Look at the network"),
        (CLIENT_ERROR("no route"), r"hub does not answer \(no route.*Look at the network"),
        (
            RepositoryNotFoundError(
                "no token",
                response=httpx.Response(404, request=httpx.Request("GET", "https://hub")),
            ),
            r"hub does not take it \(no token.*hf auth login",
        ),
    ],
)
def test_a_hub_that_refuses_is_one_sentence(run, error, said) -> None:
    with pytest.raises(NetworkError, match=said):
        push(parcel(run, REPO), public=False, api=Hub(refuses=error))  # pyright: ignore[reportArgumentType]
