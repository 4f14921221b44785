"""A plain Trainer's rows get the inner products of its own steps, and it trains as without us."""

import functools
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from clues.errors import ConfigError, DataError
from clues.model.loss import make_batch, row_losses
from clues.scoring.callback import InRunScorer

PAGE = Path(__file__).parent.parent / "docs/tutorials/trainers.md"
ACCUMULATION = "gradient_accumulation_steps"


def own_loss(logits, labels, vocab_size, num_items_in_batch=None, **_):
    """What transformers computes, without its detour through float32."""
    sums = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    n = (labels[:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return sums / n


class Diary(TrainerCallback):
    """Keeps the adapter before every step, and the second moment after it."""

    def __init__(self, model):
        self.model, self.adapters, self.moments = model, [], []

    def on_step_begin(self, args, state, control, **_):
        self.adapters.append(self.model.state())

    def on_step_end(self, args, state, control, optimizer, **_):
        corrected = 1 - 0.999 ** (state.global_step)
        states = {n: optimizer.state[p] for n, p in self.model.parameters().items()}
        self.moments.append({n: s.get("exp_avg_sq", 0) / corrected for n, s in states.items()})


@pytest.fixture
def trained(tmp_path, make_lora, encoded_rows, tokenizer):
    """Train four rows against three others; returns everything a test compares."""

    def call(
        *,
        watch=True,
        dtype=torch.float32,
        dropout=0.0,
        refresh=2,
        form="sgd",
        rows=None,
        prepare=None,
        extra=None,
        trainer=Trainer,
        **args,
    ):
        model = make_lora(dtype=dtype, dropout=dropout)
        if prepare:
            prepare(model)
        if dtype == torch.float64:
            model.peft.get_base_model().loss_function = own_loss
        rows = encoded_rows[:4] if rows is None else rows
        scorer = InRunScorer(encoded_rows[4:], refresh=refresh, form=form)
        diary = Diary(model)
        settings = {"per_device_train_batch_size": 2, "max_steps": 3, "learning_rate": 1e-2, **args}
        started = trainer(
            model=model.peft,
            args=TrainingArguments(
                output_dir=str(tmp_path / "out"),
                use_cpu=True,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                seed=3,
                **settings,
            ),
            train_dataset=Dataset.from_list([as_columns(row) for row in rows]),
            callbacks=[scorer, diary] if watch else [diary],
            **{"data_collator": DataCollatorForSeq2Seq(tokenizer), **(extra or {})},
        )
        started.train()
        return model, rows, scorer, diary

    return call


def as_columns(row):
    labels = [i if m else -100 for i, m in zip(row.ids, row.mask, strict=True)]
    return {"input_ids": list(row.ids), "labels": labels, "attention_mask": [1] * len(row.ids)}


def gradient(model, state, rows):
    """Mean over rows of the gradient of each row's mean loss, row by row, as one vector."""
    model.set_state(state)
    with model.evaluating() as peft:
        losses = [row_losses(peft, make_batch([row]))[0] for row in rows]
        parts = torch.autograd.grad(torch.stack(losses).mean(), list(model.parameters().values()))
    return torch.cat([p.double().flatten() for p in parts])


def by_hand(model, rows, scorer, diary, *, step, index):
    """A row's score at a step, and the length of the vectors that it is the product of."""
    made = step - step % scorer.refresh
    v = gradient(model, diary.adapters[made], scorer.validation)
    direction = v
    if scorer.form == "adam" and made:
        root = [s.double().flatten().sqrt() for s in diary.moments[made - 1].values()]
        direction = v / (torch.cat(root) + 1e-8)
    g = gradient(model, diary.adapters[step], [rows[index]])
    unit = float(v @ direction)
    return float(g @ direction) / unit, float(g.norm() * direction.norm()) / unit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "limit", "form", "args"),
    [
        (torch.float32, 1e-5, "sgd", {}),
        (torch.float32, 1e-5, "adam", {"per_device_train_batch_size": 4}),
        (torch.float64, 1e-12, "adam", {}),
        (torch.float64, 1e-12, "adam", {"gradient_accumulation_steps": 2}),
        (torch.float64, 1e-12, "sgd", {"gradient_checkpointing": True}),
        (torch.bfloat16, 2e-2, "sgd", {"bf16": True}),
    ],
)
def test_a_score_is_the_inner_product_with_the_weights_before_its_step(
    trained, dtype, limit, form, args
) -> None:
    weights = torch.float32 if dtype == torch.bfloat16 else dtype
    model, rows, scorer, diary = trained(dtype=weights, form=form, **args)
    batch, n_batches = args.get("per_device_train_batch_size", 2), args.get(ACCUMULATION, 1)
    assert len(scorer._visits) == 3 * batch * n_batches
    expected = [[] for _ in rows]
    for n, (index, score) in enumerate(scorer._visits):
        step = n // (batch * n_batches)
        value, size = by_hand(model, rows, scorer, diary, step=step, index=index)
        assert abs(score - value) <= limit * size, f"row {index} at step {step}"
        expected[index].append(score)
    assert scorer.scores() == pytest.approx([np.mean(visits) for visits in expected])


