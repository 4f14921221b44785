"""One loss serves training, scoring and evaluation: the mean over a row's response tokens."""

import pytest
import torch

from clues.model.loss import IGNORED, make_batch, row_losses


def loss_by_hand(base, row):
    """-mean of log p(token | what precedes it) over response tokens, one position at a time."""
    logits_TV = base(input_ids=torch.tensor([row.ids])).logits[0]
    terms = [
        -torch.log_softmax(logits_TV[t - 1], dim=-1)[row.ids[t]]
        for t in range(1, len(row.ids))
        if row.mask[t]
    ]
    return torch.stack(terms).mean()


def test_a_row_loss_is_the_mean_of_minus_log_p_over_response_tokens(make_base, encoded_rows):
    base = make_base(dtype=torch.float64)
    found = row_losses(base, make_batch(encoded_rows))
    by_hand = torch.stack([loss_by_hand(base, row) for row in encoded_rows])
    assert found.dtype == torch.float64, "a float64 model must not lose its precision in the loss"
    difference = ((found - by_hand) / by_hand).abs().max().item()
    assert difference < 1e-12, f"{difference}: shifted by one, wrong mask or wrong mean"


def test_a_row_loss_equals_the_labels_loss_of_transformers(make_base, encoded_rows):
    base = make_base()
    for row in encoded_rows:
        ids, mask = torch.tensor([row.ids]), torch.tensor([row.mask])
        theirs = base(input_ids=ids, labels=torch.where(mask, ids, -100)).loss
        ours = row_losses(base, make_batch([row]))[0]
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_the_loss_through_the_adapter_equals_the_loss_of_the_plain_model(
    make_lora, make_base, encoded_rows
):
    model = make_lora(dtype=torch.float64)
    zero = {n: t if ".lora_A." in n else torch.zeros_like(t) for n, t in model.state().items()}
    model.set_state(zero)
    batch = make_batch(encoded_rows)
    with model.evaluating() as peft:
        adapted = row_losses(peft, batch)
    plain = row_losses(make_base(dtype=torch.float64), batch)
    assert torch.allclose(adapted, plain, rtol=1e-12, atol=0), "the wrapper changes the positions"


def test_a_row_loss_does_not_depend_on_the_other_rows_or_on_padding(make_base, encoded_rows):
    base = make_base(dtype=torch.float64)
    alone = torch.cat([row_losses(base, make_batch([row])) for row in encoded_rows])
    together = row_losses(base, make_batch(encoded_rows))
    backwards = row_losses(base, make_batch(encoded_rows[::-1])).flip(0)
    assert torch.allclose(alone, together, rtol=1e-12, atol=0), "padding leaks into the loss"
    assert torch.allclose(together, backwards, rtol=1e-12, atol=0), "row order changes a loss"


def test_the_gradient_of_the_batch_mean_is_the_mean_of_the_row_gradients(make_lora, encoded_rows):
    model = make_lora(dtype=torch.float64)
    wanted = list(model.parameters().values())
    with model.evaluating() as peft:
        batch_mean = row_losses(peft, make_batch(encoded_rows)).mean()
        together = torch.autograd.grad(batch_mean, wanted)
        single = [
            torch.autograd.grad(row_losses(peft, make_batch([row]))[0], wanted)
            for row in encoded_rows
        ]
    for n, gradient in enumerate(together):
        mean = torch.stack([gradients[n] for gradients in single]).mean(dim=0)
        error = ((gradient - mean).norm() / mean.norm()).item()
        assert error < 1e-12, f"{error}: long rows weigh more than short ones"


def test_targets_are_the_next_response_token_and_nothing_else(encoded_rows):
    batch = make_batch(encoded_rows)
    for n, row in enumerate(encoded_rows):
        expected = [i if m else IGNORED for i, m in zip(row.ids[1:], row.mask[1:], strict=True)]
        targets = batch.targets_NT[n].tolist()
        assert targets[: len(expected)] == expected
        assert set(targets[len(expected) :]) == {IGNORED}, "padding carries loss"
        assert batch.attention_NT[n].tolist() == [1] * len(row.ids) + [0] * (
            len(targets) - len(row.ids)
        )


def test_losses_are_float32_for_a_half_precision_model(make_base, encoded_rows):
    base = make_base(dtype=torch.bfloat16)
    assert row_losses(base, make_batch(encoded_rows[:2])).dtype == torch.float32
