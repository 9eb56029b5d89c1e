"""The plain loop halts and answers as the reference's stored outputs do."""

import pytest
import torch

from hrm.model.network import HRM
from hrm.model.reference_loop import evaluate_batch, evaluate_rules
from schemas import HaltedBy
from tests.support import reference as reference_data


@pytest.fixture(scope="module")
def network() -> HRM:
    return reference_data.network()


@reference_data.same_rounding
@pytest.mark.parametrize("halting", HaltedBy)
@pytest.mark.parametrize("max_steps", [1, 2, 5, 16])
def test_answers_are_the_references_at_the_halting_step(
    network: HRM, halting: HaltedBy, max_steps: int
) -> None:
    output = evaluate_batch(network, reference_data.batch(), halting=halting, max_steps=max_steps)
    steps = reference_data.halting_steps(halting, max_steps)
    assert output.steps.tolist() == steps
    assert torch.equal(output.predictions, reference_data.tokens_at(steps))
    assert output.q_flips.tolist() == reference_data.flips_until(steps)
    torch.testing.assert_close(
        output.q_logits, reference_data.q_logits_at(steps), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("halting", HaltedBy)
def test_answers_of_the_first_step_are_the_references_on_any_processor(
    network: HRM, halting: HaltedBy
) -> None:
    output = evaluate_batch(network, reference_data.batch(), halting=halting, max_steps=1)
    assert output.steps.tolist() == [1] * 9
    assert torch.equal(output.predictions, reference_data.tokens_at([1] * 9))
    torch.testing.assert_close(
        output.q_logits,
        reference_data.q_logits_at([1] * 9),
        rtol=0,
        atol=reference_data.FIRST_STEP_TOLERANCE,
    )


def test_the_stored_examples_halt_at_different_steps() -> None:
    assert reference_data.halting_steps(HaltedBy.Q) == [1, 1, 3, 1, 2, 1, 2, 1, 1]
    assert max(reference_data.flips_until([16] * 9)) > 5


def test_the_default_limit_is_the_configurations(network: HRM) -> None:
    output = evaluate_batch(network, reference_data.batch()[:2], halting=HaltedBy.MAX_STEPS)
    assert output.steps.tolist() == [16, 16]


def test_an_answer_does_not_depend_on_the_rest_of_the_batch(network: HRM) -> None:
    together = evaluate_batch(network, reference_data.batch(), halting=HaltedBy.Q)
    for row in range(9):
        alone = evaluate_batch(network, reference_data.batch()[row : row + 1], halting=HaltedBy.Q)
        assert torch.equal(alone.predictions[0], together.predictions[row])
        assert alone.steps[0] == together.steps[row]
        assert alone.q_flips[0] == together.q_flips[row]


def test_one_run_of_the_loop_answers_under_both_rules(
    network: HRM, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = reference_data.batch()
    alone = [evaluate_batch(network, batch, halting=halting) for halting in HaltedBy]
    calls = count_steps(monkeypatch)
    together = evaluate_rules(network, batch, list(HaltedBy))
    assert len(calls) == 16
    for found, expected in zip(together, alone, strict=True):
        for name in ("predictions", "q_logits", "steps", "q_flips"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one for each step of a network."""
    calls: list[int] = []
    step = HRM.step

    def counted(self: HRM, *arguments: object) -> object:
        calls.append(1)
        return step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(HRM, "step", counted)
    return calls


def test_the_loop_stops_when_all_have_halted(network: HRM, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_steps(monkeypatch)
    evaluate_batch(network, reference_data.batch(), halting=HaltedBy.Q)
    assert len(calls) == max(reference_data.halting_steps(HaltedBy.Q)) == 3
