"""A stand-in for the evaluator: real messages in, verdicts out, and no model between them.

The prompt says what happens: `solve`, `fail`, `nan` (no finite answer), `bug` (an unexpected
error), `hold FILE` (wait until the file exists), `die` (the process ends as if it were killed).
"""

import os
import threading
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hrm.inference.prediction import EngineStatistics
from schemas import (
    Category,
    Difficulty,
    FailurePattern,
    HaltedBy,
    MessageRejected,
    PromptMatch,
    RejectionReason,
    SQEHRMError,
    SQEMessage,
    TextCheck,
    Timings,
    Verdict,
    parse_message,
)
from worker.evaluator import Evaluated

DIGEST = "0123456789abcdef" * 4


def message(prompt: str = "solve", **fields: Any) -> SQEMessage:  # noqa: ANN401
    return SQEMessage.create(agent_id="tester", prompt=prompt, completion="done", **fields)


def verdict(of: SQEMessage, queued: float | None = None) -> Verdict:
    solved = not of.prompt.startswith("fail")
    return Verdict(
        message_id=of.message_id,
        agent_id=of.agent_id,
        checkpoint="stub",
        checkpoint_digest=DIGEST,
        puzzle_id=7,
        solved=solved,
        token_accuracy=1.0 if solved else 0.5,
        edit_similarity=1.0 if solved else 0.5,
        correct_tokens=4 if solved else 2,
        target_tokens=4,
        predicted_sequence=(0, 1, 2, 11),
        known=True,
        match=PromptMatch.PAIR,
        text=TextCheck.SAME if solved else TextCheck.DIFFERENT,
        truncated=False,
        unread_words=0,
        act_steps=8,
        halted_by=HaltedBy.MAX_STEPS,
        q_halt=1.0,
        q_continue=-1.0,
        q_flips=0,
        difficulty=Difficulty.EASY,
        category=Category.OTHER,
        failure_pattern=None if solved else FailurePattern.NEAR_MISS,
        timings=Timings(queue=queued, convert=0.001, inference=0.01, total=0.011 + (queued or 0)),
        device="cpu",
        worker="stub",
        evaluated_at=datetime.now(UTC),
    )


class StubPending:
    def __init__(self, of: SQEMessage, queued: float | None, closed: threading.Event) -> None:
        self.message = of
        self._queued = queued
        self._closed = closed

    def result(self, timeout: float | None = None) -> Evaluated:
        assert timeout is None
        action, _, rest = self.message.prompt.partition(" ")
        if action == "nan":
            raise MessageRejected(RejectionReason.EVALUATION_FAILED, "no finite answer")
        if action == "die":
            os._exit(9)
        if action == "bug":
            raise RuntimeError(self.message.prompt)
        while action == "hold" and not Path(rest).exists():
            if self._closed.wait(0.01):
                raise SQEHRMError("the engine is closed")
        wrong = Counter({(1, 2): 2} if action == "fail" else {})
        return verdict(self.message, self._queued), wrong


class StubEvaluator:
    checkpoint_name = "stub"
    checkpoint_digest = DIGEST
    device = "cpu"
    dtype = "float32"
    halting = HaltedBy.MAX_STEPS

    def __init__(self, slots: int = 4) -> None:
        self.statistics = EngineStatistics(slots=slots)
        self.submitted: list[str] = []
        self._closed = threading.Event()

    def submit(
        self, body: bytes | str | Mapping[str, Any], *, queued_seconds: float | None = None
    ) -> StubPending:
        parsed = parse_message(body)
        self.submitted.append(parsed.prompt)
        return StubPending(parsed, queued_seconds, self._closed)

    def close(self) -> None:
        self._closed.set()
