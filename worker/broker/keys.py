"""Every name this project uses in Redis, in one place: queues, streams, markers, results.

Only names. Their readers and writers are `worker.delivery.transport` (queues, and deliveries that
are not acknowledged), `worker.delivery.outcomes` (markers, streams, results),
`worker.broker.streams` (streams) and `worker.client` (results).
"""

LIVE_QUEUE = "sqe.evaluate"
"""Messages of agents at work. A list; emptied before the other queue."""

BACKFILL_QUEUE = "sqe.backfill"
"""Messages of files. A list; taken from only while no live message waits."""

QUEUES = (LIVE_QUEUE, BACKFILL_QUEUE)
"""In the order a worker empties them."""

UNACKED = "sqe:unacked"
"""Hash, delivery tag to message: what was delivered to a worker and not yet acknowledged."""

UNACKED_INDEX = "sqe:unacked-index"
"""Sorted set of delivery tags by the time (Unix seconds) from which `visibility_timeout` runs."""

UNACKED_MUTEX = "sqe:unacked-mutex"
"""Lock of the one worker that looks for messages to deliver again."""

FAILURES = "sqe:failures"
"""Capped stream: each unsolved message once, with its verdict."""

DEAD_LETTERS = "sqe:dead-letters"
"""Capped stream: each refused message once, with the reason and its original bytes."""

_PRIORITY_SUFFIXES = ("", "\x06\x163", "\x06\x166", "\x06\x169")
"""Celery producers may give a priority; kombu's Redis transport then appends it to the queue."""

_DIGEST_LENGTH = 12
"""Hexadecimal digits of a checkpoint's digest in a marker: 48 bits tell checkpoints apart."""


def queue_lists(queue: str) -> tuple[str, ...]:
    """The Redis lists that make up `queue`, the most urgent first."""
    return tuple(queue + suffix for suffix in _PRIORITY_SUFFIXES)


def delivery_tag(queue: str, unique: str) -> str:
    """The tag of one delivery from `queue`: it says where an unacknowledged message goes back."""
    return f"{queue}/{unique}"


def queue_of(tag: str) -> str:
    """The queue that a delivery tag was made for."""
    return tag.partition("/")[0]


def counted(checkpoint_digest: str, message_id: str) -> str:
    """Marker: this message was counted for this checkpoint."""
    return f"sqe:counted:{checkpoint_digest[:_DIGEST_LENGTH]}:{message_id}"


def refused(identity: str) -> str:
    """Marker: this delivery was counted as a dead letter."""
    return f"sqe:counted:refused:{identity}"


def result(task_id: str) -> str:
    """An outcome in the Celery result backend; also the channel that tells of it."""
    return f"celery-task-meta-{task_id}"
