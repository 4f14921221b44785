"""A silo loads its own copy of a model and asks nobody: not the message, not a hub, not a file."""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from federation_helpers import Recorder, merged, open_micro, tiny_model, write_micro
from typer.testing import CliRunner

from clues.config import LoraSettings, ModelSettings, Recipe, SiloSettings, model_files
from clues.errors import CluesError, ConfigError, DataError, RecipeMismatchError
from clues.model.adapters import LoraModel, load_tokenizer
from clues.model.cache import ModelCache
from clues.model.place import identify
from clues.network.settings import load_join
from clues.pipeline import run_until
from clues.progress import Silent
from clues.silo.silo import Silo
from clues.wall.messages import REQUESTS, from_bytes

RUNS = 'import pathlib\npathlib.Path({marker!r}).write_text("ran")\n'
CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
AUTO = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
ELSEWHERE = {key: f"other/repo--{value}" for key, value in AUTO.items()}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("original") / "model")


@pytest.fixture
def model(original, tmp_path) -> Path:
    return shutil.copytree(original, tmp_path / "copied" / "model")


@pytest.fixture
def calls(monkeypatch) -> list[Any]:
    """Every connection that anybody tries to open, with the hub's client allowed to."""
    tried: list[Any] = []

    def refused(self, address):
        tried.append(address)
        raise ConnectionRefusedError("no network in tests")

    def unknown(host, *args, **how):
        tried.append(host)
        raise socket.gaierror("no names in tests")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return tried


def change(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | values))


def load(folder: Path | str, **settings: Any) -> LoraModel:
    """What a silo does with a model's folder."""
    named = ModelSettings(name=str(folder), **settings)
    identify(named)
    load_tokenizer(named)
    return LoraModel.load(named, LoraSettings(rank=2), seed=0, device="cpu")


# --- what a message may say


