"""The way from items to outcomes: read, evaluate, store, count, in that order.

The one place where the model's side (`worker.evaluator`), the delivery rules
(`worker.delivery.outcomes`) and the figures (`worker.telemetry.metrics`) meet.

Nothing waits for an outcome. The event loop hands over what it took (`take`). One thread, the
intake, reads items and submits their messages to the engine, live ones before others. The engine
calls back when a message is done, and the storing thread builds its outcome and sends it to Redis,
together with whatever else is ready. A task without messages left is acknowledged, or given back.

Knows no Celery and no scripts.
"""

import logging
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from redis.client import Pipeline

from schemas import (
    MessageRejected,
    Rejection,
    RejectionReason,
    SQEHRMError,
)
from worker.broker.keys import LIVE_QUEUE
from worker.delivery.agents import Counted
from worker.delivery.envelope import Envelope, EnvelopeRejected, Refusal
from worker.delivery.hand import Hand
from worker.delivery.job import Ending, Job, Nobody, Observer
from worker.delivery.options import check_time
from worker.delivery.outcomes import Answer, Batch, Delivery, Entry, Outcome
from worker.delivery.storing import Step, Storable, Storing
from worker.delivery.taken import Taken
from worker.delivery.tasks import bodies_of, original_bytes, own_id_of
from worker.delivery.vital import Vital
from worker.delivery.waits import queued_seconds, with_queue_time
from worker.evaluator import EngineClosedError, Evaluator, Pending
from worker.telemetry.labels import ErrorKind, Lane
from worker.telemetry.metrics import Metrics
from worker.telemetry.verdicts import Evaluation

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_ERRORS_IN_A_ROW = 8
"""Tasks with an unexpected error, without an answer of the engine in between, after which the fault
is taken to be the worker's and not the messages'. The worker stops before it turns a whole queue
into dead letters."""

AT_ONCE = 32
"""Messages of a task that the intake takes from its line together. One of another live task waits
for that many live ones; beside the backlog, it still goes before the next of them."""


class NoOutcome(SQEHRMError):
    """Messages of a task met unexpected errors. It has to be delivered again: this was a fault."""


class _Round(threading.local):
    """The messages that a storing thread has settled since the last pipeline."""

    def __init__(self) -> None:
        self.stored: Counter[Job] = Counter()
        """Messages by job that have their outcome."""
        self.dropped: Counter[Job] = Counter()
        """Messages by job that will have none here."""


