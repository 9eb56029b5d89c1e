"""The client for agents: enqueue messages and fetch their verdicts.

    from schemas import SQEMessage
    from worker.client import result, submit

    message_id = submit(SQEMessage.create(agent_id="planner", prompt="…", completion="…"))
    verdict = result(message_id)

Imports neither torch nor `hrm`: an agent installs the distribution without its extras.
"""

import functools
import itertools
import json
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from schemas import MessageRejected, Rejection, SQEHRMError, SQEMessage, Verdict
from worker.broker import embedded, keys
from worker.broker.announcements import Announcements
from worker.broker.app import (
    CONNECT_TIMEOUT,
    ENQUEUED_AT,
    EVALUATE,
    EVALUATE_BATCH,
    MAX_BATCH,
    SOCKET_TIMEOUT,
)
from worker.broker.backlog import UNACKED, read_backlog
from worker.broker.keys import BACKFILL_QUEUE, LIVE_QUEUE
from worker.broker.urls import RedisURLError, check_redis_url
from worker.settings import Settings

__all__ = [
    "BACKFILL_QUEUE",
    "LIVE_QUEUE",
    "Backlog",
    "BrokerUnreachable",
    "Client",
    "NotAMessageError",
    "RedisURLError",
    "ResultTimeout",
    "poll",
    "result",
    "results",
    "submit",
    "submit_many",
]

MAX_BATCH_BYTES = 4_000_000
"""Limit of a batch of long messages, as they are in the item: half of a worker's limit
(`SQE_MAX_ITEM_BYTES`)."""

WINDOW = 10_000
"""Results to wait for at a time; bounds the memory for any number of ids."""

ASKED_AT_ONCE = 500
"""Results to fetch with one MGET: about half a megabyte."""

LOOK_SECONDS = 5.0
"""Seconds without an announcement after which missing results are asked for all the same: for
announcements that were lost, and seldom enough that 1,000 waiting agents send 200 commands a
second together."""

RETRIES = 3
"""Further attempts after a lost connection: a restarted Redis closes every pooled connection, and
is often back at once. A reply that does not come is not waited for again."""

FIRST_RETRY_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 0.5
"""Pauses between these attempts, so that an agent learns of a stopped Redis within a second."""


class BrokerUnreachable(SQEHRMError):
    """Redis cannot be reached, or does not accept the message."""


class ResultTimeout(SQEHRMError, TimeoutError):
    """No outcome arrived in time; the message may still be evaluated later."""


