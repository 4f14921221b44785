"""The library's front door: a few names, rows in memory, and a model that is left as it is."""

import json
import random
import stat
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from federation_helpers import tiny_model
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from test_cli import call
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)

import clues
from clues.config import LoraSettings
from clues.data.damage import damage_rows
from clues.errors import ConfigError, DataError, RecipeMismatchError, UsageError
from clues.model.adapters import LoraModel
from clues.model.borrowed import shared_copy
from clues.prepare.facts import make_questions
from clues.progress import Silent
from clues.scoring.table import ScoreTable

MARK = "zebra-77"
SMALL = {
    "lora": {"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": "all-linear"},
    "tokens": {"max_length": 384},
    "train": {"steps": 3, "rounds": 1, "learning_rate": 0.01, "batch_size": 4},
    "model": {"dtype": "float32"},
    # Weights that are not to be found: the search for them takes as long as all the rest.
    "score": {"loss_weight": 0.5, "alignment_weight": 0.0},
    "threshold": {"quantile": 0.3, "confidence": 0.5, "bootstrap": 10},
}


@pytest.fixture(scope="module", autouse=True)
def one_place_for_temporary_folders(tmp_path_factory):
    """So that a test can look whether anything is left there."""
    place = tmp_path_factory.mktemp("temporary")
    before, tempfile.tempdir = tempfile.tempdir, str(place)
    yield place
    tempfile.tempdir = before


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data() -> dict[str, list[dict]]:
    made = make_questions("medicine", language="en", seed=5)
    plain = [{k: row[k] for k in ("instruction", "output")} for row in made]
    damaged, labels = damage_rows(
        plain[:14], share=0.5, kinds=("cut", "delete"), seed=0, foreign=[]
    )
    rows = [
        {"instruction": r["instruction"], "output": r["output"], "key": n, "bad": label or ""}
        for n, (r, label) in enumerate(zip(damaged, labels, strict=True))
    ]
    return {"rows": rows, "validation": plain[20:25], "anchors": plain[30:40]}


@pytest.fixture(scope="module")
def scored(data, model) -> clues.Found:
    return small_score(data, model=model)


def small_score(data, **how) -> clues.Found:
    settings = {"recipe": SMALL, "seed": 3, "progress": False} | how
    with warnings.catch_warnings():
        # A random model may keep everything; that is looked at elsewhere.
        warnings.filterwarnings("ignore", message="the threshold keeps")
        return clues.score(
            data["rows"], validation=data["validation"], anchors=data["anchors"], **settings
        )


def loaded(model: Path) -> tuple:
    return AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)


def marked(n: int, start: int = 0) -> list[dict]:
    return [
        {"instruction": f"{MARK} question {i}?", "output": f"{MARK} answer {i}."}
        for i in range(start, start + n)
    ]


# --- the names


def test_the_names_are_these():
    names = "CluesError Found Recipe Threshold __version__ load_config merge read_rows run score"
    assert clues.__all__ == dir(clues) == [*names.split(), "select", "write_rows"]
    assert all(getattr(clues, name) for name in clues.__all__)
    with pytest.raises(AttributeError, match="no attribute 'scoer'"):
        _ = clues.scoer  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_the_import_costs_nothing():
    code = (
        "import sys, time; t = time.perf_counter(); import clues; s = time.perf_counter() - t\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "print(s, *heavy); clues.read_rows; sys.exit('torch' in sys.modules)"
    )
    # The least of three: other programs of the machine do not count.
    found = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    seconds, *heavy = zip(*(done.stdout.split() for done in found), strict=True)
    assert min(map(float, seconds)) < 0.1
    assert heavy == []


# --- the same as a run


