"""The way from the bodies of a task to their outcomes: evaluate, store, count, in that order.

The one place where the model's side (`hrm.evaluation.evaluator`), the delivery rules
(`worker.delivery.outcomes`) and the figures (`worker.telemetry.metrics`) meet. Knows no Celery.
"""

import contextlib
import json
import logging
import re
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from schemas import (
    MessageRejected,
    RejectionReason,
    SQEHRMError,
    SQEMessage,
    Verdict,
)
from worker.delivery.envelope import Envelope, EnvelopeRejected, Refusal
from worker.delivery.options import check_time
from worker.delivery.outcomes import Answer, Batch, Delivery, Outcome
from worker.delivery.suspicion import Suspicion
from worker.evaluator import EngineClosedError, Evaluator, Pending
from worker.telemetry.metrics import ErrorKind, Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")

Confusions = Counter[tuple[str, str]]
"""How often each pair (target, predicted) of different tokens occurred."""

MAX_ERRORS_IN_A_ROW = 8
"""Tasks with an unexpected error, without an answer of the engine in between, after which the fault
is taken to be the worker's and not the messages'. The worker stops before it turns a whole queue
into dead letters."""

STORE_SECONDS = 0.05
"""Longest time for which an outcome waits to be stored together with others of its batch. One that
comes alone does not wait. A killed worker loses no more than the outcomes of this time."""

LONGEST_WAIT = 30 * 86_400.0
"""Longest plausible time in a queue, in seconds. An older time from a producer means a wrong clock
or unit (a clock that starts in 1970, a zero), and one such value would outweigh all others in a
histogram's sum."""

CLOCK_SKEW = 300.0
"""Seconds by which a producer's clock may be ahead of this machine's. Synchronised clocks differ by
far less, and Kerberos allows the same. Milliseconds mistaken for seconds are far beyond it."""

_IDENTIFIER = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Ending(StrEnum):
    """How a delivery ends."""

    ANSWERED = "answered"
    """Every message has an outcome. A single message was not refused."""
    REFUSED = "refused"
    """The whole item or task, or its single message, became one dead letter."""
    GIVEN_BACK = "given back"
    """It is in its queue again."""


class Observer(Protocol):
    """Told about tasks by the service's threads. It must be quick, and must not raise."""

    def accepted(self, envelope: Envelope) -> None:
        """A task was read, and its messages are evaluated from now on."""

    def finished(self, envelope: Envelope, ending: Ending) -> None:
        """An accepted task has left this worker."""


class _Nobody:
    """Watches nothing."""

    def accepted(self, envelope: Envelope) -> None:
        """Do nothing."""

    def finished(self, envelope: Envelope, ending: Ending) -> None:
        """Do nothing."""


class NoOutcome(SQEHRMError):
    """Messages of a task met unexpected errors. It has to be delivered again: this was a fault."""


@dataclass
class _Job:
    """A delivery of a task, and how far it is."""

    envelope: Envelope
    bodies: Sequence[Any]
    batch: Batch | None
    queued: float | None = None
    """Seconds in the queue, if the producer says so."""
    outcomes: dict[int, str] = field(default_factory=dict)
    """Stored outcomes by position, as JSON; empty if nobody wants the list of them."""
    pending: dict[int, Pending | MessageRejected] = field(default_factory=dict)
    """Messages that have no stored outcome yet, by position."""
    done: SimpleQueue[int | None] = field(default_factory=SimpleQueue)
    """Positions of those whose outcome can be stored; None wakes who waits for one."""
    store_at: float = field(default_factory=lambda: time.monotonic() + STORE_SECONDS)
    """Monotonic time until which outcomes are gathered, to be stored together."""
    problem: SQEHRMError | None = None
    """The first reason why a message has no outcome."""
    has_failed: bool = False
    """Whether there was an unexpected error."""
    ending: Ending = Ending.GIVEN_BACK
    """How it ends, if it ended now."""

    @property
    def has_ready(self) -> bool:
        """Whether outcomes have to be stored now."""
        return not self.done.empty() and time.monotonic() >= self.store_at