class World:
    """A run after hello, and copies of silo north to ask."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.model, self.folder = model, folder
        self.config = write_micro(folder / "input", model)
        self.run = open_micro(self.config, folder / "run")
        recorder = Recorder(self.run)
        run_until(self.run, "hello")
        self.crossed = recorder.crossed
        data, _ = recorder.last("north", "hello")
        self.hello = from_bytes(data, allowed=REQUESTS, sender="coordinator")

    def silo(self, tmp_path: Path, **changes: Any) -> Silo:
        content = merged(self.run.silos["north"].settings.model_dump(by_alias=True), changes)
        settings = SiloSettings.model_validate(content)
        return Silo(settings, tmp_path / "north", load_model=ModelCache().load, progress=Silent())

    def asking(self, **model: Any) -> bytes:
        """A hello with other words about the model, and the hash that belongs to them."""
        content = merged(self.hello.recipe, {"model": model})
        digest = Recipe.model_validate(content).hash
        return replace(self.hello, recipe=content, recipe_hash=digest).to_bytes()


@pytest.fixture(scope="module")
def world(tmp_path_factory, original) -> World:
    return World(tmp_path_factory.mktemp("world"), original)


def test_no_path_crosses_and_the_identity_of_the_model_does(world):
    assert set(world.hello.recipe["model"]) == {"name", "files", "dtype"}
    assert world.hello.recipe["model"]["name"] == "model"
    assert set(world.hello.recipe["model"]["files"]) >= {"model.safetensors", "tokenizer.json"}
    for _, request, reply in world.crossed:
        assert b"/" + world.model.parent.name.encode() not in request + reply
        assert str(world.folder).encode() not in request + reply


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("code", [True, False])
def test_a_message_decides_neither_place_nor_revision_nor_permission(
    world, tmp_path, calls, code, own
):
    silo = world.silo(tmp_path, model={"name": str(world.model), "trust_remote_code": own})
    elsewhere = {"name": "evil/model", "revision": "f" * 40, "trust_remote_code": code}
    silo.answer(world.asking(**elsewhere))
    used = silo.space.recipe().model
    assert (used.name, used.revision, used.trust_remote_code) == (str(world.model), None, own)
    assert not calls, "a silo asked somebody"


@pytest.mark.parametrize("files", [None, {}])
@pytest.mark.parametrize("name", ["evil/model", "/etc", "/dev", "..", "file:///etc", "built-in"])
def test_a_recipe_that_does_not_say_what_the_model_consists_of_is_refused(
    world, tmp_path, calls, name, files
):
    content = merged(world.hello.recipe, {"model": {"name": name, "trust_remote_code": True}})
    content["model"]["files"] = files
    digest = Recipe.model_validate(content).hash if files is None else "0" * 12
    request = replace(world.hello, recipe=content, recipe_hash=digest)
    with pytest.raises((RecipeMismatchError, ConfigError), match="files"):
        world.silo(tmp_path).answer(request.to_bytes())
    assert not calls
    assert not (tmp_path / "north/private/recipe.json").exists()


def test_a_silo_whose_model_is_no_folder_here_asks_no_hub(world, tmp_path, calls):
    silo = world.silo(tmp_path, model="owner/name")
    with pytest.raises(DataError, match=r"owner/name.*not in this machine's cache.*hf download"):
        silo.answer(world.hello.to_bytes())
    assert not calls


@pytest.mark.parametrize(
    "files",
    [
        {f"{n}.json": "0" * 64 for n in range(1001)},
        {"x" * 201: "0" * 64},
        {"": "0" * 64},
        {"a": "0" * 63},
        {"a": "0" * 64 + "\n"},
        {"a": "Z" * 64},
        {"a": 5},
        ["a"],
        "a",
    ],
)
def test_odd_lists_of_files_are_refused(world, tmp_path, files):
    content = merged(world.hello.recipe, {})
    content["model"] = {**content["model"], "files": files}
    with pytest.raises(ConfigError, match=r"recipe: model\.files"):
        world.silo(tmp_path).answer(replace(world.hello, recipe=content).to_bytes())


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "\x1b[2J", "a\x00b"])
def test_names_of_files_are_compared_and_never_opened(world, tmp_path, name):
    content = merged(world.hello.recipe, {"model": {"files": {name: "0" * 64}}})
    with pytest.raises(CluesError, match=r"model|hello\.recipe holds a name") as refusal:
        world.silo(tmp_path).answer(replace(world.hello, recipe=content).to_bytes())
    assert "\x1b" not in str(refusal.value)
    assert "\x00" not in str(refusal.value)


def test_the_stored_answer_does_not_hide_a_model_that_has_changed(world, tmp_path, model):
    silo = world.silo(tmp_path, model=str(model))
    silo.answer(world.hello.to_bytes())
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(RecipeMismatchError, match=r"only here: chat_template\.jinja"):
        world.silo(tmp_path, model=str(model)).answer(world.hello.to_bytes())


def test_code_beside_a_model_counts_where_it_may_run_and_nowhere_else(world, tmp_path, model):
    (model / "own.py").write_text(CODE)
    world.silo(tmp_path, model=str(model)).answer(world.hello.to_bytes())
    allowed = world.silo(tmp_path, model={"name": str(model), "trust_remote_code": True})
    with pytest.raises(RecipeMismatchError, match=r"only here: own\.py"):
        allowed.answer(world.hello.to_bytes())


@pytest.mark.slow
def test_a_run_that_is_moved_with_its_model_does_nothing_twice(tmp_path, original):
    first = tmp_path / "here"
    shutil.copytree(original, first / "base")
    config = write_micro(first / "input", first / "base")
    config.write_text(config.read_text().replace(str(first / "base"), "../base"))
    run_until(open_micro(config, first / "run"), "train")
    then = tmp_path / "there"
    shutil.copytree(first, then)
    shutil.rmtree(first)
    (then / "base").rename(then / "renamed")
    config = then / "input" / config.name
    config.write_text(config.read_text().replace("../base", "../renamed"))
    run = open_micro(config, then / "run")
    recorder = Recorder(run)
    run_until(run, "train")
    asked = {from_bytes(data, allowed=REQUESTS, sender="c").kind for _, data, _ in recorder.crossed}
    assert asked == {"hello"}, "a moved run trains again"


# --- what counts


@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer.model", "vocab.txt", "vocab.json", "merges.txt", "spiece.model"),
        *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
        *("chat_template.json", "additional_chat_templates/tool_use.jinja"),
        *("generation_config.json", "quantize_config.json", "adapter_config.json"),
        *("model-00002-of-00002.safetensors", "model.safetensors.index.json", "anything.else"),
    ],
)
def test_every_file_that_can_change_an_answer_counts(model, name):
    before = model_files(model, code=False)
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("{}")
    added = model_files(model, code=False)
    (model / name).write_text("{ }")
    changed = model_files(model, code=False)
    assert len({json.dumps(found, sort_keys=True) for found in (before, added, changed)}) == 3


def test_pages_pictures_and_weights_that_nobody_opens_do_not_count(model):
    before = model_files(model, code=False)
    for name in ("README.md", "LICENSE", "a.png", "pytorch_model.bin", "x.gguf", ".gitattributes"):
        (model / name).write_text(name)
    (model / ".git").mkdir()
    (model / ".git/config").write_text("x")
    assert model_files(model, code=False) == before


def test_links_out_of_a_model_and_what_is_no_file_are_refused(model, tmp_path):
    (tmp_path / "outside").write_text("x")

    def refused(match: str, name: str, make: Callable[[Path], Any]) -> None:
        make(model / name)
        with pytest.raises(DataError, match=match):
            model_files(model, code=False)
        (model / name).unlink()

    refused("leads out", "a.json", lambda p: p.symlink_to(tmp_path / "outside"))
    refused("leads out", "a.json", lambda p: p.symlink_to("../../outside"))
    refused("leads out|cannot be read", "a.json", lambda p: p.symlink_to("/dev/zero"))
    refused("link to a folder", "more", lambda p: p.symlink_to(tmp_path))
    refused("cannot be read", "a.json", lambda p: p.symlink_to("a.json"))
    refused("cannot be read", "a.json", lambda p: p.symlink_to("nothing"))
    refused("no plain file", "a.json", os.mkfifo)
    (model / "same.json").symlink_to("config.json")
    assert (
        model_files(model, code=False)["same.json"] == model_files(model, code=False)["config.json"]
    )


def cached(cache: Path, model: Path, name: str, commit: str = "a" * 40) -> None:
    """A model as the hub's client keeps it: links in a snapshot to bytes beside it."""
    home = cache / f"models--{name.replace('/', '--')}"
    (home / "blobs").mkdir(parents=True)
    (home / "snapshots" / commit).mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs/main").write_text(commit)
    for path in model.iterdir():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, home / "blobs" / digest)
        (home / "snapshots" / commit / path.name).symlink_to(f"../../blobs/{digest}")