class NotAMessageError(SQEHRMError, TypeError):
    """Something else than an `SQEMessage` was to be sent."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """The tasks of all producers that are not finished; a batch is one task."""

    queued: int
    """Tasks in the queues."""
    taken: int
    """Tasks that workers have taken and not finished."""

    @property
    def total(self) -> int:
        """Number of unfinished tasks."""
        return self.queued + self.taken


class Client:
    """A connection to the workers' Redis. Threads may share one.

    Without `redis_url` it takes SQE_REDIS_URL, or else the embedded server that runs for this
    folder. Raises `SQEHRMError` if there is neither, and `RedisURLError` for a URL that cannot be
    used.
    """

    def __init__(self, redis_url: str | None = None) -> None:
        if redis_url is None:
            configured = Settings.from_env().redis_url
            with embedded.redis_url(configured, start_if_missing=False) as found:
                redis_url = found
        check_redis_url(redis_url)
        self._announcements = Announcements(redis_url, connect_timeout=CONNECT_TIMEOUT)
        self._redis = redis.Redis.from_url(
            redis_url,
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
            socket_keepalive=True,
            retry=Retry(
                ExponentialBackoff(cap=LONGEST_RETRY_SECONDS, base=FIRST_RETRY_SECONDS),
                RETRIES,
                supported_errors=(redis.ConnectionError,),
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._announcements.close()
        self._redis.close()

    def submit(self, message: SQEMessage, *, queue: str = LIVE_QUEUE) -> str:
        """Enqueue a message and return its id.

        The stored outcome of an earlier message with this id is discarded in the same step, so that
        `result` never returns it. While such a message is still queued or in evaluation, its
        outcome may arrive first: use an id again only once its outcome has arrived.

        Raises `BrokerUnreachable` and `NotAMessageError`.
        """
        _check_message(message)
        self._send_body(_text(message), message.message_id, queue)
        return message.message_id

    def submit_many(self, messages: Iterable[SQEMessage], *, queue: str = LIVE_QUEUE) -> list[str]:
        """Enqueue any number of messages in batches and return their ids, in order.

        Earlier outcomes of these ids are discarded, as `submit` does. `BACKFILL_QUEUE` is for
        files: its messages wait while there are live ones. Raises `BrokerUnreachable` and
        `NotAMessageError`; earlier batches are then already enqueued.
        """
        ids: list[str] = []
        for batch in _batches(messages):
            batch_ids = [message.message_id for message in batch]
            texts = [_text(message) for message in batch]
            self._send(EVALUATE_BATCH, texts, uuid.uuid4().hex, batch_ids, queue)
            ids.extend(batch_ids)
        return ids

    def result(self, message_id: str, timeout: float = 60.0) -> Verdict:
        """Wait for the verdict of a message.

        Args:
            message_id: The id that `submit` returned.
            timeout: Longest wait in seconds.

        Raises:
            MessageRejected: The message became a dead letter.
            ResultTimeout: No outcome arrived within `timeout`.
            BrokerUnreachable: Redis cannot be reached.
        """
        (outcome,) = self.results([message_id], timeout)
        if isinstance(outcome, Rejection):
            raise MessageRejected(outcome.reason, outcome.detail)
        return outcome

    def results(
        self, message_ids: Iterable[str], timeout: float = 60.0
    ) -> Iterator[Verdict | Rejection]:
        """Yield the outcome of each message as it arrives: a verdict or a rejection.

        Args:
            message_ids: Any number of ids that `submit` or `submit_many` returned.
            timeout: Longest time in seconds without any outcome.

        Raises:
            ResultTimeout: No outcome arrived within `timeout`.
            BrokerUnreachable: Redis cannot be reached.
        """
        return (outcome for _, outcome in self.arrivals(message_ids, timeout))

    def arrivals(
        self, message_ids: Iterable[str], timeout: float = 60.0
    ) -> Iterator[tuple[str, Verdict | Rejection]]:
        """Do the same as `results`, and yield the message id with each outcome."""
        source = iter(message_ids)
        waiting: Counter[str] = Counter()
        last = time.monotonic()
        with self._announcements.inbox() as inbox:
            while True:
                more = list(itertools.islice(source, WINDOW - len(waiting)))
                waiting.update(more)
                inbox.add(set(map(keys.result, more)))
                if not waiting:
                    return
                left = max(0.0, last + timeout - time.monotonic())
                announced = inbox.wait(min(left, LOOK_SECONDS))
                named = {each.removeprefix(keys.result("")) for each in announced}
                found = self.poll([each for each in named or waiting if each in waiting])
                if not found and left == 0:
                    raise ResultTimeout(
                        f"no outcome for {len(waiting)} messages (such as {next(iter(waiting))}) "
                        f"within {timeout:g} s: is a worker running?"
                    )
                inbox.remove(set(map(keys.result, found)))
                for message_id, outcome in found.items():
                    for _ in range(waiting.pop(message_id)):
                        yield message_id, outcome
                if found:
                    last = time.monotonic()

    def poll(self, message_ids: Sequence[str]) -> dict[str, Verdict | Rejection]:
        """Return the outcomes that have arrived, by message id. Raises `BrokerUnreachable`."""
        found = {}
        for start in range(0, len(message_ids), ASKED_AT_ONCE):
            asked = message_ids[start : start + ASKED_AT_ONCE]
            try:
                stored = self._redis.mget(list(map(keys.result, asked)))
            except redis.RedisError as error:
                raise _unreachable(error) from None
            for message_id, each in zip(asked, stored, strict=True):
                if each is not None:
                    found[message_id] = _outcome(each)
        return found

    def backlog(self) -> Backlog:
        """Count the tasks in the queues and with workers. Raises `BrokerUnreachable`."""
        counts = read_backlog(self._redis)
        if counts is None:
            raise BrokerUnreachable(
                "Redis does not tell the lengths of the queues: check SQE_REDIS_URL"
            )
        taken = sum(count for (_, state), count in counts.items() if state == UNACKED)
        return Backlog(queued=counts.total() - taken, taken=taken)

    def _send_body(self, body: str, message_id: str, queue: str = LIVE_QUEUE) -> None:
        """Enqueue the text of a message, even one that workers will refuse."""
        self._send(EVALUATE, body, message_id, [message_id], queue)

    def _send(
        self,
        task: str,
        argument: str | list[str],
        task_id: str,
        message_ids: Sequence[str],
        queue: str,
    ) -> None:
        """Enqueue a task, and discard what is stored under the ids of its messages.

        Both happen in one transaction: nobody reads an earlier outcome after this sending, and a
        Redis that refuses the task (a full memory) keeps the outcomes.
        """
        if queue not in keys.QUEUES:
            raise SQEHRMError(f"queue {queue!r}: give {' or '.join(keys.QUEUES)}")
        try:
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(*map(keys.result, message_ids))
                pipe.lpush(queue, _item(task, argument, task_id, queue))
                pipe.execute()
        except redis.RedisError as error:
            raise _unreachable(error) from None


def submit(message: SQEMessage) -> str:
    """Call `Client.submit` on this process's own client."""
    return _default().submit(message)


