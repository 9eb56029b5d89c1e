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

MAX_TAGS = 100_000
"""Read at most; as many slots are busy only across hundreds of workers."""


def read_backlog(client: redis.Redis) -> Counter[tuple[str, str]] | None:
    """Messages by (queue, state); a task of many messages counts as one. None without Redis."""
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
        counts[queue_of(tag.decode()), UNACKED] += 1
    return counts