def test_a_hub_name_is_a_folder_in_the_cache_with_the_same_files(
    world, tmp_path, model, monkeypatch, calls
):
    cached(tmp_path / "cache", model, "owner/name")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    silo = world.silo(tmp_path, model={"name": "owner/name", "revision": "a" * 40})
    silo.answer(world.hello.to_bytes())
    silo.space.recipe()
    adapter = load("owner/name")
    assert adapter.peft.peft_config["default"].base_model_name_or_path == "owner/name"
    assert not calls
    with pytest.raises(DataError, match="--revision ffff"):
        identify(ModelSettings(name="owner/name", revision="f" * 40))


# --- code, and other places that a folder may name


@pytest.fixture
def with_code(model, tmp_path) -> tuple[Path, Path]:
    """A model whose code writes a file when it runs."""
    marker = tmp_path / "ran"
    (model / "own.py").write_text(RUNS.format(marker=str(marker)) + CODE)
    change(model, "config.json", auto_map=AUTO, model_type="own")
    return model, marker


def test_code_of_a_model_runs_where_its_owner_said_so_and_nowhere_else(
    with_code, tmp_path, monkeypatch, calls
):
    folder, marker = with_code
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    monkeypatch.syspath_prepend(str(tmp_path / "m"))
    with pytest.raises(DataError, match=r"no (tokenizer|model) can be loaded"):
        load(folder)
    assert not marker.exists(), "code of a model ran"
    load(folder, trust_remote_code=True)
    assert marker.exists()
    assert not calls


@pytest.mark.parametrize("trust", [True, False])
@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("config.json", {"auto_map": ELSEWHERE}, "code of another model"),
        ("config.json", {"text_config": {"auto_map": ELSEWHERE}}, "code of another model"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a/b--t.T", None]}}, "another"),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "a/b--t.T"}}, "another model"),
        ("preprocessor_config.json", {"auto_map": {"AutoImage": "a/b--t.T"}}, "another model"),
        ("anything.json", {"auto_map": "a/b--t.T"}, "another model"),
        ("adapter_config.json", {"base_model_name_or_path": "a/b", "peft_type": "LORA"}, "adapter"),
        ("config.json", {"transformers_weights": "other.safetensors"}, "names other weights"),
        ("config.json", {"quantization_config": {"quant_method": "awq"}}, "cannot be read here"),
        ("tokenizer_config.json", {"tokenizer_class": 5}, "no tokenizer"),
    ],
)
def test_a_folder_that_leads_elsewhere_is_refused_and_nobody_is_asked(
    model, calls, name, values, why, trust
):
    change(model, name, **values)
    with pytest.raises(DataError, match=why):
        load(model, trust_remote_code=trust)
    assert not calls


@pytest.mark.parametrize("trust", [True, False])
def test_names_that_transformers_does_not_follow_ask_nobody_either(model, calls, trust):
    change(model, "config.json", _name_or_path="evil/model", custom_generate="evil/model")
    change(model, "generation_config.json", custom_generate="evil/model")
    change(model, "tokenizer_config.json", name_or_path="evil/model", tokenizer_class="EvilFast")
    load(model, trust_remote_code=trust)
    assert not calls


