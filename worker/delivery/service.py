"""The way from the bodies of a task to their outcomes: evaluate, deliver, count, in that order.

The one place where the model's side (`hrm.evaluation.evaluator`), the delivery rules
(`worker.delivery.outcomes`) and the figures (`worker.telemetry.metrics`) meet. Knows no Celery.
"""

import json
import logging
import re
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from schemas import (
    MessageRejected,
    RejectionReason,
    SQEHRMError,
    SQEMessage,
    Verdict,
)
from worker.delivery.envelope import Envelope, EnvelopeRejected, Refusal
from worker.delivery.outcomes import Answer, Delivery, Outcome
from worker.delivery.suspicion import Suspicion
from worker.evaluator import Evaluator, Pending
from worker.telemetry.metrics import ErrorKind, Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_ERRORS_IN_A_ROW = 8
"""Unexpected errors without a success in between, after which the fault is taken to be the worker's
(a lost GPU) and not the messages'. The worker stops before it turns a whole queue into dead
letters."""

LONGEST_WAIT = 30 * 86_400.0
"""Longest plausible time in a queue, in seconds. An older time from a producer means a wrong clock
or unit (a clock that starts in 1970, a zero), and one such value would outweigh all others in a
histogram's sum."""

CLOCK_SKEW = 300.0
"""Seconds by which a producer's clock may be ahead of this machine's. Synchronised clocks differ by
far less, and Kerberos allows the same. Milliseconds mistaken for seconds are far beyond it."""

_IDENTIFIER = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class WorkerBroken(SQEHRMError):
    """The worker cannot evaluate messages any more; they go back to the queue for others."""