@pytest.mark.walk
def test_it_is_a_run_of_one_silo_to_the_last_digit(scored, data, model, tmp_path, monkeypatch):
    """Oracle: the same rows and settings through the command line."""
    monkeypatch.chdir(tmp_path)
    for name, rows in data.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    public = "validation.jsonl,anchors.jsonl"
    named = ("--silo", "rows=rows.jsonl", "--public", public, "--model", model)
    assert call("init", *named)[0] == 0
    content = yaml.safe_load(Path("clues.yaml").read_text())
    for key, settings in SMALL.items():
        content["recipe"][key] = content["recipe"].get(key, {}) | settings
    content["recipe"]["seed"] = 3
    Path("clues.yaml").write_text(yaml.safe_dump(content))
    assert call("run", "clues.yaml", "--out", "run", "-q", "--allow-degenerate")[0] == 0

    private = Path("run/silos/rows/private")
    threshold = clues.Threshold.from_json(json.loads((private / "threshold.json").read_text()))
    table = ScoreTable.read(private / "scores.parquet")
    in_units = table.in_units(threshold, ["domain general"], where="rows")
    assert np.abs(scored.scores[table.row] - in_units).max() == 0.0
    assert scored.threshold == threshold
    lines = (private / "decisions.csv").read_text().splitlines()[1:]
    ours = [f"{d.row},{d.row + 1},{d.id},{d.score},{int(d.kept)}," for d in scored.decisions]
    assert [line.startswith(start) for line, start in zip(lines, ours, strict=True)] == [True] * 14
    kept = [json.loads(line) for line in (private / "kept.jsonl").read_text().splitlines()]
    assert scored.kept() == kept
    results = clues.run("clues.yaml", folder="run", allow_degenerate=True, progress=False)
    assert results.silos["rows"].rows == 10, "rounded to tens, as everybody sees it"
    assert clues.run("clues.yaml", folder="run", until="select", progress=False) is None


@pytest.mark.walk
def test_the_same_in_every_type_and_each_comes_back_as_it_went_in(scored, data, model, tmp_path):
    path = tmp_path / "mine.csv"
    frame = pd.DataFrame(data["rows"]).set_index(pd.Index(range(100, 114)))
    frame.to_csv(path, index=False)
    dataset = datasets.Dataset.from_list(data["rows"])
    public = {
        "validation": tmp_path / "v.jsonl",
        "anchors": datasets.Dataset.from_list(data["anchors"]),
    }
    public["validation"].write_text("".join(json.dumps(r) + "\n" for r in data["validation"]))
    # Dates, arrays and NaN in columns of the user's own do no harm.
    beside = {"when": pd.Timestamp("2026-11-26"), "n": np.float32("nan"), "list": np.arange(3)}
    odd = [row | beside for row in data["rows"]]
    for rows, plain in (
        (odd, lambda found: [{k: row[k] for k in data["rows"][0]} for row in found]),
        (frame, lambda f: f.to_dict("records")),
        (dataset, lambda d: d.to_list()),
        (str(path), lambda found: [{**row, "key": int(row["key"])} for row in found]),
    ):
        found = small_score(public | {"rows": rows}, model=model)
        assert np.array_equal(found.scores, scored.scores)
        assert found.positions == scored.positions
        assert plain(found.kept()) == scored.kept()
        assert type(found.kept()) is (list if isinstance(rows, str) else type(rows))
        assert len(found.dropped()) == 14 - len(found.positions)
        if rows is frame:
            assert list(found.kept().index) == [100 + n for n in found.positions]
    assert all(any(row is given for given in data["rows"]) for row in scored.kept())


def test_what_was_found_can_be_looked_at(scored, data, tmp_path):
    table = scored.to_pandas()
    assert list(table.columns) == ["row", "id", "score", "kept", "reason"]
    assert table["row"].tolist() == list(range(14))
    assert table["score"].tolist() == scored.scores.tolist()
    assert tuple(table["row"][table["kept"]]) == scored.positions
    page = scored.report(tmp_path / "new" / "page.html").read_text()
    assert "<!doctype html>" in page[:100].lower()
    assert data["rows"][0]["output"] not in repr(scored)
    assert f"{len(scored.positions)} of 14 rows kept" in repr(scored)


# --- another threshold


