"""Prompts with several accepted answers: the rows that hold them, and the nearest prediction.

Knows examples, predictions and the training record; nothing of messages. A network gives one
target for a puzzle and an input, so each further answer of a prompt is in a puzzle row of its own.
An example of such a prompt is predicted with each row, and the prediction with most right tokens
counts. Other prompts cost nothing.
"""

from collections.abc import Collection, Sequence
from concurrent.futures import Future
from operator import eq

from hrm.checkpoint.record import TrainingRecord, pair_hash, target_hash
from hrm.inference.prediction import Prediction, combined
from schemas import HRMExample


def with_rows(example: HRMExample, rows: Collection[int]) -> list[HRMExample]:
    """`example` as it is, and with each other puzzle row of `rows`."""
    others = (row for row in rows if row != example.puzzle_id)
    return [example, *(_with_row(example, row) for row in others)]


def with_row_of_target(example: HRMExample, record: TrainingRecord) -> HRMExample:
    """`example` with the puzzle row that holds its target; as it is if none is recorded."""
    answers = record.answers.get(pair_hash(example.puzzle_id, example.input_sequence))
    if answers is None:
        return example
    row = answers.get(target_hash(example.target_sequence), example.puzzle_id)
    return _with_row(example, row)


def nearest_of(
    predictions: Sequence[Future[Prediction]], target: Sequence[int]
) -> Future[Prediction]:
    """The prediction with most tokens of `target` right, once all are there.

    The first wins a tie.
    """
    return combined(predictions, lambda each: max(each, key=lambda one: _right(one, target)))


def _right(prediction: Prediction, target: Sequence[int]) -> int:
    return sum(map(eq, prediction.tokens, target))


def _with_row(example: HRMExample, row: int) -> HRMExample:
    return example.model_copy(update={"puzzle_id": row})
