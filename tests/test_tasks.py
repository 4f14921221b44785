"""Multiple choice by likelihood: questions as files hold them, and numbers as lm-eval counts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from federation_helpers import edit_config, run_micro, tiny_model, write_micro, write_rows
from scipy.stats import binomtest

from clues.config import TaskSettings, TokenSettings, load_config
from clues.data.samples import Message, Sample
from clues.data.tokens import RowEncoder
from clues.errors import ConfigError, DataError
from clues.evaluation.choice import held_out
from clues.evaluation.intervals import (
    bootstrap_mean,
    paired_difference,
    standard_error,
    wilson,
)
from clues.evaluation.questions import Question, Task, read_tasks
from clues.evaluation.tasks import Answers, answer_task, arms_on_tasks, encode_task, log_likelihoods
from clues.prepare.check import check_run

EXAM = Path(__file__).parent.parent.parent / "shared" / "data" / "medical_exam_es_fr_en.jsonl.gz"
LISTED = {
    "instruction": "Which organ pumps blood?\nA. The heart\nB. The liver\nC. The skin",
    "output": "A. The heart",
    "answer": "A",
    "source": "quiz",
    "language": "en",
}
PLAIN = {"question": "Which organ pumps blood?", "choices": ["The heart", "The liver"], "answer": 0}


def tasks_of(path: Path, rows, **settings) -> list[Task]:
    return read_tasks([TaskSettings(path=write_rows(path / "task.jsonl", rows), **settings)])


def one(path: Path, row, **settings) -> Question:
    return tasks_of(path, [row], **settings)[0].questions[0]


def test_choices_in_columns_and_choices_listed_in_the_prompt_are_the_same_question(tmp_path):
    plain = one(tmp_path, PLAIN)
    assert plain.choices == ("The heart", "The liver")
    written = one(tmp_path, LISTED)
    assert written.choices == ("A. The heart", "B. The liver", "C. The skin")
    assert written.prompt[-1].content == LISTED["instruction"]
    cloze = one(tmp_path, LISTED, style="cloze")
    assert cloze.choices == ("The heart", "The liver", "The skin")
    assert cloze.prompt == plain.prompt
    assert plain.answer == written.answer == cloze.answer == 0


@pytest.mark.parametrize(
    ("listing", "answer", "said", "choices"),
    [
        ("1. one\n2. two", "2", "2. two", ("one", "two")),
        ("a) one\nb) two\nc) three", "c", "three", ("one", "two", "three")),
        ("(A) one\n(B) two\nand a half", "B", "(B) two\nand a half", ("one", "two\nand a half")),
        ("1. not a choice, since\n1. one\n2. two", "1", "1. one", ("one", "two")),
        ("a. A. fumigatus\nb. B. subtilis", "b", "b. B. subtilis", ("A. fumigatus", "B. subtilis")),
    ],
    ids=["numbers", "letters", "several lines", "numbers in the stem", "initials"],
)
def test_lists_are_read_as_they_are_written(tmp_path, listing, answer, said, choices):
    row = {"instruction": f"How many?\n{listing}", "output": said, "answer": answer}
    question = one(tmp_path, row, style="cloze")
    assert question.choices == choices
    assert question.choices[question.answer] in said


def test_rows_that_are_no_single_question_are_left_out_and_counted(tmp_path):
    rows = [
        LISTED,
        {**LISTED, "answer": "A,B"},
        {**LISTED, "output": "B. The liver"},
        {**LISTED, "instruction": "Which organ pumps blood?"},
        {**LISTED, "answer": "Q"},
    ]
    task = tasks_of(tmp_path, rows)[0]
    assert len(task.questions) == 1
    assert task.left_out == {"several right answers": 1, "no clear list of choices": 3}


def test_a_file_becomes_a_task_for_each_source_or_one_with_its_own_name(tmp_path):
    rows = [LISTED, {**LISTED, "source": "other", "language": "fr"}]
    assert [t.name for t in tasks_of(tmp_path, rows)] == ["quiz", "other"]
    assert [t.name for t in tasks_of(tmp_path, rows, name="both")] == ["both"]
    assert [t.name for t in tasks_of(tmp_path, [PLAIN])] == ["task"]
    assert [t.name for t in tasks_of(tmp_path, rows, where={"language": "fr"})] == ["other"]


def test_a_limit_draws_the_same_questions_in_every_run(tmp_path):
    rows = [{**PLAIN, "question": f"Question {i}?"} for i in range(50)]
    first, again = (tasks_of(tmp_path, rows, limit=10)[0].questions for _ in range(2))
    assert first == again
    assert len({q.row for q in first}) == 10
    assert [q.row for q in first] != list(range(10)), "the first rows are no sample"


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"prompt": "SECRET-7", "completion": "SECRET-8"}], {}, "no question in 1 row"),
        ([LISTED], {"where": {"split": "test"}}, "no column split"),
        ([LISTED], {"where": {"language": "it"}}, "leaves no row"),
        ([{**LISTED, "answer": "A,C"}], {}, "1: several right answers"),
    ],
    ids=["no choices", "no column", "nothing fits", "several"],
)
def test_a_file_without_a_question_is_refused_and_not_shown(tmp_path, rows, settings, message):
    with pytest.raises(DataError, match=message) as error:
        tasks_of(tmp_path, rows, **settings)
    assert "SECRET" not in str(error.value)


def test_two_files_with_one_task_name_are_refused(tmp_path):
    path = write_rows(tmp_path / "task.jsonl", [LISTED])
    with pytest.raises(DataError, match="quiz"):
        read_tasks([TaskSettings(path=path), TaskSettings(path=path, style="cloze")])


@pytest.fixture
def encoder(tokenizer) -> RowEncoder:
    return RowEncoder(tokenizer, TokenSettings(max_length=128))


def test_a_likelihood_is_the_sum_over_the_choices_own_tokens(make_lora, encoder):
    model = make_lora()
    question = Question(0, (Message("user", "Which organ?"),), ("The heart.", "No."), 0)
    task = encode_task(Task("t", (question,)), encoder)
    found = log_likelihoods(model, task, model.state())[0]
    for choice, value in zip(question.choices, found, strict=True):
        prompt = encoder.encode_prompt(Sample(0, (*question.prompt, Message("assistant", choice))))
        own = encoder.tokenizer(choice, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*prompt, *own]])
        with model.evaluating() as peft, torch.no_grad():
            logs = peft(ids).logits[0].log_softmax(-1)
        expected = sum(float(logs[len(prompt) - 1 + i, t]) for i, t in enumerate(own))
        assert value == pytest.approx(expected, abs=1e-4), "end of text or prompt is counted too"


def test_the_two_accuracies_differ_by_the_length_of_the_choice(make_lora, encoder):
    model = make_lora()
    question = Question(0, (Message("user", "Why?"),), ("No.", "The heart pumps blood."), 1)
    task = encode_task(Task("t", (question,)), encoder)
    sums = log_likelihoods(model, task, model.state())[0]
    found = answer_task(model, task, model.state())
    assert found.figures["acc"] == (int(sums[1] > sums[0]),) == (0,), (
        "a sum favours the short choice"
    )
    assert found.figures["acc_norm"] == (int(sums[1] / 22 > sums[0] / 3),)


def test_earlier_answers_of_a_conversation_are_no_part_of_a_choice(encoder):
    turns = (Message("user", "Hi"), Message("assistant", "Hello there"), Message("user", "Why?"))
    task = encode_task(Task("t", (Question(0, turns, ("No.", "Yes."), 0),)), encoder)
    n_tokens = len(encoder.tokenizer("No.", add_special_tokens=False)["input_ids"])
    assert task.options[0][0].n_response_tokens == n_tokens


def test_a_chat_templates_end_of_turn_is_no_part_of_a_choice(make_tokenizer):
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer = make_tokenizer(chat_template=template)
    encoder = RowEncoder(tokenizer, TokenSettings(max_length=128))
    sample = Sample(0, (Message("user", "Why?"), Message("assistant", "No.")))
    row = encoder.encode(sample, with_end=False)
    response = [t for t, counts in zip(row.ids, row.mask, strict=True) if counts]
    assert tokenizer.decode(response) == "No."
    assert tuple(row.ids[: -len(response)]) == encoder.encode_prompt(sample)


def test_a_question_that_does_not_fit_is_left_out_whole(tokenizer):
    long = Question(0, (Message("user", "Why?"),), ("No.", "the heart " * 40), 0)
    short = Question(1, (Message("user", "Why?"),), ("No.", "Yes."), 0)
    encoder = RowEncoder(tokenizer, TokenSettings(max_length=64))
    task = encode_task(Task("t", (long, short)), encoder)
    assert len(task.answers) == 1
    assert task.left_out == {"longer than 64 tokens": 1}
    with pytest.raises(DataError, match="none of its 1 questions fits"):
        encode_task(Task("t", (long,)), encoder)


def answered(right: list[int], languages: list[str] | None = None) -> Answers:
    n = len(right)
    return Answers(
        figures={"acc": tuple(right), "acc_norm": tuple(right)},
        n_choices=(4, 2) * (n // 2),
        languages=tuple(languages) if languages else (None,) * n,
        left_out={},
        by="built-in",
    )


def test_answers_come_back_from_a_stages_marker():
    found = answered([1, 0], ["en", "fr"])
    assert Answers.from_content(json.loads(json.dumps(found.content()))) == found


def test_arms_are_compared_on_the_same_questions():
    mixed, clues = [0, 1] * 50, [1, 1] * 30 + [0, 1] * 20
    found = arms_on_tasks(
        {"mixed": {"t": answered(mixed)}, "clues": {"t": answered(clues)}}, seed=1
    )
    task = found["t"]
    assert task.questions == 100
    assert task.guessing == pytest.approx(0.375)
    assert task.arms["mixed"].acc_norm == 0.5
    assert task.arms["mixed"].acc_norm_stderr == pytest.approx(0.5 / np.sqrt(99))
    gap = task.arms["clues"].minus_mixed
    assert gap is not None
    assert gap.value == pytest.approx(0.3)
    assert gap.interval[0] > 0.2
    assert gap.p_value == pytest.approx(2 * 0.5**30)
    assert "minus_random" not in task.arms["clues"].model_dump(exclude_unset=True)


def test_a_figure_of_another_name_is_written_under_its_own_before_the_differences():
    right = {"mixed": (0, 1, 0, 1), "clues": (1, 1, 0, 1)}
    arms = {
        name: {
            "gsm": answered([0] * 4).model_copy(
                update={"figures": {"exact_match": found}, "headline": "exact_match"}
            )
        }
        for name, found in right.items()
    }
    ours = arms_on_tasks(arms, seed=0)["gsm"].arms["clues"]
    assert ours.figure("exact_match") == 0.75
    written = list(ours.model_dump(exclude_unset=True))
    assert written == ["exact_match", "exact_match_stderr", "minus_mixed"]


def test_languages_of_a_task_add_up_to_the_whole():
    languages = ["en", "en", "fr", "fr"]
    arms = {"clues": {"t": answered([1, 0, 1, 1], languages)}}
    task = arms_on_tasks(arms, seed=0)["t"]
    assert task.languages["en"].arms["clues"].acc == 0.5
    assert task.languages["fr"].arms["clues"].acc == 1.0
    assert arms_on_tasks({"clues": {"t": answered([1, 0])}}, seed=0)["t"].languages == {}


def test_intervals_hold_what_they_promise_on_coins():
    generator = np.random.default_rng(0)
    inside = {"bootstrap": 0, "wilson": 0}
    for i in range(100):
        coins = generator.random(60) < 0.3
        low, high = bootstrap_mean(coins, seed=i)
        inside["bootstrap"] += low <= 0.3 <= high
        low, high = wilson(float(coins.mean()), 60)
        inside["wilson"] += low <= 0.3 <= high
    assert inside["bootstrap"] >= 89
    assert inside["wilson"] >= 90
    assert wilson(1.0, 10)[0] == pytest.approx(0.7225, abs=1e-3)
    for wins, n in ((0, 1), (3, 7), (40, 40), (601, 2000)):
        exact = binomtest(wins, n).proportion_ci(method="wilson")
        assert wilson(wins / n, n) == pytest.approx(tuple(exact), abs=1e-7)


def test_a_bootstrap_interval_is_the_one_of_the_stored_results():
    """Draws are those of numpy's generator, resample after resample: a library may not change them."""
    values_N = np.random.default_rng(3).normal(size=101)
    generator = np.random.default_rng(7)
    means = [values_N[generator.integers(0, 101, 101)].mean() for _ in range(1000)]
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_mean(values_N, seed=7) == pytest.approx(tuple(expected), rel=1e-12)
    assert bootstrap_mean([0.25], seed=7) == (0.25, 0.25)
    assert standard_error([1.0]) is None
    assert paired_difference([1, 0], [1, 0], seed=0).p_value == 1.0


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path, dict]:
    folder = tmp_path_factory.mktemp("tasks")
    model = tiny_model(folder / "model")
    rows = [
        {**LISTED, "instruction": f"{i}? {LISTED['instruction']}", "language": code}
        for i, code in enumerate(["en", "fr"] * 6)
    ]
    write_rows(folder / "input" / "exam.jsonl", [*rows, {**LISTED, "answer": "A,B"}])
    changes = {"evaluate": {"tasks": ["exam.jsonl"], "arms": ["mixed", "random", "clues"]}}
    config = write_micro(folder / "input", model, changes=changes)
    return config, folder / "run", run_micro(config, folder / "run")


