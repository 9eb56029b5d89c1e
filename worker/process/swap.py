"""The evaluator of a worker, whose place another one can take between two messages.

Knows evaluators and how many messages each still has; nothing of checkpoints, or of who asks for
the change.
"""

import threading
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from schemas import HaltedBy
from worker.evaluator import EngineClosedError, EngineStatistics, Evaluator, Named, Pending

_STATE = ("busy_slots", "waiting")
"""Figures of one moment that engines have together."""

_COUNTS = ("steps", "occupied", "refills", "answered", "turns", "cache_hits", "cache_misses")
"""Figures that count, and must not fall when another engine begins at 0."""


@dataclass(eq=False)
class _Place:
    """An evaluator, and the messages that it was given and has not answered."""

    evaluator: Evaluator
    number: int
    messages: int = 0


class Swap:
    """An evaluator that passes everything on to the one that serves. Threads may share it.

    Args:
        evaluator: The first one that serves. Whoever serves is closed by this object.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self._serving = _Place(evaluator, 0)
        self._leaving: _Place | None = None
        """The one before, until it has answered all messages that it has."""
        self._past = EngineStatistics()
        """The counts of those that have left."""
        self._closed = False
        self._changed = threading.Condition()

    @property
    def serving(self) -> Evaluator:
        """The evaluator that gets the next message."""
        return self._serving.evaluator

    @property
    def checkpoint(self) -> Named:
        """The checkpoint that serves."""
        return self.serving.checkpoint

    @property
    def recorded_rate(self) -> tuple[float, float, float] | None:
        """The recorded rate of the checkpoint that serves, and its interval."""
        return self.serving.recorded_rate

    @property
    def training_tokens(self) -> Mapping[str, float]:
        """Shares of tokens in what the checkpoint that serves was trained on."""
        return self.serving.training_tokens

    @property
    def device(self) -> str:
        """The device, which stays the same."""
        return self.serving.device

    @property
    def dtype(self) -> str:
        """The dtype of the activations of the one that serves."""
        return self.serving.dtype

    @property
    def halting(self) -> HaltedBy:
        """The halting rule of the one that serves."""
        return self.serving.halting

    @property
    def statistics(self) -> EngineStatistics:
        """The slots of the engine that serves, and the counts and messages of all together."""
        with self._changed:
            engines = [place.evaluator.statistics for place in self._places()]
            now, counts = _sums(_STATE, *engines), _sums(_COUNTS, self._past, *engines)
        return replace(engines[0], **now, **counts)

    @property
    def engines(self) -> Mapping[int, EngineStatistics]:
        """The statistics of each engine that has work or may get it, by its number."""
        with self._changed:
            return {place.number: place.evaluator.statistics for place in self._places()}

    def submit(
        self,
        body: bytes | str | Mapping[str, Any],
        *,
        queued_seconds: float | None = None,
        urgent: bool = True,
    ) -> Pending:
        """Submit a message to the evaluator that serves now, which also makes its verdict."""
        with self._changed:
            place = self._serving
            place.messages += 1
        try:
            pending = place.evaluator.submit(body, queued_seconds=queued_seconds, urgent=urgent)
        except BaseException:
            self._leave(place)
            raise
        pending.add_done_callback(partial(self._leave, place))
        return pending

    def replace(self, evaluator: Evaluator) -> None:
        """Let `evaluator` serve from the next message on.

        Call `finish` before the next change. Raises `EngineClosedError`, and closes `evaluator`, if
        this object was closed.
        """
        with self._changed:
            if not self._closed:
                self._leaving = self._serving
                self._serving = _Place(evaluator, self._leaving.number + 1)
                return
        evaluator.close()
        raise EngineClosedError("the worker is shutting down")

    def finish(self) -> "weakref.ref[Evaluator] | None":
        """Wait until the evaluator before has answered all messages that it has, and close it.

        Returns a reference that dies with it; None if there is none.
        """
        with self._changed:
            leaving = self._leaving
            if leaving is None:
                return None
            self._changed.wait_for(lambda: not leaving.messages or self._closed)
        leaving.evaluator.close()
        with self._changed:
            counts = _sums(_COUNTS, self._past, leaving.evaluator.statistics)
            self._past = replace(self._past, **counts)
            self._leaving = None
        return weakref.ref(leaving.evaluator)

    def self_test(self) -> tuple[int, int]:
        """Test the evaluator that serves."""
        return self.serving.self_test()

    def close(self) -> None:
        """Close all evaluators. None can take the place of another from now on."""
        with self._changed:
            self._closed = True
            places = self._places()
            self._changed.notify_all()
        for place in places:
            place.evaluator.close()

    def _places(self) -> list[_Place]:
        return [self._serving, *([] if self._leaving is None else [self._leaving])]

    def _leave(self, place: _Place) -> None:
        """Note that an evaluator has answered a message, or refused it."""
        with self._changed:
            place.messages -= 1
            if not place.messages and place is self._leaving:
                self._changed.notify_all()


def _sums(names: Iterable[str], *engines: EngineStatistics) -> dict[str, Any]:
    return {name: sum(getattr(each, name) for each in engines) for name in names}
