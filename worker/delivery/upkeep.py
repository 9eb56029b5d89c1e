"""The regular care for deliveries: renew this worker's, put back those of dead workers.

It works over the connections that store outcomes, in a thread of its own. So renewals come in time
also without the consumer's connection, beside a busy event loop and during a drain.

Knows tags and times; nothing of what is in an item.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import redis

from worker.broker.keys import (
    BATCHED,
    NOTED,
    QUEUES,
    UNACKED_INDEX,
    Namespace,
    messages_of,
    queue_lists,
    queue_of,
    suspects,
)
from worker.delivery.hand import Hand
from worker.delivery.scripts import RECLAIM, RENEW, RESTORE
from worker.delivery.vital import Vital
from worker.telemetry.labels import Request

BEATS = 4
"""Renewals of a message within the visibility timeout; three of them may fail."""

LONGEST_PAUSE = 10.0
"""Longest time in seconds between two searches for the messages of dead workers."""

RETRY_SECONDS = 0.2
"""Pause after a failure. A Redis that was away may be back, and every second counts against the
messages in hand."""

OTHERS_SECONDS = 2.5
"""Time after an outage of Redis in which nothing is put back, since other workers may not have
renewed their messages yet. It is longer than their pauses between attempts."""

RESTORED_AT_ONCE = 100
"""Most items that one script puts back: some milliseconds in which Redis serves nobody else."""

WITH_QUEUES = (
    *NOTED,
    *(name for queue in QUEUES for name in (*queue_lists(queue), suspects(queue))),
    BATCHED,
)
"""Names of the keys of the scripts that put items back."""


class Upkeep:
    """The thread that keeps deliveries, of this worker and of dead ones.

    Args:
        client: The workers' Redis.
        namespace: The beginning of all names.
        hand: This worker's deliveries.
        visibility_timeout: Seconds after which a delivery that nobody renewed is put back.
    """

    def __init__(
        self, client: redis.Redis, namespace: Namespace, hand: Hand, visibility_timeout: float
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._keys = namespace.all_keys(WITH_QUEUES)
        self._index = namespace.key(UNACKED_INDEX)
        self._hand = hand
        self._visibility_timeout = visibility_timeout
        self._pause = min(visibility_timeout / BEATS, LONGEST_PAUSE)
        self._restore_after = time.monotonic() + min(OTHERS_SECONDS, self._pause)
        self._lost: list[str] = []
        self.on_request: Callable[[Request, float], object] = lambda *_: None
        """Called with the seconds of each request."""
        self.on_restored: Callable[[str, int], object] = lambda *_: None
        """Called with a queue, and the number of its messages that were put back."""
        self._woken = threading.Event()
        self._ended = False
        self._thread = Vital(self._run, "upkeep")

    def start(self) -> None:
        """Begin."""
        self._hand.on_lost = self._woken.set
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End, and put back at most for `timeout` seconds what was taken without a reply."""
        self._ended = True
        self._woken.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._ended:
            pause = self._pause if self._keep() else min(self._pause, RETRY_SECONDS)
            self._woken.wait(pause)
            self._woken.clear()
        self._lost += self._hand.lost(at_end=True)
        self._keep()

    def _keep(self) -> bool:
        """Do everything once; returns whether Redis accepted it. Others report what it does not."""
        try:
            self._renew()
            self._reclaim()
            if time.monotonic() >= self._restore_after and not self._ended:
                self._restore()
        except redis.RedisError:
            self._restore_after = time.monotonic() + OTHERS_SECONDS
            # The idle ones may lead to a server that a failover made a replica.
            self._client.connection_pool.disconnect(inuse_connections=False)
            return False
        return True

    def _renew(self) -> None:
        """Restart the visibility timeout of this process's messages."""
        tags = self._hand.tags()
        if tags:
            with self._timed(Request.RENEW):
                RENEW(self._client, (self._index,), *tags)

    def _reclaim(self) -> None:
        """Put back what requests took whose replies never came: nobody else has these items."""
        self._lost += self._hand.lost()
        while self._lost:
            RECLAIM(self._client, self._keys, self._lost[-1])
            self._lost.pop()

    def _restore(self) -> None:
        """Put back what dead workers have left.

        It needs no lock: an item is put back by the first script that finds it.
        """
        found = RESTORED_AT_ONCE
        while found == RESTORED_AT_ONCE:
            with self._timed(Request.RESTORE):
                found, tags = RESTORE(
                    self._client, self._keys, self._visibility_timeout, RESTORED_AT_ONCE
                )
            for tag in tags:
                name = tag.decode(errors="replace")
                queue = self._namespace.name_of(queue_of(name))
                # The script puts what is of no queue into the first one.
                self.on_restored(queue if queue in QUEUES else QUEUES[0], messages_of(name))

    @contextlib.contextmanager
    def _timed(self, request: Request) -> Iterator[None]:
        sent = time.monotonic()
        try:
            yield
        finally:
            self.on_request(request, time.monotonic() - sent)
