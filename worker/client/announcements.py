"""Wait for outcomes to be announced, on one connection to Redis for all waiting calls of a client.

Knows channels, threads and event loops; nothing of what is announced. An announcement is a hint to
look at a key: Redis announces it in every database, and forgets it if nobody listens.
"""

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Collection
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar, cast

import redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from worker.broker.contract import CONNECT_TIMEOUT
from worker.broker.urls import async_connections

logger = logging.getLogger(__name__)

REJOIN_SECONDS = 0.5
"""Pause before a lost connection is replaced. Without one, for want of a permission or a free
connection, a waiting call looks at its keys this often."""


class _Names(Protocol):
    """A queue of channels' names. None says that the connection is lost."""

    def put_nowait(self, item: str | None, /) -> None: ...

    def get_nowait(self) -> str | None: ...


class _Subscriber(Protocol):
    """Subscriptions on one connection, for as long as it lasts."""

    def usable(self) -> bool:
        """Whether the connection is not lost, and can be used here."""

    def add(self, channels: Collection[str], names: _Names) -> None:
        """Put a channel's name into `names` once it is listened to, and at each announcement."""

    def remove(self, channels: Collection[str], names: _Names) -> None:
        """Undo `add`."""


# A waiting call.

_Queue = TypeVar("_Queue", bound=_Names)


class _Inbox(Generic[_Queue]):
    """The channels of one waiting call, until the end of the block.

    Args:
        running: Returns a subscriber that is usable.
        queue: Makes an empty queue for names.
    """

    def __init__(self, running: Callable[[], _Subscriber], queue: Callable[[], _Queue]) -> None:
        self._running = running
        self._new_queue = queue
        self._channels: set[str] = set()
        self._subscriber = running()
        self._names = queue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove(self._channels.copy())

    def add(self, channels: Collection[str]) -> None:
        """Listen to more channels. `wait` names each once it is listened to."""
        self._channels.update(channels)
        self._subscriber.add(channels, self._names)

    def remove(self, channels: Collection[str]) -> None:
        """Listen to these channels no more."""
        self._channels.difference_update(channels)
        self._subscriber.remove(channels, self._names)

    def _rejoin(self) -> None:
        """Listen on another connection if this one is lost."""
        if not self._subscriber.usable():
            self._subscriber = self._running()
            self._names = self._new_queue()
            self._subscriber.add(self._channels.copy(), self._names)

    def _drain(self, first: str | None) -> set[str] | None:
        """Everything that is in the queue now, or None after a loss of the connection."""
        names = {first}
        with contextlib.suppress(Empty, asyncio.QueueEmpty):
            while True:
                names.add(self._names.get_nowait())
        return None if None in names else cast("set[str]", names)


class Inbox(_Inbox[SimpleQueue[str | None]]):
    """The inbox of a thread."""

    def wait(self, seconds: float) -> set[str]:
        """Return the channels to look at; none means all of them.

        A channel is returned when something is announced in it, and once when it is first listened
        to: what happened before that is not announced. None are returned after `seconds`, and after
        a loss of the connection.
        """
        self._rejoin()
        try:
            names = self._drain(self._names.get(timeout=seconds))
        except Empty:
            return set()
        if names is None:
            time.sleep(min(seconds, REJOIN_SECONDS))
        return names or set()


class AsyncInbox(_Inbox[asyncio.Queue[str | None]]):
    """The inbox of a task of an event loop."""

    async def wait(self, seconds: float) -> set[str]:
        """Do what `Inbox.wait` does."""
        self._rejoin()
        try:
            async with asyncio.timeout(seconds):
                first = await self._names.get()
        except TimeoutError:
            return set()
        names = self._drain(first)
        if names is None:
            await asyncio.sleep(min(seconds, REJOIN_SECONDS))
        return names or set()


# In an event loop.


