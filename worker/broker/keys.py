"""Every name this project uses in Redis, in one place: queues, streams, markers, results.

Only names. Their readers and writers are `worker.delivery.transport` (queues, faults, and
deliveries that are not acknowledged), `worker.delivery.outcomes` (markers, streams, results),
`worker.broker.streams` (streams), `worker.client` (results) and `worker.process.reload_requests`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from schemas import SQEHRMError

LIVE_QUEUE = "sqe.evaluate"
"""List of the messages that agents send while they work; emptied before the other queue."""

BACKFILL_QUEUE = "sqe.backfill"
"""List of the messages from files; workers take them only while no live message waits."""

QUEUES = (LIVE_QUEUE, BACKFILL_QUEUE)
"""Both queues, in the order in which a worker empties them."""

BATCHED = "sqe:batched"
"""Hash from a queue's name to the messages that wait in it beyond one of each item: those of
batches with the header `MESSAGES`. Senders and the workers' scripts keep it."""

UNACKED = "sqe:unacked"
"""Hash from delivery tag to message, for messages that were delivered but not acknowledged."""

UNACKED_INDEX = "sqe:unacked-index"
"""Sorted set of delivery tags by the time from which `visibility_timeout` runs, in Unix seconds of
the server's clock."""

FAULTS = "sqe:faults"
"""Hash from the SHA-1 of an item to its deliveries that ended in a fault, until it is acknowledged.
The field `SHA-1/at` holds the position of the message of a batch that is evaluated alone."""

COUNTED = "sqe:counted"
"""Beginning of the names of the markers that messages were counted; `worker.delivery.markers` adds
the number of a slice of time, and of a set."""

AGENTS = "sqe:agents"
"""Hash of the live evaluations by agent; `worker.delivery.agents` says what its fields are."""

CANARIES = "sqe:canaries"
"""Set of the ids of the messages that the monitor sends with a known answer."""

NOTED = (UNACKED, UNACKED_INDEX, FAULTS)
"""Everything that Redis notes about items that were delivered but not acknowledged."""

FAILURES = "sqe:failures"
"""Capped stream of unsolved messages, each once, with its verdict."""

DEAD_LETTERS = "sqe:dead-letters"
"""Capped stream of refused messages, each once, with the reason and the original bytes."""

EVIDENCE = "sqe:evidence"
"""Hash of the bytes of the two streams, and of the failures that were left out. It is also the
beginning of the names of the hashes with an hour's failures by agent and pattern, which expire."""

RELOAD = "sqe:reload"
"""Channel in which the workers of a namespace are asked to reload their checkpoints."""

_PRIORITY_SUFFIXES = ("", "\x06\x163", "\x06\x166", "\x06\x169")
"""Suffixes of a queue's lists: kombu's Redis transport appends a task's priority to the queue."""


def queue_lists(queue: str) -> tuple[str, ...]:
    """Name the Redis lists that make up `queue`, the most urgent first."""
    return tuple(queue + suffix for suffix in _PRIORITY_SUFFIXES)


def suspects(queue: str) -> str:
    """Name the Redis list of the items of `queue` that had several faults and are taken alone."""
    return f"{queue}:suspects"


def delivery_tag(queue: str, unique: str, place: int = 0) -> str:
    """Build the tag of one delivery, which says where its item goes back if unacknowledged.

    The tag of a batch of 7 messages ends with `.7`, before its place.

    Args:
        queue: The queue, completed with the namespace.
        unique: Text without a slash that no other delivery has.
        place: Place of the item's list among the queue's lists (`queue_lists`).
    """
    return f"{queue}/{unique}/{place}" if place else f"{queue}/{unique}"


def messages_of(tag: str) -> int:
    """Read the number of messages from a delivery tag; 1 if it names none."""
    found = re.match(r"[^/]*/[^/]*\.([0-9]{1,3})(/|$)", tag)
    return int(found[1]) if found else 1


def queue_of(tag: str) -> str:
    """Read the queue from a delivery tag."""
    return tag.partition("/")[0]


def attempt(name: str) -> str:
    """Name the note of the last attempt to store outcomes by the thread called `name`."""
    return f"sqe:attempt:{name}"


def partial(identity: str) -> str:
    """Name the hash of the outcomes of a batch by position, until the last one is stored."""
    return f"sqe:partial:{identity}"


def result(task_id: str) -> str:
    """Name the key of an outcome in Celery's result backend, also the channel that announces it."""
    return f"celery-task-meta-{task_id}"


def reload_answers(request: str) -> str:
    """Name the channel of the answers to a request to reload."""
    return f"{RELOAD}:{request}"


class NamespaceError(SQEHRMError):
    """SQE_NAMESPACE has an unusable value."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """The beginning of every key and channel of one deployment, so that several share a Redis.

    It is a hash tag: Redis Cluster keeps all keys of a namespace on one node, which the scripts
    need. Without a name, there is no beginning.

    Raises `NamespaceError` for a name that cannot be used.
    """

    name: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{0,64}", self.name):
            raise NamespaceError(
                "SQE_NAMESPACE is too long or has other characters: use at most 64 letters, "
                "digits, dots, dashes and underscores"
            )

    @property
    def prefix(self) -> str:
        """The beginning of every name."""
        return f"{{{self.name}}}:" if self.name else ""

    def key(self, name: str) -> str:
        """Complete one of this module's names."""
        return self.prefix + name

    def all_keys(self, names: Iterable[str]) -> tuple[str, ...]:
        """Complete several of this module's names."""
        return tuple(map(self.key, names))

    def name_of(self, key: str) -> str:
        """Undo `key`."""
        return key.removeprefix(self.prefix)


NO_NAMESPACE = Namespace()
"""For a deployment that has a database to itself."""
