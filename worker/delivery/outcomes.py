"""The delivery rules: an outcome is stored before its message is acknowledged, and counted once.

One script makes every write to Redis about an outcome: the marker that it was counted, the entry in
a stream, the results under the ids that someone may wait for. If Redis does not accept it, the
module waits and tries again; meanwhile the message stays unacknowledged. Knows no metrics and no
model.
"""

import hashlib
import itertools
import json
import logging
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import redis

from schemas import DeadLetter, Rejection, SQEMessage, Verdict
from worker.broker import keys
from worker.broker.streams import KEPT_BYTES, Failure, Original, fields_of, stream_of
from worker.delivery.envelope import Refusal
from worker.delivery.scripts import MARK
from worker.delivery.suspicion import Suspicion
from worker.settings import Settings

logger = logging.getLogger(__name__)

Outcome = Verdict | Rejection

T = TypeVar("T")

FIRST_PAUSE = 0.1
"""Seconds until the second attempt; a Redis that restarts is often back by then."""

LONGEST_PAUSE = 2.0
"""Longest pause in seconds between attempts; short compared with a real outage."""

# KEYS: marker, stream, then the results' keys. ARGV: token of this attempt, seconds the marker
# lives, seconds a result lives, the results, the stream's length, the stream entry's fields.
STORE = """#!lua flags=allow-oom
local set = redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2])
local results = #KEYS - 2
if set and #ARGV > 3 + results then
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', unpack(ARGV, 4 + results))
end
for i = 1, results do
  redis.call('SET', KEYS[2 + i], ARGV[3 + i], 'EX', ARGV[3])
  redis.call('PUBLISH', KEYS[2 + i], ARGV[3 + i])
end
-- A repeated attempt whose first reply was lost finds its own token, and still counts as the first.
if set or redis.call('GET', KEYS[1]) == ARGV[1] then return 1 end
return 0
"""

# KEYS: the key of a batch's list of outcomes. ARGV: seconds it lives, the list.
STORE_LIST = """#!lua flags=allow-oom
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[1])
redis.call('PUBLISH', KEYS[1], ARGV[2])
"""


class DeliveryAborted(Exception):
    """The worker stops and Redis did not accept the outcome, so the message is not answered."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An outcome, and the places where it is stored."""

    outcome: Outcome
    marker: str
    """Redis key from `keys.counted` or `keys.refused`."""
    result_ids: tuple[str, ...]
    """Ids under which someone may wait for it."""
    record: Failure | DeadLetter | None = None
    """The record for a stream; None for a solved message."""


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
        self._script = client.register_script(STORE)
        self._list_script = client.register_script(STORE_LIST)
        self._settings = settings
        self._worker = worker
        self._on_error = on_error
        self._giving_up = threading.Event()

    def give_up(self) -> None:
        """Stop trying again: abort every delivery that Redis does not accept at once."""
        self._giving_up.set()

    def verdict(self, verdict: Verdict, message: SQEMessage, task_id: str | None) -> Answer:
        """Build the answer to a message that was evaluated.

        Args:
            verdict: The message's verdict.
            message: The message itself, which the failure stream keeps if it is unsolved.
            task_id: The task's id if the message was a task of its own.
        """
        return Answer(
            outcome=verdict,
            marker=keys.counted(verdict.checkpoint_digest, verdict.message_id),
            result_ids=_distinct(verdict.message_id, task_id),
            record=None if verdict.solved else Failure.of(verdict, message),
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
        digest = hashlib.sha256(refusal.identity.encode() + b"\0" + refusal.body).hexdigest()
        return Answer(
            outcome=rejection,
            marker=keys.refused(digest[:32]),  # 128 bits: no two deliveries share one
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
        )

    def deliver(self, answers: Sequence[Answer], *, batch_id: str | None = None) -> list[bool]:
        """Store the answers in one round trip; try until Redis accepts all of them.

        A repeated attempt changes nothing that an earlier one did.

        Args:
            answers: The answers to store.
            batch_id: Id under which the list of all outcomes is stored as well.

        Returns:
            Whether each answer is the first for its message, which is then counted.

        Raises:
            DeliveryAborted: Redis did not accept the answers after `give_up`.
        """
        token = uuid.uuid4().hex
        return self._until_accepted(lambda: self._attempt(answers, token, batch_id))

    def mark_alone(self, suspicion: Suspicion, position: int) -> None:
        """Note that the message at `position` of a suspect is evaluated alone from now on.

        A fault of this worker is then blamed on that message. Raises `DeliveryAborted`.
        """
        self._until_accepted(lambda: MARK(self._client, [keys.FAULTS], suspicion.digest, position))

    def _until_accepted(self, attempt: Callable[[], T]) -> T:
        pause = FIRST_PAUSE
        while True:
            try:
                return attempt()
            except redis.RedisError as error:
                self._on_error()
                if pause == FIRST_PAUSE:
                    logger.warning("Redis does not accept an outcome (%s); trying again", error)
                if self._giving_up.wait(pause):
                    raise DeliveryAborted(f"Redis did not accept the outcome: {error}") from error
                pause = min(2 * pause, LONGEST_PAUSE)

    def _attempt(self, answers: Sequence[Answer], token: str, batch_id: str | None) -> list[bool]:
        settings = self._settings
        now = datetime.now(UTC).isoformat()
        outcomes = [answer.outcome.model_dump_json() for answer in answers]
        with self._client.pipeline(transaction=False) as pipe:
            for place, (answer, outcome) in enumerate(zip(answers, outcomes, strict=True)):
                record = answer.record
                stream = keys.FAILURES if record is None else stream_of(record)
                names = [answer.marker, stream, *map(keys.result, answer.result_ids)]
                results = [_result(outcome, task_id, now) for task_id in answer.result_ids]
                self._script(
                    names,
                    [
                        f"{token}/{place}",
                        settings.counted_expires,
                        settings.result_expires,
                        *results,
                        *self._stream_arguments(record),
                    ],
                    client=pipe,
                )
            if batch_id is not None:
                key = keys.result(batch_id)
                batch = _result(f"[{','.join(outcomes)}]", batch_id, now)
                self._list_script([key], [settings.result_expires, batch], client=pipe)
            replies = pipe.execute()
        return [bool(reply) for reply in replies[: len(answers)]]

    def _stream_arguments(self, record: Failure | DeadLetter | None) -> list[str | bytes | int]:
        if record is None:
            return []
        dead = isinstance(record, DeadLetter)
        length = self._settings.dead_letters_maxlen if dead else self._settings.failures_maxlen
        return [length, "*", *itertools.chain.from_iterable(fields_of(record).items())]


def _distinct(*ids: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each for each in ids if each))


def _result(outcome: str, task_id: str, now: str) -> str:
    """Wrap `outcome` (JSON) as Celery's Redis result backend stores a successful task's result."""
    return (
        f'{{"status":"SUCCESS","result":{outcome},"traceback":null,"children":[],'
        f'"date_done":"{now}","task_id":{json.dumps(task_id)}}}'
    )
