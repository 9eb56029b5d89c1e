"""Messages as Celery tasks (protocol 2), in the form that kombu gives them in Redis.

Knows the form of a task; connects to nothing. Celery itself is not needed to send one.
"""

import json
import math
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from schemas import SQEHRMError, SQEMessage
from worker.broker import keys
from worker.broker.contract import (
    ENQUEUED_AT,
    EVALUATE,
    EVALUATE_BATCH,
    KEEP_RESULT,
    MAX_BATCH,
    MESSAGES,
    WAIT_SECONDS,
)
from worker.broker.keys import Namespace
from worker.client.errors import BrokerUnreachable, NotAMessageError, unreachable

MAX_BATCH_BYTES = 4_000_000
"""Limit of a batch of long messages, as they are in the item: half of a worker's limit
(`SQE_MAX_ITEM_BYTES`)."""


@dataclass(frozen=True, slots=True)
class Task:
    """One item of a queue."""

    queue: str
    item: str
    message_ids: Sequence[str]
    """Ids of the task's messages, in order."""

    def commands(self, namespace: Namespace, replicas: int) -> list[tuple[str | int, ...]]:
        """Build the commands that enqueue the task and discard earlier outcomes of its messages.

        Both happen in one transaction: nobody reads an earlier outcome after this sending, and a
        Redis that refuses the task (a full memory) keeps the outcomes. On the same connection,
        Redis can then wait for its replicas.
        """
        earlier = namespace.all_keys(map(keys.result, self.message_ids))
        more = len(self.message_ids) - 1
        queue = namespace.key(self.queue)
        count = [("HINCRBY", namespace.key(keys.BATCHED), queue, more)] if more else []
        wait = [("WAIT", replicas, int(WAIT_SECONDS * 1000))] if replicas else []
        return [
            ("MULTI",),
            ("DEL", *earlier),
            ("LPUSH", queue, self.item),
            *count,
            ("EXEC",),
            *wait,
        ]


def check_sent(replies: Sequence[Any], replicas: int) -> None:
    """Look at the replies to `Task.commands`. Raises `BrokerUnreachable`."""
    replies = list(replies)
    confirmed = replies.pop() if replicas else 0
    for reply in replies[-1]:
        if isinstance(reply, Exception):
            raise unreachable(reply)
    if confirmed < replicas:
        raise BrokerUnreachable(
            f"the message is enqueued, but only {confirmed} of {replicas} replicas of Redis have "
            "it (SQE_WAIT_REPLICAS), so a failover may lose it: send it again"
        )


def evaluate(message: SQEMessage, queue: str, keep_result: float | None = None) -> Task:
    """Make the task for one message. Raises `NotAMessageError`."""
    return evaluate_text(_text(message), message.message_id, queue, keep_result)


def evaluate_text(text: str, message_id: str, queue: str, keep_result: float | None = None) -> Task:
    """Make the task for the text of a message, even one that workers will refuse."""
    return _task(EVALUATE, text, message_id, [message_id], queue, keep_result)


def evaluate_batches(
    messages: Iterable[SQEMessage], queue: str, keep_result: float | None = None
) -> Iterator[Task]:
    """Make tasks for any number of messages. Raises `NotAMessageError`."""
    for batch in _batches(messages):
        message_ids, texts = zip(*batch, strict=True)
        yield _task(EVALUATE_BATCH, texts, uuid.uuid4().hex, message_ids, queue, keep_result)


def _batches(messages: Iterable[SQEMessage]) -> Iterator[list[tuple[str, str]]]:
    """Group messages, each as its id and its text."""
    batch: list[tuple[str, str]] = []
    size = 0
    for message in messages:
        text = _text(message)
        # A character takes up to 14 bytes: JSON in JSON in JSON, and nothing but ASCII.
        length = len(json.dumps(json.dumps(text)))
        if batch and (len(batch) == MAX_BATCH or size + length > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((message.message_id, text))
        size += length
    if batch:
        yield batch


def _text(message: object) -> str:
    if not isinstance(message, SQEMessage):
        raise NotAMessageError(
            f"only an SQEMessage can be sent, not a {type(message).__name__}: make one with "
            "SQEMessage.create(agent_id=…, prompt=…, completion=…), or from a complete message "
            "with parse_message"
        )
    return message.model_dump_json(exclude_none=True)


def _task(
    name: str,
    argument: str | Sequence[str],
    task_id: str,
    message_ids: Sequence[str],
    queue: str,
    keep_result: float | None,
) -> Task:
    if queue not in keys.QUEUES:
        raise SQEHRMError(f"queue {queue!r}: give {' or '.join(keys.QUEUES)}")
    if keep_result is not None and not 0 <= keep_result < math.inf:
        raise SQEHRMError(
            f"keep_result {keep_result!r}: give seconds, 0 to keep no outcome, or None"
        )
    optional: dict[str, float] = {} if keep_result is None else {KEEP_RESULT: keep_result}
    if len(message_ids) > 1:
        optional[MESSAGES] = len(message_ids)
    item = json.dumps(
        {
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {
                "id": task_id,
                "task": name,
                "lang": "py",
                "argsrepr": "(...)",
                # Outcomes are stored by message id; a list of a batch's outcomes is not needed.
                "ignore_result": True,
                ENQUEUED_AT: time.time(),
                **optional,
            },
            # Behind the headers, which Redis looks into.
            "body": json.dumps([[argument], {}, {}]),
            "properties": {
                "correlation_id": task_id,
                "delivery_mode": 2,
                "delivery_tag": task_id,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "priority": 0,
            },
        }
    )
    return Task(queue, item, message_ids)
