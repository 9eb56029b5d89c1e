"""The asyncio form of the client: the names of `worker.client`, to be awaited.

    from worker.client.asyncio import Client, SQEMessage

    async with Client() as client:
        message_id = await client.submit(SQEMessage.create(agent_id="planner", …))
        verdict = await client.result(message_id)

Knows how to ask Redis; tasks are in `worker.client.tasks`, outcomes in `worker.client.outcomes`.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from types import TracebackType
from typing import Self

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from schemas import (
    MessageRejected,
    Rejection,
    RejectionReason,
    SQEHRMError,
    SQEMessage,
    Verdict,
    parse_message,
)
from worker.broker import keys
from worker.broker.contract import CONNECT_TIMEOUT, SOCKET_TIMEOUT
from worker.broker.keys import BACKFILL_QUEUE, LIVE_QUEUE, Namespace
from worker.broker.urls import RedisURLError, async_connections, check_redis_url
from worker.client import address, tasks
from worker.client.announcements import AsyncAnnouncements
from worker.client.blocking import FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS, RETRIES
from worker.client.errors import (
    BrokerUnreachable,
    NotAMessageError,
    ResultTimeout,
    UnreadableOutcome,
    unreachable,
)
from worker.client.outcomes import Outcome, Waiting, asked_at_once, parse_all, verdict_of

__all__ = [
    "BACKFILL_QUEUE",
    "LIVE_QUEUE",
    "BrokerUnreachable",
    "Client",
    "MessageRejected",
    "NotAMessageError",
    "RedisURLError",
    "Rejection",
    "RejectionReason",
    "ResultTimeout",
    "SQEHRMError",
    "SQEMessage",
    "UnreadableOutcome",
    "Verdict",
    "parse_message",
    "poll",
    "result",
    "results",
    "submit",
    "submit_many",
]


class Client:
    """A connection to the workers' Redis, for the tasks of one event loop.

    Arguments and errors of all methods are those of the plain `Client`.
    """

    def __init__(self, redis_url: str | None = None, namespace: str | None = None) -> None:
        if redis_url is None:
            redis_url = address.redis_url()
        self._namespace = address.namespace() if namespace is None else Namespace(namespace)
        check_redis_url(redis_url)
        self._replicas = address.wait_replicas()
        pool = async_connections(
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
        self._redis = redis.asyncio.Redis.from_pool(pool)
        self._announcements = AsyncAnnouncements(redis_url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._announcements.close()
        await self._redis.aclose()

    async def submit(
        self, message: SQEMessage, *, queue: str = LIVE_QUEUE, keep_result: float | None = None
    ) -> str:
        """Enqueue a message, discard an earlier outcome of its id, and return the id."""
        await self._send(tasks.evaluate(message, queue, keep_result))
        return message.message_id

    async def submit_many(
        self,
        messages: Iterable[SQEMessage],
        *,
        queue: str = LIVE_QUEUE,
        keep_result: float | None = None,
    ) -> list[str]:
        """Enqueue any number of messages in batches and return their ids, in order."""
        ids: list[str] = []
        for task in tasks.evaluate_batches(messages, queue, keep_result):
            await self._send(task)
            ids.extend(task.message_ids)
        return ids

    async def result(self, message_id: str, timeout: float = 60.0) -> Verdict:  # noqa: ASYNC109
        """Wait for the verdict of a message."""
        (outcome,) = [each async for each in self.results([message_id], timeout)]
        return verdict_of(outcome)

    async def results(
        self,
        message_ids: Iterable[str],
        timeout: float = 60.0,  # noqa: ASYNC109 - as in the plain form
    ) -> AsyncGenerator[Outcome]:
        """Yield the outcome of each message as it arrives: a verdict or a rejection."""
        async with aclosing(self.arrivals(message_ids, timeout)) as arrivals:
            async for _, outcome in arrivals:
                yield outcome

    async def arrivals(
        self,
        message_ids: Iterable[str],
        timeout: float = 60.0,  # noqa: ASYNC109
    ) -> AsyncGenerator[tuple[str, Outcome]]:
        """Do the same as `results`, and yield the message id with each outcome."""
        waiting = Waiting(message_ids, timeout, self._outcome)
        with self._announcements.inbox() as inbox:
            while True:
                inbox.add(waiting.more())
                if not waiting:
                    return
                announced = await inbox.wait(waiting.seconds())
                found = await self.poll(waiting.wanted(announced))
                inbox.remove(set(map(self._outcome, found)))
                for each in waiting.arrived(found):
                    yield each

    async def poll(self, message_ids: Sequence[str]) -> dict[str, Outcome]:
        """Return the outcomes that have arrived, by message id."""
        found: dict[str, Outcome] = {}
        for asked in asked_at_once(message_ids):
            try:
                with _cancellation_kept():
                    stored = await self._redis.mget(list(map(self._outcome, asked)))
            except redis.RedisError as error:
                raise unreachable(error) from None
            found.update(parse_all(asked, stored))
        return found

    def _outcome(self, message_id: str) -> str:
        """Name the key and channel of an outcome."""
        return self._namespace.key(keys.result(message_id))

    async def _send(self, task: tasks.Task) -> None:
        """Enqueue a task, and discard what is stored under the ids of its messages."""
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for command in task.commands(self._namespace, self._replicas):
                    pipe.execute_command(*command)
                with _cancellation_kept():
                    replies = await pipe.execute()
        except redis.RedisError as error:
            raise unreachable(error) from None
        tasks.check_sent(replies, self._replicas)


@contextmanager
def _cancellation_kept() -> Iterator[None]:
    """Raise a cancellation of this task that arrived in the block and was lost there.

    redis-py sends with `asyncio.wait_for`, which in Python 3.11 forgets a cancellation if it has
    just finished. The task would wait on, although it was told to end.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - coroutines run in tasks
    before = task.cancelling()
    yield
    if task.cancelling() > before:
        raise asyncio.CancelledError


