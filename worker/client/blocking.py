"""The plain form of the client: each call returns when it is done.

Knows how to ask Redis; tasks are in `worker.client.tasks`, outcomes in `worker.client.outcomes`.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from schemas import SQEMessage, Verdict
from worker.broker import keys
from worker.broker.contract import CONNECT_TIMEOUT, SOCKET_TIMEOUT
from worker.broker.keys import LIVE_QUEUE, Namespace
from worker.broker.urls import connections
from worker.client import address, tasks
from worker.client.announcements import Announcements
from worker.client.errors import unreachable
from worker.client.outcomes import Outcome, Waiting, asked_at_once, parse_all, verdict_of

RETRIES = 3
"""Further attempts after a lost connection: a restarted Redis closes every pooled connection, and
is often back at once. A reply that does not come is not waited for again."""

FIRST_RETRY_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 0.5
"""Pauses between these attempts, so that an agent learns of a stopped Redis within a second."""


class Client:
    """A connection to the workers' Redis. Threads may share one.

    Without `redis_url` and `namespace` it takes SQE_REDIS_URL and SQE_NAMESPACE. Raises
    `RedisURLError` for a URL that cannot be used, and `SQEHRMError` if there is none.
    """

    def __init__(self, redis_url: str | None = None, namespace: str | None = None) -> None:
        if redis_url is None:
            redis_url = address.redis_url()
        self._namespace = address.namespace() if namespace is None else Namespace(namespace)
        self._replicas = address.wait_replicas()
        pool = connections(
            redis_url,
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
            retry=Retry(
                ExponentialBackoff(cap=LONGEST_RETRY_SECONDS, base=FIRST_RETRY_SECONDS),
                RETRIES,
                # A demoted primary refuses what is sent; the next connection leads to the new one.
                supported_errors=(redis.ConnectionError, redis.ReadOnlyError),
            ),
        )
        self._redis = redis.Redis.from_pool(pool)
        self._announcements = Announcements(redis_url)

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

    def submit(
        self, message: SQEMessage, *, queue: str = LIVE_QUEUE, keep_result: float | None = None
    ) -> str:
        """Enqueue a message and return its id.

        The stored outcome of an earlier message with this id is discarded in the same step, so that
        `result` never returns it. While such a message is still queued or in evaluation, its
        outcome may arrive first: use an id again only once its outcome has arrived.

        Args:
            message: The message.
            queue: `LIVE_QUEUE` or `BACKFILL_QUEUE`.
            keep_result: Seconds for which the outcome can be fetched. With 0 there is none, so do
                not call `result`; metrics and streams count it all the same. None leaves it to the
                workers (`SQE_RESULT_EXPIRES`), who also have a maximum.

        Raises:
            BrokerUnreachable: Redis cannot be reached, or does not accept the message.
            NotAMessageError: `message` is something else.
        """
        self._send(tasks.evaluate(message, queue, keep_result))
        return message.message_id

    def submit_many(
        self,
        messages: Iterable[SQEMessage],
        *,
        queue: str = LIVE_QUEUE,
        keep_result: float | None = None,
    ) -> list[str]:
        """Enqueue any number of messages in batches and return their ids, in order.

        Earlier outcomes of these ids are discarded, as `submit` does. `BACKFILL_QUEUE` is for
        files: its messages wait while there are live ones. `keep_result` is that of `submit`.
        Raises `BrokerUnreachable` and `NotAMessageError`; earlier batches are then already
        enqueued.
        """
        ids: list[str] = []
        for task in tasks.evaluate_batches(messages, queue, keep_result):
            self._send(task)
            ids.extend(task.message_ids)
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
        return verdict_of(outcome)

    def results(self, message_ids: Iterable[str], timeout: float = 60.0) -> Iterator[Outcome]:
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
    ) -> Iterator[tuple[str, Outcome]]:
        """Do the same as `results`, and yield the message id with each outcome."""
        waiting = Waiting(message_ids, timeout, self._outcome)
        with self._announcements.inbox() as inbox:
            while True:
                inbox.add(waiting.more())
                if not waiting:
                    return
                announced = inbox.wait(waiting.seconds())
                found = self.poll(waiting.wanted(announced))
                inbox.remove(set(map(self._outcome, found)))
                yield from waiting.arrived(found)

    def poll(self, message_ids: Sequence[str]) -> dict[str, Outcome]:
        """Return the outcomes that have arrived, by message id. Raises `BrokerUnreachable`."""
        found: dict[str, Outcome] = {}
        for asked in asked_at_once(message_ids):
            try:
                stored = self._redis.mget(list(map(self._outcome, asked)))
            except redis.RedisError as error:
                raise unreachable(error) from None
            found.update(parse_all(asked, stored))
        return found

    def _outcome(self, message_id: str) -> str:
        """Name the key and channel of an outcome."""
        return self._namespace.key(keys.result(message_id))

    def _send(self, task: tasks.Task) -> None:
        """Enqueue a task, and discard what is stored under the ids of its messages."""
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for command in task.commands(self._namespace, self._replicas):
                    pipe.execute_command(*command)  # type: ignore[no-untyped-call]
                replies = pipe.execute()
        except redis.RedisError as error:
            raise unreachable(error) from None
        tasks.check_sent(replies, self._replicas)


def submit(
    message: SQEMessage, *, queue: str = LIVE_QUEUE, keep_result: float | None = None
) -> str:
    """Call `Client.submit` on this process's own client."""
    return _default().submit(message, queue=queue, keep_result=keep_result)


def submit_many(
    messages: Iterable[SQEMessage], *, queue: str = LIVE_QUEUE, keep_result: float | None = None
) -> list[str]:
    """Call `Client.submit_many` on this process's own client."""
    return _default().submit_many(messages, queue=queue, keep_result=keep_result)


def result(message_id: str, timeout: float = 60.0) -> Verdict:
    """Call `Client.result` on this process's own client."""
    return _default().result(message_id, timeout)


def results(message_ids: Iterable[str], timeout: float = 60.0) -> Iterator[Outcome]:
    """Call `Client.results` on this process's own client."""
    return _default().results(message_ids, timeout)


def poll(message_ids: Sequence[str]) -> dict[str, Outcome]:
    """Call `Client.poll` on this process's own client."""
    return _default().poll(message_ids)


@functools.cache
def _default() -> Client:
    return Client()
