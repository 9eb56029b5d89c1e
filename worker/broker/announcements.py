"""Wait for outcomes to be announced, on one connection to Redis for all waiting calls of a process.

Knows channels and threads; nothing of what is announced. An announcement is a hint to look at a
key: Redis announces it in every database, and forgets it if nobody listens.
"""

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Collection, Iterator
from queue import Empty, SimpleQueue
from typing import cast

import redis.asyncio
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

logger = logging.getLogger(__name__)

REJOIN_SECONDS = 0.5
"""Pause before a lost connection is replaced. Without one, for want of a permission or a free
connection, a waiting call looks at its keys this often."""


class Announcements:
    """Subscriptions to the channels of one Redis. Threads may share an object.

    The connection and its thread start with the first inbox, and again after a loss or a fork.

    Args:
        redis_url: The URL, checked.
        connect_timeout: Seconds to connect.
    """

    def __init__(self, redis_url: str, *, connect_timeout: float) -> None:
        self._redis_url = redis_url
        self._connect_timeout = connect_timeout
        self._lock = threading.Lock()
        self._subscriber: _Subscriber | None = None

    @contextlib.contextmanager
    def inbox(self) -> Iterator["Inbox"]:
        """Yield an inbox for one waiting call."""
        inbox = Inbox(self)
        try:
            yield inbox
        finally:
            inbox.remove(inbox.channels.copy())

    def close(self) -> None:
        """Close the connection; an inbox that still waits opens another."""
        with self._lock:
            if self._subscriber is not None:
                self._subscriber.stop()
            self._subscriber = None

    def running(self) -> "_Subscriber":
        """Return the subscriber of this process, started if there is none."""
        with self._lock:
            if self._subscriber is None or not self._subscriber.usable():
                self._subscriber = _Subscriber(self._redis_url, self._connect_timeout)
                self._subscriber.start()
            return self._subscriber


class Inbox:
    """The channels of one waiting call, and what was announced in them."""

    def __init__(self, announcements: Announcements) -> None:
        self.channels: set[str] = set()
        self._announcements = announcements
        self._subscriber = announcements.running()
        self._names: SimpleQueue[str | None] = SimpleQueue()

    def add(self, channels: Collection[str]) -> None:
        """Listen to more channels. `wait` names each once it is listened to."""
        self.channels.update(channels)
        self._subscriber.add(channels, self._names)

    def remove(self, channels: Collection[str]) -> None:
        """Listen to these channels no more."""
        self.channels.difference_update(channels)
        self._subscriber.remove(channels, self._names)

    def wait(self, seconds: float) -> set[str]:
        """Return the channels to look at; none means all of them.

        A channel is returned when something is announced in it, and once when it is first listened
        to: what happened before that is not announced. None are returned after `seconds`, and after
        a loss of the connection.
        """
        if not self._subscriber.usable():
            self._subscriber = self._announcements.running()
            self._names = SimpleQueue()
            self._subscriber.add(self.channels, self._names)
        names = set()
        with contextlib.suppress(Empty):
            names.add(self._names.get(timeout=seconds))
            while True:
                names.add(self._names.get_nowait())
        if None in names:
            time.sleep(min(seconds, REJOIN_SECONDS))
            return set()
        return cast("set[str]", names)


class _Subscriber(threading.Thread):
    """One connection, and the thread that does everything on it.

    One thread, because a TLS connection must not be read and written by two. It ends with the
    connection, and then puts None into every inbox.
    """

    def __init__(self, redis_url: str, connect_timeout: float) -> None:
        super().__init__(name="sqe-announcements", daemon=True)
        self._redis_url = redis_url
        self._connect_timeout = connect_timeout
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._ended = False
        self._inboxes: dict[str, list[SimpleQueue[str | None]]] = {}
        self._commands: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()
        self._loop = asyncio.new_event_loop()
        self._serving = self._loop.create_task(self._serve())

    def usable(self) -> bool:
        """Whether the connection is not lost, and is this process's own."""
        return not self._ended and self._pid == os.getpid()

    def add(self, channels: Collection[str], names: SimpleQueue[str | None]) -> None:
        """Put a channel's name into `names` once it is listened to, and at each announcement."""
        with self._lock:
            for channel in channels:
                self._inboxes.setdefault(channel, []).append(names)
            if self._ended:
                names.put(None)
            else:
                self._send("SUBSCRIBE", channels)

    def remove(self, channels: Collection[str], names: SimpleQueue[str | None]) -> None:
        """Undo `add`."""
        with self._lock:
            left = []
            for channel in channels:
                others = [each for each in self._inboxes.pop(channel, []) if each is not names]
                if others:
                    self._inboxes[channel] = others
                else:
                    left.append(channel)
            if self.usable():
                self._send("UNSUBSCRIBE", left)

    def stop(self) -> None:
        """End the thread, if it is this process's, and wait for it."""
        if self._pid != os.getpid():
            return
        with self._lock:
            if not self._ended:
                self._loop.call_soon_threadsafe(self._serving.cancel)
        self.join()

    def run(self) -> None:
        """Serve until the connection is lost."""
        try:
            self._loop.run_until_complete(self._serving)
        except asyncio.CancelledError:
            pass
        except (redis.RedisError, OSError) as error:
            logger.debug("no announcements any more: %s", error)
        finally:
            with self._lock:
                self._ended = True
                for names in self._inboxes.values():
                    for each in names:
                        each.put(None)
                self._loop.close()

    def _send(self, command: str, channels: Collection[str]) -> None:
        if channels:  # without any, UNSUBSCRIBE would mean all
            self._loop.call_soon_threadsafe(self._commands.put_nowait, (command, *channels))

    async def _serve(self) -> None:
        pool = redis.asyncio.ConnectionPool.from_url(
            self._redis_url,
            # A reply is a plain list; announcements may be far apart.
            protocol=2,
            socket_timeout=None,
            socket_connect_timeout=self._connect_timeout,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
        )
        connection = pool.connection_class(**pool.connection_kwargs)
        await connection.connect()  # type: ignore[no-untyped-call]
        writing = asyncio.create_task(self._write(connection))
        try:
            await self._read(connection)
        finally:
            writing.cancel()
            await connection.disconnect(nowait=True)

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
            with self._lock:
                for names in self._inboxes.get(name, ()):
                    names.put(name)
