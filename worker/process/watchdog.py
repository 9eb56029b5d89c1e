"""Notice an engine that hangs, such as one whose GPU never answers again.

Knows an engine's statistics and time; nothing of what happens to a worker whose engine hangs.
"""

import threading
from collections.abc import Callable

from worker.evaluator import EngineStatistics

BEATS = 60
"""Looks at the engine within the limit. They cost nothing, and half of the limit is met well."""


class Watchdog:
    """Watches whether the engine ends its turns. A turn is one ACT step of some examples.

    Time is counted in looks at the engine. A process that was stopped as a whole (a container that
    is paused, a machine that sleeps) has not hung in that time.

    Args:
        read: Reads the engine's statistics.
        limit: Seconds without the end of a turn that is under way, after which the engine hangs.
    """

    def __init__(self, read: Callable[[], EngineStatistics], limit: float) -> None:
        self._read = read
        self._limit = limit
        self._beat = limit / BEATS
        self.stalled_seconds = 0.0
        """Time since the engine last ended a turn; 0 while it has nothing to do."""

    def start(self, on_stalled: Callable[[str], None]) -> None:
        """Watch from now on, and call `on_stalled` with the reason once the engine hangs."""
        watch = threading.Thread(
            target=self._watch, args=(on_stalled,), name="watchdog", daemon=True
        )
        watch.start()

    def _watch(self, on_stalled: Callable[[str], None]) -> None:
        pause = threading.Event()
        last = None
        while self.stalled_seconds < self._limit:
            pause.wait(self._beat)
            now = self._read()
            is_same = now.in_turn and now.turns == last
            self.stalled_seconds = self.stalled_seconds + self._beat if is_same else 0.0
            last = now.turns
        on_stalled(f"the engine has not finished a step for {self._limit:g} s")
