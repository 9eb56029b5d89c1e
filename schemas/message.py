"""The SQE message, version 1, which an agent enqueues.

Knows the form of a message and how to refuse one; nothing of tokens, models or queues.
"""

import json
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)
from pydantic_core import ErrorDetails

from schemas.categories import Category
from schemas.errors import field_name
from schemas.rejection import MessageRejected, RejectionReason

DEFAULT_MAX_MESSAGE_BYTES = 256 * 1024
"""Limit of prompt and completion together, in bytes of UTF-8. It is far above any completion seen
(the longest real example has 2 kB) and low enough that a queue of messages fits in a broker's
memory."""

_ENVELOPE_BYTES = 64 * 1024
"""Bytes allowed for the rest of a message's JSON: field names, identifiers and tags."""

_JSON_ESCAPE_FACTOR = 6
"""Characters in the longest JSON form of one byte of text (`\\u0000`)."""

_RFC3339 = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)


def _rfc3339(value: object) -> object:
    """Refuse values that pydantic would also read as a time, such as seconds since 1970."""
    if isinstance(value, datetime) or (isinstance(value, str) and _RFC3339.fullmatch(value)):
        return value
    raise ValueError("not an RFC 3339 time with offset, such as 2026-01-31T12:00:00Z")


def _no_boolean(value: object) -> object:
    """Refuse `true`, which Python considers equal to 1."""
    if isinstance(value, bool):
        raise ValueError("not a number")  # noqa: TRY004 - pydantic reports a ValueError
    return value


Identifier = Annotated[
    str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9._:-]{1,128}$", max_length=128)
]
Text = Annotated[str, StringConstraints(strict=True, min_length=1)]
TagKey = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=64)]
TagValue = Annotated[str, StringConstraints(strict=True, max_length=256)]