@pytest.mark.slow
def test_another_threshold_needs_no_training(scored, data, model):
    order = np.sort(scored.scores)
    tried = clues.select(scored, threshold=float(order[5]))
    assert tried.positions == tuple(np.flatnonzero(scored.scores >= order[5]))
    assert np.array_equal(tried.scores, scored.scores)
    back = clues.select(tried, threshold=scored.threshold)
    assert back.positions == scored.positions
    with pytest.raises(UsageError, match="slider"):
        tried.report("page.html")
    for changes, how in (
        ({"quantile": 0.6}, {"quantile": 0.6}),
        ({"rule": "ratio", "ratio": 0.4}, {"ratio": 0.4}),
    ):
        again = small_score(
            data, model=model, recipe=SMALL | {"threshold": SMALL["threshold"] | changes}
        )
        tried = clues.select(scored, **how)
        assert tried.threshold == again.threshold
        assert np.array_equal(tried.scores, again.scores)
        assert tried.positions == again.positions
        with pytest.raises(RecipeMismatchError):
            clues.select(scored, threshold=again.threshold)
    with pytest.raises(UsageError, match="rule ratio has no quantile"):
        clues.select(tried, quantile=0.1)
    for odd in ("0.5", float("nan")):
        with pytest.raises(UsageError, match="give a finite number"):
            clues.select(scored, threshold=odd)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="one of"):
        clues.select(scored)
    with pytest.raises(ConfigError, match=r"threshold: quantile: .* less than or equal to 0"):
        clues.select(scored, quantile=1.5)


def test_keeping_everything_or_nothing_is_said_aloud(scored):
    # One of the 14 is set aside for its text, whatever it scores.
    assert [d.why for d in scored.decisions if d.row in scored.evidence.aside] == ["near_empty"]
    for threshold, what in ((-1e9, "every row of 13"), (1e9, "no row of 13")):
        with pytest.warns(UserWarning, match=what) as said:
            clues.select(scored, threshold=threshold)
        assert said[0].filename == __file__


# --- recipe, checked rows, progress


@pytest.mark.slow
def test_settings_come_as_a_dict_or_as_a_recipe(scored, data, model):
    as_recipe = small_score(data, model=model, recipe=scored.recipe, name="rows")
    assert np.array_equal(as_recipe.scores, scored.scores)
    assert as_recipe.recipe.hash == scored.recipe.hash
    own = small_score(data, recipe=scored.recipe)
    assert np.array_equal(own.scores, scored.scores), "the recipe's own model"
    changed = {
        **SMALL,
        "score": SMALL["score"] | {"form": "adam"},
        "train": SMALL["train"] | {"steps": np.int64(2)},
    }
    other = small_score(data, model=model, recipe=changed, seed=4, name="clues", domain="heart")
    assert (other.recipe.score.form, other.recipe.train.steps, other.recipe.seed) == ("adam", 2, 4)
    for recipe, message in (
        ({"score": {"fomr": "adam"}}, "^unknown key recipe.score.fomr. Did you mean 'form'"),
        ({"score": {"form": object()}}, "recipe.score.form: a value of type object is no"),
        ({"public": {}}, "come as validation and anchors"),
        ({"seed": -1}, r"^recipe\.seed: "),
    ):
        with pytest.raises(ConfigError, match=message):
            clues.score(
                data["rows"],
                validation=data["validation"],
                anchors=data["anchors"],
                recipe=recipe,
                progress=False,
            )


@pytest.mark.slow
def test_after_an_aim_another_threshold_is_the_rules_own(data, model):
    sets = {"validation": data["validation"], "anchors": data["anchors"], "progress": False}
    recipe = {**SMALL, "threshold": {**SMALL["threshold"], "aim": "model"}}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the threshold keeps")
        found = clues.score(data["rows"], model=model, recipe=recipe, **sets)
        other = clues.select(found, quantile=0.2)
        best = clues.select(found, ratio=0.5)
    assert found.threshold.value >= other.threshold.value == pytest.approx(-1)
    assert sum(d.kept for d in best.decisions) == round(0.5 * len(found.scores))


