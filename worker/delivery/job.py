"""A delivery of a task in work: how far it is, how it ends, and who is told.

Knows envelopes and positions; nothing of threads, the engine or Redis.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from worker.broker.keys import LIVE_QUEUE
from worker.delivery.envelope import Envelope
from worker.delivery.outcomes import Batch
from worker.telemetry.labels import Lane


class Ending(StrEnum):
    """How a delivery ends."""

    ANSWERED = "answered"
    """Every message has an outcome. A single message was not refused."""
    REFUSED = "refused"
    """The whole item or task, or its single message, became one dead letter."""
    GIVEN_BACK = "given back"
    """It is in its queue again."""


class Observer(Protocol):
    """Told about tasks by the service's threads. It must be quick, and must not raise."""

    def accepted(self, envelope: Envelope) -> None:
        """A task was read, and its messages are evaluated from now on."""

    def finished(self, envelope: Envelope, ending: Ending) -> None:
        """An accepted task has left this worker."""


class Nobody:
    """Watches nothing."""

    def accepted(self, envelope: Envelope) -> None:
        """Do nothing."""

    def finished(self, envelope: Envelope, ending: Ending) -> None:
        """Do nothing."""


@dataclass(eq=False)
class Job:
    """A delivery of a task, and how far it is. Guarded by the service's lock."""

    tag: str
    envelope: Envelope
    bodies: Sequence[Any]
    batch: Batch | None
    queued: float | None = None
    """Seconds in the queue, if the producer says so."""
    outcomes: dict[int, str] = field(default_factory=dict)
    """Stored outcomes by position, as JSON; empty if nobody wants the list of them."""
    to_do: deque[int] = field(default_factory=deque)
    """Positions of the messages that were not submitted yet."""
    in_engine: set[int] = field(default_factory=set)
    """Positions of those that the engine has."""
    unsettled: int = 0
    """Messages that were submitted, and neither have a stored outcome nor will have none."""
    problem: Exception | None = None
    """The first reason why a message has no outcome."""
    has_failed: bool = False
    """Whether there was an unexpected error."""
    ending: Ending = Ending.ANSWERED
    """How it ends once every message has its outcome."""
    is_abandoned: bool = False
    """Whether nobody waits for the engine any more."""

    @property
    def is_urgent(self) -> bool:
        """Whether an agent may wait for it."""
        return self.envelope.queue == LIVE_QUEUE

    @property
    def lane(self) -> Lane:
        """The lane in which its evaluations are counted."""
        return Lane.LIVE if self.is_urgent else Lane.BACKFILL

    @property
    def list_wanted(self) -> bool:
        """Whether somebody wants all outcomes as a list."""
        return self.batch is not None and self.batch.list_id is not None
