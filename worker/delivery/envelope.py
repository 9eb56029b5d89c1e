"""The envelope in a queue: Celery's task message (protocol 2) as kombu puts it into Redis.

Takes only the parts that this worker uses, and refuses an item with a reason if one is unusable, so
that no item of a queue reaches Celery's own code unchecked. Knows nothing of SQE messages.
"""

import base64
import contextlib
import dataclasses
import json
import logging
import math
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic_core import from_json

from schemas import MessageRejected, RejectionReason
from worker.broker.app import ENQUEUED_AT, EVALUATE_BATCH, TASKS
from worker.broker.contract import KEEP_RESULT
from worker.broker.streams import Original
from worker.delivery.options import check_headers, expires_at
from worker.delivery.suspicion import Suspicion

logger = logging.getLogger(__name__)

_MAX_TASK_ID = 255
"""Longest task id in characters. Celery's are UUIDs of 36; the id becomes part of a Redis key."""


class EnvelopeRejected(MessageRejected):
    """An item is not a task of this worker.

    Args:
        reason: The reason from the fixed list.
        detail: One line that names the input and the fix.
        task_id: The task's id if it could be read, since someone may wait for its outcome.
        unexpected: Whether reading the item raised an unforeseen error.
    """

    def __init__(
        self,
        reason: RejectionReason,
        detail: str,
        task_id: str | None = None,
        *,
        unexpected: bool = False,
    ) -> None:
        super().__init__(reason, detail)
        self.task_id = task_id
        self.unexpected = unexpected