@pytest.mark.slow
def test_rejected_rows_count_against_rows_that_are_like_them(data, model):
    bad = [{**row, "output": f"{row['output']} Buy it now."} for row in data["rows"][:12]]
    settings = {**SMALL, "score": {"loss_weight": 0, "alignment_weight": 0, "reject_weight": 1}}
    sets = {"validation": data["validation"], "anchors": data["anchors"], "progress": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the threshold keeps")
        plain = clues.score(data["rows"], model=model, recipe=settings, **sets)
        found = clues.score(data["rows"], rejected=bad, model=model, recipe=settings, **sets)
    (units,) = found.threshold.units.values()
    assert set(units.weights) == {"validation", "reject"}
    assert not np.allclose(found.scores, plain.scores)
    with pytest.raises(DataError, match="at least 10 are needed"):
        clues.score(data["rows"], rejected=bad[:3], model=model, recipe=SMALL, **sets)


@pytest.mark.slow
def test_one_list_of_checked_rows_is_dealt_as_init_does(data, model, capfd):
    checked = data["validation"] + data["anchors"]
    settings = {key: value for key, value in SMALL.items() if key != "score"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the threshold keeps")
        found = clues.score(data["rows"], checked=checked, model=model, recipe=settings)
    assert found.threshold.n_anchors == 8
    assert found.recipe.score.weighed == {"loss": True, "alignment": True}, "as init has it"
    assert capfd.readouterr().out == "", "progress goes to the error stream"
    for how in ({}, {"validation": checked}, {"checked": checked, "anchors": checked}):
        with pytest.raises(UsageError, match="validation and anchors, or checked alone"):
            clues.score(data["rows"], progress=False, **how)


class Noted(Silent):
    """Remembers what was reported, and looks at the run's folder on the way."""

    def __init__(self, place: Path, stop: BaseException | None = None) -> None:
        self.said: list[str] = []
        self.modes: set[str] = set()
        self.place, self.stop = place, stop

    def task(self, description, total):
        self.said.append(description)
        self.modes |= {stat.filemode(p.stat().st_mode) for p in self.place.glob("clues-*")}
        if self.stop and "score" in description:
            raise self.stop
        return super().task(description, total)


@pytest.mark.slow
def test_rows_lie_in_a_private_folder_that_goes_whatever_happens(
    data, model, one_place_for_temporary_folders
):
    place = one_place_for_temporary_folders
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    noted = Noted(place)
    small_score(data, model=model, progress=noted)
    assert noted.modes == {"drwx------"}
    assert any("score" in said for said in noted.said)
    for stop in (KeyboardInterrupt(), DataError("silo rows row 3: odd")):
        with pytest.raises(type(stop)) as raised:
            small_score(data, model=model, progress=Noted(place, stop))
        assert str(raised.value) in ("", "rows[2]: odd")
        assert list(place.glob("clues-*")) == []
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    assert before[:2] == after[:2], "the caller's randomness"
    assert torch.equal(before[2], after[2])


# --- a model that is loaded already


def everything_of(model) -> dict:
    """What a caller could notice: weights bit for bit, where they lie, flags, names, hooks."""
    return {
        "weights": {n: t.clone() for n, t in model.state_dict().items()},
        "places": {
            n: (id(p), p.data_ptr(), p.dtype, p.device) for n, p in model.named_parameters()
        },
        "flags": {n: (p.requires_grad, p.grad is None) for n, p in model.named_parameters()},
        "modules": [(n, id(m), type(m), m.training) for n, m in model.named_modules()],
        "hooks": [
            (n, list(m._forward_hooks.items()), list(m._forward_pre_hooks))
            for n, m in model.named_modules()
        ],
        "adapters": (
            list(getattr(model, "peft_config", ())),
            getattr(model, "active_adapter", ""),
        ),
    }


def assert_untouched(model, before) -> None:
    after = everything_of(model)
    weights, those = after.pop("weights"), before["weights"]
    assert weights.keys() == those.keys()
    assert all(torch.equal(weights[n], those[n]) for n in those), "a weight has changed"
    for what, value in after.items():
        assert value == before[what], f"{what} changed"


def with_adapters(base):
    """Two LoRA adapters that do something; the second is active, and trains."""
    torch.manual_seed(1)
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    wrapped = get_peft_model(base, config, adapter_name="default")
    wrapped.add_adapter("second", config)
    wrapped.set_adapter("second")
    return wrapped.train()


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("stop", [None, KeyboardInterrupt(), DataError("stopped")])
def test_a_loaded_model_is_left_exactly_as_it_was(
    scored, data, model, wrapped, stop, one_place_for_temporary_folders
):
    base, tokenizer = loaded(model)
    used = with_adapters(base) if wrapped else base
    seen: list[int] = []
    handle = used.get_submodule("model").register_forward_hook(lambda *_: seen.append(1))
    next(used.parameters()).requires_grad_(False)
    before = everything_of(used)
    vocabulary = len(tokenizer)
    if stop:
        noted = Noted(one_place_for_temporary_folders, stop)
        with pytest.raises(type(stop)):
            small_score(data, model=(used, tokenizer), progress=noted)
    else:
        found = small_score(data, model=(used, tokenizer))
        equal = np.array_equal(found.scores, scored.scores)
        assert equal is not wrapped, "adapters count, and nothing else does"
        assert "(as loaded)" in found.recipe.model.name
    assert_untouched(used, before)
    assert len(tokenizer) == vocabulary
    handle.remove()


@pytest.mark.slow
def test_adapters_of_the_caller_count_as_if_they_were_merged(data, model, tmp_path):
    base, tokenizer = loaded(model)
    used = with_adapters(base.double())
    (tmp_path / "merged").mkdir()
    again = with_adapters(AutoModelForCausalLM.from_pretrained(model).double())
    again.merge_and_unload().save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    recipe = {**SMALL, "model": {"dtype": "float64"}}
    ours = small_score(data, model=(used, tokenizer), recipe=recipe)
    theirs = small_score(data, model=tmp_path / "merged", recipe=recipe)
    assert ours.recipe.model.dtype == "float64"
    # Not less: the norms of this model compute in float32.
    assert np.abs(ours.scores - theirs.scores).max() < 1e-3 * np.abs(theirs.scores).max()
    assert ours.positions == theirs.positions


def test_the_second_tree_of_modules_lies_on_the_same_weights(model):
    base, _ = loaded(model)
    used = with_adapters(base)
    ids = torch.tensor([[5, 6, 7, 8]])
    used.eval()
    with torch.no_grad():
        expected = used(input_ids=ids).logits
    twin = shared_copy(used.get_base_model())
    with torch.no_grad():
        assert torch.equal(twin(input_ids=ids).logits, expected)
    ours = {p.data_ptr() for p in used.parameters()}
    assert all(p.data_ptr() in ours for p in twin.parameters()), "a second copy of a weight"
    assert not any(p.requires_grad for p in twin.parameters())
    lora = LoraModel(twin, LoraSettings(target_modules="all-linear"), seed=0, device="cpu")
    with torch.no_grad():
        assert torch.equal(lora.peft(input_ids=ids).logits, expected), "B is zero at first"
    assert sum(p.requires_grad for p in lora.peft.parameters()) == 2 * 7 * 2
    assert not any("second" in name for name in lora.parameters())


def test_a_model_that_cannot_be_scored_is_refused(data, model, tmp_path):
    base, tokenizer = loaded(model)
    classes = LlamaForSequenceClassification(
        LlamaConfig(
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            vocab_size=16,
        )
    )
    prompt = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model),
        PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    )
    endless = AutoTokenizer.from_pretrained(model)
    endless.eos_token = None
    base.save_pretrained(tmp_path / "bare")
    for given, kind, message in (
        (base, UsageError, r"type LlamaForCausalLM. Give \(model, tokenizer\)"),
        ((base, None), UsageError, "the tokenizer is of type NoneType"),
        ((tokenizer, base), UsageError, "the tokenizer is of type LlamaForCausalLM"),
        ((torch.nn.Linear(2, 2), tokenizer), UsageError, "Linear is not a causal language model"),
        ((classes, tokenizer), UsageError, "LlamaForSequenceClassification is not a causal"),
        ((prompt, tokenizer), DataError, "a learned prompt"),
        ((base, endless), DataError, "no end token"),
        (7, UsageError, "model: type int"),
        (str(tmp_path), UsageError, "no model there"),
        (tmp_path / "bare", DataError, "no tokenizer can be loaded"),
    ):
        with pytest.raises(kind, match=message):
            small_score(data, model=given)


