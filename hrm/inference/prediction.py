"""Predictions, and the interface of everything that makes them.

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
    """One for every position of the sequence length, whatever the target's length."""
    act_steps: int
    halted_by: HaltedBy
    q_halt: float
    q_continue: float
    q_flips: int
    """How often the sign of q_halt - q_continue changed."""
    logits: "Tensor | None" = field(default=None, compare=False, repr=False)
    """Logits of the token head, float32 (S, V) on the CPU, if the engine keeps them."""


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
    def forward_dtype(self) -> "torch.dtype": ...  # noqa: D102
    def submit(  # noqa: D102
        self, example: HRMExample, *, max_steps: int | None = None
    ) -> Future[Prediction]: ...
    def wait_for_room(self, timeout: float | None = None) -> bool: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


def submit_when_room(predictor: Predictor, example: HRMExample) -> Future[Prediction]:
    """Submit `example`, and wait while `predictor` has no room."""
    while True:
        try:
            return predictor.submit(example)
        except EngineFullError:
            predictor.wait_for_room()
