"""lm-eval beside our own tasks: the same likelihoods, the same accuracies, and no hub."""

import gzip
import json
import sys
from pathlib import Path

import pytest
from federation_helpers import run_micro, tiny_model, write_micro, write_rows

pytest.importorskip("lm_eval", reason="lm-eval is not installed: clues[eval]")

from clues.config import LmEvalSettings, LoraSettings, ModelSettings, TaskSettings, TokenSettings
from clues.data.samples import Message
from clues.data.tokens import RowEncoder
from clues.errors import ConfigError, DataError, ExtraError
from clues.evaluation.harness import ask_harness, check_harness
from clues.evaluation.questions import Question, Task, read_tasks
from clues.evaluation.tasks import answer_task, arms_on_tasks, encode_task, log_likelihoods
from clues.model.adapters import LoraModel, load_tokenizer

pytestmark = [
    # lm-eval and what it imports about themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
REAL = Path(__file__).parents[2] / "shared" / "data" / "medical_pubmedqa_labeled_en.jsonl.gz"
ROWS = [
    {"instruction": f"Does it help in {i} cases?", "input": f"It did in {i}.", "answer": answer}
    for i, answer in enumerate(["yes", "no", "maybe", "yes"] * 2)
]


@pytest.fixture(scope="module")
def built_in() -> tuple[LoraModel, RowEncoder]:
    model = LoraModel.load(ModelSettings(), LoraSettings(), seed=0, device="cpu")
    encoder = RowEncoder(load_tokenizer(ModelSettings()), TokenSettings(max_length=400))
    return model, encoder


def pubmedqa(path: Path, **settings) -> LmEvalSettings:
    return LmEvalSettings(task="pubmedqa", data=path, **settings)


def test_our_likelihood_is_the_one_of_lm_eval(built_in):
    from lm_eval.models.huggingface import HFLM

    model, encoder = built_in
    choices = ("The heart.", "The liver, which lies behind the stomach.", "No organ", "Skin")
    questions = [
        Question(i, (Message("user", text),), choices, 0)
        for i, text in enumerate(("Which organ pumps blood?", "What is the capital of France?"))
    ]
    ours = log_likelihoods(model, encode_task(Task("t", tuple(questions)), encoder), model.initial)
    rows = [r for o in encode_task(Task("t", tuple(questions)), encoder).options for r in o]
    requests = []
    for row in rows:
        n_prompt = len(row.ids) - row.n_response_tokens
        requests.append((("", ""), list(row.ids[:n_prompt]), list(row.ids[n_prompt:])))
    model.set_state(model.initial)
    with model.evaluating() as peft:
        # By tokens: given text, lm-eval moves the line break after the header into the choice.
        harness = HFLM(pretrained=peft, tokenizer=encoder.tokenizer, batch_size=3)
        theirs = [v for v, _ in harness._loglikelihood_tokens(requests, disable_tqdm=True)]
    flat = [float(value) for values in ours for value in values]
    assert flat == pytest.approx(theirs, abs=1e-4)
    assert len(set(flat)) == 8


@pytest.mark.slow
def test_our_accuracy_is_the_one_of_lm_eval(built_in, tmp_path):
    model, encoder = built_in
    rows = [
        {
            "question": f"Capital number {i}?",
            "choices": ["Rome", "Buenos Aires", "Bonn"],
            "answer": i % 3,
        }
        for i in range(9)
    ]
    data = write_rows(tmp_path / "own.jsonl", rows)
    description = {
        "task": "theirs",
        "dataset_path": "json",
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "### Instruction:\n{{ question }}\n\n### Response:",
        "target_delimiter": "\n",
        "doc_to_choice": "{{ choices }}",
        "doc_to_target": "{{ answer }}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    task = tmp_path / "theirs.yaml"
    task.write_text(json.dumps(description))
    entry = LmEvalSettings(task=str(task), data=data)
    theirs = ask_harness(
        model, encoder.tokenizer, model.initial, [entry], cache=tmp_path / "cache"
    )["theirs"]
    asked = encode_task(read_tasks([TaskSettings(path=data)])[0], encoder)
    ours = answer_task(model, asked, model.initial)
    assert ours.figures["acc"] == theirs.figures["acc"]
    assert theirs.n_choices == ours.n_choices
    assert sum(ours.figures["acc"]) not in (0, 9)


@pytest.mark.slow
@pytest.mark.parametrize("original", [False, True], ids=["our rows", "rows of the release"])
def test_pubmedqa_is_asked_from_a_local_file(built_in, tmp_path, original, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, encoder = built_in
    rows = ROWS
    if original:
        rows = [
            {
                "question": r["instruction"],
                "context": {"contexts": [r["input"]]},
                "final_decision": r["answer"],
            }
            for r in ROWS
        ]
    path = tmp_path / "pubmedqa.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    entry = pubmedqa(path)
    check_harness([entry])
    found = ask_harness(model, encoder.tokenizer, model.initial, [entry], cache=tmp_path / "cache")
    task = arms_on_tasks({"mixed": found}, seed=0)["pubmedqa"]
    assert task.questions == 8
    assert task.guessing == pytest.approx(1 / 3)
    assert task.headline == "acc"
    assert 0 <= task.arms["mixed"].acc <= 1
    assert task.by.startswith("lm-eval ")


@pytest.mark.slow
def test_real_pubmedqa_loads_and_what_is_cut_is_counted(built_in, tmp_path):
    if not REAL.exists():
        pytest.skip("shared/data is not beside the project")
    model, encoder = built_in
    entry = pubmedqa(REAL, limit=6)
    check_harness([entry])
    found = ask_harness(model, encoder.tokenizer, model.initial, [entry], cache=tmp_path / "cache")
    assert len(found["pubmedqa"].figures["acc"]) == 6
    assert found["pubmedqa"].cut > 0


def test_a_missing_extra_is_named_with_its_install_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ExtraError, match=r"not installed: lm_eval\. .* pip install '\.\[eval\]'"):
        check_harness([LmEvalSettings(task="arc_easy")])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**ROWS[0], "answer": "SECRET-3"}], "line 1: answer is not yes, no or maybe"),
        ([{"text": "SECRET-3"}], "reads JSON Lines with instruction"),
    ],
    ids=["unknown answer", "other columns"],
)
def test_rows_that_lm_eval_would_count_as_wrong_are_refused(tmp_path, rows, message):
    path = write_rows(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError, match=message) as error:
        check_harness([pubmedqa(path)])
    assert "SECRET" not in str(error.value)