# --- rows that cannot be used


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the threshold keeps")
def test_a_row_that_cannot_be_used_is_dropped_by_name_and_costs_no_other(data, model):
    rows = [dict(row) for row in data["rows"]]
    rows[3]["output"], rows[5]["output"] = None, " "
    with_nan = pd.DataFrame(rows)
    for source in (rows, with_nan):
        found = small_score(data | {"rows": source}, model=model)
        said = {d.row: (d.why, d.kept) for d in found.decisions if np.isnan(found.scores[d.row])}
        assert said == {3: ("not usable", False), 5: ("not usable", False)}
        assert "null" in found.decisions[3].reason
        assert "empty" in found.decisions[5].reason
        n_judged = len(rows) - 2 - len(found.evidence.aside)
        with pytest.warns(UserWarning, match=f"every row of {n_judged}"):
            again = clues.select(found, threshold=-1e6)
        assert not {3, 5} & set(again.positions)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the threshold keeps")
def test_what_a_reader_sees_is_set_aside_flagged_or_not_looked_for(data, model):
    rows = [dict(row) for row in data["rows"]]
    rows[2]["output"] = "As an AI language model, I cannot answer that."
    aside = small_score(data | {"rows": rows}, model=model)
    assert (aside.decisions[2].why, aside.decisions[2].kept) == ("refusal", False)
    assert 2 not in clues.select(aside, threshold=-1e6).positions, "no threshold brings it back"
    looked = {
        name: small_score(data | {"rows": rows}, model=model, findings=name)
        for name in ("flag", "off")
    }
    for found in looked.values():
        assert np.array_equal(found.scores, aside.scores)
        assert found.decisions[2].why == "score"
        assert 2 in clues.select(found, threshold=-1e6).positions
    by_kind = small_score(data | {"rows": rows}, model=model, findings={"cut": "set_aside"})
    assert by_kind.decisions[2].why == "score"
    with pytest.raises(ConfigError, match="findings"):
        small_score(data | {"rows": rows}, model=model, findings="drop")


