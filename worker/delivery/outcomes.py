"""The delivery rules: an outcome is stored before its message is acknowledged, and counted once.

One script makes every write to Redis about an outcome: the marker that it was counted, the entry in
a stream, the results under the ids that someone may wait for. If Redis does not accept it, the
module waits and tries again; meanwhile the message stays unacknowledged. Knows no metrics and no
model.
"""

import hashlib
import itertools
import json
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

import redis
from redis.client import Pipeline
from redis.exceptions import NoScriptError, ResponseError

from schemas import DeadLetter, Rejection, SQEMessage, Verdict
from worker.broker import keys
from worker.broker.contract import CLIENT_MODULE, WAIT_SECONDS
from worker.broker.errors import describe
from worker.broker.streams import KEPT_BYTES, Failure, Original, fields_of, stream_of
from worker.delivery.envelope import Envelope, Refusal
from worker.delivery.markers import marker_of
from worker.delivery.scripts import MARK, NOTE, STORE, STORE_LIST
from worker.delivery.suspicion import Suspicion
from worker.delivery.trouble import Trouble
from worker.settings import Settings

Outcome = Verdict | Rejection

CONTENT = {"agent_id", "prompt", "completion", "puzzle_id", "category"}
"""Fields that a verdict follows from. A message with other content counts for itself, even if it
has the id of an earlier one. A resent message may have another `created_at`."""

T = TypeVar("T")

FIRST_PAUSE = 0.1
"""Seconds until the second attempt; a Redis that restarts is often back by then."""

LONGEST_PAUSE = 2.0
"""Longest pause in seconds between attempts; short compared with a real outage."""


class DeliveryAborted(Exception):
    """The worker stops and Redis did not accept the outcome, so the message is not answered."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An outcome, and the places where it is stored."""

    outcome: Outcome
    marker: str
    """Equal for deliveries that count once, from `marker_of`; empty if the outcome is counted by
    its delivery, which is in `tag`."""
    result_ids: tuple[str, ...]
    """Ids under which someone may wait for it."""
    record: Failure | DeadLetter | None = None
    """The record for a stream; None for a solved message."""
    tag: str = ""
    """Tag of the delivery that is acknowledged together with the outcome, if it has no other."""
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


