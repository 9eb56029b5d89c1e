"""How many messages wait in each queue, and how many are delivered but not acknowledged.

A backlog hides in either. Reads Redis and writes nothing.
"""

from collections import Counter

import redis

from worker.broker.keys import QUEUES, UNACKED_INDEX, queue_lists, queue_of

READY = "ready"
"""In the queue."""

UNACKED = "unacked"
"""Delivered to some worker and not acknowledged."""

OTHER = "other"
"""In place of the queue, for an entry of the unacknowledged index that names none of `QUEUES`."""

MAX_TAGS = 100_000
"""Read at most; as many slots are busy only across hundreds of workers."""


def read_backlog(client: redis.Redis) -> Counter[tuple[str, str]] | None:
    """Messages by (queue, state); a task of many messages counts as one. None without Redis.

    The queue is one of `QUEUES`, or `OTHER` with the state `UNACKED` if there are such entries.
    """
    lists = [(queue, key) for queue in QUEUES for key in queue_lists(queue)]
    try:
        with client.pipeline(transaction=False) as pipe:
            for _, key in lists:
                pipe.llen(key)
            pipe.zrange(UNACKED_INDEX, 0, MAX_TAGS - 1)
            *lengths, tags = pipe.execute()
    except redis.RedisError:
        return None
    counts = Counter({(queue, state): 0 for queue in QUEUES for state in (READY, UNACKED)})
    for (queue, _), length in zip(lists, lengths, strict=True):
        counts[queue, READY] += length
    for tag in tags:
        counts[_known_queue(tag), UNACKED] += 1
    return counts


def _known_queue(tag: bytes) -> str:
    """The queue that a tag names, or `OTHER`: anyone may write any bytes into the index, and a
    queue becomes the value of a metric's label.
    """
    queue = queue_of(tag.decode(errors="replace"))
    return queue if queue in QUEUES else OTHER