class Service:
    """The processing of deliveries.

    Args:
        evaluator: Evaluates messages.
        delivery: Knows how outcomes are stored.
        storing: Sends them.
        hand: The deliveries of this process.
        metrics: Counts outcomes and errors.
        on_broken: Called with the reason when this worker should stop.
        is_broken: Whether it stops because it cannot go on.
        observer: Told about tasks.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        delivery: Delivery,
        storing: Storing,
        hand: Hand,
        metrics: Metrics,
        *,
        on_broken: Callable[[str], None],
        is_broken: Callable[[], bool],
        observer: Observer | None = None,
    ) -> None:
        self._evaluator = evaluator
        self._delivery = delivery
        self._storing = storing
        self._hand = hand
        self._metrics = metrics
        self._on_broken = on_broken
        self._stops_broken = is_broken
        self._observer: Observer = observer or Nobody()
        self._errors_in_a_row = 0
        self._answered = 0
        """Answers of the engine before the last unexpected error."""
        self._jobs: dict[Job, None] = {}
        """Tasks in work, the oldest first."""
        self._taken: dict[bool, deque[Taken]] = {True: deque(), False: deque()}
        """Items that nobody has read yet, by whether they are urgent."""
        self._submitting: dict[bool, deque[Job]] = {True: deque(), False: deque()}
        """Jobs with messages to submit, by whether they are urgent."""
        self._backlog_in_engine = 0
        """Messages in the engine that are not urgent."""
        self._endings: Counter[Ending] = Counter()
        self._returned: dict[str, Callable[[], None]] = {}
        """Items that go back at the end, by tag, each with what to do then."""
        self._done_at_once: list[tuple[int, Pending | MessageRejected | None]] = []
        """Messages that were done while the intake submitted them."""
        self._round = _Round()
        storing.after_round = self._after_round
        self._abandoned = False
        self._ended = False
        self._changed = threading.Condition(threading.RLock())
        self._intake = Vital(self._run, "intake")

    def start(self) -> None:
        """Begin to read what is handed over."""
        self._intake.start()

    def take(self, items: Sequence[Taken]) -> None:
        """Receive items that are in hand. Returns at once."""
        with self._changed:
            for taken in items:
                self._taken[taken.queue == LIVE_QUEUE].append(taken)
            self._changed.notify()
        if self._abandoned:
            self.abandon()

    def drain(self) -> None:
        """Wait until nothing is in hand: everything was stored, or given back.

        What goes back goes last and together, so that the queues keep their order.
        """
        before = self._endings.copy()
        self._hand.close()
        self._hand.wait_for(lambda tags: tags <= self._returned.keys())
        with self._changed:
            self._ended = True
            self._changed.notify()
        tags = self._hand.tags()
        if tags:
            self._storing.put(lambda: self._return_step(tags))
        self._hand.wait_for(lambda tags: not tags)
        ended = self._endings - before
        logger.info(
            "of %d items in hand, %d were given back", ended.total(), ended[Ending.GIVEN_BACK]
        )

    def abandon(self) -> None:
        """Let go of everything that waits for the engine, which does not answer any more.

        Outcomes that are ready are stored; everything else goes back.
        """
        with self._changed:
            self._abandoned = True
            unread = [taken for each in self._taken.values() for taken in each]
            for each in self._taken.values():
                each.clear()
            jobs = list(self._jobs)
            for job in jobs:
                job.is_abandoned = True
                job.problem = job.problem or EngineClosedError("the engine does not answer")
                job.unsettled -= len(job.in_engine)
                job.in_engine.clear()
                job.to_do.clear()
            ended = [job for job in jobs if not job.unsettled]
        self._storing.flush()
        for job in ended:
            self._end(job)
        for taken in unread:
            self._put_back(taken.tag, fault=self._stops_broken())

    def note_unexpected(self, error: Exception) -> None:
        """Log an unexpected error of a task, and stop this worker if it meets nothing else.

        Only an answer of the engine itself ends a row of errors: the cache of a worker with a lost
        GPU still answers.
        """
        # Not its message, which may quote what it was about.
        frames = "".join(traceback.format_tb(error.__traceback__))
        logger.error("unexpected %s\n%s", type(error).__name__, frames)
        answered = self._evaluator.statistics.answered
        with self._changed:
            if answered > self._answered:
                self._errors_in_a_row = 0
            self._answered = answered
            self._errors_in_a_row += 1
        if self._is_broken:
            self._on_broken(f"{MAX_ERRORS_IN_A_ROW} unexpected errors in a row: see the log above")

    @property
    def _is_broken(self) -> bool:
        return self._errors_in_a_row >= MAX_ERRORS_IN_A_ROW

    # The intake: its thread runs everything here, and `_begun` and `_advance` the storing thread.

    def _run(self) -> None:
        while True:
            work = self._next()
            if work is None:
                return
            work()

    def _next(self) -> Callable[[], object] | None:
        """Wait for the next item or message; live ones come first. None at the end."""
        with self._changed:
            while not self._ended:
                work = self._next_urgent()
                if work is not None:
                    return work
                if self._taken[False]:
                    return partial(self._read, self._taken[False].popleft())
                # The engine's queue stays short, so that submitting never waits for room in it.
                room = self._hand.limit - self._backlog_in_engine
                if self._submitting[False] and room > 0:
                    return self._next_messages(min(room, AT_ONCE), urgent=False)
                self._changed.wait()
        return None

    def _next_urgent(self) -> Callable[[], object] | None:
        if self._taken[True]:
            return partial(self._read, self._taken[True].popleft())
        if self._submitting[True]:
            return self._next_messages(AT_ONCE, urgent=True)
        return None

    def _next_messages(self, most: int, *, urgent: bool) -> Callable[[], object]:
        jobs = self._submitting[urgent]
        job = jobs.popleft()
        count = min(most, len(job.to_do), 1 if job.envelope.suspicion is not None else most)
        positions = [job.to_do.popleft() for _ in range(count)]
        job.in_engine.update(positions)
        job.unsettled += count
        self._backlog_in_engine += 0 if urgent else count
        if job.to_do and job.envelope.suspicion is None:
            # Live tasks take turns; of the backlog, the oldest task comes first.
            (jobs.append if urgent else jobs.appendleft)(job)
        return partial(self._submit_all, job, positions)

    def _read(self, taken: Taken) -> None:
        """Read an item, and put its messages in line."""
        try:
            item = taken.read()
            if isinstance(item, Envelope):
                try:
                    bodies = bodies_of(item)
                except MessageRejected as rejected:
                    item = item.refuse(rejected.as_value())
            if isinstance(item, Refusal):
                self._hand.weigh(taken.tag, 1)
                self._refuse(taken.tag, item)
                return
            self._accept(taken.tag, item, bodies)
        except Exception as error:  # noqa: BLE001 - it must not end the thread
            self.note_unexpected(error)
            self._put_back(taken.tag, fault=True)

    def _accept(self, tag: str, envelope: Envelope, bodies: Sequence[Any]) -> None:
        """Begin a task."""
        self._metrics.task(len(bodies))
        self._hand.weigh(tag, len(bodies))
        batch = Batch.of(envelope) if envelope.is_batch else None
        job = Job(tag, envelope, bodies, batch, queued_seconds(envelope.enqueued_at))
        with self._changed:
            self._jobs[job] = None
            job.is_abandoned = self._abandoned
        self._observer.accepted(envelope)
        if batch is None:
            self._begun(job)
            return

        def begun(replies: list[Any]) -> None:
            job.outcomes.update(self._delivery.earlier(replies[0]))
            self._begun(job)

        self._step(job, partial(self._delivery.begin, batch=batch), begun)

    def _begun(self, job: Job) -> None:
        """Put those messages of a task in line that have no outcome yet."""
        missing = [place for place in range(len(job.bodies)) if place not in job.outcomes]
        with self._changed:
            if not job.is_abandoned:
                job.to_do.extend(missing)
        self._hand.weigh(job.tag, len(missing), missing=True)
        self._advance(job)

    def _advance(self, job: Job) -> None:
        """Go on with a task: the messages of a suspect one by one, those of others all at once."""
        suspicion = job.envelope.suspicion
        if suspicion is not None and job.problem is not None:
            job.to_do.clear()
        if not job.to_do:
            if not job.unsettled:
                self._end(job)
            return
        if suspicion is None:
            self._line_up(job)
            return
        position = job.to_do[0]
        if suspicion.is_poison(position):
            with self._changed:
                job.to_do.popleft()
                job.unsettled += 1
            self._storing.put(partial(self._answer_step, job, position, suspicion.rejection()))
            return
        # If the message ends this worker, Redis knows which.
        mark = partial(self._delivery.mark_alone, suspicion=suspicion, position=position)
        self._step(job, mark, lambda _: self._line_up(job))

    def _line_up(self, job: Job) -> None:
        with self._changed:
            self._submitting[job.is_urgent].append(job)
            self._changed.notify()

    def _submit_all(self, job: Job, positions: Sequence[int]) -> None:
        """Submit messages to the engine, which calls back when they are done."""
        outer, self._done_at_once = self._done_at_once, []
        for position in positions:
            if not job.is_urgent:
                self._let_live_ones_pass()
            if not job.is_abandoned:
                self._submit(job, position)
        # Those that were done at once: most of them, if their predictions are cached.
        done, self._done_at_once = self._done_at_once, outer
        if done:
            self._leave_engine(job, done)

    def _let_live_ones_pass(self) -> None:
        """Do everything urgent that has come."""
        while self._taken[True] or self._submitting[True]:
            with self._changed:
                work = self._next_urgent()
            if work is not None:
                work()

    def _submit(self, job: Job, position: int) -> None:
        body = job.bodies[position]

        def submit() -> Pending:
            check_time(job.envelope.expires_at)
            if not isinstance(body, str | dict):
                raise MessageRejected(
                    RejectionReason.NOT_A_MESSAGE,
                    f"a {type(body).__name__}: send a message as a JSON object or its text",
                )
            return self._evaluator.submit(body, queued_seconds=job.queued, urgent=job.is_urgent)

        pending = self._attempt(job, submit)
        if pending is None or isinstance(pending, MessageRejected):
            self._done(job, position, pending)
        else:
            pending.add_done_callback(partial(self._done, job, position, pending))

    # From the engine to Redis. The storing thread runs everything here but `_leave_engine`.

    def _done(self, job: Job, position: int, result: Pending | MessageRejected | None) -> None:
        """Note that a message is done; a result of None means that it has no outcome."""
        if threading.get_ident() == self._intake.ident:
            self._done_at_once.append((position, result))
        else:
            self._leave_engine(job, [(position, result)])

    def _leave_engine(
        self, job: Job, done: Sequence[tuple[int, Pending | MessageRejected | None]]
    ) -> None:
        """Have the outcomes of messages stored that are done."""
        with self._changed:
            if not job.is_urgent:
                self._backlog_in_engine -= len(done)
                self._changed.notify()
            done = [(place, result) for place, result in done if place in job.in_engine]
            job.in_engine.difference_update(place for place, _ in done)
        self._hand.evaluated(job.tag, len(done))
        ready = [
            partial(self._answer_step, job, place, result)
            for place, result in done
            if result is not None
        ]
        # Under load, fewer and larger pipelines leave more time for the engine. But of a suspect
        # task, the next message waits for the outcome of this one.
        is_pressed = job.envelope.suspicion is None and self._hand.is_pressed(job.envelope.queue)
        self._storing.put(*ready, gather=is_pressed)
        if len(ready) < len(done):
            self._drop(job, len(done) - len(ready))

    def _answer_step(
        self, job: Job, position: int, result: Pending | MessageRejected
    ) -> Storable | None:
        """Build what stores a message's outcome. None if it has none."""
        try:
            found = self._answer(job, position, result)
        except Exception as error:  # noqa: BLE001 - it must not end the thread
            self._fail(job, error)
            found = None
        if found is None:
            self._round.dropped[job] += 1
            return None
        answer, outcome, evaluation = found
        tag = job.tag if job.batch is None else ""

        def accepted(counted: Counted) -> None:
            job.outcomes[position] = outcome if job.list_wanted else ""
            if job.batch is None and isinstance(answer.outcome, Rejection):
                job.ending = Ending.REFUSED
            self._count(answer.outcome, evaluation, counted)
            self._round.stored[job] += 1

        def aborted() -> None:
            self._round.dropped[job] += 1

        entry = Entry(answer, outcome, tag, job.batch, position)
        return Storable(entry, accepted, aborted, partial(self._break, job))

    def _after_round(self) -> None:
        """Go on with the jobs of a pipeline."""
        stored, dropped = self._round.stored, self._round.dropped
        while stored:
            job, count = stored.popitem()
            self._hand.stored(job.tag, count)
            self._settle(job, count)
        while dropped:
            self._drop(*dropped.popitem())

    def _drop(self, job: Job, count: int) -> None:
        """Note that messages will have no outcome here."""
        self._hand.dropped(job.tag, count)
        self._settle(job, count)

    def _settle(self, job: Job, count: int) -> None:
        """Go on with a job some of whose messages have an outcome, or will have none."""
        with self._changed:
            job.unsettled -= count
            left = job.unsettled + len(job.to_do)
        if job.envelope.suspicion is not None or not left:
            self._advance(job)

    def _end(self, job: Job) -> None:
        """End a task: acknowledge it if every message has its outcome, or give it back."""
        places = range(len(job.bodies))
        if not all(place in job.outcomes for place in places):
            problem = job.problem or EngineClosedError("the engine does not answer")
            is_fault = isinstance(problem, NoOutcome) or self._stops_broken()
            self._put_back(job.tag, fault=is_fault, job=job)
        elif job.batch is None:
            self._forget(job, job.ending)  # stored and acknowledged in one step
        else:
            outcomes = [job.outcomes[place] for place in places]
            finish = partial(self._delivery.finish, batch=job.batch, outcomes=outcomes, tag=job.tag)
            self._step(
                job,
                finish,
                lambda _: self._forget(job, Ending.ANSWERED),
                aborted=lambda: self._forget(job, Ending.GIVEN_BACK),
            )

    def _forget(self, job: Job, ending: Ending) -> None:
        with self._changed:
            if job not in self._jobs:
                return
            del self._jobs[job]
        self._observer.finished(job.envelope, ending)
        self._leave_hand(job.tag, ending)

    def _leave_hand(self, tag: str, ending: Ending) -> None:
        with self._changed:
            self._endings[ending] += 1
        self._hand.remove(tag, returned=ending is Ending.GIVEN_BACK)

    def _put_back(self, tag: str, *, fault: bool, job: Job | None = None) -> None:
        """Give an item back; if Redis does not take it, it comes back when nobody renews it."""

        def done(_: object = None) -> None:
            if job is None:
                self._leave_hand(tag, Ending.GIVEN_BACK)
            else:
                self._forget(job, Ending.GIVEN_BACK)

        with self._changed:
            is_last = self._hand.is_closed and not (fault or self._abandoned or self._ended)
            if is_last:
                self._returned[tag] = done
        if is_last:
            self._hand.look()
            return
        send = partial(self._delivery.put_back, tag=tag, fault=fault)
        self._storing.put(lambda: Step(send, done, done, done))

    def _return_step(self, tags: Sequence[str]) -> Step:
        """Build the step that gives items back, the oldest last: it is the next to be taken."""

        def send(pipe: Pipeline) -> None:
            for tag in reversed(tags):
                self._delivery.put_back(pipe, tag, fault=False)

        def done(_: object = None) -> None:
            for tag in tags:
                self._returned[tag]()

        return Step(send, done, done, done)

    def _refuse(self, tag: str, refusal: Refusal) -> None:
        """Turn a whole item or task into one dead letter."""
        rejected = refusal.rejected
        if isinstance(rejected, EnvelopeRejected) and rejected.unexpected:
            self._metrics.error(ErrorKind.INTERNAL)
        answer = self._delivery.dead_letter(refusal)
        entry = Entry(answer, answer.outcome.model_dump_json(), tag)

        def accepted(counted: Counted) -> None:
            self._count(answer.outcome, None, counted)
            self._leave_hand(tag, Ending.REFUSED)

        def failed(error: Exception) -> None:
            self.note_unexpected(error)
            self._put_back(tag, fault=True)

        aborted = partial(self._put_back, tag, fault=False)
        self._storing.put(lambda: Storable(entry, accepted, aborted, failed))

    # Steps of a task.

    def _step(
        self,
        job: Job,
        send: Callable[[Pipeline], object],
        accepted: Callable[[list[Any]], object],
        aborted: Callable[[], object] | None = None,
    ) -> None:
        """Send commands that end no message."""

        def give_up() -> None:
            job.problem = job.problem or EngineClosedError("Redis is gone")
            with self._changed:
                job.to_do.clear()
            if not job.unsettled:
                self._end(job)

        step = Step(send, accepted, aborted or give_up, partial(self._break, job))
        self._storing.put(lambda: step)

    def _break(self, job: Job, error: Exception) -> None:
        """Give an item back after an unexpected error of this worker."""
        self._fail(job, error)
        self._put_back(job.tag, fault=True, job=job)

    def _fail(self, job: Job, error: Exception) -> None:
        """Note an unexpected error of a task."""
        self._metrics.error(ErrorKind.INTERNAL)
        detail = f"unexpected {type(error).__name__}: see the worker's log"
        job.problem = job.problem or NoOutcome(detail)
        # Many messages that meet the same bug are a batch, and no sign of a broken worker.
        if not job.has_failed:
            job.has_failed = True
            self.note_unexpected(error)

    def _answer(
        self, job: Job, position: int, pending: Pending | MessageRejected
    ) -> tuple[Answer, str, Evaluation | None] | None:
        """Build the answer to a body that is done, its outcome as JSON, and its evaluation.

        None if it has no answer.
        """
        if isinstance(pending, MessageRejected):
            return self._refusal(job, pending, position)
        evaluated = self._attempt(job, pending.result)
        if evaluated is None:
            return None
        if isinstance(evaluated, MessageRejected):
            return self._refusal(job, evaluated, position)
        verdict, confusions, completion, text_of = evaluated
        verdict = with_queue_time(verdict, pending.message, job.queued)
        answer = self._delivery.verdict(
            verdict,
            pending.message,
            None if job.batch is not None else job.envelope.task_id,
            job.envelope.result_seconds,
            live=job.is_urgent,
        )
        evaluation = Evaluation(verdict, job.lane, confusions, completion)
        return answer, text_of(verdict), evaluation

    def _attempt(self, job: Job, step: Callable[[], T]) -> T | MessageRejected | None:
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
            return rejected.as_value()
        except SQEHRMError as error:
            # A closed engine is no news: it was closed because this worker stops.
            if not isinstance(error, EngineClosedError):
                self._on_broken(str(error))
            job.problem = job.problem or error
        except Exception as error:  # noqa: BLE001 - the border between the worker and a message
            before = job.problem
            self._fail(job, error)
            if job.envelope.suspicion is not None and not self._is_broken:
                job.problem = before
                detail = f"unexpected {type(error).__name__}: see the worker's log"
                return MessageRejected(RejectionReason.EVALUATION_FAILED, detail)
        return None

    def _refusal(
        self, job: Job, rejected: MessageRejected, position: int
    ) -> tuple[Answer, str, None]:
        body, task_id = job.bodies[position], job.envelope.task_id
        own_id = own_id_of(body)
        refusal = Refusal(
            body=original_bytes(body),
            queue=job.envelope.queue,
            identity=f"{task_id}/{position}",
            message_id=own_id or task_id,
            # In a batch, the task's id is for the list of all outcomes.
            result_ids=(own_id, None if job.batch is not None else task_id),
            rejected=rejected,
            result_seconds=job.envelope.result_seconds,
        )
        answer = self._delivery.dead_letter(refusal)
        return answer, answer.outcome.model_dump_json(), None

    def _count(self, outcome: Outcome, evaluation: Evaluation | None, counted: Counted) -> None:
        """Count an outcome that was stored."""
        if counted is Counted.REPEATED:
            self._metrics.duplicate()
        elif isinstance(outcome, Rejection):
            self._metrics.rejected(outcome.reason)
        elif evaluation is not None:
            is_canary = counted is Counted.CANARY
            self._metrics.evaluated(
                evaluation._replace(lane=Lane.CANARY) if is_canary else evaluation
            )