@pytest.mark.slow
@pytest.mark.parametrize(
    "args", [{"dropout": 0.2, "gradient_accumulation_steps": 2}, {"bf16": True}]
)
def test_training_is_the_same_bit_by_bit_with_and_without_scores(trained, args) -> None:
    ends = [trained(watch=watch, form="adam", **args)[0].state() for watch in (False, True)]
    assert all(torch.equal(ends[0][n], ends[1][n]) for n in ends[0]), "watching changes training"


def test_equal_rows_share_a_score_and_rows_never_seen_have_none(trained, encoded_rows) -> None:
    rows = [*encoded_rows[:2], *encoded_rows[:2], encoded_rows[2]]
    scores = trained(rows=rows, max_steps=1, per_device_train_batch_size=1)[2].scores()
    seen = np.isfinite(scores)
    assert seen.sum() == (1 if seen[4] else 2)
    assert seen[:2].tolist() == seen[2:4].tolist()
    assert np.array_equal(scores[:2], scores[2:4], equal_nan=True)


@pytest.mark.slow
def test_the_model_is_left_as_it_was_found(trained) -> None:
    model, _, scorer, _ = trained(max_steps=1)
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    assert not any(getattr(model.peft, name) for name in hooks)
    assert not any(p._backward_hooks for p in model.parameters().values())
    assert not any("forward" in vars(m) for n, m in model.peft.named_modules() if "lora_" in n)
    assert np.isfinite(scorer.scores()).sum() == 2


def with_log_probs(model) -> None:
    """Let a model say what TRL's says: log-probabilities of the labels."""
    base = model.peft.get_base_model()
    forward = base.forward

    @functools.wraps(forward)  # the Trainer reads the signature
    def fused(**inputs):
        output = forward(**inputs)
        if inputs.get("labels") is None:
            return output
        targets = inputs["labels"][:, 1:].clamp(min=0)
        picked = output.logits[:, :-1].log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        output.log_probs = picked.masked_fill(inputs["labels"][:, 1:] == -100, 0)
        return output

    base.forward = fused


class FromLogProbs(Trainer):
    """Makes its loss as TRL does: from log-probabilities, the model's own loss left aside."""

    power = 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        log_probs = model(**inputs).log_probs
        return -(log_probs * log_probs.detach().exp() ** self.power).sum() / num_items_in_batch


class Uneven(FromLogProbs):
    """Weighs tokens by their probability, so a row's share is not its mean loss."""

    power = 1


@pytest.mark.slow
def test_a_loss_from_log_probabilities_gives_the_same_scores(trained) -> None:
    plain = trained(gradient_accumulation_steps=2)[2].scores()
    other = trained(gradient_accumulation_steps=2, trainer=FromLogProbs, prepare=with_log_probs)
    assert other[2].scores() == pytest.approx(plain, rel=1e-4)


def own_mean(outputs, labels, num_items_in_batch=None):
    return outputs.logits.mean()