def test_bad_input_is_named_by_position_and_never_shown(tmp_path, capfd):
    good = {"validation": marked(5, 100), "anchors": marked(6, 200)}
    rows = marked(8)

    def changed(position: int, **values) -> list[dict]:
        return [row | values if n == position else row for n, row in enumerate(rows)]

    frame = pd.DataFrame(rows)
    dataset = datasets.Dataset.from_list(rows)
    splits = datasets.DatasetDict({"train": dataset, "test": dataset})
    two = rows[:4] + [{"prompt": MARK, "completion": f"{MARK} {n}"} for n in range(4)]
    half = [r | {"output": 5} if n % 2 else r for n, r in enumerate(rows)]
    (tmp_path / "bad.jsonl").write_text(json.dumps({"instruction": MARK, "output": None}) + "\n")
    cases = [
        ({"rows": [{"instruction": MARK}] * 6}, DataError, "^rows: no schema fits"),
        ({"rows": []}, UsageError, "rows: there are no rows"),
        ({"rows": frame[:0]}, UsageError, "rows: there are no rows"),
        ({"rows": half}, DataError, r"4 bad rows; rows\[1\]: output is a number, not text"),
        ({"rows": changed(2, output=object())}, DataError, r"rows\[2\]: output is of type object"),
        ({"rows": two}, DataError, r"rows\[0\] is alpaca; rows\[4\] is prompt_completion"),
        ({"rows": [*rows, MARK]}, UsageError, r"rows\[8\]: type str, not a dict"),
        ({"rows": {"instruction": [MARK]}}, UsageError, "rows: type dict. Give a list of dicts"),
        ({"rows": iter(rows)}, UsageError, "rows: type list_iterator"),
        ({"rows": None}, UsageError, "rows: type NoneType"),
        ({"rows": splits}, UsageError, r"splits train, test. Give one .* rows\['train'\]"),
        ({"rows": dataset.to_iterable_dataset()}, UsageError, "cannot be read twice"),
        ({"rows": tmp_path / "bad.jsonl"}, DataError, r"bad.jsonl: 1 bad row; line 1: output"),
        ({"rows": tmp_path / "none.jsonl"}, DataError, "there is no such file"),
        ({"anchors": marked(4)}, DataError, "anchors: 4 rows, and 5 are needed"),
        ({"anchors": marked(6, 5)}, DataError, r"3 of 6 also stand in rows, .* anchors\[0\]"),
        ({"anchors": marked(6, 99)}, DataError, r"5 of 6 also stand in validation.*anchors\[1\]"),
        ({"anchors": [*marked(6, 200), {}]}, DataError, r"anchors\[6\]: instruction is missing"),
        ({"validation": "nowhere/x.jsonl"}, DataError, "there is no folder nowhere"),
        ({"name": "a/b"}, UsageError, "cannot be the name of a silo"),
        ({"schema": "messages"}, DataError, "rows: schema messages needs messages"),
        ({"recipe": {"tokens": {"max_length": 4}}}, DataError, "^rows: no row fits into 4 tokens"),
        (
            {"recipe": {"tokens": {"max_length": 30, "overlong": "error"}}},
            DataError,
            r"^rows\[0\]: (longer than|no response token)",
        ),
    ]  # fmt: skip
    for change, kind, message in cases:
        arguments = {"rows": rows, **good, "progress": False} | change
        with pytest.raises(kind, match=message) as raised:
            clues.score(arguments.pop("rows"), **arguments)
        error = raised.value
        while error is not None:
            assert MARK not in str(error), message
            assert "clues-" not in str(error), "a path of ours in a message"
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert MARK not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_a_row_that_is_too_long_has_no_score_and_a_reason(data, model, capfd):
    rows = [*data["rows"], {"instruction": "long?", "output": "so long " * 100}]
    found = small_score(data | {"rows": rows}, model=model)
    assert capfd.readouterr() == ("", ""), "progress=False is silent"
    assert np.isnan(found.scores[14])
    assert found.decisions[14].reason == "longer than 384 tokens"
    assert 14 not in clues.select(found, ratio=0.9).positions


