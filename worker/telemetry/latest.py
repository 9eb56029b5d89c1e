"""A value that a thread reads again and again, so that nobody who wants it waits for it.

Knows times; nothing of the value.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

READ_SECONDS = 2.0
"""Pause between two readings: short compared with the 15 s between two scrapes."""

OLDEST_SECONDS = 10.0
"""Age from which on a reading is worth nothing. It outlasts a few readings that fail, as in a slow
second or a restart of Redis."""


class Latest(Generic[T]):
    """The latest value of `read`, a function that returns None if it cannot read the value.

    Calling the object returns the value, or None if there is none that is young enough.
    """

    def __init__(self, read: Callable[[], T | None]) -> None:
        self._read = read
        self._latest: tuple[float, T] | None = None

    def start(self) -> None:
        """Read the value now, and in a thread from now on."""
        self._update()
        threading.Thread(target=self._keep_reading, name="latest", daemon=True).start()

    def __call__(self) -> T | None:
        """Return the value, at once."""
        latest = self._latest
        if latest is None or time.monotonic() - latest[0] > OLDEST_SECONDS:
            return None
        return latest[1]

    def _keep_reading(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(READ_SECONDS)
            self._update()

    def _update(self) -> None:
        asked = time.monotonic()
        try:
            value = self._read()
        except Exception:
            logger.exception("a value for the metrics cannot be read")
            return
        if value is not None:
            self._latest = asked, value
