"""Outcomes on the same examples are joined by example, and each example counts once."""

import pytest

from hrm.data.conversion import Converter
from hrm.evaluation import outcomes as module
from hrm.evaluation.outcomes import DistinctExamples, Outcomes, PairedFigures, compare_outcomes
from schemas import HaltedBy, HRMExample
from tests.support.checkpoints import SHA256

CONVERTER = Converter(SHA256)


def example(prompt: str = "test", completion: str = "agent", puzzle: int = 1) -> HRMExample:
    return CONVERTER.convert(prompt, completion, puzzle)


def numbered(count: int) -> DistinctExamples:
    examples = DistinctExamples()
    for number in range(count):
        examples.position([example(puzzle=number)], f"line:{number + 1}")
    return examples


def predictor(name: str, *counts: tuple[int, int] | None) -> Outcomes:
    """Correct tokens and target tokens of each example; None for one without an outcome."""
    outcomes = Outcomes(name)
    for position, count in enumerate(counts):
        if count is not None:
            correct, targets = count
            outcomes.add(position, solved=correct == targets, correct=correct, targets=targets)
    return outcomes


def pair(first: Outcomes, second: Outcomes, count: int, *, counted: bool = False) -> PairedFigures:
    (found,) = compare_outcomes([first, second], numbered(count), HaltedBy.Q, [counted, counted])
    return found


def test_examples_are_equal_if_puzzle_input_and_target_are() -> None:
    examples = DistinctExamples()
    others = [example(), example(puzzle=2), example("agent"), example(completion="data")]
    assert [examples.position([each], "name") for each in others] == [0, 1, 2, 3]
    assert examples.position([example()], "again") == 0
    assert len(examples) == 4
    # A comma cannot move a token from the input to the target.
    assert examples.position([example("test agent", "x")], "name") == 4
    assert examples.position([example("test", "agent x")], "name") == 5


def test_every_form_of_an_example_has_to_be_equal() -> None:
    examples = DistinctExamples()
    first, second = example(), example(puzzle=2)
    assert examples.position([first, second], "a") == 0
    assert examples.position([first, first], "b") == 1
    assert examples.position([first, second], "c") == 0
    assert examples.names == ["a", "b"]


def test_the_first_outcome_of_an_example_counts() -> None:
    outcomes = predictor("a", (3, 3), (1, 3))
    outcomes.add(0, solved=False, correct=0, targets=3)
    assert outcomes.repeats == 1
    assert outcomes.totals() == (1, 4 / 6)


def test_figures_of_two_are_those_of_the_hand_made_table() -> None:
    first = predictor("a", (3, 3), (3, 3), (3, 3), (0, 3), (2, 3))
    second = predictor("b", (3, 3), (1, 3), (0, 3), (3, 3), (0, 3))
    found = pair(first, second, 5)
    assert (found.examples, found.first_solved, found.second_solved) == (5, 3, 2)
    assert (found.only_first, found.only_second) == (2, 1)
    assert found.only_first_names == ("line:2", "line:3")
    assert found.only_second_names == ("line:4",)
    assert found.p_value == found.adjusted_p_value == 1.0
    assert found.token_difference == pytest.approx(11 / 15 - 7 / 15)
    assert found.token_low is not None
    assert found.token_high is not None
    assert found.token_low < found.token_difference < found.token_high


def test_turning_a_pair_exchanges_everything() -> None:
    first, second = predictor("a", (3, 3), (2, 3)), predictor("b", (1, 3), (2, 3))
    found = pair(first, second, 2)
    turned = found.turned()
    assert turned.turned() == found
    swapped = pair(second, first, 2)
    exact = {"token_low", "token_high"}
    assert turned.model_dump(exclude=exact) == swapped.model_dump(exclude=exact)
    assert turned.token_low == pytest.approx(swapped.token_low)


def test_only_examples_that_both_answered_are_compared() -> None:
    first = predictor("a", None, (3, 3), (3, 3))
    second = predictor("b", (3, 3), (0, 3))
    found = pair(first, second, 3)
    assert (found.examples, found.only_first, found.only_second) == (1, 1, 0)
    assert found.only_first_names == ("line:2",)


def test_two_without_a_common_example_are_not_compared() -> None:
    outcomes = [predictor("a", (3, 3)), predictor("b", None, (3, 3))]
    assert compare_outcomes(outcomes, numbered(2), HaltedBy.Q) == []


def test_all_training_pairs_of_both_leave_nothing_to_estimate() -> None:
    outcomes = (predictor("a", (3, 3), (1, 3)), predictor("b", (2, 3), (3, 3)))
    assert pair(*outcomes, 2, counted=True).token_low is None
    assert pair(*outcomes, 2, counted=True).token_difference == pytest.approx(-1 / 6)


def test_p_values_are_corrected_for_all_pairs() -> None:
    best, worst = [(3, 3)] * 6, [(0, 3)] * 6
    outcomes = [predictor("a", *best), predictor("b", *worst), predictor("c", *worst)]
    found = compare_outcomes(outcomes, numbered(6), HaltedBy.Q)
    assert [each.names for each in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [each.p_value for each in found] == pytest.approx([1 / 32, 1 / 32, 1.0])
    assert [each.adjusted_p_value for each in found] == pytest.approx([3 / 32, 3 / 32, 1.0])


def test_lists_of_names_are_bounded_and_the_counts_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NAMES", 3)
    found = pair(predictor("a", *[(3, 3)] * 9), predictor("b", *[(0, 3)] * 9), 9)
    assert found.only_first == 9
    assert found.only_first_names == ("line:1", "line:2", "line:3")
