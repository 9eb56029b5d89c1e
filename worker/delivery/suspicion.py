"""Poisonous messages: how many faults an item may have, and what its faults say about it.

A fault is a delivery that ended without an outcome, because its worker died, broke or met an
unexpected error. After two faults an item is a suspect. A worker takes it only if it has nothing
else in hand, and evaluates its messages one by one. A fault then has one possible cause, and no
neighbour is blamed for it.

Knows counts and positions; nothing of what is in an item. `worker.delivery.scripts` keeps the
counts.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Self

from schemas import MessageRejected, RejectionReason

FAULTS_BEFORE_SUSPICION = 2
"""Faults after which an item is a suspect. One fault happens to every neighbour of a poisonous
message, and to everything that a worker holds whose machine fails; two are rarely a coincidence."""

FAULTS_ALONE = 2
"""Faults of a message while it was evaluated alone, after which it is a dead letter. One may be the
machine's: a kill for memory that another process used up."""

AFTER_FAULT = "after a fault"
"""Value for Celery's `requeue`, which is true otherwise, if the delivery ended in a fault although
its worker goes on."""

NOT_ALONE = "-"
"""Position in the record of a fault that happened while no message was evaluated alone."""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """The earlier faults of an item that is now evaluated alone.

    Args:
        digest: SHA-1 of the item, by which Redis finds its faults.
        positions: How many faults happened while the message at a position (as text) was
            evaluated, or `NOT_ALONE`.
    """

    digest: str
    positions: Counter[str]

    @classmethod
    def read(cls, digest: bytes, faults: bytes) -> Self:
        """Read the record of the faults, whatever it holds."""
        return cls(digest.decode(), Counter(faults.decode(errors="replace").split()))

    @property
    def is_unreadable(self) -> bool:
        """Whether the item ended its workers while they evaluated none of its messages alone."""
        return self.positions[NOT_ALONE] >= FAULTS_BEFORE_SUSPICION + FAULTS_ALONE

    def is_poison(self, position: int) -> bool:
        """Whether the message at `position` ended its workers while it was evaluated alone."""
        return self.positions[str(position)] >= FAULTS_ALONE

    def rejection(self) -> MessageRejected:
        """Build the rejection of the poisonous message, or of the whole item."""
        return MessageRejected(
            RejectionReason.DELIVERED_TOO_OFTEN,
            f"delivered {self.positions.total()} times without an outcome, the last {FAULTS_ALONE} "
            "alone: find out from the workers' logs why they ended before you send it again",
        )
