"""The delivery rules: an outcome is stored before its message is acknowledged, and counted once.

One script makes every write to Redis about an outcome: the marker that it was counted, the entry in
a stream, the results under the ids that someone may wait for, and the acknowledgement of its item.

Knows what each step writes; nothing of when it is sent (`worker.delivery.storing`), of metrics or
of a model.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, Self

from redis.client import Pipeline

from schemas import DeadLetter, Rejection, SQEMessage, Verdict
from worker.broker import keys
from worker.broker.contract import CLIENT_MODULE
from worker.broker.streams import KEPT_BYTES, Failure, Original, fields_of, stream_of
from worker.delivery.agents import figures_of
from worker.delivery.envelope import Envelope, Refusal
from worker.delivery.evidence import group_of
from worker.delivery.markers import marker_of
from worker.delivery.scripts import FINISH, MARK, PUT_BACK, STORE, outcome_arguments
from worker.delivery.suspicion import Suspicion
from worker.delivery.upkeep import WITH_QUEUES
from worker.settings import Settings

Outcome = Verdict | Rejection


class Answer(NamedTuple):
    """An outcome, and the places where it is stored."""

    outcome: Outcome
    marker: str
    """Equal for deliveries that count once, from `marker_of`; empty if the outcome is counted by
    its delivery, since the item has no name of its own."""
    result_ids: tuple[str, ...]
    """Ids under which someone may wait for it."""
    of_agent: str = ""
    """Its addition to the figures of its agent, from `figures_of`; empty for nothing."""
    record: Failure | DeadLetter | None = None
    """The record for a stream; None for a solved message."""
    group: str = ""
    """The failures with which it shares what is kept, from `group_of`; empty to keep it always."""
    result_seconds: float | None = None
    """Seconds for which the sender wants the outcome to be kept; None for the default."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch, whose outcomes are stored one by one.

    Args:
        key: Redis key of the outcomes that are stored, by position, until all are.
        list_id: Id under which the list of all outcomes is stored; None if nobody wants it.
        result_seconds: Seconds for which the sender wants the list to be kept.
    """

    key: str
    list_id: str | None
    result_seconds: float | None = None

    @classmethod
    def of(cls, envelope: Envelope) -> Self:
        """Name the batch of a task. Repeated deliveries have the same name, other sendings not."""
        identity = hashlib.sha1(
            envelope.task_id.encode(errors="surrogatepass") + b"\0" + envelope.body,
            usedforsecurity=False,
        )
        seconds = envelope.result_seconds
        list_id = envelope.task_id if envelope.keep_result and seconds != 0 else None
        return cls(keys.partial(identity.hexdigest()), list_id, seconds)


class Entry(NamedTuple):
    """An answer on its way to Redis."""

    answer: Answer
    outcome: str
    """Its outcome as JSON."""
    tag: str = ""
    """Tag of the delivery that ends with it, if it does."""
    batch: Batch | None = None
    """The batch that it is part of."""
    position: int = 0
    """Its position in the batch."""


class Delivery:
    """The commands that store outcomes in Redis. Threads may share one object.

    Args:
        settings: How long markers and results live, and how many entries the streams keep.
        worker: This worker's name, which dead letters contain.
    """

    def __init__(self, settings: Settings, *, worker: str) -> None:
        self._settings = settings
        namespace = keys.Namespace(settings.namespace)
        self._key = namespace.key
        self._noted = namespace.all_keys(keys.NOTED)
        self._with_queues = namespace.all_keys(WITH_QUEUES)
        self._worker = worker

    def verdict(
        self,
        verdict: Verdict,
        message: SQEMessage,
        task_id: str | None,
        result_seconds: float | None = None,
        *,
        live: bool = True,
    ) -> Answer:
        """Build the answer to a message that was evaluated.

        Args:
            verdict: The message's verdict.
            message: The message itself, which the failure stream keeps if it is unsolved.
            task_id: The task's id if the message was a task of its own.
            result_seconds: Seconds for which the sender wants the verdict to be kept.
            live: Whether it was in the live queue, so that it counts for its agent.
        """
        return Answer(
            outcome=verdict,
            marker=marker_of(
                verdict.checkpoint_digest.encode(),
                verdict.message_id.encode(),
                content_of(message).encode(),
            ),
            result_ids=_distinct(verdict.message_id, task_id),
            of_agent=figures_of(verdict) if live else "",
            record=None if verdict.solved else Failure.of(verdict, message),
            group="" if verdict.solved else group_of(verdict, live=live),
            result_seconds=result_seconds,
        )

    def dead_letter(self, refusal: Refusal) -> Answer:
        """Build the answer to an item, a task or a message that is refused."""
        rejection = Rejection(
            message_id=refusal.message_id,
            reason=refusal.rejected.reason,
            detail=refusal.rejected.detail,
        )
        body, original = refusal.body, refusal.original
        if original is None and len(body) > KEPT_BYTES:
            body, original = body[:KEPT_BYTES], Original.of(body)
        return Answer(
            outcome=rejection,
            marker="" if refusal.tag else marker_of(refusal.identity.encode(), refusal.body),
            result_ids=_distinct(*refusal.result_ids),
            record=DeadLetter(
                **rejection.model_dump(),
                body=body,
                original_bytes=original and original.length,
                original_sha1=original and original.sha1,
                queue=refusal.queue,
                worker=self._worker,
                rejected_at=datetime.now(UTC),
            ),
            result_seconds=refusal.result_seconds,
        )

    def begin(self, pipe: Pipeline, batch: Batch) -> None:
        """Read the outcomes that earlier deliveries of a batch have stored; see `earlier`."""
        pipe.hgetall(self._key(batch.key))

    def earlier(self, reply: dict[bytes, bytes]) -> dict[int, str]:
        """Read the reply of `begin`: outcomes by position, as JSON, or empty if nobody wants them.

        What cannot be a position is left out: anyone may write to Redis.
        """
        pairs = ((position, outcome) for position, outcome in reply.items() if position.isdigit())
        return {int(position): outcome.decode(errors="replace") for position, outcome in pairs}

    def finish(self, pipe: Pipeline, batch: Batch, outcomes: Sequence[str], tag: str) -> None:
        """Store the list of a batch's outcomes, forget that they were parts, and acknowledge it.

        Args:
            pipe: Receives the commands.
            batch: The batch.
            outcomes: All its outcomes as JSON.
            tag: The tag of this delivery.
        """
        names, arguments = [self._key(batch.key)], [tag]
        if batch.list_id is not None:
            names.append(self._key(keys.result(batch.list_id)))
            result = f'{{"status":"SUCCESS","result":[{",".join(outcomes)}]'
            end = f"{_before_id(datetime.now(UTC))}{json.dumps(batch.list_id)}}}"
            arguments += [str(self._milliseconds(batch.result_seconds)), result + end]
        FINISH(pipe, [*self._noted, *names], *arguments)

    def store(self, pipe: Pipeline, entries: Sequence[Entry], token: str, name: str) -> None:
        """Store answers by one script. Its reply has a number for each, which is a `Counted`.

        It has a text for one that Redis refused, whatever became of the others. A repeated attempt
        with the same token, name and entries changes nothing that an earlier one did.

        Args:
            pipe: Receives the commands.
            entries: The answers.
            token: Text that no other attempt has.
            name: Text that no attempt under way has; one that has ended may have had it.
        """
        settings = self._settings
        figures = (keys.AGENTS, keys.CANARIES, keys.EVIDENCE)
        names = [*keys.NOTED, keys.COUNTED, keys.attempt(name), *figures]
        arguments: list[str | bytes | int] = [
            settings.counted_expires,
            token,
            settings.result_expires,
            _before_id(datetime.now(UTC)),
            len(self._key(keys.result(""))),
        ]
        for entry in entries:
            answer, batch = entry.answer, entry.batch
            result_ids = answer.result_ids if answer.result_seconds != 0 else ()
            names += map(keys.result, result_ids)
            if batch is not None:
                names.append(batch.key)
            arguments += outcome_arguments(
                answer.marker,
                tag=entry.tag,
                position=None if batch is None else entry.position,
                outcome=entry.outcome,
                is_noted=batch is not None and batch.list_id is not None,
                failure=_failure(answer.outcome) if isinstance(answer.outcome, Rejection) else "",
                milliseconds=self._milliseconds(answer.result_seconds),
                results=len(result_ids),
                of_agent=answer.of_agent,
                record=self._stream_arguments(answer),
            )
        STORE(pipe, [*map(self._key, names)], *arguments)

    def mark_alone(self, pipe: Pipeline, suspicion: Suspicion, position: int) -> None:
        """Note that the message at `position` of a suspect is evaluated alone from now on.

        A fault of this worker is then blamed on that message.
        """
        MARK(pipe, [self._key(keys.FAULTS)], suspicion.digest, position)

    def put_back(self, pipe: Pipeline, tag: str, *, fault: bool) -> None:
        """Put an item back into its queue: in front after a drain, at the end after a fault."""
        PUT_BACK(pipe, self._with_queues, tag, int(fault))

    def _milliseconds(self, result_seconds: float | None) -> int:
        """Milliseconds for which a result lives, of which Redis takes no fewer than 1."""
        default, longest = self._settings.result_expires, self._settings.result_expires_max
        if result_seconds is None:
            return 1000 * default
        return max(1, round(1000 * min(result_seconds, longest)))

    def _stream_arguments(self, answer: Answer) -> list[str | bytes | int]:
        record, settings = answer.record, self._settings
        if record is None:
            return []
        dead = isinstance(record, DeadLetter)
        longest = settings.dead_letters_maxbytes if dead else settings.failures_maxbytes
        fields = itertools.chain.from_iterable(fields_of(record).items())
        stream = self._key(stream_of(record))
        return [stream, longest, settings.failures_per_hour, answer.group, "*", *fields]


def content_of(message: SQEMessage) -> str:
    """Everything that a verdict follows from, as one text that no other content gives.

    A message with other content counts for itself, even if it has the id of an earlier one. A
    resent message may have another `created_at`.
    """
    text = f"{len(message.prompt)}\0{message.prompt}{message.completion}"
    category = message.category or ""
    return f"{message.agent_id}\0{message.puzzle_id}\0{message.task or ''}\0{category}\0{text}"


def _distinct(*ids: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, ids)))


def _before_id(now: datetime) -> str:
    """The end of a result in the form of Celery's result backend, before its id."""
    return f',"traceback":null,"children":[],"date_done":"{now.isoformat()}","task_id":'


def _failure(rejection: Rejection) -> str:
    """Build the result of a failed task (JSON): the rejection, and the error that Celery raises."""
    error = {
        "exc_type": "MessageRejected",
        "exc_message": [rejection.reason, rejection.detail],
        # Celery looks for the class there if the module is loaded, and otherwise makes one.
        "exc_module": CLIENT_MODULE,
    }
    return json.dumps({**rejection.model_dump(mode="json"), **error})
