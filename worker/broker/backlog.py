"""The number of messages that wait in each queue, or are delivered but not acknowledged.

A backlog can hide in either. Reads Redis and writes nothing.
"""

from collections import Counter

import redis

from worker.broker.keys import (
    NO_NAMESPACE,
    QUEUES,
    UNACKED_INDEX,
    Namespace,
    queue_lists,
    queue_of,
    suspects,
)

READY = "ready"
"""State of messages in the queue."""

UNACKED = "unacked"
"""State of messages that a worker has taken and not yet acknowledged."""

OTHER = "other"
"""Stands for the queue of entries in the unacknowledged index that name none of `QUEUES`."""

MAX_TAGS = 100_000
"""Limit of the tags to read. Only hundreds of workers together have that many busy slots."""


def read_backlog(
    client: redis.Redis, namespace: Namespace = NO_NAMESPACE
) -> Counter[tuple[str, str]] | None:
    """Count messages by (queue, state); a batch counts as one. Returns None without Redis.

    The queue is one of `QUEUES`, or `OTHER` (only with the state `UNACKED`) if there are foreign
    entries.
    """
    lists = [(queue, key) for queue in QUEUES for key in (*queue_lists(queue), suspects(queue))]
    try:
        with client.pipeline(transaction=False) as pipe:
            for _, key in lists:
                pipe.llen(namespace.key(key))
            pipe.zrange(namespace.key(UNACKED_INDEX), 0, MAX_TAGS - 1)
            *lengths, tags = pipe.execute()
    except redis.RedisError:
        return None
    counts = Counter({(queue, state): 0 for queue in QUEUES for state in (READY, UNACKED)})
    for (queue, _), length in zip(lists, lengths, strict=True):
        counts[queue, READY] += length
    for tag in tags:
        counts[known_queue(tag, namespace), UNACKED] += 1
    return counts


def known_queue(tag: bytes, namespace: Namespace) -> str:
    """Find the queue that `tag` names, or `OTHER`.

    Anyone may write any bytes into the index, and the queue becomes the value of a metric's label.
    """
    queue = namespace.name_of(queue_of(tag.decode(errors="replace")))
    return queue if queue in QUEUES else OTHER