@pytest.mark.walk
def test_a_run_reports_its_tasks_and_does_not_ask_twice(finished):
    config, root, results = finished
    task = results["tasks"]["quiz"]
    assert set(task["arms"]) == {"mixed", "random", "clues"}
    assert task["questions"] == 12
    assert set(task["languages"]) == {"en", "fr"}
    assert task["left_out"] == {"several right answers": 1}
    page, text = (root / "report.html").read_text(), (root / "results.md").read_text()
    for shown in (page, text):
        assert "quiz, fr" in shown
        assert "several right answers" in shown
        assert "organ pumps" not in shown
    marker = root / "coordinator" / "stages" / "tasks-clues.json"
    before = marker.stat().st_mtime_ns
    assert run_micro(config, root) == results
    assert marker.stat().st_mtime_ns == before


def test_another_task_asks_anew_and_trains_nothing(finished):
    config, root, _ = finished
    fitted = root / "coordinator" / "stages" / "fit-clues.json"
    before = fitted.stat().st_mtime_ns
    edit_config(config, {"evaluate": {"tasks": [{"path": "exam.jsonl", "style": "cloze"}]}})
    task = run_micro(config, root)["tasks"]["quiz"]
    assert task["questions"] == 12
    assert fitted.stat().st_mtime_ns == before


