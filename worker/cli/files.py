"""The files that commands read and write: progress, refused lines, errors in one line.

Knows paths, streams and the terminal; nothing of what the files contain.
"""

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import click
import rich.progress
from rich.console import Console

from hrm.data.files import BUFFER_BYTES, RefusedLine, replaced_file
from schemas import SQEHRMError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Report an `OSError` as a failure to read `path`."""
    try:
        yield
    except OSError as error:
        raise SQEHRMError(f"cannot read {path}: {error.strerror}") from None


@contextmanager
def read_with_progress(path: Path, description: str) -> Iterator[BinaryIO]:
    """Open `path` for reading, with a progress bar. Raises `SQEHRMError`."""
    with reading(path), open_with_progress(path, description) as source:
        yield source


@contextmanager
def open_with_progress(path: Path, description: str) -> Iterator[BinaryIO]:
    """Open `path` for reading, with a bar of the bytes read on stderr if that is a terminal."""
    with (
        rich.progress.open(
            path,
            "rb",
            buffering=0,
            description=description,
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        ) as raw,
        # The bar sits below the buffer, so that it sees blocks instead of every line.
        # `raw` is a raw stream, though declared as any binary file.
        io.BufferedReader(raw, BUFFER_BYTES) as source,  # type: ignore[type-var]
    ):
        yield source


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing. The file is replaced once everything is written.

    Raises `SQEHRMError`.
    """
    try:
        with replaced_file(path) as sink:
            yield sink
    except OSError as error:
        raise SQEHRMError(f"cannot write {path}: {error.strerror}") from None


def write_text(path: Path, text: str) -> None:
    """Write `text` and a line end to `path`. Raises `SQEHRMError`."""
    with writing(path) as sink:
        sink.write(text.encode() + b"\n")


def check_outputs(inputs: Sequence[Path | None], outputs: Sequence[Path | None]) -> None:
    """Make sure that no output is an input, and no two outputs are one file.

    Raises `UsageError`.
    """
    taken = {path.resolve() for path in inputs if path is not None}
    for path in outputs:
        if path is None:
            continue
        if path.resolve() in taken:
            raise click.UsageError(f"{path} is named twice: name another file to write")
        taken.add(path.resolve())


def check_rereadable(paths: Sequence[Path | None]) -> None:
    """Make sure that each of `paths` can be read more than once. Raises `UsageError`."""
    for path in paths:
        if path is not None and not path.is_file():
            raise click.UsageError(f"{path} is read several times: give a regular file")


def print_refused_line(path: Path, line: RefusedLine) -> None:
    """Print a refused line of `path` on stderr, in the form of a compiler's message."""
    click.echo(f"{path}:{line.number}: {line.reason}: {line.detail}", err=True)


def refused_line_printer(path: Path) -> Callable[[RefusedLine], None]:
    """`print_refused_line` for the lines of `path`."""
    return partial(print_refused_line, path)


def check_strict(path: Path, refused: int) -> None:
    """Fail if lines of `path` were refused: for `--strict`. Raises `SQEHRMError`."""
    if refused:
        raise SQEHRMError(f"{path}: {refused} refused: fix the lines named, or drop --strict")
