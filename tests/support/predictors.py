"""A predictor that answers when a test tells it to."""

from concurrent.futures import Future

import torch

from hrm.inference.prediction import (
    EngineClosedError,
    EngineFullError,
    EngineStatistics,
    Prediction,
)
from hrm.model.batch import ExampleError
from schemas import HaltedBy, HRMExample


def prediction_of(asked: HRMExample, max_steps: int | None) -> Prediction:
    """A prediction of its own for each key. Its last token needs more than a byte."""
    return Prediction(
        tokens=(*asked.input_sequence, 1000 + asked.puzzle_id),
        act_steps=max_steps or 4,
        halted_by=HaltedBy.MAX_STEPS,
        q_halt=0.1,
        q_continue=-0.1,
        q_flips=3,
    )


class Asked:
    """An example submitted to the stub."""

    def __init__(self, of: HRMExample, max_steps: int | None, *, urgent: bool) -> None:
        self.example = of
        self.urgent = urgent
        self.max_steps = max_steps
        self.future: Future[Prediction] = Future()

    def answer(self, error: Exception | None = None) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        if error is None:
            self.future.set_result(prediction_of(self.example, self.max_steps))
        else:
            self.future.set_exception(error)


class StubPredictor:
    """A predictor that answers when a test tells it to."""

    statistics = EngineStatistics(slots=4, busy_slots=1, waiting=2, steps=5, occupied=9)
    halting = HaltedBy.Q
    max_steps = 4
    dtype = torch.bfloat16
    seq_len = 6

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.closed = False
        self.full = False

    def submit(
        self, of: HRMExample, *, max_steps: int | None = None, urgent: bool = True
    ) -> Future[Prediction]:
        if self.closed:
            raise EngineClosedError("closed")
        if self.full:
            raise EngineFullError("full")
        if len(of.target_sequence) > self.seq_len:
            raise ExampleError("too long")
        asked = Asked(of, max_steps, urgent=urgent)
        self.asked.append(asked)
        return asked.future

    def wait_for_room(
        self,
        timeout: float | None = None,
        *,
        urgent: bool = True,  # noqa: ARG002
    ) -> bool:
        self.full = False
        return timeout is None

    def close(self) -> None:
        self.closed = True
        for asked in self.asked:
            if not asked.future.done():
                asked.answer(EngineClosedError("closed"))