def test_anchors_that_are_also_asked_stop_the_run(finished, tmp_path):
    config, _, _ = finished
    anchors = config.parent / "public" / "geography.anchor.jsonl"
    row = json.loads(anchors.read_text().splitlines()[0])
    copied = {**row, "choices": [row["output"], "x"], "answer": 0}
    write_rows(config.parent / "leak.jsonl", [copied])
    edit_config(config, {"evaluate": {"tasks": [{"path": "leak.jsonl"}]}})
    with pytest.raises(ConfigError, match=r"1 row also stands in task file leak\.jsonl"):
        run_micro(config, tmp_path / "run")


def test_a_missing_task_file_is_named(finished):
    config, _, _ = finished
    edit_config(config, {"evaluate": {"tasks": ["exam.json"]}})
    with pytest.raises(ConfigError, match=r"exam\.json: there is no such file\. Did you mean"):
        load_config(config)


def test_real_exams_are_read_but_for_questions_with_several_answers():
    if not EXAM.exists():
        pytest.skip("shared/data is not beside the project")
    tasks = {t.name: t for t in read_tasks([TaskSettings(path=EXAM, style="cloze")])}
    assert {n: len(t.questions) for n, t in tasks.items()} == {
        "head-qa": 6765,
        "frenchmedmcqa": 1080,
        "medqa-usmle-test": 1268,
    }
    assert tasks["frenchmedmcqa"].left_out == {"several right answers": 2025}
    sizes = [len(q.choices) for q in tasks["head-qa"].questions]
    assert set(sizes) == {4, 5}


