"""JSONL files of messages and examples: read line by line, converted, written atomically.

Knows lines, their numbers and why one is refused. Holds one line at a time and none beyond a byte
limit, so that files of any size and form are read in little memory. Knows nothing of terminals;
how a message becomes an example is in `hrm.data.conversion`.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Self, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from hrm.data.conversion import AcceptedPair, Content, Converter
from schemas import (
    DEFAULT_MAX_MESSAGE_BYTES,
    HRMExample,
    MessageRejected,
    RejectionReason,
    SQEMessage,
    first_problem,
    parse_message,
)

BUFFER_BYTES = 1024 * 1024
"""Buffer of a file that is read or written here: few system calls, and little memory."""

_LINE_BYTES_PER_TEXT_BYTE = 8
_ENVELOPE_BYTES = 64 * 1024
"""A line may take 8 bytes for each byte its texts may have, and this many for the rest: more than
`parse_message` lets through (6 bytes, for `\\u0000`), so that no sound line is refused unread."""

_SCHEMA_VERSION_KEY = b'"schema_version"'

_EXAMPLE_KEY = b'"input_sequence"'

_ENVELOPE = {"schema_version": 1, "message_id": "line", "agent_id": "file"}
"""Fields that make a bare pair a message, so that one contract judges both."""

_ALTERNATIVE = "alternative"
"""The field of a bare pair that no message has."""

_ENVELOPE_FIELDS = SQEMessage.model_fields.keys() - AcceptedPair.model_fields.keys()


@dataclass(frozen=True, slots=True)
class RefusedLine:
    """A line without usable content: its number (from 1) and the reason."""

    number: int
    reason: RejectionReason
    detail: str

    @classmethod
    def of(cls, index: int, rejected: MessageRejected) -> Self:
        """The refusal of the line with `index` (from 0)."""
        return cls(index + 1, rejected.reason, rejected.detail)


@dataclass(frozen=True, slots=True)
class ConvertedFile:
    """Number of messages converted, and of lines refused, by reason."""

    converted: int
    refused: Counter[RejectionReason]


Judged = TypeVar("Judged")


class LineReader:
    """Reads JSONL files line by line and judges what each line holds, within one limit.

    A line holds a full SQE message, a bare pair or an already converted example. Its index counts
    from 0 and includes blank and refused lines. `max_message_bytes` bounds a prompt and its
    completion together (UTF-8).
    """

    def __init__(self, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> None:
        self._max_message_bytes = max_message_bytes
        self._max_line_bytes = max_message_bytes * _LINE_BYTES_PER_TEXT_BYTE + _ENVELOPE_BYTES

    def messages(
        self, source: BinaryIO
    ) -> Iterator[tuple[int, SQEMessage | AcceptedPair | RefusedLine]]:
        """The index of every non-blank line, with its message or pair, or its refusal."""
        return self._judged(source, self.message)

    def contents(self, source: BinaryIO) -> Iterator[tuple[int, Content | RefusedLine]]:
        """The same as `messages`, for lines that may also hold converted examples."""
        return self._judged(source, self.content)

    def lines(self, source: BinaryIO) -> Iterator[tuple[int, bytes]]:
        """The index and the bytes of every non-blank line.

        A line that is too long is cut, so that it is never held whole; `message` and `content`
        refuse what is left of it.
        """
        read = partial(source.readline, self._max_line_bytes + 1)
        for index, line in enumerate(iter(read, b"")):
            if self._is_too_long(line):
                _skip_rest(source, line)
            elif line.isspace():
                continue
            yield index, line

    def message(self, line: bytes) -> SQEMessage | AcceptedPair:
        """The full message or bare pair of one line.

        A line with any field of the envelope (`schema_version`, `message_id`, `agent_id`,
        `created_at`, `tags`) has to be a full message. Raises `MessageRejected` for the reasons of
        `parse_message`.
        """
        self._check_length(line)
        try:
            # A guess by a substring, which spares most lines a second parse. It is never wrong
            # when it succeeds, because no line is sound as both.
            if _SCHEMA_VERSION_KEY in line:
                return parse_message(line, max_bytes=self._max_message_bytes)
            pair = AcceptedPair.model_validate_json(line)
        except (MessageRejected, ValidationError):
            return self._message_by_fields(line)
        # No text is shorter in JSON than in UTF-8.
        return pair if len(line) <= self._max_message_bytes else self._message_by_fields(line)

    def content(self, line: bytes) -> Content:
        """The full message, bare pair or converted example of one line.

        Raises `MessageRejected` for a line that is none of them.
        """
        if _EXAMPLE_KEY not in line:
            return self.message(line)
        self._check_length(line)
        try:
            return HRMExample.model_validate_json(line)
        except ValidationError as invalid:
            problem = first_problem(invalid)
        if problem.kind == "json_invalid" or "input_sequence" not in from_json(line):
            # No JSON at all, or a message whose texts mention the key.
            return self.message(line)
        raise MessageRejected(
            RejectionReason.NOT_A_MESSAGE,
            f"neither a message nor an HRM example: field {problem.field!a}: {problem.message}",
        )

    def _judged(
        self, source: BinaryIO, judge: Callable[[bytes], Judged]
    ) -> Iterator[tuple[int, Judged | RefusedLine]]:
        for index, line in self.lines(source):
            try:
                yield index, judge(line)
            except MessageRejected as rejected:
                yield index, RefusedLine.of(index, rejected)

    def _message_by_fields(self, line: bytes) -> SQEMessage | AcceptedPair:
        """`message` without its short cuts."""
        try:
            fields = from_json(line)
        except ValueError:
            fields = None
        if not isinstance(fields, dict) or not _ENVELOPE_FIELDS.isdisjoint(fields):
            return parse_message(line, max_bytes=self._max_message_bytes)
        alternative = fields.pop(_ALTERNATIVE, False)
        if not isinstance(alternative, bool):
            raise MessageRejected(
                RejectionReason.WRONG_TYPE,
                f"field '{_ALTERNATIVE}': Input should be a valid boolean: give true or false",
            )
        message = parse_message({**_ENVELOPE, **fields}, max_bytes=self._max_message_bytes)
        return AcceptedPair(
            prompt=message.prompt,
            completion=message.completion,
            puzzle_id=message.puzzle_id,
            task=message.task,
            category=message.category,
            alternative=alternative,
        )

    def _check_length(self, line: bytes) -> None:
        if self._is_too_long(line):
            raise MessageRejected(
                RejectionReason.TOO_LARGE,
                f"the line has over {self._max_line_bytes} bytes: shorten its prompt or completion",
            )

    def _is_too_long(self, line: bytes) -> bool:
        return len(line) > self._max_line_bytes


DEFAULT_READER = LineReader()
"""The reader with the default limit."""


def _skip_rest(source: BinaryIO, beginning: bytes) -> None:
    """Read past the end of the line that begins with `beginning`."""
    part = beginning
    while part and not part.endswith(b"\n"):
        part = source.readline(BUFFER_BYTES)


def convert_file(
    source: BinaryIO,
    sink: BinaryIO,
    converter: Converter,
    *,
    reader: LineReader = DEFAULT_READER,
    on_refused: Callable[[RefusedLine], None],
) -> ConvertedFile:
    """Write the example of every message in `source` to `sink`, one JSON object per line.

    Args:
        source: The JSONL file of messages and bare pairs.
        sink: The file of examples.
        converter: Turns messages into examples.
        reader: Reads and judges the lines.
        on_refused: Called with each refused line when it is met; later lines are still converted.
    """
    converted = 0
    refused: Counter[RejectionReason] = Counter()

    def refuse(line: RefusedLine) -> None:
        refused[line.reason] += 1
        on_refused(line)

    for index, content in reader.messages(source):
        if isinstance(content, RefusedLine):
            refuse(content)
            continue
        try:
            example = converter.convert_to_json(
                content.prompt, content.completion, converter.named_puzzle(content), index
            )
        except MessageRejected as rejected:
            refuse(RefusedLine.of(index, rejected))
            continue
        sink.write(example.encode() + b"\n")
        converted += 1
    return ConvertedFile(converted, refused)


@contextmanager
def replaced_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` on success.

    Until then, and after an exception, `path` stays as it was. A pipe or device cannot be replaced
    and is written in place.
    """
    target = path.resolve()  # a link stays a link
    if target.exists() and not target.is_file():
        with target.open("wb", buffering=BUFFER_BYTES) as file:
            yield file
        return
    # In the same folder, because a rename is atomic only within one file system.
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb", buffering=BUFFER_BYTES) as file:
            yield file
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