def split_weights(folder: Path, part: Any) -> None:
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "part",
    [
        *("pytorch_model.bin", "../../../../../etc/passwd", "/etc/x.safetensors", "", "."),
        *("sub/part.safetensors", "../model/part.safetensors", "nothing.safetensors"),
        *("part.safetensors.bin", 5, None, ["part.safetensors"]),
    ],
)
def test_an_index_names_safetensors_of_its_own_folder_and_nothing_else(model, part):
    (model / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    split_weights(model, part)
    with pytest.raises(DataError, match=r"index\.json: names .*same folder only"):
        load(model)


def test_split_weights_that_lie_beside_their_index_load(model):
    split_weights(model, "part.safetensors")
    load(model)


# --- configurations that are damaged, or bombs


BOMBS = {
    "a million layers": {"num_hidden_layers": 10**6},
    "as many as a float holds": {"num_hidden_layers": 1e300},
    "fewer than none": {"num_hidden_layers": -1},
    "more than are stored": {"num_hidden_layers": 3},
    "layers that are text": {"num_hidden_layers": "2"},
    "a vocabulary too small": {"vocab_size": 100},
    "too large": {"vocab_size": 10**12},
    "larger than any number": {"vocab_size": 10**30},
    "below zero": {"vocab_size": -1},
    "no heads": {"num_attention_heads": 0},
    "no key heads": {"num_key_value_heads": 0},
    "a giant head": {"head_dim": 10**9},
    "a billion labels": {"num_labels": 10**9},
    "labels that are no numbers": {"id2label": {"a": 1}},
    "an odd rope": {"rope_parameters": {"rope_type": "odd"}},
    "an odd rope of old": {"rope_scaling": {"type": "odd"}},
    "a list": {"hidden_size": [1]},
    "nothing": {"rms_norm_eps": None},
    "an unknown activation": {"hidden_act": "nope"},
    "an unknown type": {"model_type": "odd"},
    "gptq without its package": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "quantised as a list": {"quantization_config": [1]},
    "a token out of range": {"pad_token_id": 10**9},
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_configuration_that_cannot_be_built_is_one_message(model, bomb):
    change(model, "config.json", **BOMBS[bomb])
    with pytest.raises(DataError) as refusal:
        load(model)
    assert str(model) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"]
)
@pytest.mark.parametrize("text", ["[]", "null", "1", '"x"', "{", "\x00", "", "[" * 100_000])
def test_a_damaged_file_of_a_model_is_one_message(model, name, text):
    (model / name).write_text(text)
    with pytest.raises(DataError, match=r"json|no tokenizer can be loaded"):
        load(model)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x08\x00\x00\x00\x00\x00\x00\x00{}"])
def test_damaged_weights_are_one_message(model, content):
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match="safetensors"):
        load(model)


# --- settings


def test_a_silos_file_says_where_its_model_is(tmp_path, model):
    base = {"name": "a", "data": "rows.jsonl", "domain": "d"}
    content = {"coordinator": "127.0.0.1:1", "insecure": True, "folder": "x"}
    cases = [
        ("model", {"name": str(model)}),
        ({"name": "model", "trust_remote_code": True}, {"name": str(model)}),
        ("owner/name", {"name": "owner/name"}),
        ({"name": "owner/name", "revision": "v1"}, {"name": "owner/name", "revision": "v1"}),
    ]
    for given, expected in cases:
        path = model.parent / "join.json.yaml"
        path.write_text(json.dumps({**content, "silo": {**base, "model": given}}))
        found = load_join(path).silo.model
        assert found is not None
        assert expected.items() <= found.model_dump().items()
        beside = model.parent / "silo.yaml"
        beside.write_text(json.dumps({**base, "model": given}))
        path.write_text(json.dumps({**content, "silo": "silo.yaml"}))
        assert load_join(path).silo.model == found


def test_join_goes_offline_before_it_reads_anything(monkeypatch, tmp_path):
    from clues.cli.program import app

    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    for name in names:
        monkeypatch.setenv(name, "0")
    seen: list[dict[str, str]] = []

    def stop(path):
        seen.append({name: os.environ[name] for name in names})
        raise ConfigError("enough")

    monkeypatch.setattr("clues.network.settings.load_join", stop)
    CliRunner().invoke(app, ["join", str(tmp_path / "silo.yaml")])
    assert seen == [dict.fromkeys(names, "1")]


@pytest.mark.parametrize("code", [True, False])
def test_a_hub_is_asked_by_who_starts_a_run_and_for_what_counts(monkeypatch, tmp_path, code):
    asked: list[dict[str, Any]] = []

    def snapshot(name, **how):
        asked.append({"name": name, **how})
        return str(tmp_path)

    monkeypatch.setattr("clues.model.place.snapshot_download", snapshot)
    model = ModelSettings(name="owner/name", revision="v1", trust_remote_code=code)
    ModelCache().fetched(model)
    identify(model)
    assert [call["local_files_only"] for call in asked] == [False, True, True]
    assert {call["revision"] for call in asked} == {"v1"}
    for call in asked:
        assert ("*.py" in call["ignore_patterns"]) != code
        assert {"*.bin", "*.pt", "*.pkl"} <= set(call["ignore_patterns"])