def submit_many(messages: Iterable[SQEMessage], *, queue: str = LIVE_QUEUE) -> list[str]:
    """Call `Client.submit_many` on this process's own client."""
    return _default().submit_many(messages, queue=queue)


def result(message_id: str, timeout: float = 60.0) -> Verdict:
    """Call `Client.result` on this process's own client."""
    return _default().result(message_id, timeout)


def results(message_ids: Iterable[str], timeout: float = 60.0) -> Iterator[Verdict | Rejection]:
    """Call `Client.results` on this process's own client."""
    return _default().results(message_ids, timeout)


def poll(message_ids: Sequence[str]) -> dict[str, Verdict | Rejection]:
    """Call `Client.poll` on this process's own client."""
    return _default().poll(message_ids)


@functools.cache
def _default() -> Client:
    return Client()


def _check_message(message: object) -> None:
    if not isinstance(message, SQEMessage):
        raise NotAMessageError(
            f"only an SQEMessage can be sent, not a {type(message).__name__}: make one with "
            "SQEMessage.create(agent_id=…, prompt=…, completion=…), or from a complete message "
            "with schemas.parse_message"
        )


def _text(message: SQEMessage) -> str:
    return message.model_dump_json(exclude_none=True)


def _item(task: str, argument: str | list[str], task_id: str, queue: str) -> str:
    """Build a Celery task message (protocol 2) in the form that kombu gives it in Redis."""
    return json.dumps(
        {
            "body": json.dumps([[argument], {}, {}]),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {
                "id": task_id,
                "task": task,
                "lang": "py",
                "argsrepr": "(...)",
                # Outcomes are stored by message id; a list of a batch's outcomes is not needed.
                "ignore_result": True,
                ENQUEUED_AT: time.time(),
            },
            "properties": {
                "correlation_id": task_id,
                "delivery_mode": 2,
                "delivery_tag": task_id,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "priority": 0,
            },
        }
    )


def _batches(messages: Iterable[SQEMessage]) -> Iterator[list[SQEMessage]]:
    batch: list[SQEMessage] = []
    size = 0
    for message in messages:
        _check_message(message)
        # A character takes up to 14 bytes: JSON in JSON in JSON, and nothing but ASCII.
        length = len(json.dumps(json.dumps(_text(message))))
        if batch and (len(batch) == MAX_BATCH or size + length > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += length
    if batch:
        yield batch


def _outcome(stored: bytes | str) -> Verdict | Rejection:
    outcome = json.loads(stored)["result"]
    return (Rejection if "reason" in outcome else Verdict).model_validate_json(json.dumps(outcome))


def _unreachable(error: Exception) -> BrokerUnreachable:
    # In a transaction, redis-py quotes the command before the problem, and with it the message.
    problem = str(error).rpartition(" of pipeline caused error: ")[2]
    return BrokerUnreachable(
        f"Redis does not answer as it should ({problem}): check that it runs, and SQE_REDIS_URL"
    )