class Service:
    """The processing of deliveries. Threads share one object.

    Args:
        evaluator: Evaluates messages.
        delivery: Stores outcomes.
        metrics: Counts outcomes and errors.
        on_broken: Called with the reason when this worker should stop.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        delivery: Delivery,
        metrics: Metrics,
        *,
        on_broken: Callable[[str], None],
    ) -> None:
        self._evaluator = evaluator
        self._delivery = delivery
        self._metrics = metrics
        self._on_broken = on_broken
        self._errors_in_a_row = 0
        self._lock = threading.Lock()

    def process(self, envelope: Envelope, bodies: Sequence[Any], *, batch: bool) -> list[Outcome]:
        """Evaluate every body, store the outcomes, count them; return one outcome each, in order.

        All bodies are submitted before the first is waited for, and a bad one stops none. The
        bodies of a suspect are evaluated one by one instead.

        Raises:
            SQEHRMError: The engine closes. Nothing was answered, and the message has to be
                delivered again.
            DeliveryAborted: Redis is gone at shutdown, with the same consequence.
        """
        if envelope.suspicion is not None:
            return self._process_alone(envelope, envelope.suspicion, bodies, batch=batch)
        queued = _queued_seconds(envelope.enqueued_at)
        submitted = [self._attempt(partial(self._submit, body, queued)) for body in bodies]
        answered = [
            self._answer(envelope, body, position, pending, queued, batch=batch)
            for position, (body, pending) in enumerate(zip(bodies, submitted, strict=True))
        ]
        firsts = self._delivery.deliver(
            [answer for answer, _ in answered], batch_id=_batch_id(envelope, batch=batch)
        )
        for (answer, wrong), first in zip(answered, firsts, strict=True):
            self._count(answer.outcome, wrong, first=first)
        return [answer.outcome for answer, _ in answered]

    def _process_alone(
        self, envelope: Envelope, suspicion: Suspicion, bodies: Sequence[Any], *, batch: bool
    ) -> list[Outcome]:
        """Evaluate one body after the other, and store each outcome before the next begins.

        If one ends this worker, the others keep their outcomes, and Redis knows which one it was.
        All unexpected errors together count as one: eight messages that meet the same bug are a
        batch, and no sign of a broken worker.
        """
        queued = _queued_seconds(envelope.enqueued_at)
        errors_before = self._errors_in_a_row
        answers = []
        for position, body in enumerate(bodies):
            self._errors_in_a_row = min(errors_before, self._errors_in_a_row)
            pending: Pending | MessageRejected
            if suspicion.is_poison(position):
                pending = suspicion.rejection()
            else:
                self._delivery.mark_alone(suspicion, position)
                pending = self._attempt(partial(self._submit, body, queued))
            answer, wrong = self._answer(envelope, body, position, pending, queued, batch=batch)
            (first,) = self._delivery.deliver([answer])
            self._count(answer.outcome, wrong, first=first)
            answers.append(answer)
        batch_id = _batch_id(envelope, batch=batch)
        if batch_id is not None:
            self._delivery.deliver(answers, batch_id=batch_id)
        return [answer.outcome for answer in answers]

    def refuse(self, refusal: Refusal) -> Outcome:
        """Turn a whole item or task into one dead letter; returns the rejection."""
        rejected = refusal.rejected
        if isinstance(rejected, EnvelopeRejected) and rejected.unexpected:
            self._metrics.error(ErrorKind.INTERNAL)
        answer = self._delivery.dead_letter(refusal)
        (first,) = self._delivery.deliver([answer])
        self._count(answer.outcome, Counter(), first=first)
        return answer.outcome

    def _submit(self, body: Any, queued: float | None) -> Pending:  # noqa: ANN401
        if not isinstance(body, str | dict):
            raise MessageRejected(
                RejectionReason.NOT_A_MESSAGE,
                f"a {type(body).__name__}: send a message as a JSON object or its text",
            )
        return self._evaluator.submit(body, queued_seconds=queued)

    def _answer(
        self,
        envelope: Envelope,
        body: Any,  # noqa: ANN401
        position: int,
        pending: Pending | MessageRejected,
        queued: float | None,
        *,
        batch: bool,
    ) -> tuple[Answer, Counter[tuple[int, int]]]:
        """Wait for the outcome of one body; return it as an answer, and its wrong tokens."""
        if isinstance(pending, MessageRejected):
            return self._refusal(envelope, pending, body, position, batch=batch), Counter()
        evaluated = self._attempt(pending.result)
        if isinstance(evaluated, MessageRejected):
            return self._refusal(envelope, evaluated, body, position, batch=batch), Counter()
        self._errors_in_a_row = 0
        verdict, wrong = evaluated
        answer = self._delivery.verdict(
            _with_queue_time(verdict, pending.message, queued),
            pending.message,
            None if batch else envelope.task_id,
        )
        return answer, wrong

    def _attempt(self, step: Callable[[], T]) -> T | MessageRejected:
        """Return what `step` returns, or the `MessageRejected` it raises.

        An unexpected error refuses this one message: the worker goes on, and no message can end one
        worker after the other.
        """
        try:
            return step()
        except MessageRejected as rejected:
            if rejected.reason is RejectionReason.EVALUATION_FAILED:
                self._metrics.error(ErrorKind.EVALUATION)
            return rejected
        except SQEHRMError as error:
            self._on_broken(str(error))
            raise
        except Exception as error:  # noqa: BLE001 - the border between the worker and a message
            self._metrics.error(ErrorKind.INTERNAL)
            # Not its message, which may quote what it was about.
            frames = "".join(traceback.format_tb(error.__traceback__))
            logger.error("unexpected %s\n%s", type(error).__name__, frames)  # noqa: TRY400
            self._note_unexpected(error)
            return MessageRejected(
                RejectionReason.EVALUATION_FAILED,
                f"unexpected {type(error).__name__}: see the worker's log",
            )

    def _note_unexpected(self, error: Exception) -> None:
        with self._lock:
            self._errors_in_a_row += 1
            broken = self._errors_in_a_row >= MAX_ERRORS_IN_A_ROW
        if broken:
            reason = f"{MAX_ERRORS_IN_A_ROW} unexpected errors in a row: see the log above"
            self._on_broken(reason)
            raise WorkerBroken(reason) from error

    def _refusal(
        self,
        envelope: Envelope,
        rejected: MessageRejected,
        body: Any,  # noqa: ANN401
        position: int,
        *,
        batch: bool,
    ) -> Answer:
        own_id = _own_id(body)
        refusal = Refusal(
            body=_original_bytes(body),
            queue=envelope.queue,
            identity=f"{envelope.task_id}/{position}",
            message_id=own_id or envelope.task_id,
            # In a batch, the task's id is for the list of all outcomes.
            result_ids=(own_id, None if batch else envelope.task_id),
            rejected=rejected,
        )
        return self._delivery.dead_letter(refusal)

    def _count(self, outcome: Outcome, wrong: Counter[tuple[int, int]], *, first: bool) -> None:
        if not first:
            self._metrics.duplicate()
        elif isinstance(outcome, Verdict):
            self._metrics.evaluated(outcome, wrong)
        else:
            self._metrics.rejected(outcome.reason)


def _batch_id(envelope: Envelope, *, batch: bool) -> str | None:
    return envelope.task_id if batch and envelope.keep_result else None


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