@dataclass(frozen=True, slots=True)
class Envelope:
    """A delivery of one task, checked."""

    task: str
    task_id: str
    queue: str
    body: bytes
    """The task's arguments as sent: the JSON text `[args, kwargs, embed]`."""
    enqueued_at: float | None
    """Finite Unix seconds, perhaps implausible; None if the producer gave no finite number."""
    keep_result: bool
    """Whether the sender wants the outcome under the task's id as well."""
    suspicion: Suspicion | None = None
    """The earlier faults of a task that has to be evaluated alone, message by message."""
    expires_at: datetime | None = None
    """Time after which no message of the task is to be evaluated; it has an offset."""
    result_seconds: float | None = None
    """Seconds for which the sender wants outcomes to be kept: 0 for none, None for the default."""

    @property
    def is_batch(self) -> bool:
        """Whether it is a task of several messages."""
        return self.task == EVALUATE_BATCH

    def refuse(self, rejected: MessageRejected) -> "Refusal":
        """Build the refusal of the whole task."""
        return Refusal(
            body=self.body,
            queue=self.queue,
            identity=self.task_id,
            message_id=self.task_id,
            result_ids=(self.task_id,),
            rejected=rejected,
            result_seconds=self.result_seconds,
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """An item, a task or a message that is refused, with everything its dead letter needs."""

    body: bytes
    """The original bytes of the item, of the task's arguments, or of the message; or their
    beginning, if there is an `original`."""
    queue: str
    identity: str
    """Equal for repeated deliveries, so that they count once; different for everything else."""
    message_id: str | None
    """The message's own id if one could be read, else the task's."""
    result_ids: tuple[str | None, ...]
    """Ids under which someone may wait for the answer."""
    rejected: MessageRejected
    original: Original | None = None
    """The whole item, if it was too large to be taken out of Redis."""
    tag: str = ""
    """Tag of the delivery if the dead letter is of a whole item, which has no other name."""
    result_seconds: float | None = None
    """As in the envelope."""


def read_item(item: bytes, queue: str, tag: str) -> Envelope | Refusal:
    """Read the envelope in `item`, or refuse the item. Raises nothing, whatever the item is.

    Args:
        item: The bytes from the queue.
        queue: The queue.
        tag: The tag of this delivery.
    """
    try:
        return read_envelope(item, queue)
    except EnvelopeRejected as rejected:
        return refuse_item(item, queue, tag, rejected.as_value(), rejected.task_id)


def refuse_oversized(
    beginning: bytes, queue: str, tag: str, original: Original, limit: int
) -> Refusal:
    """Build the refusal of an item that is too large to be taken out of Redis.

    Args:
        beginning: The first bytes of the item.
        queue: The queue.
        tag: The tag of this delivery.
        original: Length and hash of the item.
        limit: The longest item that is taken.
    """
    rejected = MessageRejected(
        RejectionReason.TOO_LARGE,
        f"an item of {original.length} bytes, but the limit is {limit}: send smaller batches, or "
        "set SQE_MAX_ITEM_BYTES",
    )
    refusal = refuse_item(beginning, queue, tag, rejected)
    return dataclasses.replace(refusal, original=original)


def refuse_item(
    item: bytes, queue: str, tag: str, rejected: MessageRejected, task_id: str | None = None
) -> Refusal:
    """Build the refusal of a whole item.

    Args:
        item: The bytes from the queue.
        queue: The queue.
        tag: The tag of this delivery.
        rejected: The reason.
        task_id: The task's id if it could be read.
    """
    return Refusal(
        body=item,
        queue=queue,
        identity=tag,
        message_id=task_id,
        result_ids=(task_id,),
        rejected=rejected,
        tag=tag,
    )


def read_envelope(item: bytes, queue: str) -> Envelope:
    """Read the envelope in `item` of `queue`. Raises `EnvelopeRejected` and nothing else."""
    with reading():
        envelope = _object(read_json(item), "the item")
        properties = _object(envelope.get("properties"), "'properties'")
        headers = _object(envelope.get("headers"), "'headers'")
        task_id = _task_id(headers.get("id"))
    with reading(task_id):
        _check_encoding(envelope, headers)
        body = _body(envelope.get("body"), properties.get("body_encoding"))
        task = _task(headers.get("task"))
        check_headers(headers)
        return Envelope(
            task=task,
            task_id=task_id,
            queue=queue,
            body=body,
            enqueued_at=_seconds(headers.get(ENQUEUED_AT)),
            keep_result=headers.get("ignore_result") is not True,
            expires_at=expires_at(headers),
            result_seconds=_duration(headers.get(KEEP_RESULT)),
        )


@contextlib.contextmanager
def reading(task_id: str | None = None) -> Iterator[None]:
    """Turn every error of code that reads an item into `EnvelopeRejected`.

    An item of a queue is whatever somebody wrote into Redis. If reading it raised anything that
    ends the worker, the item would come back after the visibility timeout and end the next worker
    as well. Nobody can list every error that bytes can cause, so catching `Exception` is deliberate
    here: an unforeseen error costs one message, which becomes a dead letter.
    """
    try:
        yield
    except MessageRejected as rejected:
        raise EnvelopeRejected(rejected.reason, rejected.detail, task_id) from None
    except Exception as error:  # noqa: BLE001 - see above
        name = type(error).__name__
        # The error's own text is left out because it may quote the item.
        frames = "".join(traceback.format_tb(error.__traceback__))
        logger.error("unexpected %s while reading an item\n%s", name, frames)  # noqa: TRY400
        raise EnvelopeRejected(
            _reason(error),
            f"cannot be read (unexpected {name}): see the worker's log",
            task_id,
            unexpected=True,
        ) from None


def _reason(error: Exception) -> RejectionReason:
    match error:
        case RecursionError():
            return RejectionReason.TOO_DEEP
        case MemoryError():
            return RejectionReason.TOO_LARGE
        case UnicodeError():
            return RejectionReason.INVALID_UNICODE
        case _:
            return RejectionReason.NOT_A_MESSAGE


def read_json(text: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """Parse a JSON text. Raises `MessageRejected` if it is not one."""
    # Pydantic's parser takes a third of the time, and reads whatever it reads as Python's does.
    # It reads less: deep values and lone surrogates, for example, are left to Python's.
    with contextlib.suppress(ValueError):
        return from_json(text)
    try:
        return json.loads(text.decode(), parse_int=_integer)
    except UnicodeDecodeError:
        raise MessageRejected(
            RejectionReason.INVALID_UNICODE, "not valid UTF-8: send UTF-8 text"
        ) from None
    except RecursionError:
        raise MessageRejected(
            RejectionReason.TOO_DEEP, "nested too deeply: send flat fields"
        ) from None
    except ValueError as error:
        raise MessageRejected(RejectionReason.NOT_JSON, f"not JSON: {error}") from None


def _integer(digits: str) -> int | float:
    """Parse an integer; one with more digits than Python converts (4300) becomes infinity.

    `1e999` becomes infinity as well. An error instead would refuse the whole item, and with it all
    messages of a batch, because of one number.
    """
    try:
        return int(digits)
    except ValueError:
        return float(digits)


def _object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MessageRejected(
            RejectionReason.NOT_A_MESSAGE,
            f"{name} is not a JSON object: send tasks with worker.client or with Celery",
        )
    return value


def _task_id(value: object) -> str:
    if isinstance(value, str) and 0 < len(value) <= _MAX_TASK_ID and value.isprintable():
        return value
    raise MessageRejected(
        RejectionReason.NOT_A_MESSAGE,
        "no task id in the headers: send tasks in Celery's protocol 2 (task_protocol=2)",
    )


def _task(value: object) -> str:
    if isinstance(value, str) and value in TASKS:
        return value
    raise MessageRejected(
        RejectionReason.UNKNOWN_TASK,
        f"task {str(value)[:80]!a} is unknown: send {' or '.join(TASKS)}",
    )


def _seconds(value: object) -> float | None:
    """Read a finite number of seconds; None for anything else, which does not refuse a message.

    Numbers in JSON have no limits: Python reads `1e999` and `Infinity` as infinite floats, and also
    integers that no float can hold.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) else None


def _duration(value: object) -> float | None:
    """Read a finite number of seconds that is not negative; None for anything else."""
    seconds = _seconds(value)
    return seconds if seconds is not None and seconds >= 0 else None


def _check_encoding(envelope: dict[str, Any], headers: dict[str, Any]) -> None:
    content_type = envelope.get("content-type")
    if content_type != "application/json":
        raise MessageRejected(
            RejectionReason.NOT_JSON,
            f"content type {str(content_type)[:80]!a}: send application/json",
        )
    if headers.get("compression"):
        raise MessageRejected(
            RejectionReason.NOT_JSON, "compressed: send it uncompressed (no task_compression)"
        )


def _body(body: object, encoding: object) -> bytes:
    if not isinstance(body, str):
        raise MessageRejected(RejectionReason.NOT_A_MESSAGE, "no body: send the task's arguments")
    if encoding == "base64":
        try:
            return base64.b64decode(body, validate=True)
        except ValueError:  # also for text that is not ASCII
            raise MessageRejected(RejectionReason.NOT_JSON, "the body is not base64") from None
    try:
        return body.encode()
    except UnicodeEncodeError:
        raise MessageRejected(
            RejectionReason.INVALID_UNICODE, "a lone surrogate: send UTF-8 text"
        ) from None
