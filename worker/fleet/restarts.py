"""When a worker that ended is started again, and when it is given up.

Knows times; nothing of processes.
"""

EARLY_SECONDS = 60.0
"""A worker that was ready for less than this ended early. One whose device fails under load does so
within seconds; one that lives longer evaluates many messages before it costs a restart."""

FIRST_SECONDS = 1.0
"""Pause before the first restart. It doubles with each early end."""

MOST_EARLY_ENDS = 5
"""Early ends in a row after which a worker is given up, after pauses of 1, 2, 4 and 8 seconds. A
device that another process left in a bad state, or memory that it still holds, is usually free
again by then."""


class Restarts:
    """The early ends of one worker in a row."""

    def __init__(self) -> None:
        self._early = 0

    def ended(self, ready_seconds: float) -> float | None:
        """Note an end; returns the seconds until the next start, or None to give up.

        Args:
            ready_seconds: Time since the worker was first ready; 0 if it never was.
        """
        if ready_seconds >= EARLY_SECONDS:
            self._early = 0
            return FIRST_SECONDS
        self._early += 1
        if self._early >= MOST_EARLY_ENDS:
            return None
        return FIRST_SECONDS * 2.0 ** (self._early - 1)
