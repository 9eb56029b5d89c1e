"""The losses and their gradients equal those of the reference."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from hrm.model.outputs import Correctness
from hrm.training.losses import act_losses, token_cross_entropy
from tests.support import reference as reference_data

RELATIVE = 1e-4


def mass(x: float) -> float:
    return x + 1 if x >= 0 else 1 / (1 - x)


def plain(logits: list[float], label: int) -> float:
    """Stablemax cross entropy by the formula of the paper."""
    masses = [mass(x) for x in logits]
    return -math.log(masses[label] / sum(masses))


class LastStep(NamedTuple):
    logits: Tensor
    q_logits: Tensor
    labels: Tensor


@pytest.fixture(scope="module")
def last() -> LastStep:
    stored = reference_data.recorded()
    q_logits = torch.stack((stored["q_halt_logits"][-1], stored["q_continue_logits"][-1]), -1)
    return LastStep(stored["logits"][-1], q_logits, reference_data.batch().labels)


def test_stablemax_follows_the_formula_of_the_paper() -> None:
    rows = [[0.0, 0.0], [1.0, -1.0], [-300.5, 7.25], [1e6, -1e6], [1e-9, -1e-9], [-0.5, 0.5]]
    logits = torch.tensor([rows, rows], dtype=torch.float64)
    labels = torch.tensor([[0] * len(rows), [1] * len(rows)])
    losses = token_cross_entropy(logits, labels)
    assert losses.dtype == torch.float64
    expected = [[plain(row, label) for row in rows] for label in (0, 1)]
    torch.testing.assert_close(
        losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-15
    )


def test_ignored_positions_have_no_loss_and_no_gradient() -> None:
    logits = torch.randn(1, 4, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    losses = token_cross_entropy(logits, torch.tensor([[3, -100, 0, -100]]))
    torch.autograd.backward(losses.sum())
    assert logits.grad is not None
    assert (losses > 0).tolist() == [[True, False, True, False]]
    assert losses[0, 1] == losses[0, 3] == 0
    assert logits.grad.abs().sum(-1).gt(0).tolist() == [[True, False, True, False]]


def test_low_precision_logits_are_widened_first() -> None:
    logits = torch.tensor([[[0.5, -2.0, 3.0]]], dtype=torch.bfloat16)
    wide = token_cross_entropy(logits.double(), torch.tensor([[1]]))
    assert torch.equal(token_cross_entropy(logits, torch.tensor([[1]])), wide)


def test_gradients_are_finite_and_equal_those_of_the_plain_formula() -> None:
    # At 1 the branch for negative numbers would divide by zero; at 0 both branches meet.
    values = [-1e4, -3.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 2.0, 1e4]
    logits = torch.tensor([[values]], dtype=torch.float64, requires_grad=True)
    torch.autograd.backward(token_cross_entropy(logits, torch.tensor([[6]])).sum())
    assert logits.grad is not None
    assert logits.grad.isfinite().all()

    leaves = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]
    masses = [leaf + 1 if leaf >= 0 else 1 / (1 - leaf) for leaf in leaves]
    torch.autograd.backward(-torch.log(masses[6] / torch.stack(masses).sum()))
    expected = [leaf.grad.item() for leaf in leaves if leaf.grad is not None]
    assert logits.grad.flatten().tolist() == pytest.approx(expected, rel=1e-9)


def test_sums_at_the_last_step_equal_the_reference(last: LastStep) -> None:
    wanted = reference_data.facts()["metrics_at_last_step"]
    losses = act_losses(last.logits, last.q_logits, last.labels, None)
    assert losses.tokens.item() == pytest.approx(wanted["lm_loss"], rel=RELATIVE)
    assert losses.q_halt.item() == pytest.approx(wanted["q_halt_loss"], rel=RELATIVE)
    assert losses.q_continue.item() == 0
    assert losses.total.item() == pytest.approx(
        reference_data.facts()["lm_plus_q_loss"], rel=RELATIVE
    )


def test_correctness_at_the_last_step_equals_the_reference(last: LastStep) -> None:
    wanted = reference_data.facts()["metrics_at_last_step"]
    correctness = Correctness.of(last.logits.argmax(-1), last.labels)
    assert len(correctness.solved) == wanted["count"]
    assert correctness.accuracy.sum().item() == pytest.approx(wanted["accuracy"], rel=RELATIVE)
    assert correctness.solved.sum().item() == wanted["exact_accuracy"]
    q_right = (last.q_logits[:, 0] >= 0) == correctness.solved
    assert q_right.sum().item() == wanted["q_halt_accuracy"]


def test_correctness_counts_target_positions_only() -> None:
    labels = torch.tensor([[1, 2, -100, -100], [1, 2, 3, -100], [-100] * 4])
    predictions = torch.tensor([[1, 2, 9, 9], [1, 0, 0, 9], [1, 2, 3, 4]])
    correctness = Correctness.of(predictions, labels)
    assert correctness.accuracy.tolist() == pytest.approx([1, 1 / 3, 0])
    assert correctness.solved.tolist() == [True, False, True]


def test_the_token_loss_weighs_all_examples_equally_whatever_their_length(last: LastStep) -> None:
    per_token = token_cross_entropy(last.logits, last.labels)
    lengths = (last.labels != -100).sum(-1)
    expected = (per_token.sum(-1) / lengths).sum().item()
    assert len(set(lengths.tolist())) == 9
    assert act_losses(*last, None).tokens.item() == pytest.approx(expected, rel=1e-12)


def test_the_continue_loss_counts_half(last: LastStep) -> None:
    target = torch.linspace(0, 1, 9)
    losses = act_losses(*last, target)
    q_continue = last.q_logits[:, 1].tolist()
    expected = sum(
        -value * math.log(1 / (1 + math.exp(-logit)))
        - (1 - value) * math.log(1 - 1 / (1 + math.exp(-logit)))
        for value, logit in zip(target.tolist(), q_continue, strict=True)
    )
    assert losses.q_continue.item() == pytest.approx(expected, rel=1e-5)
    assert losses.total.item() == pytest.approx(
        losses.tokens.item() + 0.5 * (losses.q_halt.item() + losses.q_continue.item()), rel=1e-6
    )


def test_q_losses_move_the_q_head_and_not_the_tokens(last: LastStep) -> None:
    logits, q_logits = (tensor.clone().requires_grad_() for tensor in last[:2])
    losses = act_losses(logits, q_logits, last.labels, torch.full((9,), 0.25))
    torch.autograd.backward(losses.q_halt + losses.q_continue)
    assert logits.grad is None
    assert q_logits.grad is not None
    solved = Correctness.of(last.logits.argmax(-1), last.labels).solved
    expected = last.q_logits.sigmoid() - torch.stack((solved.float(), torch.full((9,), 0.25)), -1)
    torch.testing.assert_close(q_logits.grad, expected)