class AsyncAnnouncements:
    """Subscriptions to the channels of one Redis, for the tasks of one event loop.

    The connection starts with the first inbox, and again after a loss.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._subscriber: _LoopSubscriber | None = None

    def inbox(self) -> AsyncInbox:
        """Make an inbox for one waiting call."""
        return AsyncInbox(self._running, asyncio.Queue)

    async def close(self) -> None:
        """Close the connection; an inbox that still waits opens another."""
        if self._subscriber is not None:
            self._subscriber.serving.cancel()
            await asyncio.wait([self._subscriber.serving])
        self._subscriber = None

    def _running(self) -> _Subscriber:
        if self._subscriber is None or not self._subscriber.usable():
            self._subscriber = _LoopSubscriber(self._redis_url, asyncio.get_running_loop())
        return self._subscriber


class _LoopSubscriber:
    """One connection, and the task that serves it; everything happens in one event loop.

    At the end it puts None into every inbox.
    """

    def __init__(self, redis_url: str, loop: asyncio.AbstractEventLoop) -> None:
        self._redis_url = redis_url
        self._ended = False
        self._inboxes: dict[str, list[_Names]] = {}
        self._commands: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()
        self.serving = loop.create_task(self._serve())
        self.serving.add_done_callback(self._end)

    def usable(self) -> bool:
        return not self._ended

    def add(self, channels: Collection[str], names: _Names) -> None:
        if self._ended:
            names.put_nowait(None)
            return
        for channel in channels:
            self._inboxes.setdefault(channel, []).append(names)
        self._send("SUBSCRIBE", channels)

    def remove(self, channels: Collection[str], names: _Names) -> None:
        left = []
        for channel in channels:
            others = [each for each in self._inboxes.pop(channel, []) if each is not names]
            if others:
                self._inboxes[channel] = others
            else:
                left.append(channel)
        self._send("UNSUBSCRIBE", left)

    def _send(self, command: str, channels: Collection[str]) -> None:
        if channels:  # without any, UNSUBSCRIBE would mean all
            self._commands.put_nowait((command, *channels))

    def _end(self, _serving: asyncio.Task[None]) -> None:
        self._ended = True
        for names in self._inboxes.values():
            for each in names:
                each.put_nowait(None)

    async def _serve(self) -> None:
        pool = async_connections(
            self._redis_url,
            # A reply is a plain list; announcements may be far apart.
            protocol=2,
            socket_timeout=None,
            socket_connect_timeout=CONNECT_TIMEOUT,
            retry=Retry(NoBackoff(), 0),
        )
        connection = pool.connection_class(**pool.connection_kwargs)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            transport = connection._writer.transport  # type: ignore[union-attr]  # noqa: SLF001
            writing = asyncio.create_task(self._write(connection))
            try:
                await self._read(connection)
            finally:
                writing.cancel()
                # TLS would wait for the server's goodbye, for longer than the event loop runs.
                transport.abort()
                await connection.disconnect(nowait=True)
                await asyncio.sleep(0)
        except (redis.RedisError, OSError) as error:
            logger.debug("no announcements any more: %s", error)

    async def _write(self, connection: AbstractConnection) -> None:
        while True:
            # A lost connection is noticed by the one who reads.
            with contextlib.suppress(redis.RedisError, OSError):
                await connection.send_command(*await self._commands.get())

    async def _read(self, connection: AbstractConnection) -> None:
        while True:
            kind, channel, _ = await connection.read_response()
            if kind == b"unsubscribe":
                continue
            name = channel.decode()
            for names in self._inboxes.get(name, ()):
                names.put_nowait(name)


# In a thread.


class Announcements:
    """Subscriptions to the channels of one Redis. Threads may share an object.

    The connection and its thread start with the first inbox, and again after a loss or a fork.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._lock = threading.Lock()
        self._subscriber: _ThreadSubscriber | None = None

    def inbox(self) -> Inbox:
        """Make an inbox for one waiting call."""
        return Inbox(self._running, SimpleQueue)

    def close(self) -> None:
        """Close the connection; an inbox that still waits opens another."""
        with self._lock:
            if self._subscriber is not None:
                self._subscriber.stop()
            self._subscriber = None

    def _running(self) -> _Subscriber:
        with self._lock:
            if self._subscriber is None or not self._subscriber.usable():
                self._subscriber = _ThreadSubscriber(self._redis_url)
                self._subscriber.start()
            return self._subscriber


class _ThreadSubscriber(threading.Thread):
    """A thread with an event loop, in which a connection is served.

    One thread does everything on it, because a TLS connection must not be read and written by two.
    """

    def __init__(self, redis_url: str) -> None:
        super().__init__(name="sqe-announcements", daemon=True)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._ended = False
        self._loop = asyncio.new_event_loop()
        self._subscriber = _LoopSubscriber(redis_url, self._loop)

    def usable(self) -> bool:
        """Whether the connection is not lost, and is this process's own."""
        return not self._ended and self._pid == os.getpid()

    def add(self, channels: Collection[str], names: _Names) -> None:
        with self._lock:
            if self.usable():
                self._loop.call_soon_threadsafe(self._subscriber.add, channels, names)
            else:
                names.put_nowait(None)

    def remove(self, channels: Collection[str], names: _Names) -> None:
        with self._lock:
            if self.usable():
                self._loop.call_soon_threadsafe(self._subscriber.remove, channels, names)

    def stop(self) -> None:
        """End the thread, if it is this process's, and wait for it."""
        if self._pid != os.getpid():
            return
        with self._lock:
            if not self._ended:
                self._loop.call_soon_threadsafe(self._subscriber.serving.cancel)
        self.join()

    def run(self) -> None:
        """Serve until the connection is lost."""
        try:
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._subscriber.serving)
        finally:
            with self._lock:
                self._ended = True
            # What was added meanwhile learns of the end.
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()