@pytest.mark.slow
def test_a_check_lists_tasks_what_they_leave_out_and_rows_that_are_anchors_too(tmp_path):
    config = write_micro(tmp_path, tiny_model(tmp_path / "model"))
    rows = [LISTED, {**LISTED, "answer": "A,B"}]
    write_rows(tmp_path / "quiz.jsonl", rows)
    edit_config(config, {"evaluate": {"tasks": ["quiz.jsonl"]}})
    found = check_run(load_config(config), n_shown=0)
    [task] = found.tasks
    assert (task.name, task.n_questions, sum(task.left_out.values())) == ("quiz", 1, 1)
    assert not found.errors
    anchors = (tmp_path / "public" / "geography.anchor.jsonl").read_text().splitlines()
    answer = {"choices": ["x", json.loads(anchors[0])["output"]], "answer": 1}
    write_rows(tmp_path / "quiz.jsonl", [{**json.loads(anchors[0]), **answer}])
    assert "task file quiz.jsonl share 1 row" in " ".join(
        check_run(load_config(config), n_shown=0).errors
    )
    write_rows(tmp_path / "quiz.jsonl", [{**LISTED, "answer": "A,B"}])
    assert "evaluate.tasks" in check_run(load_config(config), n_shown=0).errors[0]


@pytest.mark.parametrize("n_words", [200, 60])
def test_a_held_out_question_that_does_not_fit_is_left_out_whole(tokenizer, n_words) -> None:
    """Whether none of its choices fits, or only the long one does not."""
    encoder = RowEncoder(
        tokenizer, TokenSettings(template="alpaca", max_length=130, overlong="drop")
    )

    def row(number: int, prompt: str, *choices: str) -> Sample:
        turns = (Message("user", prompt), Message("assistant", choices[0]))
        return Sample(number, turns, choices, 0)

    long_prompt = n_words == 200
    words = "blood " * n_words
    asked = (words, "Heart.", "Skin.") if long_prompt else ("Which?", "Heart.", words)
    found = held_out(
        [row(0, "Which organ?", "Heart.", "Skin."), row(1, *asked)], encoder, where="test"
    )
    assert [row.row for row in found.rows] == ([0] if long_prompt else [0, 1])
    assert len(found.options) == len(found.answers) == 1