# --- merging


def test_adapters_are_merged_from_folders_and_from_states(model, tmp_path):
    base, _ = loaded(model)
    settings = LoraSettings(rank=2, alpha=6, target_modules=("q_proj",))
    lora = LoraModel(base, settings, seed=0, device="cpu")
    generator = torch.Generator().manual_seed(0)
    states = [
        {n: torch.randn(t.shape, generator=generator) for n, t in lora.state().items()}
        for _ in range(2)
    ]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, state in zip(folders, states, strict=True):
        lora.save(state, folder)
    merged = clues.merge(folders, weights=[3, 1], folder=tmp_path / "joint")
    from_states = clues.merge(states, weights=[3, 1])
    a, b = (next(n for n in states[0] if f".lora_{x}." in n) for x in "AB")
    wanted = 0.75 * states[0][b] @ states[0][a] + 0.25 * states[1][b] @ states[1][a]
    for found in (merged, from_states):
        assert torch.allclose(found.adapter[b] @ found.adapter[a], wanted, atol=1e-6)
    config = json.loads((tmp_path / "joint" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 12)
    again = clues.merge([tmp_path / "joint", tmp_path / "joint"], method="ties")
    assert again.adapter.keys() == merged.adapter.keys()
    odd = LoraConfig(r=2, target_modules=["q_proj"], use_rslora=True)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), odd).save_pretrained(tmp_path / "o")
    lora.settings = settings.model_copy(update={"alpha": 8.0})
    lora.save(states[0], tmp_path / "c")
    for adapters, how, message in (
        (states, {"method": "fedavg"}, "none of average"),
        (states, {"folder": tmp_path / "x"}, "give one of the adapters as a folder"),
        ([tmp_path / "no"], {}, "no adapter can be read there"),
        ([7], {}, r"adapters\[0\]: type int"),
        ([{"x": torch.zeros(1)}], {}, r"adapters\[0\]: not an adapter of plain LoRA \(x\)"),
        ([tmp_path / "o"], {}, "use_rslora"),
        ([folders[0], tmp_path / "c"], {}, "different alpha / rank: 3, 4"),
        *(
            ([{**states[0], b: tensor} if tensor is not None else {a: states[0][a]}], {}, message)
            for tensor, message in (
                (None, "has one factor of two"),
                (states[0][b].int(), "not of floating point"),
                (states[0][b][:, :1], "factors of shapes"),
                (states[0][b][:0], "factors of shapes"),
                (states[0][b][0], "factors of shapes"),
            )
        ),
        (
            [
                {
                    **states[0],
                    "x.lora_A.weight": torch.ones(1, 3),
                    "x.lora_B.weight": torch.ones(3, 1),
                }
            ],
            {},
            "layers of several ranks",
        ),
        ([], {}, "0 adapters"),
        (states, {"weights": [1]}, "2 adapters and 1 weights"),
        (states, {"density": 2.0}, "merge: density"),
    ):
        with pytest.raises(clues.CluesError, match=message):
            clues.merge(adapters, **how)
