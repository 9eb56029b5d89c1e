"""Work that Redis does not accept: one log line when the trouble begins, and one when it ends.

Knows errors and times; nothing of what was sent. Readiness shows the reason.
"""

import logging
import threading
import time
from collections.abc import Hashable

from worker.broker.errors import describe, is_lasting

logger = logging.getLogger(__name__)

PASSING_SECONDS = 5.0
"""Seconds for which an error that may pass by itself does not count: a restart of Redis, or most of
a failover."""


class Trouble:
    """One kind of work that Redis may not accept. Threads share an object.

    Args:
        work: What the worker cannot do during a trouble, as a verb and its object.
    """

    def __init__(self, work: str) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._failing: set[Hashable] = set()
        self._logged: set[str] = set()
        self._since = 0.0
        self._reason = ""
        self._lasting = False

    def failed(self, error: Exception, part: Hashable = None) -> None:
        """Note that Redis did not accept `part`, which is tried again."""
        reason, lasting = describe(error), is_lasting(error)
        with self._lock:
            if not self._failing:
                self._since = time.monotonic()
            self._failing.add(part)
            self._reason, self._lasting = reason, lasting
            # The errors of one outage differ from thread to thread and from try to try.
            event = reason if lasting else ""
            is_new = event not in self._logged
            self._logged.add(event)
        if is_new:
            level = logging.ERROR if lasting else logging.WARNING
            logger.log(level, "cannot %s: %s; trying until it works", self._work, reason)

    def passed(self, part: Hashable = None) -> None:
        """Note that Redis accepted `part`."""
        if part not in self._failing:
            return
        with self._lock:
            self._failing.discard(part)
            over = not self._failing
            if over:
                self._logged.clear()
        if over:
            logger.info("can %s again", self._work)

    def reason(self) -> str | None:
        """Say what cannot be done and why; None if nothing fails, or not for long enough."""
        with self._lock:
            young = time.monotonic() - self._since < PASSING_SECONDS
            if not self._failing or (young and not self._lasting):
                return None
            return f"cannot {self._work}: {self._reason}"
