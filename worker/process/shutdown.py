"""The ways in which a worker ends: told to stop, broken, or with an engine that hangs.

Knows signals, time and Celery's flag; nothing of messages. The steps themselves are its callers'.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from celery.worker import state as celery_state

from worker.telemetry.health import Readiness

logger = logging.getLogger(__name__)

BROKEN = os.EX_TEMPFAIL
"""Exit status of a worker that cannot evaluate any more, but started: a new one may."""

CLOSE_SECONDS = 3.0
"""Seconds from the end of the grace period until an engine that does not close is abandoned. A
sound one closes once its slots are finished. With the default grace and `HARD_SECONDS`, a worker
has ended before Kubernetes kills it."""

HARD_SECONDS = 1.5
"""Seconds to give messages back once the engine is abandoned."""


class Shutdown:
    """The end of a worker: it takes no more messages, and finishes those it has within the grace.

    Args:
        grace_seconds: Time to finish what is under way.
        readiness: Told that the worker stops.
        close: Called first, perhaps by a signal's handler: no more messages are taken.
        give_up: Called when the grace period is over; messages then go back to their queues. It may
            wait for the engine.
        abandon: Called if the engine does not end; messages go back without waiting for it.
    """

    def __init__(
        self,
        grace_seconds: float,
        readiness: Readiness,
        close: Callable[[], None],
        give_up: Callable[[], None],
        abandon: Callable[[], None],
    ) -> None:
        self._grace_seconds = grace_seconds
        self._readiness = readiness
        self._close = close
        self._give_up = give_up
        self._abandon = abandon
        self._timers: list[threading.Timer] = []
        # Locks, since each is taken once, and a signal's handler must not wait.
        self._begun = threading.Lock()
        self._broken = threading.Lock()
        self._abandoned = threading.Lock()

    @property
    def is_broken(self) -> bool:
        """Whether the worker stops because it cannot go on, and not only because it was told to."""
        return self._broken.locked()

    @property
    def status(self) -> int:
        """Exit status of the worker."""
        return BROKEN if self.is_broken else os.EX_OK

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Begin; a second signal changes nothing."""
        if self._begin():
            name = signal.Signals(number).name
            logger.info("received %s: finishing within %g s", name, self._grace_seconds)

    def on_broken(self, reason: str) -> None:
        """Begin, because no message can be evaluated here any more."""
        if self._broken.acquire(blocking=False):
            logger.error("this worker cannot go on: %s", reason)
            self._begin()

    def on_stalled(self, reason: str) -> None:
        """Begin and end at once, because the engine hangs, or a part of the worker has ended."""
        self.on_broken(reason)
        self._let_go()
        self._give_up()

    def end(self) -> None:
        """Note that nothing is under way any more.

        The process ends here if the engine was abandoned: closing it would wait for ever.
        """
        if self._abandoned.locked():
            self._end_hard()
        for timer in self._timers:
            timer.cancel()

    def _begin(self) -> bool:
        """Stop taking messages, and finish those under way. Returns whether that is new."""
        if not self._begun.acquire(blocking=False):
            return False
        self._close()
        self._readiness.stopping()
        celery_state.should_stop = self.status
        self._later(self._grace_seconds, self._expire)
        return True

    def _expire(self) -> None:
        logger.warning("the grace period is over: unfinished messages go back to their queues")
        self._later(CLOSE_SECONDS, self._let_go)
        self._give_up()

    def _let_go(self) -> None:
        if self._abandoned.acquire(blocking=False):
            logger.warning("the worker ends without waiting for its engine any longer")
            self._later(HARD_SECONDS, self._end_hard)
            self._abandon()

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)

    def _end_hard(self) -> NoReturn:
        """End the process without its threads, which may wait for the device for ever."""
        os._exit(self.status)
