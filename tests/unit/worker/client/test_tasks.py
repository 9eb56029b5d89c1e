"""worker.client.tasks: batches of messages."""

import json
import math
from collections.abc import Iterator

import pytest

from schemas import SQEHRMError, SQEMessage
from tests.support.stubs import message
from worker.broker.contract import KEEP_RESULT
from worker.broker.keys import LIVE_QUEUE
from worker.client import tasks


def batches(messages: Iterator[SQEMessage]) -> list[list[str]]:
    return [list(each.message_ids) for each in tasks.evaluate_batches(messages, LIVE_QUEUE)]


def test_batches_hold_at_most_256_messages() -> None:
    messages = [message() for _ in range(600)]
    made = batches(iter(messages))
    assert [len(batch) for batch in made] == [256, 256, 88]
    assert [each for batch in made for each in batch] == [each.message_id for each in messages]


def test_batches_of_long_messages_hold_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "MAX_BATCH_BYTES", 1000)
    made = batches(message("x" * length) for length in (40, 40, 600, 5000, 1))
    assert [len(batch) for batch in made] == [2, 1, 1, 1]


def test_batches_are_made_while_messages_arrive() -> None:
    taken = 0

    def endless() -> Iterator[SQEMessage]:
        nonlocal taken
        while True:
            taken += 1
            yield message()

    first = next(tasks.evaluate_batches(endless(), LIVE_QUEUE))
    assert len(first.message_ids) == 256
    assert taken <= 257


@pytest.mark.parametrize("keep_result", [None, 0, 0.5, 60])
def test_a_task_says_how_long_its_outcomes_are_wanted(keep_result: float | None) -> None:
    made = [
        tasks.evaluate(message(), LIVE_QUEUE, keep_result),
        *tasks.evaluate_batches([message()], LIVE_QUEUE, keep_result),
    ]
    for task in made:
        headers = json.loads(task.item)["headers"]
        assert headers.get(KEEP_RESULT) == keep_result
        assert (KEEP_RESULT in headers) == (keep_result is not None)


@pytest.mark.parametrize("keep_result", [-1, math.inf, math.nan])
def test_a_time_that_no_outcome_can_be_kept_for_is_refused_in_one_line(keep_result: float) -> None:
    with pytest.raises(SQEHRMError, match=r"^keep_result .*: give seconds, 0 to keep no outcome"):
        tasks.evaluate(message(), LIVE_QUEUE, keep_result)


def test_a_batch_has_its_messages_and_their_ids_in_order() -> None:
    messages = [message(), message()]
    (task,) = tasks.evaluate_batches(messages, LIVE_QUEUE)
    ((texts,), _, _) = json.loads(json.loads(task.item)["body"])
    assert [SQEMessage.model_validate_json(each) for each in texts] == messages
    assert list(task.message_ids) == [each.message_id for each in messages]
