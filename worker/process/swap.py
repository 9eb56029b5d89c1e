"""The evaluator of a worker, whose place another one can take between two messages.

Knows evaluators and how many messages are in work; nothing of checkpoints, or of who asks for the
change.
"""

import contextlib
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from schemas import HaltedBy
from worker.evaluator import EngineClosedError, EngineStatistics, Evaluator, Named, Pending

_COUNTS = (
    *("steps", "occupied", "refills", "answered", "turns", "busy_seconds"),
    *("cache_hits", "cache_misses"),
)
"""Statistics that count, and must not fall when another engine begins at 0."""


class Swap:
    """An evaluator that passes everything on to the one that serves. Threads may share it.

    Two engines never compute at the same time: on a CPU, each would wait for the other's threads
    again and again, and both would take many times as long. So messages wait while the engine that
    serves finishes those that it has, and another one is tested.

    Args:
        evaluator: The first one that serves.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self._serving = evaluator
        self._candidate: Evaluator | None = None
        """The one that is tested."""
        self._numbers = itertools.count()
        self._number, self._candidate_number = next(self._numbers), 0
        self._past = EngineStatistics()
        """The counts of those that served before."""
        self._messages = 0
        """Messages that the one that serves was given and has not answered."""
        self._waits = False
        """Whether messages wait."""
        self._closed = False
        self._changed = threading.Condition()

    @property
    def serving(self) -> Evaluator:
        """The evaluator that gets the next message."""
        return self._serving

    @property
    def checkpoint(self) -> Named:
        """The checkpoint that serves."""
        return self._serving.checkpoint

    @property
    def recorded_rate(self) -> tuple[float, float, float] | None:
        """The recorded rate of the checkpoint that serves, and its interval."""
        return self.serving.recorded_rate

    @property
    def trained_on(self) -> date | None:
        """The day of the training of the checkpoint that serves."""
        return self.serving.trained_on

    @property
    def training_tokens(self) -> Mapping[str, float]:
        """Shares of tokens in what the checkpoint that serves was trained on."""
        return self.serving.training_tokens

    @property
    def token_names(self) -> Sequence[str]:
        """The name of each token of the checkpoint that serves."""
        return self.serving.token_names

    @property
    def device(self) -> str:
        """The device, which stays the same."""
        return self._serving.device

    @property
    def dtype(self) -> str:
        """The dtype of the activations of the one that serves."""
        return self._serving.dtype

    @property
    def halting(self) -> HaltedBy:
        """The halting rule of the one that serves."""
        return self._serving.halting

    @property
    def statistics(self) -> EngineStatistics:
        """The state of the engine that serves, with the counts of all that ever served."""
        with self._changed:
            return _with_counts(self._serving.statistics, self._past)

    @property
    def engines(self) -> Mapping[int, EngineStatistics]:
        """The statistics of each engine that may have work, by a number of its own."""
        with self._changed:
            engines = {self._number: self._serving.statistics}
            if self._candidate is not None:
                engines[self._candidate_number] = self._candidate.statistics
        return engines

    def submit(
        self,
        body: bytes | str | Mapping[str, Any],
        *,
        queued_seconds: float | None = None,
        urgent: bool = True,
    ) -> Pending:
        """Submit a message to the evaluator that serves, which also makes its verdict."""
        with self._changed:
            while self._waits and not self._closed:
                self._changed.wait()
            self._messages += 1
            serving = self._serving
        try:
            pending = serving.submit(body, queued_seconds=queued_seconds, urgent=urgent)
        except BaseException:
            self._leave()
            raise
        pending.add_done_callback(self._leave)
        return pending

    @contextlib.contextmanager
    def trial(self, evaluator: Evaluator) -> Iterator[None]:
        """Test `evaluator` in the block, in which no message is in work.

        Raises `EngineClosedError` if this object is closed before.
        """
        with self._changed:
            self._candidate, self._candidate_number = evaluator, next(self._numbers)
            self._waits = True
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._messages or self._closed)
            self._check_open()
            yield
        finally:
            with self._changed:
                self._candidate = None
                self._waits = False
                self._changed.notify_all()

    def take_over(self) -> Evaluator:
        """Let the evaluator of this trial serve from now on; returns the one before.

        Raises `EngineClosedError` if this object is closed.
        """
        with self._changed:
            self._check_open()
            assert self._candidate is not None  # noqa: S101 - in a trial
            before, self._serving = self._serving, self._candidate
            self._number, self._candidate = self._candidate_number, None
            self._past = _with_counts(self._past, before.statistics)
        return before

    def self_test(self) -> tuple[int, int]:
        """Test the evaluator that serves."""
        return self._serving.self_test()

    def close(self) -> None:
        """Close the evaluator that serves. None can take its place from now on."""
        with self._changed:
            self._closed = True
            open_ = [each for each in (self._serving, self._candidate) if each is not None]
            self._changed.notify_all()
        for each in open_:
            each.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("the worker is shutting down")

    def _leave(self) -> None:
        """Note that a message was answered or refused."""
        with self._changed:
            self._messages -= 1
            if self._waits and not self._messages:
                self._changed.notify_all()


def _with_counts(engine: EngineStatistics, other: EngineStatistics) -> EngineStatistics:
    """Add the counts of another engine."""
    counts: dict[str, Any] = {
        name: getattr(engine, name) + getattr(other, name) for name in _COUNTS
    }
    return replace(engine, **counts)
