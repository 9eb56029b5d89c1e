"""The two streams that operators read, failures and dead letters, as typed records.

Knows how a record becomes the fields of a stream entry, and back. `worker.delivery.outcomes`
decides when a record is stored and how many are kept.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import redis
from pydantic import BaseModel, ConfigDict, ValidationError

from schemas import DeadLetter, SQEHRMError, SQEMessage, Verdict, first_problem
from worker.broker.keys import DEAD_LETTERS, FAILURES

PAGE = 100
"""Entries per XRANGE. An entry is a few kilobytes, or megabytes if its message was too large."""

T = TypeVar("T")


class StreamEntryError(SQEHRMError):
    """A stream entry that this project did not write."""


class Failure(BaseModel):
    """An unsolved message: its verdict, and the message itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    message: SQEMessage


def stream_of(record: Failure | DeadLetter) -> str:
    """Name the stream that keeps `record`."""
    return FAILURES if isinstance(record, Failure) else DEAD_LETTERS


def fields_of(record: Failure | DeadLetter) -> dict[str, str | bytes]:
    """Build the stream entry of `record`: flat fields, as `redis-cli` shows them."""
    if isinstance(record, DeadLetter):
        return {
            "reason": record.reason,
            "detail": record.detail,
            "message_id": record.message_id or "",
            "queue": record.queue,
            "worker": record.worker,
            "rejected_at": record.rejected_at.isoformat(),
            "body": record.body,
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
        "message": record.message.model_dump_json(exclude_none=True),
    }


def read_failures(client: redis.Redis) -> Iterator[Failure]:
    """Read every failure that is kept, the oldest first. Raises `StreamEntryError`."""
    return _read(client, FAILURES, _failure)


def read_dead_letters(client: redis.Redis) -> Iterator[DeadLetter]:
    """Read every dead letter that is kept, the oldest first. Raises `StreamEntryError`."""
    return _read(client, DEAD_LETTERS, _dead_letter)


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
    )


def _dead_letter(fields: dict[str, bytes]) -> DeadLetter:
    texts = {name: value.decode() for name, value in fields.items() if name != "body"}
    return DeadLetter.model_validate(
        {**texts, "message_id": texts["message_id"] or None, "body": fields["body"]}
    )


def _problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return str(first_problem(error))
    return f"no field {error}" if isinstance(error, KeyError) else str(error)
