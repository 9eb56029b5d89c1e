"""The tasks that are not finished, as `sqe-hrm submit` sees them while it waits.

Knows two numbers and what they say about workers; what is counted is in `worker.broker.backlog`.
"""

from dataclasses import dataclass
from typing import Self

import redis

from worker.broker.backlog import UNACKED, read_backlog
from worker.broker.keys import Namespace
from worker.client import BrokerUnreachable


@dataclass(frozen=True, slots=True)
class Backlog:
    """The tasks of all producers that are not finished; a batch is one task."""

    queued: int
    """Tasks in the queues."""
    taken: int
    """Tasks that workers have taken and not finished."""

    @classmethod
    def read(cls, store: redis.Redis, namespace: Namespace) -> Self:
        """Count the tasks. Raises `BrokerUnreachable`."""
        counts = read_backlog(store, namespace)
        if counts is None:
            raise BrokerUnreachable(
                "Redis does not tell the lengths of the queues: check SQE_REDIS_URL"
            )
        taken = sum(count for (_, state), count in counts.items() if state == UNACKED)
        return cls(queued=counts.total() - taken, taken=taken)

    def shrank_since(self, before: Self) -> bool:
        """Whether a task was taken from a queue, or finished."""
        return (
            self.queued < before.queued or self.queued + self.taken < before.queued + before.taken
        )

    def __str__(self) -> str:
        """Describe messages that have no outcome, and name the fix."""
        if self.taken:
            return (
                f"{self.queued} tasks wait in the queues and workers have {self.taken}; "
                "give a longer --timeout"
            )
        if self.queued:
            return f"{self.queued} tasks wait in the queues: is a worker running?"
        return "no task is left: see the dead letters, and SQE_RESULT_EXPIRES"
