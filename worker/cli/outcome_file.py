"""The file of outcomes that `sqe-hrm submit` writes: it grows line by line, and can be continued.

A line is an outcome with the number of its message's line before it. Knows outcomes and files;
nothing of queues or of how an outcome comes about.
"""

import hashlib
import itertools
import json
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from schemas import Rejection, SQEHRMError, Verdict

Write = Callable[[int, Verdict | Rejection], None]
"""Writes the outcome of a line, given by its number, from 1."""


class OutcomeFileError(SQEHRMError):
    """The file of outcomes cannot be used."""


class AnsweredLines:
    """The lines that have an outcome, with the ids of their messages.

    Takes eight bytes for each line of the file, about a hundredth of the outcome's.
    """

    def __init__(self) -> None:
        self._fingerprints = array("Q")

    def add(self, number: int, message_id: str | None) -> None:
        """Note the outcome of a line."""
        missing = number - len(self._fingerprints)
        self._fingerprints.extend(itertools.repeat(0, max(0, missing)))
        self._fingerprints[number - 1] = _fingerprint(message_id)

    def has(self, number: int, message_id: str) -> bool:
        """Whether this message at this line has an outcome.

        Raises `OutcomeFileError` if the line has the outcome of another message.
        """
        known = self._fingerprints[number - 1] if number <= len(self._fingerprints) else 0
        if known not in {0, _fingerprint(message_id)}:
            raise OutcomeFileError(
                f"line {number} has the outcome of another message: give the --data-path and "
                "--agent-id that --output was made with, or drop --resume"
            )
        return known != 0


def _fingerprint(message_id: str | None) -> int:
    """Map a message id to 64 bits; 0 is for lines without an outcome."""
    return int.from_bytes(hashlib.sha256(str(message_id).encode()).digest()[:8]) or 1


def read_outcomes(path: Path) -> Iterator[tuple[int, Verdict | Rejection]]:
    """Yield the lines' numbers and outcomes, then cut off an incomplete last line.

    Raises `OutcomeFileError`, also for a line that is not an outcome. A missing file has none.
    """
    with _reporting(path), path.open("ab+") as file:
        file.seek(0)
        complete = 0
        for place, text in enumerate(file, start=1):
            if not text.endswith(b"\n"):
                break
            yield _parse(text, f"{path}:{place}")
            complete += len(text)
        file.truncate(complete)


class _Number(BaseModel):
    """The number of a line, beside the fields of an outcome."""

    line: Annotated[int, Field(strict=True, ge=1)]


def _parse(text: bytes, place: str) -> tuple[int, Verdict | Rejection]:
    try:
        number = _Number.model_validate_json(text).line
        fields = json.loads(text)
        del fields["line"]
        return number, (Rejection if "reason" in fields else Verdict).model_validate(fields)
    except ValueError:
        raise OutcomeFileError(
            f"{place}: not a line's outcome: give the --output of an earlier run, or drop --resume"
        ) from None


@contextmanager
def appending(path: Path, *, anew: bool) -> Iterator[Write]:
    """Yield a function that adds an outcome to the file at once.

    With `anew`, what was in the file stays until the first outcome is written or the block
    succeeds: a run that receives nothing destroys nothing. Raises `OutcomeFileError`.
    """
    with _reporting(path):
        # Unbuffered: however this process ends, the file has every outcome that was written.
        file = path.open("ab", buffering=0)
        outdated = anew and path.is_file()  # a pipe or device has no earlier outcomes

    def write(text: bytes) -> None:
        nonlocal outdated
        with _reporting(path):
            if outdated:
                file.truncate(0)
                outdated = False
            file.write(text)

    # Only these steps are reported: an error inside the block is not one of the file.
    with file:
        yield lambda number, outcome: write(
            f'{{"line":{number},{outcome.model_dump_json()[1:]}\n'.encode()
        )
        write(b"")


@contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Report an `OSError` as a failure to write `path`."""
    try:
        yield
    except OSError as error:
        raise OutcomeFileError(f"cannot write {path}: {error.strerror}") from None
