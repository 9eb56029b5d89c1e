"""Predictions, and the interface of everything that makes them.

Knows examples and futures; nothing of networks or of how work is ordered.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from schemas import MAX_SEQUENCE_LENGTH, HaltedBy, HRMExample, SQEHRMError

if TYPE_CHECKING:  # a worker reads statistics without torch
    import torch
    from torch import Tensor


class EngineClosedError(SQEHRMError):
    """The engine is shutting down. Send the example to another one."""


class EngineFailedError(SQEHRMError):
    """The engine ended by itself, since its device failed. Only a new process can use it again."""


class EngineFullError(SQEHRMError):
    """The engine's queue is full. Call `wait_for_room` and submit again."""


class DeviceMemoryError(SQEHRMError):
    """The device has no memory for a single example."""


class InferenceError(SQEHRMError):
    """The network gave no finite answer for this example."""


@dataclass(frozen=True)
class Prediction:
    """A network's answer to one example, at the ACT step at which it halted."""

    tokens: tuple[int, ...]
    """One for every position of the sequence length, whatever the target's length; of an example in
    parts, those of each part."""
    act_steps: int
    halted_by: HaltedBy
    q_halt: float
    q_continue: float
    q_flips: int
    """How often the sign of q_halt - q_continue changed."""
    logits: "Tensor | None" = field(default=None, compare=False, repr=False)
    """Logits of the token head, float32 (S, V) on the CPU, if the engine keeps them."""


class Answered(Future[Prediction]):
    """A future that has its result from the start.

    It needs none of what an ordinary one has for those who wait for it: making that takes longer
    than finding the prediction. So `concurrent.futures.wait` does not take it.
    """

    def __init__(self, prediction: Prediction) -> None:
        self._prediction = prediction

    def cancel(self) -> bool:
        """Cancel nothing: it is done."""
        return False

    def cancelled(self) -> bool:
        """Whether it was cancelled, which cannot be."""
        return False

    def running(self) -> bool:
        """Whether someone still works on it, which nobody does."""
        return False

    def done(self) -> bool:
        """Whether it is done, which it always is."""
        return True

    def add_done_callback(self, fn: Callable[[Future[Prediction]], object]) -> None:
        """Call `fn` at once."""
        fn(self)

    def result(self, timeout: float | None = None) -> Prediction:  # noqa: ARG002 - never waits
        """Return the prediction, at once."""
        return self._prediction

    def exception(self, timeout: float | None = None) -> None:
        """Return None: it has a result."""


@dataclass(frozen=True)
class EngineStatistics:
    """The state of an engine at one moment, and counts since its start."""

    slots: int = 0
    """Examples that can be in work at once, without the slots in reserve for urgent ones. They are
    fewer than at the start if the device's memory did not suffice."""
    busy_slots: int = 0
    """Examples in work. They exceed `slots` while urgent examples use the slots in reserve."""
    waiting: int = 0
    """Examples that wait for a slot; not those that wait for an equal one's prediction."""
    steps: int = 0
    """Turns. Each is one ACT step over all examples in slots, or over a few of them."""
    occupied: int = 0
    """Examples that a turn computed, summed over all turns. Divided by `steps` and by the slots, it
    is the mean share of the slots that a turn computes."""
    refills: int = 0
    """Examples that took a slot while others were in work."""
    answered: int = 0
    """Examples that the network itself answered, without a cache."""
    turns: int = 0
    """Turns that ended, whether or not they succeeded."""
    in_turn: bool = False
    """Whether a turn is under way. If it stays so while `turns` does not grow, the engine hangs."""
    busy_seconds: float = 0.0
    """Seconds that turns took."""
    slot_reductions: int = 0
    """How often the device's memory did not suffice and the engine went on with fewer slots."""
    cache_hits: int = 0
    """Examples answered from the prediction of an equal one."""
    cache_misses: int = 0
    """Examples that were not in the cache."""


class Predictor(Protocol):
    """An engine, or a cache before one."""

    @property
    def statistics(self) -> EngineStatistics: ...  # noqa: D102
    @property
    def halting(self) -> HaltedBy: ...  # noqa: D102
    @property
    def max_steps(self) -> int: ...  # noqa: D102
    @property
    def dtype(self) -> "torch.dtype": ...  # noqa: D102
    def submit(  # noqa: D102
        self, example: HRMExample, *, max_steps: int | None = None, urgent: bool = True
    ) -> Future[Prediction]: ...
    def wait_for_room(  # noqa: D102
        self, timeout: float | None = None, *, urgent: bool = True
    ) -> bool: ...
    def close(self) -> None: ...  # noqa: D102


def submit_when_room(
    predictor: Predictor, example: HRMExample, *, urgent: bool = True
) -> Future[Prediction]:
    """Submit `example`, and wait while `predictor` has no room."""
    while True:
        try:
            return predictor.submit(example, urgent=urgent)
        except EngineFullError:
            predictor.wait_for_room(urgent=urgent)


def joined(futures: Sequence[Future[Prediction]]) -> Future[Prediction]:
    """One prediction for an example from those of its parts, as soon as all are there.

    Its tokens are those of all parts. Its Q logits are those of the part that is least sure to be
    right; its ACT steps and flips are the most of any part. It fails if one of the parts fails.
    """
    return combined(futures, _joined)


def combined(
    futures: Sequence[Future[Prediction]],
    combine: Callable[[Sequence[Prediction]], Prediction],
) -> Future[Prediction]:
    """One prediction from several, as soon as all are there. A single one is left as it is.

    If one of them fails, so does the result: a network whose answers are not finite has no verdict.
    """
    if len(futures) == 1:
        return futures[0]
    together: Future[Prediction] = Future()
    lock, missing = threading.Lock(), len(futures)

    def done(_: Future[Prediction]) -> None:
        nonlocal missing
        with lock:
            missing -= 1
            if missing:
                return
        errors = (future.exception() for future in futures)
        error = next((each for each in errors if each is not None), None)
        if error is not None:
            together.set_exception(error)
            return
        together.set_result(combine([future.result() for future in futures]))

    for future in futures:
        future.add_done_callback(done)
    return together


def _joined(parts: Sequence[Prediction]) -> Prediction:
    least_sure = min(parts, key=lambda part: part.q_halt)
    at_limit = any(part.halted_by is HaltedBy.MAX_STEPS for part in parts)
    return Prediction(
        tokens=tuple(token for part in parts for token in part.tokens[:MAX_SEQUENCE_LENGTH]),
        act_steps=max(part.act_steps for part in parts),
        halted_by=HaltedBy.MAX_STEPS if at_limit else HaltedBy.Q,
        q_halt=least_sure.q_halt,
        q_continue=least_sure.q_continue,
        q_flips=max(part.q_flips for part in parts),
    )
