"""A stand-in for the evaluator: real messages in, verdicts out, and no model between them.

The prompt says what happens: `solve`, `fail`, `fail-while FILE` (solved once there is no such
file), `hit` (solved from a cache), `nan` (no finite answer), `bug` (an unexpected error),
`bug-until FILE` (one unless the file exists), `bug-once FILE` (one unless the file exists, which is
then made), `hold FILE` (wait until the file exists), `hang FILE` (unless the file exists, the
engine hangs for ever), `die` (the process ends as if it were killed). `take SECONDS ` before any of
them is the time that the engine needs.
"""

import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from hrm.data.vocabulary import VOCABULARY_1
from hrm.inference.prediction import EngineClosedError, EngineStatistics
from schemas import (
    Category,
    Difficulty,
    FailurePattern,
    HaltedBy,
    MessageRejected,
    PromptMatch,
    RejectionReason,
    SQEMessage,
    TextCheck,
    Timings,
    Verdict,
    VerdictText,
    parse_message,
)
from worker.evaluator import Evaluated, Named
from worker.telemetry.labels import Lane
from worker.telemetry.verdicts import Evaluation

DIGEST = "0123456789abcdef" * 4


def message(prompt: str = "solve", **fields: Any) -> SQEMessage:  # noqa: ANN401
    return SQEMessage.create(agent_id="tester", prompt=prompt, completion="done", **fields)


def split(prompt: str) -> tuple[float, str, str]:
    """The seconds that a message takes, what happens to it, and the rest of its prompt."""
    first, _, rest = prompt.partition(" ")
    if first != "take":
        return 0.0, first, rest
    seconds, _, prompt = rest.partition(" ")
    return float(seconds), *split(prompt)[1:]


def with_every_token(made: Verdict, of: SQEMessage) -> Verdict:
    """The verdict with as many predicted tokens as a real one: one for each word, and two."""
    predicted = tuple(range(2 + len(of.completion.split())))
    return made.model_copy(update={"predicted_sequence": predicted})


COMPLETION = (0, 1, 2, 11)
"""The tokens of every completion."""


class Checkpoint(NamedTuple):
    name: str
    digest: str


STUB = Checkpoint("stub", DIGEST)


def verdict(
    of: SQEMessage,
    queued: float | None = None,
    worker: str = "stub",
    checkpoint: Named = STUB,
) -> Verdict:
    _, action, file = split(of.prompt)
    solved = not (Path(file).exists() if action == "fail-while" else action.startswith("fail"))
    return Verdict(
        message_id=of.message_id,
        agent_id=of.agent_id,
        checkpoint=checkpoint.name,
        checkpoint_digest=checkpoint.digest,
        puzzle_id=7,
        solved=solved,
        token_accuracy=1.0 if solved else 0.5,
        edit_similarity=1.0 if solved else 0.5,
        correct_tokens=4 if solved else 2,
        target_tokens=4,
        predicted_sequence=COMPLETION,
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
        category=of.category or Category.OTHER,
        failure_pattern=None if solved else FailurePattern.NEAR_MISS,
        timings=Timings(queue=queued, convert=0.001, inference=0.01, total=0.011 + (queued or 0)),
        device="cpu",
        dtype="float32",
        worker=worker,
        evaluated_at=datetime.now(UTC),
    )


def evaluation(
    made: Verdict,
    lane: Lane = Lane.LIVE,
    confusions: Mapping[tuple[str, str], int] | None = None,
) -> Evaluation:
    return Evaluation(made, lane, confusions or {}, COMPLETION)


class StubPending:
    def __init__(
        self,
        of: SQEMessage,
        queued: float | None,
        worker: str,
        checkpoint: Named,
        *,
        every_token: bool = False,
    ) -> None:
        self.message = of
        self._checkpoint = checkpoint
        self._every_token = every_token
        self.future: Future[None] = Future()
        self._queued = queued
        self._worker = worker

    def add_done_callback(self, callback: Callable[[], object]) -> None:
        self.future.add_done_callback(lambda _: callback())

    def result(self, timeout: float | None = None) -> Evaluated:
        assert timeout is None
        self.future.result()
        _, action, file = split(self.message.prompt)
        match action:
            case "nan":
                raise MessageRejected(RejectionReason.EVALUATION_FAILED, "no finite answer")
            case "die":
                os._exit(9)
            case "bug":
                raise RuntimeError(self.message.prompt)
            case "bug-until" | "bug-once" if not Path(file).exists():
                if action == "bug-once":
                    Path(file).touch()
                raise RuntimeError(self.message.prompt)
        answer = verdict(self.message, self._queued, self._worker, self._checkpoint)
        if self._every_token:
            answer = with_every_token(answer, self.message)
        wrong = Counter({} if answer.solved else {("test", "agent"): 2})
        return answer, wrong, COMPLETION, VerdictText(answer)


class StubEvaluator:
    device = "cpu"
    dtype = "float32"
    halting = HaltedBy.MAX_STEPS
    recorded_rate = (0.956, 1.0, 1.0)
    trained_on: date | None = date(2026, 11, 22)
    training_tokens: ClassVar[dict[str, float]] = dict.fromkeys(
        (VOCABULARY_1.token_names[token] for token in COMPLETION), 0.25
    )
    token_names = VOCABULARY_1.token_names

    def __init__(
        self,
        slots: int = 4,
        worker: str = "stub",
        checkpoint: Named = STUB,
        *,
        every_token: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self.tested = (0, 0)
        """Solved pairs and pairs of every self-test."""
        self._worker = worker
        self._every_token = every_token
        self.statistics = EngineStatistics(slots=slots)
        self.submitted: list[str] = []
        self.urgent: list[bool] = []
        self._closed = threading.Event()
        self._lock = threading.Lock()

    def submit(
        self,
        body: bytes | str | Mapping[str, Any],
        *,
        queued_seconds: float | None = None,
        urgent: bool = True,
    ) -> StubPending:
        parsed = parse_message(body)
        pending = StubPending(
            parsed,
            queued_seconds,
            self._worker,
            self.checkpoint,
            every_token=self._every_token,
        )
        self.submitted.append(parsed.prompt)
        self.urgent.append(urgent)
        seconds, action, file = split(parsed.prompt)
        if action == "hang" and not Path(file).exists():
            self.statistics = replace(self.statistics, in_turn=True)
        if self.statistics.in_turn:
            return pending
        if action == "hold":
            threading.Thread(target=self._hold, args=(pending.future, Path(file))).start()
            return pending
        if seconds:
            threading.Thread(target=self._take, args=(pending.future, seconds)).start()
            return pending
        if action in {"solve", "fail", "hang"}:
            with self._lock:
                answered = self.statistics.answered + 1
                self.statistics = replace(self.statistics, answered=answered)
        pending.future.set_result(None)
        return pending

    def _hold(self, future: Future[None], file: Path) -> None:
        while not file.exists():
            if self._closed.wait(0.01):
                future.set_exception(EngineClosedError("the engine is closed"))
                return
        future.set_result(None)

    def _take(self, future: Future[None], seconds: float) -> None:
        if self._closed.wait(seconds):
            future.set_exception(EngineClosedError("the engine is closed"))
        else:
            future.set_result(None)

    def self_test(self) -> tuple[int, int]:
        return self.tested

    def close(self) -> None:
        self._closed.set()
        if self.statistics.in_turn:
            threading.Event().wait()
