"""A prompt with several accepted answers is predicted with the row of each, and the best counts."""

from collections.abc import Sequence
from concurrent.futures import Future
from itertools import permutations

import pytest

from hrm.data.config import ConversionConfig
from hrm.data.conversion import Converter
from hrm.evaluation.answers import nearest_of, with_row_of_target, with_rows
from hrm.inference.prediction import InferenceError, Prediction
from schemas import HaltedBy
from tests.support.checkpoints import FIRST_RECORD, SEVERAL

CONVERTER = Converter(ConversionConfig(puzzle_space=5))
EXAMPLE = CONVERTER.convert("security", "agent test", 3)
TARGET = (0, 2, 1, 11)


def prediction(*tokens: int) -> Prediction:
    return Prediction(tokens, 1, HaltedBy.Q, 1.0, 0.0, 0)


def nearest(answers: Sequence[Prediction], order: Sequence[int]) -> Prediction:
    futures: list[Future[Prediction]] = [Future() for _ in answers]
    found = nearest_of(futures, TARGET)
    for index in order:
        assert not found.done()
        futures[index].set_result(answers[index])
    return found.result(0)


def test_an_example_is_asked_with_its_own_row_first_and_with_each_other_once() -> None:
    assert with_rows(EXAMPLE, ()) == [EXAMPLE]
    assert [each.puzzle_id for each in with_rows(EXAMPLE, (1, 3, 2))] == [3, 1, 2]
    assert {each.target_sequence for each in with_rows(EXAMPLE, (1, 3))} == {TARGET}


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_most_right_tokens_win_and_then_the_first_row(order: tuple[int, ...]) -> None:
    own, second, third = prediction(0, 2, 2, 11), prediction(0, 1, 1, 11), prediction(*TARGET, 5)
    assert nearest([own, second, third], order) is third
    assert nearest([own, second, second], order) is own


def test_one_prediction_is_taken_as_it_is() -> None:
    future: Future[Prediction] = Future()
    assert nearest_of([future], TARGET) is future


def test_an_answer_that_is_not_finite_fails_the_message() -> None:
    futures: list[Future[Prediction]] = [Future(), Future()]
    found = nearest_of(futures, TARGET)
    futures[1].set_exception(InferenceError("not finite"))
    assert not found.done()
    futures[0].set_result(prediction(*TARGET))
    with pytest.raises(InferenceError, match="not finite"):
        found.result(0)


def test_an_answer_is_fitted_with_the_row_that_holds_it() -> None:
    second = CONVERTER.convert("security", "agent", 3)
    third = CONVERTER.convert("security", "data", 3)
    assert with_row_of_target(second, SEVERAL).puzzle_id == 2
    for example, record in ((EXAMPLE, SEVERAL), (third, SEVERAL), (second, FIRST_RECORD)):
        assert with_row_of_target(example, record) == example