def test_the_stock_pubmedqa_is_refused_with_the_way_out():
    with pytest.raises(DataError, match="data: FILE"):
        check_harness([LmEvalSettings(task="pubmedqa")])


def test_data_of_a_task_by_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="data goes with task"):
        LmEvalSettings(task="arc_easy", data=tmp_path / "x.jsonl")


def test_a_task_whose_data_does_not_fit_its_description_is_named(built_in, tmp_path):
    model, encoder = built_in
    task = tmp_path / "broken.yaml"
    task.write_text(
        "task: broken\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: '{{ nothing.at.all }}'\ndoc_to_choice: ['a', 'b']\ndoc_to_target: answer\n"
    )
    entry = LmEvalSettings(task=str(task), data=write_rows(tmp_path / "rows.jsonl", ROWS))
    with pytest.raises(DataError, match=r"broken\.yaml cannot be run by lm-eval"):
        ask_harness(model, encoder.tokenizer, model.initial, [entry], cache=tmp_path / "cache")


@pytest.mark.walk
def test_a_run_shows_tasks_of_lm_eval_beside_our_own(tmp_path):
    write_rows(tmp_path / "input" / "pubmedqa.jsonl", ROWS)
    changes = {
        "evaluate": {
            "arms": ["mixed", "clues"],
            "lm_eval": [{"task": "pubmedqa", "data": "pubmedqa.jsonl"}],
        }
    }
    config = write_micro(tmp_path / "input", tiny_model(tmp_path / "model"), changes=changes)
    results = run_micro(config, tmp_path / "run")
    task = results["tasks"]["pubmedqa"]
    assert set(task["arms"]) == {"mixed", "clues"}
    assert "interval" in task["arms"]["clues"]["minus_mixed"]
    assert "pubmedqa by lm-eval" in (tmp_path / "run" / "results.md").read_text()
    (tmp_path / "input" / "pubmedqa.jsonl").unlink()
    with pytest.raises(ConfigError, match="there is no such file"):
        run_micro(config, tmp_path / "run")
