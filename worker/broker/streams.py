"""The two streams that operators read, failures and dead letters, as typed records.

Knows how a record becomes the fields of a stream entry, and back. `worker.delivery.outcomes`
decides when a record is stored, and `worker.delivery.evidence` which are kept.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

import redis
from pydantic import BaseModel, ConfigDict, ValidationError

from schemas import DeadLetter, SQEHRMError, SQEMessage, Verdict, first_problem
from worker.broker.keys import DEAD_LETTERS, FAILURES, NO_NAMESPACE, Namespace

PAGE = 100
"""Entries per XRANGE. An entry is a few kilobytes, or up to 100 if its message was large."""

KEPT_BYTES = 64 * 1024
"""Longest body or message that an entry keeps whole, so that one of them is a small part of its
stream's bytes. The longest real message has 2 kB."""

KEPT_CHARACTERS = 4096
"""Characters that are kept of prompt and completion of a longer message. The model reads only the
first words of each."""

T = TypeVar("T")


class StreamEntryError(SQEHRMError):
    """A stream entry that this project did not write."""


@dataclass(frozen=True, slots=True)
class Original:
    """Length and hash of a body or message that an entry keeps only the beginning of."""

    length: int
    """Number of bytes."""
    sha1: str

    @classmethod
    def of(cls, content: bytes) -> Self:
        """Describe `content`."""
        return cls(len(content), hashlib.sha1(content, usedforsecurity=False).hexdigest())


class Failure(BaseModel):
    """An unsolved message: its verdict, and the message itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    message: SQEMessage
    original_bytes: int | None = None
    """Length of the message's JSON text, if prompt and completion were cut."""
    original_sha1: str | None = None
    """SHA-1 of the message's JSON text, if prompt and completion were cut."""
    left_out: int = 0
    """Failures of the same agent and pattern in the same hour that were not kept between the one
    before and this one. The script that adds the entry knows, so it is only read."""

    @classmethod
    def of(cls, verdict: Verdict, message: SQEMessage) -> Self:
        """Keep `message`, or the beginning of its texts if it is longer than `KEPT_BYTES`."""
        text = _text(message).encode()
        if len(text) <= KEPT_BYTES:
            return cls(verdict=verdict, message=message)
        original = Original.of(text)
        cut = {
            "prompt": message.prompt[:KEPT_CHARACTERS],
            "completion": message.completion[:KEPT_CHARACTERS],
        }
        return cls(
            verdict=verdict,
            message=message.model_copy(update=cut),
            original_bytes=original.length,
            original_sha1=original.sha1,
        )


def stream_of(record: Failure | DeadLetter) -> str:
    """Name the stream that keeps `record`."""
    return FAILURES if isinstance(record, Failure) else DEAD_LETTERS


def fields_of(record: Failure | DeadLetter) -> dict[str, str | bytes]:
    """Build the stream entry of `record`: flat fields, as `redis-cli` shows them."""
    original: dict[str, str | bytes] = {}
    if record.original_bytes is not None and record.original_sha1 is not None:
        original = {
            "original_bytes": str(record.original_bytes),
            "original_sha1": record.original_sha1,
        }
    if isinstance(record, DeadLetter):
        return {
            "reason": record.reason,
            "detail": record.detail,
            "message_id": record.message_id or "",
            "queue": record.queue,
            "worker": record.worker,
            "rejected_at": record.rejected_at.isoformat(),
            "body": record.body,
            **original,
        }
    verdict = record.verdict
    return {
        "message_id": verdict.message_id,
        "agent_id": verdict.agent_id,
        "checkpoint": verdict.checkpoint,
        "failure_pattern": str(verdict.failure_pattern),
        "text": verdict.text,
        "category": verdict.category,
        "evaluated_at": verdict.evaluated_at.isoformat(),
        "verdict": verdict.model_dump_json(),
        "message": _text(record.message),
        **original,
    }


def read_failures(client: redis.Redis, namespace: Namespace = NO_NAMESPACE) -> Iterator[Failure]:
    """Read every failure that is kept, the oldest first. Raises `StreamEntryError`."""
    return _read(client, namespace.key(FAILURES), _failure)


def read_dead_letters(
    client: redis.Redis, namespace: Namespace = NO_NAMESPACE
) -> Iterator[DeadLetter]:
    """Read every dead letter that is kept, the oldest first. Raises `StreamEntryError`."""
    return _read(client, namespace.key(DEAD_LETTERS), _dead_letter)


def entries_added(client: redis.Redis, stream: str) -> int:
    """Count the entries ever added to `stream`, including those that were trimmed since."""
    if not client.exists(stream):
        return 0
    return int(client.xinfo_stream(stream)["entries-added"])


def _read(client: redis.Redis, stream: str, parse: Callable[[dict[str, bytes]], T]) -> Iterator[T]:
    start = "-"
    while page := cast("list[tuple[bytes, Any]]", client.xrange(stream, min=start, count=PAGE)):
        for entry_id, fields in page:
            try:
                yield parse({name.decode(): value for name, value in fields.items()})
            except (KeyError, ValueError) as error:
                name = entry_id.decode()
                raise StreamEntryError(
                    f"entry {name} of {stream} is not one of a worker ({_problem(error)}): "
                    f"remove it with XDEL {stream} {name}"
                ) from None
        start = f"({page[-1][0].decode()}"


def _failure(fields: dict[str, bytes]) -> Failure:
    return Failure(
        verdict=Verdict.model_validate_json(fields["verdict"]),
        message=SQEMessage.model_validate_json(fields["message"]),
        original_bytes=int(fields["original_bytes"]) if "original_bytes" in fields else None,
        original_sha1=fields["original_sha1"].decode() if "original_sha1" in fields else None,
        left_out=int(fields.get("left_out", 0)),
    )


def _dead_letter(fields: dict[str, bytes]) -> DeadLetter:
    texts = {name: value.decode() for name, value in fields.items() if name != "body"}
    return DeadLetter.model_validate(
        {**texts, "message_id": texts["message_id"] or None, "body": fields["body"]}
    )


def _text(message: SQEMessage) -> str:
    return message.model_dump_json(exclude_none=True)


def _problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return str(first_problem(error))
    return f"no field {error}" if isinstance(error, KeyError) else str(error)
