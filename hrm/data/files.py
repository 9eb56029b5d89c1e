"""JSONL files of messages: read line by line, checked, converted, written whole or not at all.

Knows lines, their numbers and why one is refused. Holds one line at a time and none beyond a byte
limit, so that files of any size and form pass in little memory. Knows nothing of terminals; what a
message becomes is `hrm.data.conversion`'s.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from hrm.data.conversion import Converter
from schemas import (
    DEFAULT_MAX_MESSAGE_BYTES,
    Category,
    HRMExample,
    MessageRejected,
    RejectionReason,
    SQEMessage,
    first_problem,
    parse_message,
)
from schemas.message import Text

BUFFER_BYTES = 1024 * 1024
"""Of a file that is read or written here: few system calls, and little memory."""

_LINE_BYTES_PER_TEXT_BYTE = 8
_ENVELOPE_BYTES = 64 * 1024
"""A line may take 8 bytes for each byte its texts may have, and this for the rest: more than
`parse_message` lets through (6 bytes, for `\\u0000`), so that no sound line is refused unread."""

_SCHEMA_VERSION_KEY = b'"schema_version"'

_EXAMPLE_KEY = b'"input_sequence"'

_ENVELOPE = {"schema_version": 1, "message_id": "line", "agent_id": "file"}
"""What makes a bare pair a message, so that one contract judges both."""

_ENVELOPE_FIELDS = SQEMessage.model_fields.keys() - {
    "prompt",
    "completion",
    "puzzle_id",
    "category",
}


class AcceptedPair(BaseModel):
    """A message without its envelope: what a file of accepted pairs holds a line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Text
    completion: Text
    puzzle_id: Annotated[int, Field(strict=True, ge=0)] | None = None
    category: Category | None = None


@dataclass(frozen=True, slots=True)
class RefusedLine:
    """A line that holds no message: its number (from 1), and why."""

    number: int
    reason: RejectionReason
    detail: str


@dataclass(frozen=True, slots=True)
class ConvertedFile:
    """How many messages were converted, and how many lines were refused by reason."""

    converted: int
    refused: Counter[RejectionReason]


Parsed = TypeVar("Parsed")


def read_messages(
    source: BinaryIO, *, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
) -> Iterator[tuple[int, SQEMessage | AcceptedPair | RefusedLine]]:
    """Every line of `source` that is not blank: its index (from 0), and the message or the refusal.

    Blank and refused lines count in the index. A message is a full SQE message or a bare pair.
    `max_message_bytes` bounds prompt and completion together (UTF-8).
    """
    parse = partial(parse_line, max_message_bytes=max_message_bytes)
    return read_lines(source, parse, max_message_bytes=max_message_bytes)


def read_lines(
    source: BinaryIO, parse: Callable[[bytes], Parsed], *, max_message_bytes: int
) -> Iterator[tuple[int, Parsed | RefusedLine]]:
    """`read_messages` with another `parse`, which raises `MessageRejected` to refuse a line."""
    limit = max_message_bytes * _LINE_BYTES_PER_TEXT_BYTE + _ENVELOPE_BYTES
    for index, line in enumerate(_bounded_lines(source, limit)):
        if line is None:
            detail = f"the line has over {limit} bytes: shorten its prompt or completion"
            yield index, RefusedLine(index + 1, RejectionReason.TOO_LARGE, detail)
            continue
        if line.isspace():
            continue
        try:
            yield index, parse(line)
        except MessageRejected as rejected:
            yield index, RefusedLine(index + 1, rejected.reason, rejected.detail)


def parse_line(
    line: bytes, *, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
) -> SQEMessage | AcceptedPair:
    """The full message or bare pair of one line.

    A line with any field of the envelope (`schema_version`, `message_id`, `agent_id`, `created_at`,
    `tags`) has to be a full message. Raises `MessageRejected` as `parse_message` does.
    """
    try:
        # A guess by a substring, which spares most lines a second parse; never wrong when it
        # succeeds, for no line is sound as both.
        if _SCHEMA_VERSION_KEY in line:
            return parse_message(line, max_bytes=max_message_bytes)
        pair = AcceptedPair.model_validate_json(line)
    except (MessageRejected, ValidationError):
        return _parse_by_fields(line, max_message_bytes)
    # No text is shorter in JSON than in UTF-8.
    return pair if len(line) <= max_message_bytes else _parse_by_fields(line, max_message_bytes)


def parse_line_or_example(
    line: bytes, *, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
) -> SQEMessage | AcceptedPair | HRMExample:
    """What `parse_line` gives, or the already converted example of one line.

    Raises `MessageRejected` for a line that is none of them.
    """
    if _EXAMPLE_KEY not in line:
        return parse_line(line, max_message_bytes=max_message_bytes)
    try:
        return HRMExample.model_validate_json(line)
    except ValidationError as invalid:
        problem = first_problem(invalid)
    if problem.kind == "json_invalid" or "input_sequence" not in from_json(line):
        # No JSON at all, or a message whose texts mention the key.
        return parse_line(line, max_message_bytes=max_message_bytes)
    raise MessageRejected(
        RejectionReason.NOT_A_MESSAGE,
        f"neither a message nor an HRM example: field {problem.field!a}: {problem.message}",
    )


def _parse_by_fields(line: bytes, max_message_bytes: int) -> SQEMessage | AcceptedPair:
    """`parse_line` without its short cuts."""
    try:
        fields = from_json(line)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or not _ENVELOPE_FIELDS.isdisjoint(fields):
        return parse_message(line, max_bytes=max_message_bytes)
    message = parse_message({**_ENVELOPE, **fields}, max_bytes=max_message_bytes)
    return AcceptedPair(
        prompt=message.prompt,
        completion=message.completion,
        puzzle_id=message.puzzle_id,
        category=message.category,
    )


def _bounded_lines(source: BinaryIO, limit: int) -> Iterator[bytes | None]:
    """The lines of `source`; None for one of over `limit` bytes, which is never held whole."""
    while line := source.readline(limit + 1):
        if len(line) <= limit or line.endswith(b"\n"):
            yield line
            continue
        while (rest := source.readline(BUFFER_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield None


def convert_file(
    source: BinaryIO,
    sink: BinaryIO,
    converter: Converter,
    *,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    on_refused: Callable[[RefusedLine], None],
) -> ConvertedFile:
    """Write the example of every message in `source` to `sink`, one JSON object a line.

    Each refused line goes to `on_refused` when it is met, and the rest goes on.
    """
    converted = 0
    refused: Counter[RejectionReason] = Counter()
    for index, content in read_messages(source, max_message_bytes=max_message_bytes):
        if isinstance(content, RefusedLine):
            refused[content.reason] += 1
            on_refused(content)
            continue
        example = converter.convert_to_json(
            content.prompt, content.completion, content.puzzle_id, index
        )
        sink.write(example.encode() + b"\n")
        converted += 1
    return ConvertedFile(converted, refused)


@contextmanager
def replaced_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when all went well.

    Until then, and for good after an exception, `path` stays what it was. What is there but no
    regular file (a pipe, a device) cannot be replaced and is written as it is.
    """
    target = path.resolve()  # a link stays a link
    if target.exists() and not target.is_file():
        with target.open("wb", buffering=BUFFER_BYTES) as file:
            yield file
        return
    # In the same folder, since a file is renamed at once on its own file system only.
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb", buffering=BUFFER_BYTES) as file:
            yield file
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