async def submit(
    message: SQEMessage, *, queue: str = LIVE_QUEUE, keep_result: float | None = None
) -> str:
    """Call `Client.submit` on this event loop's own client."""
    return await (await _default()).submit(message, queue=queue, keep_result=keep_result)


async def submit_many(
    messages: Iterable[SQEMessage], *, queue: str = LIVE_QUEUE, keep_result: float | None = None
) -> list[str]:
    """Call `Client.submit_many` on this event loop's own client."""
    return await (await _default()).submit_many(messages, queue=queue, keep_result=keep_result)


async def result(message_id: str, timeout: float = 60.0) -> Verdict:  # noqa: ASYNC109
    """Call `Client.result` on this event loop's own client."""
    return await (await _default()).result(message_id, timeout)


async def results(
    message_ids: Iterable[str],
    timeout: float = 60.0,  # noqa: ASYNC109
) -> AsyncGenerator[Outcome]:
    """Call `Client.results` on this event loop's own client."""
    async with aclosing((await _default()).results(message_ids, timeout)) as outcomes:
        async for outcome in outcomes:
            yield outcome


async def poll(message_ids: Sequence[str]) -> dict[str, Outcome]:
    """Call `Client.poll` on this event loop's own client."""
    return await (await _default()).poll(message_ids)


_defaults: dict[asyncio.AbstractEventLoop, tuple[AsyncIterator[Client], Client]] = {}


async def _default() -> Client:
    loop = asyncio.get_running_loop()
    if loop not in _defaults:
        held = _held_open(loop)
        _defaults[loop] = held, await anext(held)  # without a pause: no other task comes between
    return _defaults[loop][1]


async def _held_open(loop: asyncio.AbstractEventLoop) -> AsyncIterator[Client]:
    """Yield a client. It is closed when `loop` ends, as asyncio then closes such generators."""
    client = Client()
    try:
        yield client
    finally:
        del _defaults[loop]
        await client.close()
