"""The envelope in a queue: Celery's task message (protocol 2) as kombu puts it into Redis.

Takes only what this worker uses out of it and refuses everything else with a reason, so that no
item of a queue, whatever it is, reaches Celery's own code unchecked. Knows nothing of SQE messages.
"""

import base64
import json
from dataclasses import dataclass
from typing import Any

from schemas import MessageRejected, RejectionReason
from worker.app import ENQUEUED_AT, TASKS

_MAX_TASK_ID = 255
"""Characters: Celery's ids are UUIDs of 36; an id becomes part of a Redis key."""


class EnvelopeRejected(MessageRejected):
    """No task of this worker. `task_id` is set where one could be read, for whoever waits on it."""

    def __init__(self, reason: RejectionReason, detail: str, task_id: str | None = None) -> None:
        super().__init__(reason, detail)
        self.task_id = task_id


@dataclass(frozen=True, slots=True)
class Envelope:
    """One delivery of one task."""

    task: str
    task_id: str
    queue: str
    body: bytes
    """The task's arguments as sent: the JSON text `[args, kwargs, embed]`."""
    enqueued_at: float | None
    """Unix seconds; None from producers that do not say."""
    keep_result: bool
    """Whether the sender wants the outcome under the task's id, too."""


def read_envelope(item: bytes, queue: str) -> Envelope:
    """The envelope that `item` of `queue` holds. Raises `EnvelopeRejected`."""
    envelope = _object(read_json(item), "the item")
    properties = _object(envelope.get("properties"), "'properties'")
    headers = _object(envelope.get("headers"), "'headers'")
    task_id = _task_id(headers.get("id"))
    try:
        _check_encoding(envelope, headers)
        body = _body(envelope.get("body"), properties.get("body_encoding"))
    except MessageRejected as rejected:
        raise EnvelopeRejected(rejected.reason, rejected.detail, task_id) from None
    task = headers.get("task")
    if task not in TASKS:
        raise EnvelopeRejected(
            RejectionReason.UNKNOWN_TASK,
            f"task {str(task)[:80]!a}, but this worker has {' and '.join(TASKS)}",
            task_id,
        )
    enqueued_at = headers.get(ENQUEUED_AT)
    return Envelope(
        task=task,
        task_id=task_id,
        queue=queue,
        body=body,
        enqueued_at=float(enqueued_at) if isinstance(enqueued_at, int | float) else None,
        keep_result=headers.get("ignore_result") is not True,
    )


def read_json(text: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """The value of a JSON text. Raises `MessageRejected` for what is none."""
    try:
        return json.loads(text.decode())
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


def _object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MessageRejected(
            RejectionReason.NOT_A_MESSAGE,
            f"{name} is no JSON object: send tasks with worker.client or with Celery",
        )
    return value


def _task_id(value: object) -> str:
    if isinstance(value, str) and 0 < len(value) <= _MAX_TASK_ID and value.isprintable():
        return value
    raise MessageRejected(
        RejectionReason.NOT_A_MESSAGE,
        "no task id in the headers: send tasks in Celery's protocol 2 (task_protocol=2)",
    )


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
        except ValueError:  # also what is no ASCII
            raise MessageRejected(RejectionReason.NOT_JSON, "the body is not base64") from None
    try:
        return body.encode()
    except UnicodeEncodeError:
        raise MessageRejected(
            RejectionReason.INVALID_UNICODE, "a lone surrogate: send UTF-8 text"
        ) from None
