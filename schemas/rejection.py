"""Why a message cannot be evaluated, and the letter that says so.

Knows the fixed list of reasons and the dead letter's form; not where letters are kept.
"""

from enum import StrEnum

from pydantic import AwareDatetime, Base64Bytes, BaseModel, ConfigDict, Field

from schemas.errors import SQEHRMError


class RejectionReason(StrEnum):
    """The fixed list: also the values of the metric label `reason`."""

    NOT_JSON = "not_json"
    """The body is not JSON."""
    INVALID_UNICODE = "invalid_unicode"
    """Invalid UTF-8, or a lone surrogate."""
    TOO_DEEP = "too_deep"
    """Nested deeper than the parser goes."""
    TOO_LARGE = "too_large"
    """Prompt and completion exceed the byte limit."""
    NOT_A_MESSAGE = "not_a_message"
    """JSON, or a task, but no SQE message at all."""
    UNKNOWN_TASK = "unknown_task"
    """A task of another name in this worker's queue."""
    UNSUPPORTED_VERSION = "unsupported_version"
    """`schema_version` is one this worker does not speak."""
    MISSING_FIELD = "missing_field"
    """A required field is absent."""
    UNKNOWN_FIELD = "unknown_field"
    """A field that the contract does not have."""
    EMPTY_TEXT = "empty_text"
    """Prompt or completion without a character."""
    WRONG_TYPE = "wrong_type"
    """A field of another JSON type."""
    INVALID_VALUE = "invalid_value"
    """A field of the right type whose value breaks its rule."""
    PUZZLE_OUT_OF_RANGE = "puzzle_out_of_range"
    """`puzzle_id` is beyond the checkpoint's puzzle table."""
    EVALUATION_FAILED = "evaluation_failed"
    """The message is sound, but the model gave no finite answer for it."""


class MessageRejected(SQEHRMError):
    """A message that cannot be evaluated: `reason` from the fixed list, `detail` in one line."""

    def __init__(self, reason: RejectionReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Rejection(BaseModel):
    """The answer to a message that went to the dead letters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    message_id: str | None = Field(
        description="The message's own id where one could be read, else the task's."
    )
    reason: RejectionReason
    detail: str = Field(description="One line that names the field and the mend.")


class DeadLetter(Rejection):
    """A refused message with everything needed to mend and send it again."""

    body: Base64Bytes = Field(description="The original bytes.")
    queue: str | None = Field(description="The queue it came from.")
    worker: str = Field(description="Host name and process of the worker that refused it.")
    rejected_at: AwareDatetime
