"""Figures of a set of examples equal the reference's."""

import pytest

from hrm.evaluation import measurement
from hrm.evaluation.measurement import measure
from hrm.model.batch import Messages
from schemas import HaltedBy
from tests.support import reference as reference_data


@reference_data.same_rounding
@pytest.mark.parametrize("at_once", [2, 9, 128])
def test_figures_are_the_references(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(measurement, "MEASURE_BATCH", at_once)
    found = measure(
        reference_data.network(), Messages.whole(reference_data.batch()), HaltedBy.MAX_STEPS
    )
    wanted = reference_data.facts()["metrics_at_last_step"]
    assert (found.examples, found.solved) == (9, wanted["exact_accuracy"])
    assert found.token_accuracy == pytest.approx(wanted["accuracy"] / 9)
    assert found.q_accuracy == pytest.approx(wanted["q_halt_accuracy"] / 9)
    assert found.mean_act_steps == 16


def test_figures_under_q_are_those_at_the_halting_step() -> None:
    found = measure(reference_data.network(), Messages.whole(reference_data.batch()), HaltedBy.Q)
    steps = reference_data.halting_steps(HaltedBy.Q)
    predictions, labels = reference_data.tokens_at(steps), reference_data.batch().labels
    right = ((predictions == labels) | (labels == -100)).all(-1)
    q_right = (reference_data.q_logits_at(steps)[:, 0] >= 0) == right
    assert found.solved == int(right.sum())
    assert found.q_accuracy == pytest.approx(q_right.double().mean().item())
    assert found.mean_act_steps == pytest.approx(sum(steps) / 9)
