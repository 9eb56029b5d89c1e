"""The time that a message waited in its queue, by the clocks of others.

Knows times and their limits; nothing of queues.
"""

import time

from schemas import SQEMessage, Verdict

LONGEST_WAIT = 30 * 86_400.0
"""Longest plausible time in a queue, in seconds. An older time from a producer means a wrong clock
or unit (a clock that starts in 1970, a zero), and one such value would outweigh all others in a
histogram's sum."""

CLOCK_SKEW = 300.0
"""Seconds by which a producer's clock may be ahead of this machine's. Synchronised clocks differ by
far less, and Kerberos allows the same. Milliseconds mistaken for seconds are far beyond it."""


def queued_seconds(enqueued_at: float | None) -> float | None:
    """Compute the seconds since a producer's time in Unix seconds; None if it is not plausible."""
    return None if enqueued_at is None else _plausible_wait(time.time() - enqueued_at)


def _plausible_wait(seconds: float) -> float | None:
    """Check a time in the queue by a producer's clock; None if that clock cannot be right.

    The result is not below 0, since the clocks of two machines differ.
    """
    return max(0.0, seconds) if -CLOCK_SKEW <= seconds <= LONGEST_WAIT else None


def with_queue_time(verdict: Verdict, message: SQEMessage, queued: float | None) -> Verdict:
    """Fill in the time in the queue from `created_at` if the producer did not give its own."""
    if queued is not None or message.created_at is None:
        return verdict
    total = (verdict.evaluated_at - message.created_at).total_seconds()
    waited = _plausible_wait(total - verdict.timings.total)
    if waited is None:
        return verdict
    timings = verdict.timings.model_copy(
        update={"queue": waited, "total": waited + verdict.timings.total}
    )
    return verdict.model_copy(update={"timings": timings})