class Service:
    """The processing of deliveries. Threads share one object.

    Args:
        evaluator: Evaluates messages.
        delivery: Stores outcomes.
        metrics: Counts outcomes and errors.
        on_broken: Called with the reason when this worker should stop.
        observer: Told about tasks.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        delivery: Delivery,
        metrics: Metrics,
        *,
        on_broken: Callable[[str], None],
        observer: Observer | None = None,
    ) -> None:
        self._evaluator = evaluator
        self._delivery = delivery
        self._metrics = metrics
        self._on_broken = on_broken
        self._observer: Observer = observer or _Nobody()
        self._errors_in_a_row = 0
        self._answered = 0
        """Answers of the engine before the last unexpected error."""
        self._abandoned = threading.Event()
        self._jobs: dict[int, _Job] = {}
        """Jobs that may wait for the engine, by identity."""
        self._lock = threading.Lock()

    def process(self, envelope: Envelope, bodies: Sequence[Any], *, batch: bool) -> None:
        """Evaluate every body, store its outcome when it is ready, and count it.

        All bodies are submitted before the first is waited for, and a bad one stops none. The
        bodies of a suspect are evaluated one by one instead. What an earlier delivery has stored is
        not evaluated again.

        Raises:
            NoOutcome: Unexpected errors left messages without an outcome.
            SQEHRMError: The engine is closed or failed, with the same consequence: the message has
                to be delivered again.
            DeliveryAborted: Redis is gone at shutdown. The message has to be delivered again, too.
        """
        job = _Job(
            envelope,
            bodies,
            Batch.of(envelope) if batch else None,
            _queued_seconds(envelope.enqueued_at),
        )
        if job.batch is not None:
            job.outcomes.update(self._delivery.begin(job.batch))
        missing = [position for position in range(len(bodies)) if position not in job.outcomes]
        with self._noted(job):
            if envelope.suspicion is None:
                self._evaluate(job, missing)
            else:
                for position in missing:
                    self._evaluate_alone(job, envelope.suspicion, position)
            if job.batch is not None:
                outcomes = [job.outcomes[place] for place in range(len(bodies))]
                self._delivery.finish(job.batch, outcomes)
                job.ending = Ending.ANSWERED

    def refuse(self, refusal: Refusal) -> Outcome:
        """Turn a whole item or task into one dead letter; returns the rejection."""
        rejected = refusal.rejected
        if isinstance(rejected, EnvelopeRejected) and rejected.unexpected:
            self._metrics.error(ErrorKind.INTERNAL)
        answer = self._delivery.dead_letter(refusal)
        (first,) = self._delivery.deliver([answer])
        self._count(answer.outcome, Counter(), first=first)
        return answer.outcome

    def abandon(self) -> None:
        """Let go of everything that waits for the engine, which does not answer any more.

        Outcomes that are ready are stored; `process` raises for the others.
        """
        self._abandoned.set()
        with self._lock:
            for job in self._jobs.values():
                job.done.put(None)

    def note_unexpected(self, error: Exception) -> None:
        """Log an unexpected error of a task, and stop this worker if it meets nothing else.

        Only an answer of the engine itself ends a row of errors: the cache of a worker with a lost
        GPU still answers.
        """
        # Not its message, which may quote what it was about.
        frames = "".join(traceback.format_tb(error.__traceback__))
        logger.error("unexpected %s\n%s", type(error).__name__, frames)
        answered = self._evaluator.statistics.answered
        with self._lock:
            if answered > self._answered:
                self._errors_in_a_row = 0
            self._answered = answered
            self._errors_in_a_row += 1
        if self._is_broken:
            self._on_broken(f"{MAX_ERRORS_IN_A_ROW} unexpected errors in a row: see the log above")

    @property
    def _is_broken(self) -> bool:
        return self._errors_in_a_row >= MAX_ERRORS_IN_A_ROW

    @contextlib.contextmanager
    def _noted(self, job: _Job) -> Iterator[None]:
        """Note that `job` may wait for the engine."""
        with self._lock:
            self._jobs[id(job)] = job
        self._observer.accepted(job.envelope)
        try:
            yield
        finally:
            with self._lock:
                del self._jobs[id(job)]
            self._observer.finished(job.envelope, job.ending)

    def _evaluate_alone(self, job: _Job, suspicion: Suspicion, position: int) -> None:
        """Evaluate one body and store its outcome. If it ends this worker, Redis knows which."""
        if suspicion.is_poison(position):
            job.pending[position] = suspicion.rejection()
            job.done.put(position)
            self._store_ready(job)
        else:
            self._delivery.mark_alone(suspicion, position)
            self._evaluate(job, [position])

    def _evaluate(self, job: _Job, positions: Sequence[int]) -> None:
        """Evaluate the bodies at `positions`, and store their outcomes in the order they come."""
        for position in positions:
            if self._abandoned.is_set():
                break
            self._submit(job, position)
            if job.has_ready:
                self._store_ready(job)
        while job.pending and not (self._abandoned.is_set() and job.done.empty()):
            self._store_ready(job)
        if not all(position in job.outcomes for position in positions):
            raise job.problem or EngineClosedError("the engine does not answer")

    def _submit(self, job: _Job, position: int) -> None:
        body = job.bodies[position]

        def submit() -> Pending:
            check_time(job.envelope.expires_at)
            if not isinstance(body, str | dict):
                raise MessageRejected(
                    RejectionReason.NOT_A_MESSAGE,
                    f"a {type(body).__name__}: send a message as a JSON object or its text",
                )
            return self._evaluator.submit(body, queued_seconds=job.queued)

        pending = self._attempt(job, submit)
        if pending is None:
            return
        job.pending[position] = pending
        if isinstance(pending, MessageRejected):
            job.done.put(position)
        else:
            pending.add_done_callback(partial(job.done.put, position))

    def _store_ready(self, job: _Job) -> None:
        """Wait for the next outcome, gather those that come soon after, and store them."""
        ready = [job.done.get()]
        while len(ready) < len(job.pending):
            left = max(0.0, job.store_at - time.monotonic())
            try:
                ready.append(job.done.get(timeout=left))
            except Empty:
                break
        answered = {}
        for position in ready:
            if position is not None:
                answer = self._answer(job, position, job.pending.pop(position))
                if answer is not None:
                    answered[position] = answer
        if answered:
            self._store(job, answered)
        job.store_at = time.monotonic() + STORE_SECONDS

    def _store(self, job: _Job, answered: dict[int, tuple[Answer, Confusions]]) -> None:
        answers = [answer for answer, _ in answered.values()]
        firsts = self._delivery.deliver(answers, batch=job.batch, positions=list(answered))
        is_list = job.batch is not None and job.batch.list_id is not None
        for (position, (answer, wrong)), first in zip(answered.items(), firsts, strict=True):
            job.outcomes[position] = answer.outcome.model_dump_json() if is_list else ""
            if job.batch is None:
                is_verdict = isinstance(answer.outcome, Verdict)
                job.ending = Ending.ANSWERED if is_verdict else Ending.REFUSED
            self._count(answer.outcome, wrong, first=first)

    def _answer(
        self, job: _Job, position: int, pending: Pending | MessageRejected
    ) -> tuple[Answer, Confusions] | None:
        """Build the answer to a body that is done, with its wrong tokens. None if it has none."""
        if isinstance(pending, MessageRejected):
            return self._refusal(job, pending, position), Counter()
        evaluated = self._attempt(job, pending.result)
        if evaluated is None:
            return None
        if isinstance(evaluated, MessageRejected):
            return self._refusal(job, evaluated, position), Counter()
        verdict, wrong = evaluated
        answer = self._delivery.verdict(
            _with_queue_time(verdict, pending.message, job.queued),
            pending.message,
            None if job.batch is not None else job.envelope.task_id,
            job.envelope.result_seconds,
        )
        return answer, wrong

    def _attempt(self, job: _Job, step: Callable[[], T]) -> T | MessageRejected | None:
        """Return what `step` returns, or the `MessageRejected` it raises.

        None if the message has to be delivered again; the reason is the problem of `job`. An
        unexpected error may be the worker's and not the message's. It refuses only a suspect, which
        was given back for its errors before.
        """
        try:
            return step()
        except MessageRejected as rejected:
            if rejected.reason is RejectionReason.EVALUATION_FAILED:
                self._metrics.error(ErrorKind.EVALUATION)
            return rejected
        except SQEHRMError as error:
            # A closed engine is no news: it was closed because this worker stops.
            if not isinstance(error, EngineClosedError):
                self._on_broken(str(error))
            job.problem = job.problem or error
        except Exception as error:  # noqa: BLE001 - the border between the worker and a message
            self._metrics.error(ErrorKind.INTERNAL)
            # Many messages that meet the same bug are a batch, and no sign of a broken worker.
            if not job.has_failed:
                job.has_failed = True
                self.note_unexpected(error)
            detail = f"unexpected {type(error).__name__}: see the worker's log"
            if job.envelope.suspicion is not None and not self._is_broken:
                return MessageRejected(RejectionReason.EVALUATION_FAILED, detail)
            job.problem = job.problem or NoOutcome(detail)
        return None

    def _refusal(self, job: _Job, rejected: MessageRejected, position: int) -> Answer:
        body, task_id = job.bodies[position], job.envelope.task_id
        own_id = _own_id(body)
        refusal = Refusal(
            body=_original_bytes(body),
            queue=job.envelope.queue,
            identity=f"{task_id}/{position}",
            message_id=own_id or task_id,
            # In a batch, the task's id is for the list of all outcomes.
            result_ids=(own_id, None if job.batch is not None else task_id),
            rejected=rejected,
            result_seconds=job.envelope.result_seconds,
        )
        return self._delivery.dead_letter(refusal)

    def _count(self, outcome: Outcome, wrong: Confusions, *, first: bool) -> None:
        if not first:
            self._metrics.duplicate()
        elif isinstance(outcome, Verdict):
            self._metrics.evaluated(outcome, wrong)
        else:
            self._metrics.rejected(outcome.reason)


def _queued_seconds(enqueued_at: float | None) -> float | None:
    return None if enqueued_at is None else _plausible_wait(time.time() - enqueued_at)


def _plausible_wait(seconds: float) -> float | None:
    """Check a time in the queue by a producer's clock; None if that clock cannot be right.

    The result is not below 0, since the clocks of two machines differ.
    """
    return max(0.0, seconds) if -CLOCK_SKEW <= seconds <= LONGEST_WAIT else None


def _with_queue_time(verdict: Verdict, message: SQEMessage, queued: float | None) -> Verdict:
    """Fill in the time in the queue from `created_at` if the producer did not give its own."""
    if queued is not None or message.created_at is None:
        return verdict
    total = (verdict.evaluated_at - message.created_at).total_seconds()
    waited = _plausible_wait(total - verdict.timings.total)
    if waited is None:
        return verdict
    timings = verdict.timings.model_copy(
        update={"queue": waited, "total": waited + verdict.timings.total}
    )
    return verdict.model_copy(update={"timings": timings})


def _own_id(body: Any) -> str | None:  # noqa: ANN401
    """Read the `message_id` in a refused message, if there is a valid one."""
    if isinstance(body, str):
        try:
            # An integer of any length must not hide the id.
            body = json.loads(body, parse_int=float)
        except (ValueError, RecursionError):
            return None
    own_id = body.get("message_id") if isinstance(body, dict) else None
    return own_id if isinstance(own_id, str) and _IDENTIFIER.fullmatch(own_id) else None


def _original_bytes(body: Any) -> bytes:  # noqa: ANN401
    """Return the message as it was sent, or a decoded object as JSON."""
    if isinstance(body, str):
        return body.encode(errors="surrogatepass")
    return json.dumps(body, separators=(",", ":")).encode()
