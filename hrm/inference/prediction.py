"""What an engine answers, and what answers as an engine does.

Knows examples and futures; nothing of networks or of how work is ordered.
"""

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from schemas import HaltedBy, HRMExample, SQEHRMError

if TYPE_CHECKING:  # a worker reads statistics without torch
    import torch
    from torch import Tensor


class EngineClosedError(SQEHRMError):
    """The engine is shutting down: the example has to be sent to another."""


class EngineFullError(SQEHRMError):
    """As many examples wait as may: `wait_for_room`, then submit again."""


class DeviceMemoryError(SQEHRMError):
    """The device has no room for a single example."""


class InferenceError(SQEHRMError):
    """The network gave no finite answer for this example."""


@dataclass(frozen=True)
class Prediction:
    """What the network said of one example at the step at which it halted."""

    tokens: tuple[int, ...]
    """At every position of the sequence length, whatever the target's length."""
    act_steps: int
    halted_by: HaltedBy
    q_halt: float
    q_continue: float
    q_flips: int
    """How often the sign of q_halt - q_continue changed."""
    logits: "Tensor | None" = field(default=None, compare=False, repr=False)
    """Of the token head: float32 (S, V) on the CPU, from an engine that keeps them."""


@dataclass(frozen=True)
class EngineStatistics:
    """The state of an engine at one moment, and counts since its start."""

    slots: int = 0
    """Examples that can be in work at once: fewer than at the start if the device's memory did not
    suffice."""
    busy_slots: int = 0
    """Slots with an example in them."""
    waiting: int = 0
    """Examples that wait for a slot; not those that wait for an equal one's prediction."""
    steps: int = 0
    """Turns, each an ACT step over all examples in slots or over a few of them."""
    occupied: int = 0
    """Examples that a turn computed, summed over the turns: divided by `steps` and by the slots,
    the share of the slots that a turn computes in the mean."""
    refills: int = 0
    """Examples that took a slot while others were at work."""
    slot_reductions: int = 0
    """Times that the device's memory did not suffice and the engine went on with fewer slots."""
    cache_hits: int = 0
    """Examples answered from an equal one's prediction."""
    cache_misses: int = 0
    """Examples that a cache was asked for and did not have."""


class Predictor(Protocol):
    """What answers examples: an engine, or a cache before one."""

    @property
    def statistics(self) -> EngineStatistics: ...  # noqa: D102
    @property
    def halting(self) -> HaltedBy: ...  # noqa: D102
    @property
    def max_steps(self) -> int: ...  # noqa: D102
    @property
    def forward_dtype(self) -> "torch.dtype": ...  # noqa: D102
    def submit(  # noqa: D102
        self, example: HRMExample, *, max_steps: int | None = None
    ) -> Future[Prediction]: ...
    def wait_for_room(self, timeout: float | None = None) -> bool: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


def submit_when_room(predictor: Predictor, example: HRMExample) -> Future[Prediction]:
    """`predictor.submit(example)`, after waiting for as long as it has no room."""
    while True:
        try:
            return predictor.submit(example)
        except EngineFullError:
            predictor.wait_for_room()