class Delivery:
    """The store of outcomes in Redis. Threads may share one object.

    Args:
        client: The workers' Redis.
        settings: How long markers and results live, and how many entries the streams keep.
        worker: This worker's name, which dead letters contain.
        on_error: Called for each attempt that Redis did not accept.
    """

    def __init__(
        self,
        client: redis.Redis,
        settings: Settings,
        *,
        worker: str,
        on_error: Callable[[], None],
    ) -> None:
        self._client = client
        self._settings = settings
        self._key = keys.Namespace(settings.namespace).key
        self._worker = worker
        self._on_error = on_error
        self._thread = _Thread()
        self._giving_up = threading.Event()
        self.trouble = Trouble("store outcomes")

    def give_up(self) -> None:
        """Stop trying again: abort every delivery that Redis does not accept at once."""
        self._giving_up.set()

    def verdict(
        self,
        verdict: Verdict,
        message: SQEMessage,
        task_id: str | None,
        result_seconds: float | None = None,
    ) -> Answer:
        """Build the answer to a message that was evaluated.

        Args:
            verdict: The message's verdict.
            message: The message itself, which the failure stream keeps if it is unsolved.
            task_id: The task's id if the message was a task of its own.
            result_seconds: Seconds for which the sender wants the verdict to be kept.
        """
        return Answer(
            outcome=verdict,
            marker=marker_of(
                verdict.checkpoint_digest.encode(),
                verdict.message_id.encode(),
                message.model_dump_json(include=CONTENT).encode(),
            ),
            result_ids=_distinct(verdict.message_id, task_id),
            record=None if verdict.solved else Failure.of(verdict, message),
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
            tag=refusal.tag,
            result_seconds=refusal.result_seconds,
        )

    def begin(self, batch: Batch) -> dict[int, str]:
        """Read the outcomes that earlier deliveries of a batch have stored, by position, as JSON.

        They are empty if the sender wants no list of them. Raises `DeliveryAborted`.
        """
        stored: dict[bytes, bytes] = self._until_accepted(
            lambda: self._client.hgetall(self._key(batch.key))  # type: ignore[arg-type, return-value]
        )
        return {int(position): outcome.decode() for position, outcome in stored.items()}

    def finish(self, batch: Batch, outcomes: Sequence[str]) -> None:
        """Store the list of a batch's outcomes, which are JSON, and forget that they were parts.

        Raises `DeliveryAborted`.
        """
        self._until_accepted(lambda: self._finish(batch, outcomes))

    def _finish(self, batch: Batch, outcomes: Sequence[str]) -> None:
        if batch.list_id is not None:
            now = datetime.now(UTC).isoformat()
            text = _result("SUCCESS", f"[{','.join(outcomes)}]", batch.list_id, now)
            key = self._key(keys.result(batch.list_id))
            STORE_LIST(self._client, (key,), self._milliseconds(batch.result_seconds), text)
        self._client.delete(self._key(batch.key))

    def deliver(
        self,
        answers: Sequence[Answer],
        *,
        batch: Batch | None = None,
        positions: Sequence[int] = (),
    ) -> list[bool]:
        """Store the answers in one round trip; try until Redis accepts all of them.

        A repeated attempt changes nothing that an earlier one did.

        Args:
            answers: The answers to store.
            batch: The batch that they are part of.
            positions: Their positions in it.

        Returns:
            Whether each answer is the first for its message, which is then counted.

        Raises:
            DeliveryAborted: Redis did not accept the answers after `give_up`.
        """
        token = uuid.uuid4().hex
        return self._until_accepted(lambda: self._attempt(answers, token, batch, positions))

    def mark_alone(self, suspicion: Suspicion, position: int) -> None:
        """Note that the message at `position` of a suspect is evaluated alone from now on.

        A fault of this worker is then blamed on that message. Raises `DeliveryAborted`.
        """
        faults = self._key(keys.FAULTS)
        self._until_accepted(lambda: MARK(self._client, [faults], suspicion.digest, position))

    def _until_accepted(self, attempt: Callable[[], T]) -> T:
        part = object()
        pause = FIRST_PAUSE
        while True:
            try:
                accepted = attempt()
            except redis.RedisError as error:
                self._on_error()
                self.trouble.failed(error, part)
                # The idle ones may lead to the same server, which a failover made a replica.
                self._client.connection_pool.disconnect(inuse_connections=False)
                if self._giving_up.wait(pause):
                    raise DeliveryAborted(
                        f"Redis did not accept the outcome: {describe(error)}"
                    ) from error
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self.trouble.passed(part)
                return accepted

    def _attempt(
        self,
        answers: Sequence[Answer],
        token: str,
        batch: Batch | None = None,
        positions: Sequence[int] = (),
    ) -> list[bool]:
        try:
            return self._store(answers, token, batch, positions)
        except NoScriptError:  # a Redis that has just started
            STORE.load(self._client)
            NOTE.load(self._client)
            return self._store(answers, token, batch, positions)

    def _store(
        self, answers: Sequence[Answer], token: str, batch: Batch | None, positions: Sequence[int]
    ) -> list[bool]:
        settings = self._settings
        now = datetime.now(UTC).isoformat()
        outcomes = [answer.outcome.model_dump_json() for answer in answers]
        names = [*keys.NOTED, keys.COUNTED, keys.attempt(self._thread.name)]
        arguments: list[str | bytes | int] = [settings.counted_expires, token]
        for answer, outcome in zip(answers, outcomes, strict=True):
            status, result = "SUCCESS", outcome
            if isinstance(answer.outcome, Rejection):
                status, result = "FAILURE", _failure(answer.outcome)
            result_ids = answer.result_ids if answer.result_seconds != 0 else ()
            names += map(keys.result, result_ids)
            stream = self._stream_arguments(answer.record)
            arguments += [
                answer.marker,
                answer.tag,
                self._milliseconds(answer.result_seconds),
                len(result_ids),
                *(_result(status, result, task_id, now) for task_id in result_ids),
                len(stream),
                *stream,
            ]
        with self._client.pipeline(transaction=False) as pipe:
            STORE(pipe, [*map(self._key, names)], *arguments)
            if batch is not None:
                kept = outcomes if batch.list_id is not None else [""] * len(outcomes)
                noted = [each for pair in zip(positions, kept, strict=True) for each in pair]
                NOTE(pipe, (self._key(batch.key),), settings.result_expires, *noted)
            firsts = self._execute(pipe)[0]
        return [bool(first) for first in firsts]

    def _execute(self, pipe: Pipeline) -> list[Any]:
        """Run `pipe`, and make sure that enough replicas have what it wrote."""
        replicas = self._settings.wait_replicas
        if not replicas:
            return pipe.execute()
        pipe.wait(replicas, int(WAIT_SECONDS * 1000))
        *replies, confirmed = pipe.execute()
        if confirmed < replicas:
            raise ResponseError(f"NOREPLICAS {confirmed} of {replicas} replicas have an outcome")
        return replies

    def _milliseconds(self, result_seconds: float | None) -> int:
        """Milliseconds for which a result lives, of which Redis takes no fewer than 1."""
        default, longest = self._settings.result_expires, self._settings.result_expires_max
        if result_seconds is None:
            return 1000 * default
        return max(1, round(1000 * min(result_seconds, longest)))

    def _stream_arguments(self, record: Failure | DeadLetter | None) -> list[str | bytes | int]:
        if record is None:
            return []
        dead = isinstance(record, DeadLetter)
        length = self._settings.dead_letters_maxlen if dead else self._settings.failures_maxlen
        fields = itertools.chain.from_iterable(fields_of(record).items())
        return [self._key(stream_of(record)), length, "*", *fields]


class _Thread(threading.local):
    """A thread that stores outcomes."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex


def _distinct(*ids: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each for each in ids if each))


def _result(status: str, result: str, task_id: str, now: str) -> str:
    """Wrap `result` (JSON) as Celery's Redis result backend stores it."""
    return (
        f'{{"status":"{status}","result":{result},"traceback":null,"children":[],'
        f'"date_done":"{now}","task_id":{json.dumps(task_id)}}}'
    )


def _failure(rejection: Rejection) -> str:
    """Build the result of a failed task (JSON): the rejection, and the error that Celery raises."""
    error = {
        "exc_type": "MessageRejected",
        "exc_message": [rejection.reason, rejection.detail],
        # Celery looks for the class there if the module is loaded, and otherwise makes one.
        "exc_module": CLIENT_MODULE,
    }
    return json.dumps({**rejection.model_dump(mode="json"), **error})
