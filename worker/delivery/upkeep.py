"""The regular care for deliveries: renew this worker's, put back those of dead workers.

It works over the connections that store outcomes, in a thread of its own. So renewals come in time
also without the consumer's connection, beside a busy event loop and during a drain.

Knows tags and times; nothing of what is in an item.
"""

import threading
import time

import redis

from worker.broker.keys import (
    BATCHED,
    NOTED,
    QUEUES,
    UNACKED_INDEX,
    Namespace,
    queue_lists,
    suspects,
)
from worker.delivery.hand import Hand
from worker.delivery.scripts import RECLAIM, RENEW, RESTORE
from worker.delivery.vital import Vital

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
        self._keys = namespace.all_keys(WITH_QUEUES)
        self._index = namespace.key(UNACKED_INDEX)
        self._hand = hand
        self._visibility_timeout = visibility_timeout
        self._pause = min(visibility_timeout / BEATS, LONGEST_PAUSE)
        self._restore_after = time.monotonic() + min(OTHERS_SECONDS, self._pause)
        self._lost: list[str] = []
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
        arguments = (self._visibility_timeout, RESTORED_AT_ONCE)
        while RESTORE(self._client, self._keys, *arguments) == RESTORED_AT_ONCE:
            pass
