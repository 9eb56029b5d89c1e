"""An item as it came from Redis, before anything in it was read.

Knows the limits of an item and its faults; nothing of threads. `worker.delivery.envelope` reads it.
"""

import dataclasses
from dataclasses import dataclass

from worker.broker.streams import Original
from worker.delivery.envelope import Envelope, Refusal, read_item, refuse_item, refuse_oversized
from worker.delivery.suspicion import Suspicion


@dataclass(frozen=True, slots=True)
class Taken:
    """A delivery of one item."""

    item: bytes
    """Its bytes, or their beginning if there is an `original`."""
    tag: str
    queue: str
    limit: int
    """The longest item in bytes that is taken out of Redis as a whole."""
    suspicion: Suspicion | None = None
    """Its earlier faults, if it has to be evaluated alone."""
    original: Original | None = None
    """The whole item, if it is too long to be taken out of Redis."""

    def read(self) -> Envelope | Refusal:
        """Read the item, or refuse it. Raises nothing, whatever it is."""
        if self.original is not None:
            return refuse_oversized(self.item, self.queue, self.tag, self.original, self.limit)
        suspicion = self.suspicion
        if suspicion is not None and suspicion.is_unreadable:
            return refuse_item(self.item, self.queue, self.tag, suspicion.rejection())
        read = read_item(self.item, self.queue, self.tag)
        if isinstance(read, Envelope) and suspicion is not None:
            return dataclasses.replace(read, suspicion=suspicion)
        return read
