"""Reasons why a message cannot be evaluated, and the dead letter that reports one.

Knows the fixed list of reasons and the form of a dead letter; not where dead letters are kept.
"""

import base64
from enum import StrEnum
from typing import Annotated, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

from schemas.errors import SQEHRMError


class RejectionReason(StrEnum):
    """The fixed list of reasons, which are also the values of the metric label `reason`."""

    NOT_JSON = "not_json"
    """The body is not JSON."""
    INVALID_UNICODE = "invalid_unicode"
    """The body holds invalid UTF-8 or a lone surrogate."""
    TOO_DEEP = "too_deep"
    """The body is nested more deeply than the parser allows."""
    TOO_LARGE = "too_large"
    """Prompt and completion together, a batch, or a whole item of a queue exceed their limit."""
    NOT_A_MESSAGE = "not_a_message"
    """The body is JSON, or a task, but not an SQE message."""
    UNKNOWN_TASK = "unknown_task"
    """The worker's queue held a task with another name."""
    UNSUPPORTED_OPTION = "unsupported_option"
    """The task has an option of Celery that workers do not support, or a value of one."""
    EXPIRED = "expired"
    """The time in the task's option `expires` had passed before the message's turn came."""
    UNSUPPORTED_VERSION = "unsupported_version"
    """The worker does not support this `schema_version`."""
    MISSING_FIELD = "missing_field"
    """A required field is absent."""
    UNKNOWN_FIELD = "unknown_field"
    """A field is not part of the contract."""
    EMPTY_TEXT = "empty_text"
    """Prompt or completion is empty; in conversion 2, also if it is white space alone."""
    WRONG_TYPE = "wrong_type"
    """A field has the wrong JSON type."""
    INVALID_VALUE = "invalid_value"
    """A field has the right type, but a value that is not allowed."""
    PUZZLE_OUT_OF_RANGE = "puzzle_out_of_range"
    """`puzzle_id` is beyond the checkpoint's puzzle table."""
    EVALUATION_FAILED = "evaluation_failed"
    """The message is valid, but the model gave no finite answer for it."""
    DELIVERED_TOO_OFTEN = "delivered_too_often"
    """Worker after worker ended while it evaluated this message and nothing else."""


class MessageRejected(SQEHRMError):
    """A message cannot be evaluated: `reason` is from the fixed list, `detail` is one line."""

    def __init__(self, reason: RejectionReason, detail: str) -> None:
        # Both are arguments of the exception, so that pickle and Celery can build it again.
        super().__init__(reason, detail)
        self.reason = RejectionReason(reason)
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"

    def as_value(self) -> Self:
        """Return this exception, to be kept, without the frames that it was raised in.

        They refer to it and to the message, so that only the search for cycles would free both.
        """
        self.__context__ = None
        return self.with_traceback(None)


class Rejection(BaseModel):
    """The answer to a message that was moved to the dead letters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    message_id: str | None = Field(
        description="The message's own id if it could be read, otherwise the task's id."
    )
    reason: RejectionReason
    detail: str = Field(description="One line that names the field and the fix.")


OriginalBytes = Annotated[
    bytes,
    BeforeValidator(lambda v: base64.b64decode(v, validate=True) if isinstance(v, str) else v),
    PlainSerializer(lambda raw: base64.b64encode(raw).decode(), when_used="json"),
    WithJsonSchema({"type": "string", "format": "base64"}),
]
"""Bytes in Python; base64 in JSON, which cannot hold every byte."""


class DeadLetter(Rejection):
    """A refused message with everything needed to fix and send it again.

    An entry of the stream has the same fields, except that `message_id` is empty instead of null,
    `body` holds the bytes themselves, and fields that are null are absent.
    """

    body: OriginalBytes = Field(description="The original bytes, as base64; a long body is cut.")
    original_bytes: int | None = Field(
        default=None, description="Number of original bytes, if `body` is only their beginning."
    )
    original_sha1: str | None = Field(
        default=None, description="SHA-1 of the original, if `body` is only its beginning."
    )
    queue: str = Field(description="The queue it came from.")
    worker: str = Field(description="Host name and process of the worker that refused it.")
    rejected_at: AwareDatetime
