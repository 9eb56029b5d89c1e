"""worker.client.tasks: batches of messages."""

import json
from collections.abc import Iterator

import pytest

from schemas import SQEMessage
from tests.support.stubs import message
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


def test_a_batch_has_its_messages_and_their_ids_in_order() -> None:
    messages = [message(), message()]
    (task,) = tasks.evaluate_batches(messages, LIVE_QUEUE)
    ((texts,), _, _) = json.loads(json.loads(task.item)["body"])
    assert [SQEMessage.model_validate_json(each) for each in texts] == messages
    assert list(task.message_ids) == [each.message_id for each in messages]