def scaled(model) -> None:
    base = model.peft.get_base_model()
    base.loss_function = lambda *a, **k: 2 * own_loss(*a, **k)


def twice(model) -> None:
    """Use a layer's factors a second time, where no hook sees it."""
    layer = next(m for n, m in model.peft.named_modules() if n.endswith("v_proj"))
    inner, (a, b) = layer.forward, (layer.lora_A["default"], layer.lora_B["default"])
    layer.forward = lambda x: inner(x) + x @ a.weight.T @ b.weight.T


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        ({"label_smoothing_factor": 0.1}, ConfigError, "own mean loss"),
        ({"extra": {"compute_loss_func": own_mean}}, ConfigError, "own mean loss"),
        ({"prepare": scaled}, ConfigError, "own mean loss"),
        ({"prepare": twice}, ConfigError, "plain LoRA"),
        ({"prepare": with_log_probs, "trainer": Uneven}, ConfigError, "own mean loss"),
        ({"extra": {"data_collator": DataCollatorWithFlattening()}}, DataError, "no row of"),
        ({"optim": "sgd", "form": "adam"}, ConfigError, "keeps no exp_avg_sq"),
    ],
)
def test_what_has_no_scores_is_refused(trained, args, error, match) -> None:
    with pytest.raises(error, match=match):
        trained(**args)


@pytest.mark.parametrize("name", ["packing", "padding_free", "fp16", "world_size", "n_gpu"])
def test_arguments_that_scores_do_not_go_with_are_refused(make_lora, encoded_rows, name) -> None:
    args = SimpleNamespace(**{"world_size": 1, "n_gpu": 1, name: 2})
    with pytest.raises(ConfigError, match="do not go with"):
        InRunScorer(encoded_rows).on_train_begin(args, None, None, model=make_lora().peft)


def test_other_models_and_rows_are_refused(make_base, make_lora, encoded_rows) -> None:
    args = SimpleNamespace(world_size=1, n_gpu=1)
    scorer = InRunScorer(encoded_rows)
    with pytest.raises(ConfigError, match="PEFT model"):
        scorer.on_train_begin(args, None, None, model=make_base())
    for more in ({"use_dora": True}, {"target_modules": ["embed_tokens"]}):
        config = LoraConfig(r=2, **{"target_modules": ["v_proj"], **more})
        with pytest.raises(ConfigError, match="more than A and B"):
            scorer.on_train_begin(args, None, None, model=get_peft_model(make_base(), config))
    for rows in (iter([]), [{"text": "a"}]):
        loader = SimpleNamespace(dataset=rows)
        with pytest.raises(DataError, match="needs a length, and rows with input_ids"):
            scorer.on_train_begin(args, None, None, model=make_lora().peft, train_dataloader=loader)
    with pytest.raises(DataError, match="no rows"):
        InRunScorer([])
    with pytest.raises(ConfigError, match="refresh is 0"):
        InRunScorer(encoded_rows, refresh=0)


def test_validation_rows_may_be_columns_of_a_tokenised_data_set(encoded_rows) -> None:
    scorer = InRunScorer([as_columns(row) for row in encoded_rows])
    found = [(row.ids, row.mask) for row in scorer.validation]
    assert found == [(row.ids, row.mask) for row in encoded_rows]
    with pytest.raises(DataError, match="row 1: no label"):
        InRunScorer([{"input_ids": [3, 4], "labels": [3, -100]}])


@pytest.mark.slow
def test_the_example_of_the_tutorial_runs_as_it_stands(
    make_lora, encoded_rows, tokenizer, tmp_path, monkeypatch
) -> None:
    if not PAGE.exists():
        pytest.skip("the documentation is not here")
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    rows = [as_columns(row) for row in encoded_rows]
    space = {
        "peft_model": make_lora().peft,
        "train_rows": rows[:4],
        "validation_rows": rows[4:],
        "tokenizer": tokenizer,
    }
    exec(compile(example, PAGE.name, "exec"), space)
    assert np.isfinite(space["scores"]).tolist() == [True] * 4