class SQEMessage(BaseModel):
    """A prompt and the completion that an SQE agent gave for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Annotated[Literal[1], BeforeValidator(_no_boolean)] = Field(
        description="Version of the message contract."
    )
    message_id: Identifier = Field(
        description="Unique id, by which the outcome is looked up. Sending it again discards the "
        "stored outcome: do so only with the same text, and once that outcome has arrived."
    )
    agent_id: Identifier = Field(description="The agent that wrote the completion.")
    prompt: Text = Field(description="The question or task given to the agent.")
    completion: Text = Field(description="The agent's answer.")
    puzzle_id: Annotated[int, Field(strict=True, ge=0)] | None = Field(
        default=None,
        description="Row of the checkpoint's puzzle table; if absent, the puzzle policy chooses.",
    )
    task: Identifier | None = Field(
        default=None,
        description="Name of the task that the prompt is one of many of. A checkpoint that was "
        "trained on the task has a row for it and judges new prompts of it; to another, it is as "
        "if absent. `puzzle_id` goes before it.",
    )
    category: Category | None = Field(
        default=None,
        description="Content category; if absent, it is derived from the prompt's words.",
    )
    created_at: Annotated[AwareDatetime, BeforeValidator(_rfc3339)] | None = Field(
        default=None,
        description="Time at which the agent wrote the message: RFC 3339 with offset.",
    )
    tags: Annotated[dict[TagKey, TagValue], Field(max_length=16)] | None = Field(
        default=None,
        description="Up to 16 key-value pairs for the agent's own use; never a metric label.",
    )

    @classmethod
    def create(cls, *, agent_id: str, prompt: str, completion: str, **optional: Any) -> Self:  # noqa: ANN401
        """Create a message, with `message_id` (a UUID) and `created_at` (now) filled in.

        Raises:
            MessageRejected: A field breaks the contract.
        """
        fields = {
            "schema_version": 1,
            "message_id": str(uuid.uuid4()),
            "created_at": datetime.now(UTC),
            "agent_id": agent_id,
            "prompt": prompt,
            "completion": completion,
            **optional,
        }
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise _rejection(error) from None


def parse_message(
    body: bytes | str | Mapping[str, Any], *, max_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
) -> SQEMessage:
    """Parse and check a message.

    Args:
        body: JSON text, its UTF-8 bytes, or the decoded object.
        max_bytes: Limit of prompt and completion together, in bytes of UTF-8.

    Raises:
        MessageRejected: With the reason, and a one-line detail that names the field and the fix.
    """
    try:
        text = body.decode() if isinstance(body, bytes) else _to_text(body)
        length = len(body) if isinstance(body, bytes) else len(text.encode())
    except UnicodeError:
        raise MessageRejected(
            RejectionReason.INVALID_UNICODE, "not valid UTF-8 or a lone surrogate: send UTF-8 text"
        ) from None
    # Checked before parsing, so that a huge body costs no more than its transfer.
    if length > max_bytes * _JSON_ESCAPE_FACTOR + _ENVELOPE_BYTES:
        raise _too_large(length, max_bytes)
    try:
        message = SQEMessage.model_validate_json(text)
    except ValidationError as error:
        raise _rejection(error) from None
    # No text has more bytes than its JSON.
    if length > max_bytes:
        size = len(message.prompt.encode()) + len(message.completion.encode())
        if size > max_bytes:
            raise _too_large(size, max_bytes)
    return message


def _to_text(body: str | Mapping[str, Any]) -> str:
    if isinstance(body, str):
        return body
    try:
        return json.dumps(body)
    except RecursionError:
        raise MessageRejected(
            RejectionReason.TOO_DEEP, "nested too deeply: send flat fields"
        ) from None
    except (TypeError, ValueError) as error:
        raise MessageRejected(RejectionReason.NOT_JSON, f"not JSON: {error}") from None


def _too_large(size: int, max_bytes: int) -> MessageRejected:
    return MessageRejected(
        RejectionReason.TOO_LARGE,
        f"{size} bytes, but prompt and completion may have {max_bytes} together: shorten them",
    )


def _rejection(error: ValidationError) -> MessageRejected:
    problems = [(_reason(problem), _describe(problem)) for problem in error.errors()]
    order = list(RejectionReason)
    problems.sort(key=lambda problem: order.index(problem[0]))
    shown = [detail for _, detail in problems[:_MAX_PROBLEMS]]
    if len(problems) > _MAX_PROBLEMS:
        shown.append(f"and {len(problems) - _MAX_PROBLEMS} more")
    return MessageRejected(problems[0][0], "; ".join(shown))


_MAX_PROBLEMS = 5
"""Problems listed in a detail, which is one line: a message may have a thousand unknown fields."""

_REASONS = {
    "missing": RejectionReason.MISSING_FIELD,
    "extra_forbidden": RejectionReason.UNKNOWN_FIELD,
    "string_unicode": RejectionReason.INVALID_UNICODE,
    "model_type": RejectionReason.NOT_A_MESSAGE,
    "model_attributes_type": RejectionReason.NOT_A_MESSAGE,
}

_FIXES = {
    RejectionReason.MISSING_FIELD: "add it",
    RejectionReason.UNKNOWN_FIELD: "remove it, or put it under tags",
}


def _reason(problem: ErrorDetails) -> RejectionReason:
    kind, location = problem["type"], problem["loc"]
    if kind == "json_invalid":
        return _reason_of_invalid_json(problem["msg"])
    if kind in _REASONS:
        return _REASONS[kind]
    if location[:1] == ("schema_version",):
        return RejectionReason.UNSUPPORTED_VERSION
    if kind == "string_too_short" and location in {("prompt",), ("completion",)}:
        return RejectionReason.EMPTY_TEXT
    return RejectionReason.WRONG_TYPE if kind.endswith("_type") else RejectionReason.INVALID_VALUE


def _reason_of_invalid_json(message: str) -> RejectionReason:
    # The parser reports all three as invalid JSON; only its message tells them apart.
    if "recursion" in message:
        return RejectionReason.TOO_DEEP
    # A lone surrogate such as "\ud800" is reported as a missing second half of a pair.
    if "surrogate" in message or "hex escape" in message:
        return RejectionReason.INVALID_UNICODE
    return RejectionReason.NOT_JSON


def _describe(problem: ErrorDetails) -> str:
    reason = _reason(problem)
    name = field_name(problem["loc"])
    # !a keeps control characters and surrogates out of logs and JSON.
    text = f"field {name!a}: {problem['msg']}" if name else problem["msg"]
    fix = _FIXES.get(reason)
    return f"{text}: {fix}" if fix else text
