"""Notice an engine that hangs, such as one whose GPU never answers again.

Knows an engine's statistics and time; nothing of what happens to a worker whose engine hangs.
"""

import threading
from collections.abc import Callable, Mapping

from worker.evaluator import EngineStatistics

BEATS = 60
"""Looks at the engine within the limit. They cost nothing, and half of the limit is met well."""


class Watchdog:
    """Watches whether engines end their turns. A turn is one ACT step of some examples.

    Time is counted in looks at the engine. A process that was stopped as a whole (a container that
    is paused, a machine that sleeps) has not hung in that time.

    Args:
        read: Reads the statistics of each engine, by a number that no other engine gets later.
        limit: Seconds without the end of a turn that is under way, after which an engine hangs.
    """

    def __init__(self, read: Callable[[], Mapping[int, EngineStatistics]], limit: float) -> None:
        self._read = read
        self._limit = limit
        self._beat = limit / BEATS
        self.stalled_seconds = 0.0
        """Time since an engine last ended a turn, the longest of any; 0 while none has work."""

    def start(self, on_stalled: Callable[[str], None]) -> None:
        """Watch from now on, and call `on_stalled` with the reason once an engine hangs."""
        watch = threading.Thread(
            target=self._watch, args=(on_stalled,), name="watchdog", daemon=True
        )
        watch.start()

    def _watch(self, on_stalled: Callable[[str], None]) -> None:
        pause = threading.Event()
        seconds: dict[int, float] = {}
        last: Mapping[int, EngineStatistics] = {}
        while self.stalled_seconds < self._limit:
            pause.wait(self._beat)
            now = self._read()
            seconds = {
                number: seconds[number] + self._beat
                if engine.in_turn and number in last and engine.turns == last[number].turns
                else 0.0
                for number, engine in now.items()
            }
            self.stalled_seconds = max(seconds.values(), default=0.0)
            last = now
        on_stalled(f"the engine has not finished a step for {self._limit:g} s")
